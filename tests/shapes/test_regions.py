"""Regions are what a flood fill finds."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gen.shapes.regions import find_regions


def flooded(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Regions of one mask, pixel by pixel."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        region, edge = set(), [min(left)]
        while edge:
            y, x = edge.pop()
            if (y, x) in left:
                left.remove((y, x))
                region.add((y, x))
                edge += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        found.append(region)
    return found


@pytest.mark.parametrize("share", [0.3, 0.55, 0.65])
def test_regions_are_those_of_a_flood_fill(share: float) -> None:
    masks = np.random.default_rng(0).random((5, 23, 17)) < share
    regions = find_regions(masks)
    wanted = [(number, region) for number, mask in enumerate(masks) for region in flooded(mask)]
    assert regions.image.tolist() == [number for number, _ in wanted]
    for number, (image, pixels) in enumerate(wanted):
        found = regions.labels == number + 1
        assert {(int(y), int(x)) for y, x in np.argwhere(found[image])} == pixels
        assert found.sum() == len(pixels) == regions.area[number]
        rows, columns = zip(*pixels, strict=True)
        assert regions.box[number].tolist() == [min(rows), min(columns), max(rows) + 1, max(columns) + 1]


def test_a_long_winding_region_is_one() -> None:
    spiral = np.ones((1, 21, 21), bool)
    spiral[0, 1::4, :-1] = spiral[0, 3::4, 1:] = False
    assert len(find_regions(spiral).area) == 1


def test_pictures_and_rows_do_not_touch() -> None:
    full = find_regions(np.ones((3, 4, 5), bool))
    assert full.area.tolist() == [20, 20, 20]
    ends = np.zeros((1, 2, 4), bool)
    ends[0, 0, -1] = ends[0, 1, 0] = True
    assert find_regions(ends).area.tolist() == [1, 1]
    assert len(find_regions(np.zeros((2, 4, 5), bool)).area) == 0
