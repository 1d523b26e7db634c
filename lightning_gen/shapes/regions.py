"""Connected regions of masks, all pictures of a batch at once.

Shape letters: B pictures, H and W height and width, R runs (pixels of a row that stand together), K regions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Regions", "find_regions"]

Integers = npt.NDArray[np.int64]


class Regions(NamedTuple):
    """Regions, in the order of their first pixels.

    Attributes:
        labels: int64, (B, H, W), 1 + number of the region of every pixel, 0 = none.
        image: int64, (K,), number of the picture.
        area: int64, (K,), pixels.
        box: int64, (K, 4), first row, first column, last row, last column, the last ones excluded.
    """

    labels: Integers
    image: Integers
    area: Integers
    box: Integers


def find_regions(masks: npt.NDArray[np.bool_]) -> Regions:
    """Find what hangs together through edges of pixels, not corners.

    Args:
        masks: bool, (B, H, W).

    Returns:
        The regions of all pictures.
    """
    pictures, height, width = masks.shape
    # One empty column keeps the runs of neighbouring rows apart.
    flat = np.zeros((pictures * height, width + 1), np.bool_)
    flat[:, :width] = masks.reshape(-1, width)
    steps = np.diff(flat.ravel().view(np.int8), prepend=np.int8(0))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    number = _joined(starts, ends, width + 1, height)
    count = int(number.max()) + 1 if len(number) else 0
    labels = np.zeros(flat.size, np.int64)
    labels[flat.ravel()] = np.repeat(number + 1, ends - starts)
    rows = starts // (width + 1)
    image = np.zeros(count, np.int64)
    image[number] = rows // height
    box = np.empty((count, 4), np.int64)
    # Runs come in the order of their rows: the first one written last wins, and the other way round.
    box[number[::-1], 0], box[number, 2] = (rows % height)[::-1], rows % height + 1
    box[:, 1], box[:, 3] = width, 0
    np.minimum.at(box[:, 1], number, starts % (width + 1))
    np.maximum.at(box[:, 3], number, ends - rows * (width + 1))
    area = np.bincount(number, ends - starts, count).astype(np.int64)
    return Regions(labels.reshape(pictures, height, width + 1)[..., :width], image, area, box)


def _joined(starts: Integers, ends: Integers, stride: int, height: int) -> Integers:
    """Number of the region of every run."""
    upper = np.flatnonzero(starts // stride % height < height - 1)
    first = np.searchsorted(ends, starts[upper] + stride, "right")
    touching = np.searchsorted(starts, ends[upper] + stride, "left") - first
    above = np.repeat(upper, touching)
    below = np.arange(len(above)) - np.repeat(np.cumsum(touching) - touching - first, touching)
    lowest = np.arange(len(starts))
    while True:
        least = np.minimum(lowest[above], lowest[below])
        before = lowest.copy()
        np.minimum.at(lowest, before[above], least)
        np.minimum.at(lowest, before[below], least)
        lowest = lowest[lowest]
        if np.array_equal(lowest, before):
            return np.unique(lowest, return_inverse=True)[1]
