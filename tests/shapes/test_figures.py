"""Masks are as soft as the figures' areas say, and a figure is where its outline is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gen.shapes.figures import coverage, outline, stamp
from lightning_gen.shapes.vocabulary import KINDS

FINE = 16


def inside_polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Even-odd rule."""
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return inside


def inside(kind: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Which points belong to a figure, from its definition."""
    tips = [(r if n % 2 == 0 else 0.42 * r, n * math.pi / 5 - math.pi / 2) for n in range(10)]
    rules = {
        "circle": lambda: x**2 + y**2 < r**2,
        "square": lambda: np.maximum(abs(x), abs(y)) < 0.88 * r,
        "triangle": lambda: inside_polygon(x, y, [(0, -r), (r, 0.88 * r), (-r, 0.88 * r)]),
        "diamond": lambda: abs(x) + abs(y) < r,
        "cross": lambda: (np.maximum(abs(x), abs(y)) < r) & (np.minimum(abs(x), abs(y)) < 0.34 * r),
        "ring": lambda: (x**2 + y**2 < r**2) & (x**2 + y**2 > (0.46 * r) ** 2),
        "star": lambda: inside_polygon(x, y, [(d * math.cos(a), d * math.sin(a)) for d, a in tips]),
        "moon": lambda: (x**2 + y**2 < r**2) & ((x - 0.62 * r) ** 2 + y**2 > (0.85 * r) ** 2),
    }
    return rules[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_sixteen_times_the_resolution(kind: str) -> None:
    for radius, x0, y0 in ((5.25, 0.25, 0.75), (9.0, 0.5, 0.0), (17.5, 0.0, 0.25)):
        reach = math.ceil(radius) + 2
        fine = (np.arange(-reach * FINE, reach * FINE) + 0.5) / FINE
        covered = inside(kind, *np.meshgrid(fine - x0, fine - y0), radius)
        wanted = covered.reshape(2 * reach, FINE, 2 * reach, FINE).mean((1, 3))
        coarse = np.arange(-reach, reach, dtype=np.float32) + 0.5
        mask = coverage(kind, *np.meshgrid(coarse - np.float32(x0), coarse - np.float32(y0)), radius)
        error = np.abs(mask - wanted)
        soft = (wanted > 0) & (wanted < 1)
        assert error[~soft].max() < 0.3, "only the pixel beside a tip gets a trace of it"
        assert error[soft].mean() < 0.07
        assert error.sum() < 0.02 * wanted.sum() + 1.0
        assert mask.sum() == pytest.approx(wanted.sum(), rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_the_outline_knows_area_and_centre_of_mass(kind: str) -> None:
    fine = (np.arange(-400, 400) + 0.5) / 320
    x, y = np.meshgrid(fine, fine)
    covered = inside(kind, x, y, 1.0)
    area, mass_x, mass_y = outline(kind)
    assert area == pytest.approx(covered.mean() * 2.5**2, rel=0.005)
    assert (mass_x, mass_y) == pytest.approx((x[covered].mean(), y[covered].mean()), abs=0.005)


def test_a_stamp_is_the_mask_around_its_middle_pixel_and_is_read_only() -> None:
    mask = stamp("triangle", 1, 3, 21)
    reach = len(mask) // 2
    centres = np.arange(-reach, reach + 1, dtype=np.float32) + 0.5
    assert np.array_equal(mask, coverage("triangle", *np.meshgrid(centres - 0.25, centres - 0.75), 5.25))
    assert mask[0].max() == mask[-1].max() == mask[:, 0].max() == mask[:, -1].max() == 0
    with pytest.raises(ValueError, match="read-only"):
        mask[0, 0] = 1
    assert stamp("triangle", 1, 3, 21) is mask
    assert stamp("ring", 0, 0, 400) is not stamp("ring", 0, 0, 400), "large masks would fill the memory"
