"""Reads scenes back out of pictures: no network, only colours, connected regions and outlines.

Shape letters: B images, H and W height and width, N objects of an image, K regions of all images, P edge of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.interfaces import Detections
from lightning_gen.shapes.figures import coverage, outline
from lightning_gen.shapes.regions import Regions, find_regions
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS, KINDS

__all__ = ["FoundObject", "ShapesDetector", "find_objects", "ink_coverage", "name_backgrounds"]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

_PALETTE: Final = np.array(list(COLORS.values()), np.float32)
_NAMES: Final = tuple(COLORS)
_GROUNDS: Final = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)
_FOREGROUND: Final = 40.0
"""Levels (root of the summed squares) from the background at which a pixel belongs to an object."""
_HALF_SURE: Final = 0.35
"""Unexplained share of a mask at which the score is 1/2; 0.39 gives GenEval's 0.3, 0.24 its 0.9 for counting."""
_STEP: Final = 0.05
_SMALLEST_AREA: Final = 6.0
"""Pixels; what is smaller is noise."""
_SOLID: Final = 3
"""Pixels of a core that are enough to tell its colour."""
_LAYERS: Final = 3
"""How often what a region's colour does not explain is looked at again."""
_WINDOW: Final = 8
"""Objects whose windows have the same edge in these steps are measured together."""
_TOGETHER: Final = 1 << 19
"""Pixels of the windows that are measured at a time."""


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
    is one object, and what a region shows in other colours is others. An object's colour is the one that most pixels of
    its core are nearest to; how much of a pixel it covers follows from where the pixel lies between background and
    colour; its kind is the outline that fits this best.

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
    picture, behind = np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy()), ground.numpy()
    regions, color = _colored_regions(picture, behind)
    found: list[list[FoundObject]] = [[] for _ in picture]
    for numbers, edge in _groups(regions):
        fits = _fits(picture, behind, regions, color, numbers, edge)
        for number, (kind, x, y, radius, score) in zip(numbers.tolist(), fits, strict=True):
            owner = int(regions.image[number])
            mask = torch.from_numpy(regions.labels[owner] == number + 1)
            found[owner].append(FoundObject(kind, _NAMES[color[number]], x, y, radius, score, mask))
    return [sorted(objects, key=lambda one: -one.score) for objects in found]


def name_backgrounds(images: Tensor) -> list[str]:
    """Name the backgrounds of pictures.

    Args:
        images: float, (B, 3, H, W) in [0, 1].

    Returns:
        B of ``BACKGROUNDS``: the one that most pixels of the border are nearest to.
    """
    ground = _background(images.detach().float().cpu().clamp(0, 1) * 255)
    nearest = (ground[:, None] - _GROUNDS).square().sum(2).argmin(1)
    names = list(BACKGROUNDS)
    return [names[number] for number in nearest.tolist()]


def ink_coverage(image: Tensor) -> tuple[Floats, float]:
    """How much of every pixel shows the colour that most of the foreground has.

    Args:
        image: float, (3, H, W) in [0, 1].

    Returns:
        float32, (H, W), about 0 to 1; and the sum of squares that a picture of that colour alone would have, with 1 for
        every pixel of the foreground that has another one.
    """
    levels = image.detach().float().cpu().clamp(0, 1) * 255
    ground = _background(levels[None])[0].numpy()
    pixels = np.ascontiguousarray(levels.permute(1, 2, 0).numpy())
    offset = pixels - ground
    foreground = np.square(offset).sum(2) > _FOREGROUND**2
    if not foreground.any():
        return np.zeros(foreground.shape, np.float32), 0.0
    direction = _PALETTE[_main_color(pixels[foreground])] - ground
    alpha = (offset @ direction / np.square(direction).sum()).clip(-0.5, 1.5).astype(np.float32)
    other = foreground & (np.square(offset - alpha[..., None] * direction).sum(2) > _FOREGROUND**2)
    return alpha, float(np.square(alpha)[~other].sum()) + float(other.sum())


class ShapesDetector:
    """The exact detector of the embedded world, as GenEval's rules want it.

    Args:
        least: objects of a lower score are not reported.
    """

    name = "shapes-exact"
    """What it is called in protocol ids."""
    classes = KINDS
    """All it can find."""

    def __init__(self, least: float = 0.3) -> None:
        self.least = least

    @property
    def fingerprint(self) -> str:
        """sha256 of its code: the detector has no weights."""
        files = sorted(Path(__file__).parent.glob("*.py"))
        code = b"".join(
            path.read_bytes() for path in files if path.stem in ("detector", "figures", "regions", "vocabulary")
        )
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
        levels = image.float().cpu()
        ground = _background(levels[None])[0]
        pixels = levels.permute(1, 2, 0).numpy()
        names = []
        for number, box in enumerate(boxes.round().long().tolist()):
            if masks is not None:
                inside = masks[number].cpu()
            else:
                inside = torch.zeros(levels.shape[1:], dtype=torch.bool)
                inside[box[1] : box[3], box[0] : box[2]] = True
                inside &= (levels - ground[:, None, None]).square().sum(0) > _FOREGROUND**2
            core = inside.numpy() & ~_edges(inside.long().numpy()[None])[0]
            names.append(_NAMES[_main_color(pixels[core if core.sum() >= _SOLID else inside.numpy()])])
        return names


def _background(levels: Tensor) -> Tensor:
    """The background that most pixels of the border are nearest to, as it is seen there: (B, 3)."""
    border = torch.cat(
        [levels[..., 0, :], levels[..., -1, :], levels[..., 1:-1, 0], levels[..., 1:-1, -1]], dim=-1
    )  # (B, 3, n)
    distance = (border[:, None] - _GROUNDS[None, :, :, None]).square().sum(2)  # (B, 4, n)
    nearest = distance.argmin(1)
    chosen = F.one_hot(nearest, len(_GROUNDS)).sum(1).argmax(1)
    mine = (nearest == chosen[:, None])[:, None]
    return border.masked_fill(~mine, float("nan")).nanmedian(2).values


def _colored_regions(picture: Floats, ground: Floats) -> tuple[Regions, Integers]:
    """Regions that have one colour each, and numbers of the colours.

    Pixels that their region's colour does not explain are looked at again by themselves.
    """
    offset = picture - ground[:, None, None]
    mask = np.square(offset).sum(3) > _FOREGROUND**2
    nearest = np.zeros(mask.shape, np.int64)
    nearest[mask] = _nearest(picture[mask])
    layers = []
    for _ in range(_LAYERS):
        regions = find_regions(mask)
        color = _main_colors(regions, nearest)
        foreign = np.zeros_like(mask)
        foreign[mask] = _foreign(offset[mask], ground, regions, color, nearest[mask], mask)
        if foreign.any():
            regions = find_regions(mask & ~foreign)
            color = _main_colors(regions, nearest)
        layers.append((regions, color))
        mask = foreign
        if not mask.any():
            break
    return _stacked(layers)


def _main_colors(regions: Regions, nearest: Integers) -> Integers:
    """Number of the colour that most pixels of a region's core are nearest to: int64, (K,)."""
    labels, count = regions.labels, len(regions.area)
    inside = labels > 0
    core = inside & ~_edges(labels)
    votes = np.zeros((2, count + 1, len(_PALETTE)), np.int64)
    for row, where in enumerate((inside, core)):
        votes[row].flat = np.bincount(labels[where] * len(_PALETTE) + nearest[where], minlength=votes[row].size)
    solid = votes[1].sum(1) >= _SOLID
    chosen: Integers = np.where(solid[:, None], votes[1], votes[0])[1:].argmax(1)
    return chosen


def _edges(labels: Integers) -> Bools:
    """Pixels beside one of another number; what lies outside the picture is beside nothing: (B, H, W)."""
    edges = np.zeros(labels.shape, np.bool_)
    down, across = labels[:, 1:] != labels[:, :-1], labels[..., 1:] != labels[..., :-1]
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    edges[..., 1:] |= across
    edges[..., :-1] |= across
    return edges


def _foreign(
    offset: Floats, ground: Floats, regions: Regions, color: Integers, nearest: Integers, mask: Bools
) -> Bools:
    """Which pixels do not lie between the background and their region's colour, and are nearer to another one."""
    mine = color[regions.labels[mask] - 1]
    direction = _PALETTE[mine] - ground[np.nonzero(mask)[0]]
    along = ((offset * direction).sum(1) / np.square(direction).sum(1)).clip(0, 1)
    apart = np.square(offset - along[:, None] * direction).sum(1) > _FOREGROUND**2
    foreign: Bools = apart & (nearest != mine)
    return foreign


def _stacked(layers: list[tuple[Regions, Integers]]) -> tuple[Regions, Integers]:
    """All layers as one; what is too small to be an object belongs to none."""
    labels, total = np.zeros_like(layers[0][0].labels), 0
    for regions, _ in layers:
        kept = np.concatenate([[False], regions.area >= _SMALLEST_AREA])[regions.labels]
        labels[kept] = regions.labels[kept] + total
        total += len(regions.area)
    image, area, box = (np.concatenate([regions[part] for regions, _ in layers]) for part in (1, 2, 3))
    return Regions(labels, image, area, box), np.concatenate([color for _, color in layers])


def _groups(regions: Regions) -> Iterator[tuple[Integers, int]]:
    """Regions whose windows have the same edge: their numbers, and the edge."""
    extent = (regions.box[:, 2:] - regions.box[:, :2]).max(1, initial=0)
    # The soft edge lies just outside, and a window shows what a figure of another kind would cover besides.
    edges = -(-(extent + 4) // _WINDOW) * _WINDOW
    for edge in np.unique(edges).tolist():
        numbers = np.flatnonzero((edges == edge) & (regions.area >= _SMALLEST_AREA))
        step = max(1, _TOGETHER // edge**2)
        yield from ((numbers[start : start + step], edge) for start in range(0, len(numbers), step))


def _fits(
    picture: Floats, ground: Floats, regions: Regions, color: Integers, numbers: Integers, edge: int
) -> list[tuple[str, float, float, float, float]]:
    """Kind, centre, radius and score of some regions."""
    _, height, width, _ = picture.shape
    box, image = regions.box[numbers], regions.image[numbers]
    corner = (box[:, :2] + box[:, 2:] - edge) // 2
    rows, columns = (corner[:, axis, None] + np.arange(edge) for axis in (0, 1))
    visible = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    where = image[:, None, None], rows.clip(0, height - 1)[:, :, None], columns.clip(0, width - 1)[:, None]
    labels = np.where(visible, regions.labels[where], 0)
    mine, behind = labels == numbers[:, None, None] + 1, ground[image]
    direction = _PALETTE[color[numbers]] - behind
    covered = np.einsum("kijc,kc->kij", picture[where] - behind[:, None, None], direction)
    covered /= np.square(direction).sum(1)[:, None, None]
    # The soft edge lies just outside the region; other regions are not ours.
    near = _grown(mine) & ((labels == 0) | mine) & visible
    alpha = np.where(near, covered.clip(0, 1), 0).astype(np.float32)
    fits = _outlines(alpha, visible, (columns + 0.5).astype(np.float32), (rows + 0.5).astype(np.float32))
    return [
        (KINDS[int(kind)], x, y, radius, 1 / (1 + float(np.exp(min((error - _HALF_SURE) / _STEP, 50)))))
        for kind, x, y, radius, error in fits.tolist()
    ]


def _outlines(alpha: Floats, visible: Bools, columns: Floats, rows: Floats) -> npt.NDArray[np.float64]:
    """The best kind with centre, radius, and the share of the mask that the figure gets wrong: (K, 5).

    Every kind is tried as the figure of the same area and centre of mass.
    """
    # A region whose core colour is hardly another than the background covers next to nothing.
    total = np.maximum(alpha.sum((1, 2), dtype=np.float64), 1e-6)
    mass_x, mass_y = (alpha.sum(1) * columns).sum(1) / total, (alpha.sum(2) * rows).sum(1) / total
    fits = []
    for kind in KINDS:
        area, shift_x, shift_y = outline(kind)
        radius = np.sqrt(total / area)
        x, y = mass_x - shift_x * radius, mass_y - shift_y * radius
        across = np.broadcast_to((columns - x[:, None]).astype(np.float32)[:, None, :], alpha.shape)
        down = np.broadcast_to((rows - y[:, None]).astype(np.float32)[:, :, None], alpha.shape)
        drawn = coverage(kind, across, down, radius.astype(np.float32)[:, None, None]) * visible
        wrong = np.abs(drawn - alpha).sum((1, 2)) + np.maximum(0, total - drawn.sum((1, 2)))
        fits.append(np.stack([x, y, radius, wrong / total], 1))
    table = np.stack(fits, 1)
    kinds = table[..., 3].argmin(1)
    return np.concatenate([kinds[:, None], table[np.arange(len(table)), kinds]], 1)


def _grown(masks: Bools) -> Bools:
    """Masks with all pixels beside or across from one of theirs, (..., H, W)."""
    wide = masks.copy()
    wide[..., 1:] |= masks[..., :-1]
    wide[..., :-1] |= masks[..., 1:]
    tall = wide.copy()
    tall[..., 1:, :] |= wide[..., :-1, :]
    tall[..., :-1, :] |= wide[..., 1:, :]
    return tall


def _nearest(levels: Floats) -> Integers:
    """Numbers of the colours that some pixels (n, 3) are nearest to."""
    numbers: Integers = (np.square(_PALETTE).sum(1) - 2 * levels @ _PALETTE.T).argmin(1)
    return numbers


def _main_color(levels: Floats) -> int:
    """Number of the colour that most of some pixels (n, 3) are nearest to."""
    return int(np.bincount(_nearest(levels), minlength=len(_PALETTE)).argmax())


def _box(mask: Tensor) -> list[float]:
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
