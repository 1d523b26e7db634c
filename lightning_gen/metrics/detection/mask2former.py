"""Mask2Former through transformers as GenEval's detector: the 100 best (query, class) pairs with masks and boxes.

Shape letters: B images, H and W height and width of the pictures, h and w of the mask logits, Q queries, C classes,
N instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.interfaces import Detections
from lightning_gen.metrics.detection.coco import COCO_NAMES, coco_indexes
from lightning_gen.metrics.detection.detector_network import FrozenDetector, measuring, swin_name

__all__ = ["Instances", "Mask2FormerDetector", "instances_from_queries", "mask_boxes"]

# Numbers that one piece of the mask resize may hold at a time: 64 MiB in float32.
_PIECE: Final = 2**24


class Instances(NamedTuple):
    """Objects in one picture, the surest first.

    Attributes:
        scores: float, (N,), in [0, 1].
        labels: int64, (N,), class index.
        queries: int64, (N,), query that found the object.
        boxes: float, (N, 4), pixels x0, y0, x1, y1 with x1 and y1 one beyond the last pixel.
        masks: bool, (N, H, W).
    """

    scores: Tensor
    labels: Tensor
    queries: Tensor
    boxes: Tensor
    masks: Tensor


def instances_from_queries(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    top: int = 100,
    wanted: Sequence[int] | None = None,
    input_size: tuple[int, int] | None = None,
    content: tuple[int, int] | None = None,
) -> Instances:
    """Turn the queries of one picture into instances.

    p_qc = softmax(class_logits_q)_c without the last column (no object); the ``top`` largest p_qc over all queries and
    classes are kept; m_q = mask logits resized to the picture; mask = m_q > 0

    score = p_qc * mean of sigmoid(m_q) inside the mask;  box = [xmin, ymin, xmax + 1, ymax + 1] of the mask

    The masks are resized bilinearly to the network's input, cut to the part that was picture, and resized bilinearly to
    the picture, and only then compared with 0. One query may give several instances, and masks may overlap. Empty masks
    are left out. Equal scores keep the order of p_qc, and equal p_qc the order of (query, class).

    Args:
        class_logits: float, (Q, C + 1), the last column stands for "no object".
        mask_logits: float, (Q, h, w).
        size: H and W of the picture.
        top: number of (query, class) pairs that are looked at, >= 1.
        wanted: class indexes that are returned; it does not change which pairs are among the ``top``. None = all.
        input_size: height and width of the network's input with what it was filled up with; None = as ``size``.
        content: height and width of the picture within the input; None = all of it.

    Returns:
        At most ``top`` instances.

    Raises:
        ValueError: shapes that do not belong together, or logits that are NaN.

    Source: arXiv:2112.01527, inference for instance segmentation; order of the resizes as in MMDetection 2.
    deviates: MMDetection keeps empty masks with score 0 and leaves the order of equal scores open. The library's own
    post-processing resizes to 384 x 384, takes the threshold there, and enlarges the binary mask.
    """
    if class_logits.ndim != 2 or mask_logits.ndim != 3 or class_logits.shape[0] != mask_logits.shape[0]:
        raise ValueError(
            f"need class logits (Q, C + 1) and mask logits (Q, h, w) of the same queries, got "
            f"{tuple(class_logits.shape)} and {tuple(mask_logits.shape)}"
        )
    if class_logits.isnan().any() or mask_logits.isnan().any():
        raise ValueError("the detector's logits are NaN: look at its weights and at the picture")
    num_classes = class_logits.shape[1] - 1
    probabilities = _at_least_float32(class_logits).softmax(-1)[:, :-1].flatten()
    pairs = probabilities.argsort(descending=True, stable=True)[:top]
    if wanted is not None:
        labels = torch.tensor([*wanted], device=pairs.device, dtype=pairs.dtype)
        pairs = pairs[torch.isin(pairs % num_classes, labels)]
    queries, place = torch.unique(pairs // num_classes, return_inverse=True)
    masks, confidences = _masks(_at_least_float32(mask_logits[queries]), size, input_size or size, content)
    scores = probabilities[pairs] * confidences[place]
    order = scores.argsort(descending=True, stable=True)
    order = order[masks.flatten(1).any(1)[place][order]]
    found = place[order]
    return Instances(
        scores[order], (pairs % num_classes)[order], queries[found], mask_boxes(masks)[found], masks[found]
    )


def mask_boxes(masks: Tensor) -> Tensor:
    """The box around each mask.

    [xmin, ymin, xmax + 1, ymax + 1]

    Args:
        masks: bool, (N, H, W); a mask without pixels gives a meaningless box.

    Returns:
        float32, (N, 4).
    """
    ends = []
    for lines in (masks.any(1), masks.any(2)):  # columns, then rows
        position = torch.arange(lines.shape[1], device=masks.device)
        first = torch.where(lines, position, lines.shape[1]).amin(1)
        last = torch.where(lines, position, -1).amax(1)
        ends.append((first, last + 1))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1).float()


def _masks(
    logits: Tensor, size: tuple[int, int], input_size: tuple[int, int], content: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """Binary masks (Q, H, W) and their mean probability (Q,), a few queries at a time."""
    height, width = content or input_size
    masks = torch.empty(logits.shape[0], *size, dtype=torch.bool, device=logits.device)
    confidences = logits.new_empty(logits.shape[0])
    step = max(1, _PIECE // max(input_size[0] * input_size[1], size[0] * size[1]))
    for start in range(0, logits.shape[0], step):
        piece = _resize(_resize(logits[start : start + step], input_size)[:, :height, :width], size)
        inside = piece > 0
        sums = (piece.sigmoid() * inside).flatten(1).sum(1)
        confidences[start : start + step] = sums / inside.flatten(1).sum(1).clamp(min=1)
        masks[start : start + step] = inside
    return masks, confidences


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if masks.shape[-2:] == size:
        return masks
    return F.interpolate(masks[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Mask2FormerDetector(FrozenDetector):
    """Mask2Former trained on COCO instances; satisfies :class:`lightning_gen.interfaces.Detector`, with masks.

    The published network for GenEval-like scores is ``facebook/mask2former-swin-small-coco-instance``. It is not the
    checkpoint of GenEval's own code, so scores are comparable among runs with this detector, not digit by digit with
    published ones. Classes are told by their index in COCO's list, never by the labels of the checkpoint.

    Args:
        source: folder with ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``, or a hub id.
        revision: branch, tag or commit of the hub repository.
        name: how protocol ids call it; None = from the architecture, ``"m2f-swin-s-hf"`` for a small Swin.
        top: number of (query, class) pairs that are looked at in each picture.

    Raises:
        MissingWeightsError: the weights are absent, damaged, or not a Mask2Former with COCO's 80 instance classes.
        ImportError: transformers or scipy is not installed.

    Source: arXiv:2112.01527; its use: arXiv:2310.11513.
    """

    def __init__(self, source: str, revision: str | None = None, name: str | None = None, top: int = 100) -> None:
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        super().__init__(source, revision, "mask2former", "Mask2FormerForUniversalSegmentation")
        config = self.config
        if config.num_labels != len(COCO_NAMES):
            raise MissingWeightsError(
                f"{self.folder / 'config.json'} has {config.num_labels} classes, not the {len(COCO_NAMES)} of COCO's "
                f"instances: give another checkpoint, such as facebook/mask2former-swin-small-coco-instance"
            )
        self.top = top
        self.size_name = swin_name(config.backbone_config.embed_dim, config.backbone_config.depths)
        self.name = name or f"m2f-swin-{self.size_name}-hf"

    @property
    def prescribed_by_geneval(self) -> bool:
        """Whether it is of the kind that GenEval prescribes: Mask2Former with a small Swin, trained on COCO."""
        return self.size_name == "s"

    def forward(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        """Detect objects.

        Args:
            images: float, (B, 3, H, W) in [0, 1]; the next call may bring another size.
            classes: names of COCO classes in any usual spelling.

        Returns:
            One record per image, the surest object first, with the names as they were asked for.

        Raises:
            ValueError: images that are not such a batch, or a name that is not COCO's.
        """
        names = coco_indexes(classes)
        size = self._size_of(images)
        with measuring(images.device):
            pixels, content = self._take(images)
            output = self.network(pixel_values=pixels)
            input_size = (pixels.shape[-2], pixels.shape[-1])
            found = [
                instances_from_queries(queries, masks, size, self.top, [*names], input_size, content)
                for queries, masks in zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
            ]
        return [
            Detections(one.boxes, one.scores, tuple(names[label] for label in one.labels.tolist()), one.masks)
            for one in found
        ]
