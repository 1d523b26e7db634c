"""The outlines of the objects as soft masks: how much of every pixel an object covers.

A figure of radius r lies inside the square of half edge r around its centre. Masks are made from signed distances d in
pixels, coverage = clamp(1/2 - d, 0, 1), which is exact for straight edges along the axes and within a few percent of a
pixel elsewhere. Shape letters: n pixels along each side of a mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["QUARTERS", "Outline", "coverage", "outline", "stamp"]

Floats = npt.NDArray[np.float32]
Number = float | Floats

QUARTERS: Final = 4
"""Positions and radii are whole numbers of 1 / QUARTERS pixels, so that every mask is drawn once and then copied."""

_KEPT: Final = 80
"""Largest radius, in quarters of a pixel, whose masks are kept: 12,800 of them, 80 MB at most."""

_HALF: Final = math.sqrt(0.5)


def _segment(x: Floats, y: Floats, ax: Number, ay: Number, bx: Number, by: Number) -> tuple[Floats, Floats]:
    """Distance to the segment from a to b, and on which side of it a point lies (its sign)."""
    ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    return np.hypot(px - along * ex, py - along * ey), px * ey - py * ex


def _box(x: Floats, y: Floats, half_width: Number, half_height: Number) -> Floats:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    distance: Floats = outside + np.minimum(np.maximum(dx, dy), 0)
    return distance


def _triangle(x: Floats, y: Floats, r: Number) -> Floats:
    """The left half is the mirror image of the right one."""
    x = np.abs(x)
    edge, side = _segment(x, y, 0.0 * r, -r, r, 0.88 * r)
    bottom, _ = _segment(x, y, 0.0 * r, 0.88 * r, r, 0.88 * r)
    distance = np.minimum(edge, bottom)
    return np.where((side < 0) & (y < 0.88 * r), -distance, distance)


def _star(x: Floats, y: Floats, r: Number) -> Floats:
    """All ten edges are images of one, between a tip and the notch beside it."""
    length, fifth = np.hypot(x, y), 2 * math.pi / 5
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - fifth * np.round(angle / fifth))
    notch = 0.42 * math.sin(fifth / 2), 0.42 * math.cos(fifth / 2)
    edge, side = _segment(length * np.sin(angle), length * np.cos(angle), 0.0 * r, r, notch[0] * r, notch[1] * r)
    return np.where(side > 0, -edge, edge)


_DISTANCES: Final[dict[str, Callable[[Floats, Floats, Number], npt.NDArray[Any]]]] = {
    "circle": lambda x, y, r: np.hypot(x, y) - r,
    "square": lambda x, y, r: _box(x, y, 0.88 * r, 0.88 * r),
    "triangle": _triangle,
    "diamond": lambda x, y, r: (np.abs(x) + np.abs(y) - r) * _HALF,
    "cross": lambda x, y, r: np.minimum(_box(x, y, r, 0.34 * r), _box(x, y, 0.34 * r, r)),
    "ring": lambda x, y, r: np.abs(np.hypot(x, y) - 0.73 * r) - 0.27 * r,
    "star": _star,
    "moon": lambda x, y, r: np.maximum(np.hypot(x, y) - r, 0.85 * r - np.hypot(x - 0.62 * r, y)),
}


def coverage(kind: str, x: Floats, y: Floats, radius: Number) -> Floats:
    """How much of some pixels a figure covers.

    Args:
        kind: one of ``KINDS``.
        x: pixel centres seen from the centre of the figure, to the right, any shape.
        y: the same downwards.
        radius: r in pixels, one number or as many as there are figures.

    Returns:
        float32 in [0, 1], same shape.
    """
    covered: Floats = np.clip(0.5 - _DISTANCES[kind](x, y, radius), 0, 1).astype(np.float32)
    return covered


def stamp(kind: str, x: int, y: int, radius: int) -> Floats:
    """The mask of a figure whose centre lies in the middle pixel; small ones are made once, copied ever after.

    Args:
        kind: one of ``KINDS``.
        x: centre seen from the left edge of the middle pixel, in quarters of a pixel, in [0, 4).
        y: the same from its upper edge.
        radius: in quarters of a pixel.

    Returns:
        float32, (n, n), read only; n is odd.
    """
    return _kept_stamp(kind, x, y, radius) if radius <= _KEPT else _new_stamp(kind, x, y, radius)


def _new_stamp(kind: str, x: int, y: int, radius: int) -> Floats:
    reach = math.ceil(radius / QUARTERS) + 1
    centres = np.arange(-reach, reach + 1, dtype=np.float32) + 0.5
    across, down = np.meshgrid(centres - x / QUARTERS, centres - y / QUARTERS)
    mask = coverage(kind, across, down, radius / QUARTERS)
    mask.flags.writeable = False
    return mask


_kept_stamp = functools.lru_cache(maxsize=1 << 14)(_new_stamp)


class Outline(NamedTuple):
    """What is known about the figure of radius 1.

    Attributes:
        area: its area.
        x: its centre of mass, seen from its centre, to the right.
        y: the same downwards.
    """

    area: float
    x: float
    y: float


@functools.cache
def outline(kind: str) -> Outline:
    """Measure a figure.

    Args:
        kind: one of ``KINDS``.

    Returns:
        Area and centre of mass, to about three digits.
    """
    radius = 64.0
    grid = np.arange(-radius - 2, radius + 2, dtype=np.float32) + 0.5
    x, y = np.meshgrid(grid, grid)
    mask = coverage(kind, x, y, radius)
    total = float(mask.sum())
    return Outline(
        total / radius**2, float((mask * x).sum()) / total / radius, float((mask * y).sum()) / total / radius
    )
