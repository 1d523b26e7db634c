"""Aspect-ratio buckets: pictures of about the same shape share a batch.

A batch is complete where its last member stands in the canonical order, as if pictures were sorted into buckets while
they stream by; that keeps the order's mixing and its locality, and it makes the schedule the same on every rank.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_gen.data.order import Indices, Step, interleaved_order

__all__ = ["AspectBuckets", "BucketOrder"]


_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AspectBuckets:
    """Shapes of about R x R pixels.

    Attributes:
        resolution: R in pixels.
        step: every side is a multiple of this; None = the square alone.
        max_ratio: longest side over shortest side, >= 1.

    Raises:
        ValueError: a number that makes no shape.
    """

    resolution: int
    step: int | None = 64
    max_ratio: float = 2.0

    def __post_init__(self) -> None:
        if self.resolution < 1 or (self.step is not None and not 1 <= self.step <= self.resolution):
            raise ValueError(f"resolution and bucket_step must be positive and the step no larger, got {self}")
        if self.max_ratio < 1:
            raise ValueError(f"max_ratio is longest / shortest side, at least 1, got {self.max_ratio}")

    @functools.cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every bucket, from tall to wide; none has more than R x R pixels."""
        if self.step is None:
            return ((self.resolution, self.resolution),)
        area, step, found = self.resolution**2, self.step, set[tuple[int, int]]()
        for side in range(step, int(self.resolution * math.sqrt(self.max_ratio)) + step, step):
            other = area // side // step * step
            if other and max(side, other) <= self.max_ratio * min(side, other):
                found |= {(side, other), (other, side)}
        square = self.resolution // step * step
        # Of two shapes with the same ratio the larger one serves.
        best = {h / w: (h, w) for h, w in sorted(found | {(square, square)})}
        return tuple(best[ratio] for ratio in sorted(best, reverse=True))

    def assign(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The bucket whose ratio is nearest on a logarithmic scale.

        Args:
            sizes: (n, 2), heights and widths; 0 = unknown, which goes to the most square bucket.

        Returns:
            int64, (n,), numbers of buckets.
        """
        ratios = np.log([h / w for h, w in self.shapes])
        known = (sizes > 0).all(1)
        wanted = np.zeros(len(sizes))
        wanted[known] = np.log(sizes[known, 0] / sizes[known, 1])
        # Buckets fall from tall to wide: the nearest one is found between the middles of neighbours.
        middles = (ratios[1:] + ratios[:-1]) / 2
        return np.searchsorted(-middles, -wanted).astype(np.int64)


class BucketOrder:
    """Steps of G pictures of one bucket each.

    A bucket of fewer than G pictures joins its nearest neighbour, so that none of them is left out for ever. What is
    left over in a bucket goes to the next wider one; what is left over a second time is dropped. Which pictures these
    are changes with the pass.

    Args:
        shards: global sample indices of every shard.
        bucket: int64, number of the bucket of every sample of the data set, by global index.
        shapes: the buckets.
        seed: the run's seed.
        tokens: token budget, for the record.
        global_batch: G.
        block_shards: shards mixed with each other at a time.
    """

    def __init__(
        self,
        shards: Sequence[Indices],
        bucket: npt.NDArray[np.int64],
        shapes: Sequence[tuple[int, int]],
        seed: int,
        tokens: int,
        global_batch: int,
        block_shards: int,
    ) -> None:
        self.total = sum(map(len, shards))
        self.tokens, self.global_batch, self.shapes = tokens, global_batch, tuple(shapes)
        self.keeps_order = False
        self._bucket = self._joined(bucket, np.concatenate(list(shards)))
        self._pass = functools.lru_cache(maxsize=2)(
            lambda epoch: self._schedule(interleaved_order(shards, seed, epoch, block_shards))
        )
        # The number of steps depends on the histogram alone, so any pass tells it.
        self.steps = len(self._pass(0)[0])

    def step(self, epoch: int, number: int) -> Step:
        """One step.

        Args:
            epoch: number of the pass.
            number: t in [0, T).

        Returns:
            Its samples and the shape of its bucket.
        """
        batches, buckets = self._pass(epoch)
        index = batches[number]
        return Step(index, np.ones(len(index), np.bool_), epoch, self.tokens, self.shapes[buckets[number]])

    def samples_before(self, epoch: int, number: int) -> int:
        """Samples of the first steps of a pass.

        Args:
            epoch: number of the pass.
            number: steps t.

        Returns:
            t G.
        """
        del epoch
        return number * self.global_batch

    def _joined(self, bucket: npt.NDArray[np.int64], used: Indices) -> npt.NDArray[np.int64]:
        """Buckets that can fill a batch by themselves."""
        counts = np.bincount(bucket[used], minlength=len(self.shapes))
        ratios, target = np.log([h / w for h, w in self.shapes]), np.arange(len(self.shapes))
        while (small := np.flatnonzero((counts > 0) & (counts < self.global_batch))).size:
            others = np.flatnonzero(counts)
            first = small[np.argmin(counts[small])]
            others = others[others != first]
            if not others.size:
                break
            nearest = others[np.argmin(np.abs(ratios[others] - ratios[first]))]
            _log.info(
                "%d pictures of about %d x %d go with those of %d x %d: too few for a batch of %d",
                counts[first],
                *self.shapes[first],
                *self.shapes[nearest],
                self.global_batch,
            )
            target[target == first] = nearest
            counts[nearest], counts[first] = counts[nearest] + counts[first], 0
        return target[bucket]

    def _schedule(self, order: Indices) -> tuple[Indices, Indices]:
        places, buckets = list[Indices](), list[int]()
        owner, carried = self._bucket[order], np.empty(0, np.int64)
        for number in range(len(self.shapes)):
            own = np.flatnonzero(owner == number)
            full = len(own) - len(own) % self.global_batch
            places += list(own[:full].reshape(-1, self.global_batch))
            left = own[full:]
            if len(carried) + len(left) >= self.global_batch:
                need = self.global_batch - len(carried)
                places.append(np.concatenate([carried, left[:need]]))
                left = left[need:]
            buckets += [number] * (len(places) - len(buckets))
            carried = left
        if not places:
            return np.empty((0, self.global_batch), np.int64), np.empty(0, np.int64)
        table = np.stack(places)
        when = np.argsort(table.max(1), kind="stable")
        return order[table[when]], np.asarray(buckets, np.int64)[when]
