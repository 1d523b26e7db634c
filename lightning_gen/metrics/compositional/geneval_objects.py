"""The objects of an image that GenEval's rules look at, and where they stand to each other."""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
from torch import Tensor

from lightning_gen.interfaces import Detections

__all__ = ["GenEvalRules", "Objects", "box_overlap", "keep_objects", "relative_position"]

_NO_OFFSET: Final = 1e-3
_MIN_COSINE: Final = 0.5


@dataclasses.dataclass(frozen=True)
class GenEvalRules:
    """Numbers of the benchmark.

    Attributes:
        threshold: a detection counts when its score is above this.
        counting_threshold: the same for prompts of the tag ``counting``.
        max_objects: the most confident so many of a class are looked at.
        max_overlap: suppress a box that overlaps a more confident one of its class by this much (intersection over
            union) or more; 1 = off, overlapping objects stay.
        position_margin: share of the two boxes' extents by which their centres must differ before the offset counts.

    Raises:
        ValueError: a number outside its range.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_margin: float = 0.1

    def __post_init__(self) -> None:
        for name in ("threshold", "counting_threshold", "max_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} lies in [0, 1], got {getattr(self, name)}")
        if self.max_objects < 1 or self.position_margin < 0:
            raise ValueError(
                f"max_objects must be at least 1 and position_margin at least 0, got {self.max_objects} and "
                f"{self.position_margin}"
            )


@dataclasses.dataclass(frozen=True)
class Objects:
    """Kept detections of one class, most confident first.

    Attributes:
        boxes: float64, (n, 4), on the CPU.
        scores: float64, (n,), on the CPU.
        masks: bool, (n, H, W), or None.
    """

    boxes: Tensor
    scores: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.boxes)

    def first(self, count: int) -> Objects:
        """The most confident ones.

        Args:
            count: how many at most.

        Returns:
            Those.
        """
        masks = None if self.masks is None else self.masks[:count]
        return Objects(self.boxes[:count], self.scores[:count], masks)


def keep_objects(detections: Detections, tag: str, rules: GenEvalRules) -> dict[str, Objects]:
    """Choose the detections that count.

    Per class: sort by score, keep scores above the threshold, then the first ``max_objects``, then suppress overlaps
    where ``max_overlap`` is below 1. The threshold is compared in the precision of the scores: a float32 score that
    was rounded from 0.3 is not above 0.3.

    Args:
        detections: of one image.
        tag: the prompt's task, which chooses the threshold.
        rules: the numbers.

    Returns:
        The kept objects by class; classes without any are absent.

    Raises:
        ValueError: numbers of boxes, scores, classes and masks differ, or a box or score is not finite.
    """
    _check(detections)
    boxes, scores = detections.boxes.detach().cpu().double(), detections.scores.detach().cpu()
    above = scores > (rules.counting_threshold if tag == "counting" else rules.threshold)
    kept: dict[str, Objects] = {}
    # Stable: among equal scores the detector's order decides.
    order = [i for i in torch.argsort(scores, descending=True, stable=True).tolist() if above[i]]
    for name in dict.fromkeys(detections.classes[i] for i in order):
        mine = [i for i in order if detections.classes[i] == name][: rules.max_objects]
        if rules.max_overlap < 1:
            mine = _without_overlaps(boxes, mine, rules.max_overlap)
        masks = None if detections.masks is None else detections.masks[mine]
        kept[name] = Objects(boxes[mine], scores[mine].double(), masks)
    return kept


def relative_position(box: Tensor, target: Tensor, margin: float = 0.1) -> frozenset[str]:
    """Where a box stands, seen from another.

    off = centre - centre of the target,  rev = sign(off) max(|off| - margin (extent + extent of the target), 0),
    (dx, dy) = rev / ||off||:  dx < -0.5 left of,  dx > 0.5 right of,  dy < -0.5 above,  dy > 0.5 below

    Args:
        box: float, (4,), pixels x0, y0, x1, y1, y pointing down.
        target: float, (4,).
        margin: share of the extents by which the centres must differ, per axis.

    Returns:
        None, one or two of ``RELATIONS``.

    Source: repository djghosh13/geneval, evaluation/evaluate_images.py.
    """
    corners = torch.stack([box, target]).double().reshape(2, 2, 2)
    centers, extents = corners.mean(1), (corners[:, 1] - corners[:, 0]).abs()
    offset = centers[0] - centers[1]
    revised = offset.sign() * (offset.abs() - margin * extents.sum(0)).clamp(min=0)
    if bool((revised.abs() < _NO_OFFSET).all()):
        return frozenset()
    # The norm of the whole offset: what the margin took away counts against the relation.
    dx, dy = (revised / offset.norm()).tolist()
    holds = {"left of": dx < -_MIN_COSINE, "right of": dx > _MIN_COSINE}
    holds |= {"above": dy < -_MIN_COSINE, "below": dy > _MIN_COSINE}
    return frozenset(relation for relation, true in holds.items() if true)


def box_overlap(box: Tensor, other: Tensor) -> float:
    """Intersection over union of two boxes whose last row and column count: extents are x1 - x0 + 1.

    Args:
        box: float, (4,), pixels x0, y0, x1, y1.
        other: float, (4,).

    Returns:
        In [0, 1].
    """

    def area(low: Tensor, high: Tensor) -> float:
        return float((high - low + 1).clamp(min=0).prod())

    common = area(torch.maximum(box[:2], other[:2]), torch.minimum(box[2:], other[2:]))
    union = area(box[:2], box[2:]) + area(other[:2], other[2:]) - common
    return common / union if union else 0.0


def _without_overlaps(boxes: Tensor, order: list[int], limit: float) -> list[int]:
    kept: list[int] = []
    while order:
        best, *order = order
        kept.append(best)
        order = [i for i in order if box_overlap(boxes[best], boxes[i]) < limit]
    return kept


def _check(detections: Detections) -> None:
    number = len(detections.classes)
    shapes = {"boxes": tuple(detections.boxes.shape), "scores": tuple(detections.scores.shape)}
    masks = number if detections.masks is None else len(detections.masks)
    if shapes != {"boxes": (number, 4), "scores": (number,)} or masks != number:
        raise ValueError(f"the detector named {number} classes but gave {shapes} and {masks} masks")
    # A score that is not a number would only look like an object that is not there.
    if not (bool(detections.boxes.isfinite().all()) and bool(detections.scores.isfinite().all())):
        raise ValueError("the detector gave a box or a score that is not finite: are its weights sound?")
