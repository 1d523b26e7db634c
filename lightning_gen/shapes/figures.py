"""The outlines of the objects as soft masks: how much of every pixel an object covers.

A figure of radius r lies inside the square of half edge r around its centre. Masks are made from signed distances d in
pixels, coverage = clamp(1/2 - d, 0, 1), which is exact for straight edges along the axes and within a few percent of a
pixel elsewhere. Shape letters: n pixels along each side of a mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["QUARTERS", "Outline", "coverage", "outline", "stamp"]

Floats = npt.NDArray[np.float32]

QUARTERS: Final = 4
"""Positions and radii are whole numbers of 1 / QUARTERS pixels, so that every mask is drawn once and then copied."""

_HALF: Final = math.sqrt(0.5)


def _polygon(x: Floats, y: Floats, corners: list[tuple[float, float]]) -> Floats:
    """Signed distance to a polygon: distance to the nearest edge, negative inside (even-odd rule)."""
    nearest = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, np.bool_)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(px - along * ex, py - along * ey))
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (px < ex * py / (ey if ey else 1.0))
    return np.where(inside, -nearest, nearest)


def _box(x: Floats, y: Floats, half_width: float, half_height: float) -> Floats:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    distance: Floats = outside + np.minimum(np.maximum(dx, dy), 0)
    return distance


def _star(x: Floats, y: Floats, r: float) -> Floats:
    angles = [-math.pi / 2 + number * math.pi / 5 for number in range(10)]
    reach = [r if number % 2 == 0 else 0.42 * r for number in range(10)]
    return _polygon(x, y, [(d * math.cos(a), d * math.sin(a)) for a, d in zip(angles, reach, strict=True)])


_DISTANCES: Final[dict[str, Callable[[Floats, Floats, float], Floats]]] = {
    "circle": lambda x, y, r: np.hypot(x, y) - r,
    "square": lambda x, y, r: _box(x, y, 0.88 * r, 0.88 * r),
    "triangle": lambda x, y, r: _polygon(x, y, [(0, -r), (r, 0.88 * r), (-r, 0.88 * r)]),
    "diamond": lambda x, y, r: (np.abs(x) + np.abs(y) - r) * _HALF,
    "cross": lambda x, y, r: np.minimum(_box(x, y, r, 0.34 * r), _box(x, y, 0.34 * r, r)),
    "ring": lambda x, y, r: np.abs(np.hypot(x, y) - 0.73 * r) - 0.27 * r,
    "star": _star,
    "moon": lambda x, y, r: np.maximum(np.hypot(x, y) - r, 0.85 * r - np.hypot(x - 0.62 * r, y)),
}


def coverage(kind: str, x: Floats, y: Floats, radius: float) -> Floats:
    """How much of some pixels a figure covers.

    Args:
        kind: one of ``KINDS``.
        x: pixel centres seen from the centre of the figure, to the right, any shape.
        y: the same downwards.
        radius: r in pixels.

    Returns:
        float32 in [0, 1], same shape.
    """
    covered: Floats = np.clip(0.5 - _DISTANCES[kind](x, y, radius), 0, 1).astype(np.float32)
    return covered


@functools.lru_cache(maxsize=1 << 14)
def stamp(kind: str, x: int, y: int, radius: int) -> Floats:
    """The mask of a figure whose centre lies in the middle pixel; made once, copied ever after.

    Args:
        kind: one of ``KINDS``.
        x: centre seen from the left edge of the middle pixel, in quarters of a pixel, in [0, 4).
        y: the same from its upper edge.
        radius: in quarters of a pixel.

    Returns:
        float32, (n, n), read only; n is odd.
    """
    reach = math.ceil(radius / QUARTERS) + 1
    centres = np.arange(-reach, reach + 1, dtype=np.float32) + 0.5
    mask = coverage(kind, *np.meshgrid(centres - x / QUARTERS, centres - y / QUARTERS), radius / QUARTERS)
    mask.flags.writeable = False
    return mask


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
