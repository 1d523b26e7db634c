"""Object detectors for scores that count things in pictures, and the seam where any other detector plugs in.

A detector is whatever has the shape of :class:`NamedDetector`: an exact one for drawn worlds, one of another library.
What it returns is checked before anything is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_gen.interfaces import Detections, Detector
from lightning_gen.metrics.detection.coco import COCO_NAMES, GENEVAL_NAMES, coco_index
from lightning_gen.metrics.detection.colors import ColorClassifier
from lightning_gen.metrics.detection.grounding_dino import GroundingDINODetector, boxes_from_queries
from lightning_gen.metrics.detection.mask2former import Instances, Mask2FormerDetector, instances_from_queries

__all__ = [
    "COCO_NAMES",
    "GENEVAL_NAMES",
    "ColorClassifier",
    "Detections",
    "GroundingDINODetector",
    "Instances",
    "Mask2FormerDetector",
    "NamedDetector",
    "boxes_from_queries",
    "check_detections",
    "coco_index",
    "detect",
    "geneval_metric",
    "instances_from_queries",
]


class NamedDetector(Detector, Protocol):
    """A detector whose results can be quoted: it says what it is."""

    @property
    def name(self) -> str:
        """How protocol ids call it, for instance ``"m2f-swin-s-hf"``; without a slash."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256 of its weights, or any text that changes when its results may change."""
        ...


def geneval_metric(detector: NamedDetector) -> str:
    """The first part of the protocol id of GenEval's rules with a detector.

    Args:
        detector: which one.

    Returns:
        ``"geneval"`` for a detector of the prescribed kind (its ``prescribed_by_geneval`` is true), otherwise
        ``"geneval-style"``, because the rules' thresholds are calibrated for that kind.
    """
    return "geneval" if getattr(detector, "prescribed_by_geneval", False) else "geneval-style"


def detect(detector: Detector, images: Tensor, classes: Sequence[str]) -> list[Detections]:
    """Run a detector and check what it returns.

    Args:
        detector: any.
        images: float, (B, 3, H, W) in [0, 1].
        classes: names to look for.

    Returns:
        One record per image.

    Raises:
        ValueError: another number of records, or a record that is not sound.
    """
    found = detector(images, classes)
    if len(found) != len(images):
        raise ValueError(f"the detector gave {len(found)} records for {len(images)} images")
    for number, detections in enumerate(found):
        try:
            check_detections(detections, (images.shape[-2], images.shape[-1]), classes)
        except ValueError as error:
            raise ValueError(f"image {number} of the batch: {error}") from None
    return found


def check_detections(detections: Detections, size: tuple[int, int], classes: Sequence[str]) -> None:
    """Refuse a record that would be counted wrongly.

    Args:
        detections: what a detector found in one image.
        size: H and W of the image.
        classes: the names that it was asked for.

    Raises:
        ValueError: shapes or kinds that do not belong together, boxes that are not x0, y0, x1, y1 in pixels of the
            image (a pixel of tolerance), scores outside [0, 1], classes that nobody asked for.
    """
    boxes, scores, masks = detections.boxes, detections.scores, detections.masks
    count = len(detections.classes)
    if not (boxes.is_floating_point() and boxes.shape == (count, 4)):
        raise ValueError(f"{count} classes need float boxes ({count}, 4), got {boxes.dtype} {tuple(boxes.shape)}")
    if not (scores.is_floating_point() and scores.shape == (count,)):
        raise ValueError(f"{count} classes need float scores ({count},), got {scores.dtype} {tuple(scores.shape)}")
    if masks is not None and (masks.dtype != torch.bool or masks.shape != (count, *size)):
        raise ValueError(
            f"masks must be bool {(count, *size)}, or None, got {masks.dtype} {tuple(masks.shape)}: threshold them and "
            f"resize them to the image"
        )
    _refuse(~((scores >= 0) & (scores <= 1)), scores, "score", "is not in [0, 1]")
    ordered = (boxes[:, 0] <= boxes[:, 2]) & (boxes[:, 1] <= boxes[:, 3])
    _refuse(~ordered, boxes, "box", "is not x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
    ends = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    outside = ((boxes < -1) | (boxes > ends + 1)).any(1)
    _refuse(
        outside, boxes, "box", f"leaves the image of {size[0]}x{size[1]} (height x width): give pixels of the image"
    )
    unknown = sorted({*detections.classes} - {*classes})
    if unknown:
        raise ValueError(f"class {unknown[0]!r} was not asked for; asked for: {', '.join(classes)}")


def _refuse(wrong: Tensor, values: Tensor, what: str, problem: str) -> None:
    if wrong.any():
        number = int(wrong.nonzero()[0])
        raise ValueError(f"{what} {number}, {values[number].tolist()}, {problem}")
