"""Reading the cases of K-Sort Eval: prompts, pictures of rated models, and how people sorted them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightning_gen.metrics.ratings import Rating

__all__ = ["KSortAnchor", "KSortCase", "read_k_sort"]

_CASES: Final = "k_sort.jsonl"
_LEADERBOARD: Final = "leaderboard.json"
_PAIR: Final = re.compile(r"\(?\s*(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*\)?")


@dataclasses.dataclass(frozen=True)
class KSortAnchor:
    """A stored picture of a rated model.

    Attributes:
        model: its name on the leaderboard.
        path: the file.
        rank: people's, 1 = the best of the case.
    """

    model: str
    path: Path
    rank: float


@dataclasses.dataclass(frozen=True)
class KSortCase:
    """A prompt with pictures that people have sorted.

    Attributes:
        case_id: unique.
        prompt: of all of them.
        anchors: two at least; the benchmark has four.
    """

    case_id: str
    prompt: str
    anchors: tuple[KSortAnchor, ...]


def read_k_sort(folder: str | Path) -> tuple[list[KSortCase], dict[str, Rating]]:
    """Read the benchmark from ``k_sort.jsonl`` and ``leaderboard.json``.

    A line of the first is ``{"id", "prompt", "images": [{"model", "path", "rank"}, ...]}``, paths below the folder. The
    second maps a model to ``[mu, sigma]`` or to "mu/sigma", as leaderboards of K-Sort Arena are written.

    Args:
        folder: with both files.

    Returns:
        Cases, and ratings by model.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that is no case, a model without a rating, or an id that comes twice; names the line.

    deviates: the layout of the published data set could not be read; this is ours, with the same content.
    """
    folder = Path(folder)
    for name in (_CASES, _LEADERBOARD):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: see `lightning evaluate preference --help`")
    board = folder / _LEADERBOARD
    ratings = {str(name): _rating(value, f"{board}: {name}") for name, value in _json(board.read_text(), board).items()}
    cases: list[KSortCase] = []
    for number, line in enumerate((folder / _CASES).read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            cases.append(_case(_json(line, f"{folder / _CASES} line {number}"), folder, ratings, number))
    repeated = [name for name, count in Counter(case.case_id for case in cases).items() if count > 1]
    if not cases or repeated:
        what = f"has the id {repeated[0]!r} twice" if repeated else "holds no case"
        raise ValueError(f"{folder / _CASES} {what}")
    return cases, ratings


def _json(text: str, where: object) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not a JSON object")
    return found


def _rating(value: Any, where: str) -> Rating:
    match = _PAIR.fullmatch(value.strip()) if isinstance(value, str) else None
    numbers = [float(one) for one in match.groups()] if match else value
    if not isinstance(numbers, list) or len(numbers) != 2 or not all(isinstance(one, int | float) for one in numbers):
        raise ValueError(f'{where}: a rating is [mu, sigma] or "mu/sigma", got {value!r}')
    if not numbers[1] > 0:
        raise ValueError(f"{where}: sigma must be positive, got {numbers[1]}")
    return Rating(float(numbers[0]), float(numbers[1]))


def _case(row: Mapping[str, Any], folder: Path, ratings: Mapping[str, Rating], number: int) -> KSortCase:
    where = f"{folder / _CASES} line {number}"
    images = row.get("images")
    texts = (row.get("id"), row.get("prompt"))
    if not all(isinstance(one, str) for one in texts) or not isinstance(images, list) or len(images) < 2:
        raise ValueError(f"{where}: a case has a text id, a prompt and two images at least, got the keys {list(row)}")
    anchors = []
    for image in images:
        if not isinstance(image, dict) or not {"model", "path", "rank"} <= set(image):
            raise ValueError(f"{where}: an image has model, path and rank, got {image!r}")
        if image["model"] not in ratings:
            raise ValueError(f"{where}: the model {image['model']!r} has no rating in {_LEADERBOARD}")
        path = folder / str(image["path"])
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{where}: {image['path']} leaves the folder")
        anchors.append(KSortAnchor(str(image["model"]), path, float(image["rank"])))
    return KSortCase(str(texts[0]), str(texts[1]), tuple(anchors))
