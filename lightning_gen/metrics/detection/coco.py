"""The 80 object classes of COCO in the order of the networks' outputs, and the names that people give them.

The position decides, never the name: checkpoints spell their labels in several ways, and GenEval renames three classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

__all__ = ["COCO_NAMES", "GENEVAL_NAMES", "coco_index", "coco_indexes"]

COCO_NAMES: Final[tuple[str, ...]] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""Names of COCO's instance annotations; the position is the class index of a detector with 80 classes."""

_GENEVAL: Final = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}

GENEVAL_NAMES: Final[tuple[str, ...]] = tuple(_GENEVAL.get(name, name) for name in COCO_NAMES)
"""The same classes as GenEval's prompts and its ``object_names.txt`` spell them."""

# Spellings of older label files (VOC, Darknet) and of everyday language: alias -> COCO's name.
_ALIASES: Final = {
    "aeroplane": "airplane",
    "bike": "bicycle",
    "cellphone": "cell phone",
    "computer keyboard": "keyboard",
    "computer mouse": "mouse",
    "diningtable": "dining table",
    "doughnut": "donut",
    "fridge": "refrigerator",
    "hair dryer": "hair drier",
    "hotdog": "hot dog",
    "mobile phone": "cell phone",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "remote control": "remote",
    "sofa": "couch",
    "television": "tv",
    "tv monitor": "tv",
    "tv remote": "remote",
    "tvmonitor": "tv",
}

_INDEX: Final = {name: index for index, name in enumerate(COCO_NAMES)}


def coco_index(name: str) -> int:
    """The class index of a name.

    Args:
        name: COCO's name, GenEval's name or a common alias; upper case, hyphens and underscores do not matter.

    Returns:
        0 to 79.

    Raises:
        ValueError: no COCO class has this name.
    """
    plain = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    index = _INDEX.get(_ALIASES.get(plain, plain))
    if index is None:
        close = difflib.get_close_matches(plain, [*_INDEX, *_ALIASES], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name!r} is not one of the 80 classes of COCO{hint}")
    return index


def coco_indexes(names: Sequence[str]) -> dict[int, str]:
    """Class indexes of several names, with the spelling in which they were asked for.

    Args:
        names: at least one; a name may be repeated.

    Returns:
        Index -> name as given.

    Raises:
        ValueError: no name, a name that COCO does not have, or two spellings of one class.
    """
    if not names:
        raise ValueError("no classes to look for: give at least one name")
    found: dict[int, str] = {}
    for name in names:
        earlier = found.setdefault(coco_index(name), name)
        if earlier != name:
            raise ValueError(f"{earlier!r} and {name!r} are the same class of COCO: use one spelling")
    return found
