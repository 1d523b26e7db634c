"""Reads scenes back out of pictures: no network, only colours, connected regions and outlines.

Shape letters: B images, H and W height and width, N objects of an image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.interfaces import Detections
from lightning_gen.shapes.figures import coverage, outline
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS, KINDS

__all__ = ["FoundObject", "ShapesDetector", "find_objects"]

Floats = npt.NDArray[np.float32]

_PALETTE: Final = torch.tensor(list(COLORS.values()), dtype=torch.float32)
_NAMES: Final = tuple(COLORS)
_GROUNDS: Final = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)
_FOREGROUND: Final = 40.0
"""Levels (root of the summed squares) from the background at which a pixel belongs to an object."""
_HALF_SURE: Final = 0.35
"""Unexplained share of a mask at which the score is 1/2; 0.39 gives GenEval's 0.3, 0.24 its 0.9 for counting."""
_STEP: Final = 0.05
_SMALLEST_AREA: Final = 6.0
"""Pixels; what is smaller is noise."""


class FoundObject(NamedTuple):
    """An object that was read.

    Attributes:
        kind: one of ``KINDS``.
        color: one of ``COLORS``.
        x: centre in pixels, 0 = left edge of the picture.
        y: centre in pixels, 0 = upper edge.
        radius: in pixels.
        score: sigmoid((0.35 - e) / 0.05), e = the share of its mask that the outline does not explain.
        mask: bool, (H, W).
    """

    kind: str
    color: str
    x: float
    y: float
    radius: float
    score: float
    mask: Tensor


def find_objects(images: Tensor) -> list[list[FoundObject]]:
    """Read pictures.

    The background is the most common of the four along the border. Pixels far from it form connected regions; each
    is one object. Its colour is the nearest of the ten to the median of its core; how much of a pixel it covers
    follows from where the pixel lies between background and colour; its kind is the outline that fits this best.

    Args:
        images: float, (B, 3, H, W) in [0, 1].

    Returns:
        The objects of every image, the surest first.

    Raises:
        ValueError: not a float batch of three channels.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"the detector needs float images (B, 3, H, W) in [0, 1], got {images.dtype} {tuple(images.shape)}"
        )
    levels = images.detach().float().cpu().clamp(0, 1) * 255
    ground = _background(levels)
    far = (levels - ground[:, :, None, None]).square().sum(1).sqrt() > _FOREGROUND
    regions = _connected(far)
    return [
        sorted(_read(picture, behind, labels), key=lambda found: -found.score)
        for picture, behind, labels in zip(levels, ground, regions, strict=True)
    ]


class ShapesDetector:
    """The exact detector of the embedded world, as GenEval's rules want it.

    Args:
        least: objects of a lower score are not reported.
    """

    name = "shapes-exact"
    """What it is called in protocol ids."""

    def __init__(self, least: float = 0.3) -> None:
        self.least = least

    @property
    def fingerprint(self) -> str:
        """sha256 of its code: the detector has no weights."""
        files = sorted(Path(__file__).parent.glob("*.py"))
        code = b"".join(path.read_bytes() for path in files if path.stem in ("detector", "figures", "vocabulary"))
        return hashlib.sha256(code + str(self.least).encode()).hexdigest()

    def __call__(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        """Detect objects.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            classes: kinds to look for; names of other worlds are never found.

        Returns:
            One record per image, with masks.
        """
        height, width = images.shape[-2:]
        records = []
        for objects in find_objects(images):
            kept = [found for found in objects if found.kind in classes and found.score >= self.least]
            records.append(
                Detections(
                    boxes=torch.tensor([_box(found.mask) for found in kept], dtype=torch.float32).reshape(-1, 4),
                    scores=torch.tensor([found.score for found in kept], dtype=torch.float32),
                    classes=tuple(found.kind for found in kept),
                    masks=torch.stack([found.mask for found in kept])
                    if kept
                    else torch.zeros(0, height, width, dtype=torch.bool),
                )
            )
        return records

    def colors(self, image: Tensor, boxes: Tensor, masks: Tensor | None, class_name: str) -> list[str]:
        """Name the colours of some boxes.

        Args:
            image: uint8, (3, H, W).
            boxes: float, (N, 4), pixels x0, y0, x1, y1.
            masks: bool, (N, H, W); None = whole boxes without what looks like the background.
            class_name: not needed.

        Returns:
            N names.
        """
        del class_name
        levels = image.float()
        ground = _background(levels[None])[0]
        names = []
        for number, box in enumerate(boxes.round().long().tolist()):
            if masks is not None:
                inside = masks[number]
            else:
                inside = torch.zeros(levels.shape[1:], dtype=torch.bool)
                inside[box[1] : box[3], box[0] : box[2]] = True
                inside &= (levels - ground[:, None, None]).square().sum(0).sqrt() > _FOREGROUND
            names.append(_color(levels, inside)[0])
        return names


def _background(levels: Tensor) -> Tensor:
    """The background that most pixels of the border are nearest to, as it is seen there: (B, 3)."""
    border = torch.cat(
        [levels[..., 0, :], levels[..., -1, :], levels[..., 1:-1, 0], levels[..., 1:-1, -1]], dim=-1
    )  # (B, 3, n)
    distance = (border[:, None] - _GROUNDS[None, :, :, None]).square().sum(2)  # (B, 4, n)
    nearest = distance.argmin(1)
    chosen = F.one_hot(nearest, len(_GROUNDS)).sum(1).argmax(1)
    mine = nearest == chosen[:, None]
    return torch.stack([part[:, where].median(1).values for part, where in zip(border, mine, strict=True)])


def _connected(mask: Tensor) -> Tensor:
    """Number of the connected region (through edges, not corners) of every pixel, 0 = none: int64, (B, H, W)."""
    count = mask[0].numel()
    labels = torch.arange(1, count + 1, dtype=torch.float64).view(mask.shape[1:]) * mask
    while True:
        across = F.max_pool2d(labels[:, None], (1, 3), 1, (0, 1))[:, 0]
        down = F.max_pool2d(labels[:, None], (3, 1), 1, (1, 0))[:, 0]
        grown = torch.maximum(across, down) * mask
        if torch.equal(grown, labels):
            return labels.long()
        labels = grown


def _read(levels: Tensor, ground: Tensor, labels: Tensor) -> list[FoundObject]:
    numbers, areas = labels[labels > 0].unique(return_counts=True)
    found = []
    for number, area in zip(numbers.tolist(), areas.tolist(), strict=True):
        if area >= _SMALLEST_AREA:
            found.append(_fit(levels, ground, labels == number, labels))
    return found


def _fit(levels: Tensor, ground: Tensor, mask: Tensor, labels: Tensor) -> FoundObject:
    color, rgb = _color(levels, mask)
    direction = rgb - ground
    covered = ((levels - ground[:, None, None]) * direction[:, None, None]).sum(0) / direction.square().sum()
    # The soft edge lies just outside the region; other regions are not ours.
    near = F.max_pool2d(mask[None, None].float(), 3, 1, 1)[0, 0].bool() & ((labels == 0) | mask)
    alpha = torch.where(near, covered.clamp(0, 1), 0.0).numpy()
    rows, columns = np.nonzero(near.numpy())
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    patch = alpha[top:bottom, left:right]
    x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
    best = min((_outline_error(kind, patch, x, y) for kind in KINDS), key=lambda fit: fit.error)
    score = 1 / (1 + math.exp(min((best.error - _HALF_SURE) / _STEP, 50.0)))
    return FoundObject(best.kind, color, best.x, best.y, best.radius, score, mask)


class _Fit(NamedTuple):
    error: float
    kind: str
    x: float
    y: float
    radius: float


def _outline_error(kind: str, alpha: Floats, x: Floats, y: Floats) -> _Fit:
    """The figure of the same area and centre of mass, and the share of the mask that it gets wrong."""
    total = float(alpha.sum())
    area, shift_x, shift_y = outline(kind)
    radius = (total / area) ** 0.5
    centre_x, centre_y = float((alpha * x).sum()) / total - shift_x * radius, float((alpha * y).sum()) / total
    centre_y -= shift_y * radius
    drawn = coverage(kind, (x - centre_x).astype(np.float32), (y - centre_y).astype(np.float32), radius)
    wrong = float(np.abs(drawn - alpha).sum()) + max(0.0, total - float(drawn.sum()))
    return _Fit(wrong / total, kind, centre_x, centre_y, radius)


def _color(levels: Tensor, mask: Tensor) -> tuple[str, Tensor]:
    """Name and RGB of the colour nearest to the median of a region's core."""
    core = -F.max_pool2d(-mask[None, None].float(), 3, 1, 1)[0, 0]
    inside = core.bool() if core.sum() >= 3 else mask
    seen = levels[:, inside].median(1).values
    number = int((_PALETTE - seen).square().sum(1).argmin())
    return _NAMES[number], _PALETTE[number]


def _box(mask: Tensor) -> list[float]:
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
