"""The final order of all samples, worked out from the parts' indices alone, a bucket at a time.

Every sample has a random number that depends on (seed, part, place in the part); the order is the order of these
numbers. A bucket is a stretch of the numbers: it is sorted in memory while the others wait on the disk, so the memory
does not grow with the data set, and the number of buckets changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from lightning_gen.data.convert.spool import Spool
from lightning_gen.data.index import ShardIndex

__all__ = ["PIECE", "Order", "repeated", "sample_spans"]

PIECE = np.dtype([("part", "<u4"), ("start", "<i8"), ("size", "<i8")])
"""Where a sample lies in the first pass's files: number of the part, first byte, bytes with headers and padding."""

_DRAWS = np.uint64(1 << 63)
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Order:
    """All samples of the first pass in their final order.

    Attributes:
        files: the first pass's files.
        samples: samples in every part.
        seed: decides the order; None = that of the input.
        dropped: int64, sorted, numbers of samples (counted through all parts) that are left out.
        per_bucket: samples that are sorted at a time, about.
    """

    files: Spool
    samples: Sequence[int]
    seed: int | None
    dropped: npt.NDArray[np.int64]
    per_bucket: int = 1 << 20

    def buckets(self) -> Iterator[npt.NDArray[np.void]]:
        """Visit the buckets.

        Yields:
            Pieces (see :data:`PIECE`) in order; all buckets one after another are the final order.
        """
        total = sum(self.samples)
        count = max(1, -(-total // self.per_bucket))
        span = int(_DRAWS) if self.seed is not None else total
        edges = [span * number // count for number in range(count + 1)]
        for low, high in zip(edges, edges[1:], strict=False):
            yield self._bucket(low, high)

    def _bucket(self, low: int, high: int) -> npt.NDArray[np.void]:
        numbers, pieces, start = [np.empty(0, np.uint64)], [np.empty(0, PIECE)], 0
        for part, count in enumerate(self.samples):
            draws = self._numbers(part, start, count)
            inside = (draws >= low) & (draws < high)
            inside[self._dropped_of(start, count)] = False
            if inside.any():
                found = np.empty(int(inside.sum()), PIECE)
                starts, sizes = sample_spans(self.files.index(part))
                found["part"], found["start"], found["size"] = part, starts[inside], sizes[inside]
                numbers.append(draws[inside])
                pieces.append(found)
            start += count
        # Stable: samples with equal numbers keep the order of the input.
        order = np.argsort(np.concatenate(numbers), kind="stable")
        return np.concatenate(pieces)[order]

    def _numbers(self, part: int, start: int, count: int) -> npt.NDArray[np.uint64]:
        if self.seed is None:
            return np.arange(start, start + count, dtype=np.uint64)
        # Its module needs torch; packing in order does not.
        from lightning_gen.training.randomness import numpy_generator

        return numpy_generator(self.seed, "pack", part).integers(0, _DRAWS, count, dtype=np.uint64)

    def _dropped_of(self, start: int, count: int) -> npt.NDArray[np.int64]:
        first, last = np.searchsorted(self.dropped, (start, start + count))
        return self.dropped[first:last] - start


def sample_spans(index: ShardIndex) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which stretch of a tar that was written by this package belongs to which sample.

    Args:
        index: its index.

    Returns:
        First byte and number of bytes of every sample, headers and padding included.
    """
    ends = np.where(index.sizes >= 0, index.offsets + index.sizes, 0).max(axis=1, initial=0)
    ends = ends + -ends % _BLOCK
    starts = np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]])
    return starts, ends - starts


def repeated(
    files: Spool, samples: Sequence[int], column: int, without: npt.NDArray[np.int64], per_bucket: int = 1 << 22
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Find samples whose digest came before, a bucket of digests at a time.

    Args:
        files: the first pass's files.
        samples: samples in every part.
        column: which digest, ``KEY`` or ``IDENTITY``.
        without: int64, sorted, numbers of samples that are not looked at.
        per_bucket: digests that are sorted at a time, about.

    Yields:
        Per bucket: numbers of the samples that repeat another one, and of the sample before each of them that has the
        same digest.
    """
    starts = np.concatenate([[0], np.cumsum(samples)]).astype(np.int64)
    count = max(1, -(-int(starts[-1]) // per_bucket))
    edges = [(1 << 64) * number // count for number in range(count)] + [(1 << 64) - 1]
    for low, high in zip(edges, edges[1:], strict=False):
        found, numbers = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
        for part in range(len(samples)):
            digests = files.digests(part)[:, column]
            mine = np.arange(starts[part], starts[part + 1])
            last = digests[:, 0] <= high if high == edges[-1] else digests[:, 0] < high
            inside = (digests[:, 0] >= low) & last & ~np.isin(mine, without, assume_unique=True)
            found.append(digests[inside])
            numbers.append(mine[inside])
        table, places = np.concatenate(found), np.concatenate(numbers)
        order = np.lexsort((places, table[:, 1], table[:, 0]))
        table, places = table[order], places[order]
        again = np.flatnonzero((table[1:] == table[:-1]).all(axis=1)) + 1
        yield places[again], places[again - 1]
