"""What an order is made of: the shards of one or several data sets, what is left out, and how pictures share shapes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gen.data.buckets import AspectBuckets, BucketOrder
from lightning_gen.data.mixture import BatchMixture, Passes, SampleMixture, Schedule
from lightning_gen.data.order import Indices, LadderOrder, Order, PlainOrder, RepeatOrder
from lightning_gen.training.curriculum import BudgetStage
from lightning_gen.training.randomness import key_seed

__all__ = ["Layout", "MixedSet"]

Sizes = npt.NDArray[np.int64]


class MixedSet(NamedTuple):
    """One of several data sets.

    Attributes:
        shards: how many of the shards belong to it; sets follow each other.
        weight: its share of the samples, > 0, relative to the other weights.
    """

    shards: int
    weight: float


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The ingredients of every order of a run.

    Attributes:
        counts: samples of every shard.
        seed: the run's seed.
        block_shards: shards mixed with each other at a time.
        passes: passes over the data in one plan; more than one keeps epochs of tiny data sets from being trifles.
        excluded: global sample indices that are left out (the quarantine list).
        sets: the sets of a mixture, empty = one set.
        buckets: shapes that pictures are brought to; None = every picture keeps its own.
        repeats: k: every sample of a step comes k times (groups of rollouts); needs a single set of one shape.
        sizes: gives heights and widths of all samples, (N, 2), 0 = unknown; needed for buckets and ``min_size``.

    Raises:
        ValueError: a number below 1, or the sets are not those of the shards.
    """

    counts: Sequence[int]
    seed: int
    block_shards: int = 16
    passes: int = 1
    excluded: Indices | Sequence[int] = ()
    sets: Sequence[MixedSet] = ()
    buckets: AspectBuckets | None = None
    repeats: int = 1
    sizes: Callable[[], Sizes] | None = None

    def __post_init__(self) -> None:
        if min(self.block_shards, self.passes, self.repeats) < 1:
            raise ValueError("block_shards, passes and repeats must be at least 1")
        if self.repeats > 1 and (len(self.sets) > 1 or self._shapes > 1):
            raise ValueError("groups of k repeats need a single set of one shape")
        if sum(part.shards for part in self.mixed) != len(self.counts) or min(part.shards for part in self.mixed) < 1:
            raise ValueError(f"the sets {list(self.sets)} do not make up the {len(self.counts)} shards")
        if not all(math.isfinite(part.weight) and part.weight > 0 for part in self.sets):
            raise ValueError(f"the weights of a mixture must be positive, got {[part.weight for part in self.sets]}")

    @property
    def mixed(self) -> tuple[MixedSet, ...]:
        """The sets, also where there is only one."""
        return tuple(self.sets) or (MixedSet(len(self.counts), 1.0),)

    @functools.cached_property
    def all_sizes(self) -> Sizes:
        """Heights and widths of all samples, (N, 2), 0 = unknown."""
        if self.sizes is None:
            raise ValueError("buckets and min_size need to know the pictures' sizes: pass sizes")
        return self.sizes()

    @functools.cached_property
    def excluded_hash(self) -> str:
        """sha256 of the quarantine list, empty where nothing is left out."""
        if not len(self.excluded):
            return ""
        return hashlib.sha256(np.unique(self.excluded).tobytes()).hexdigest()

    def describe(self, stage: BudgetStage) -> dict[str, Any]:
        """What makes the order of a stage besides seed, data set and batch.

        Args:
            stage: of the curriculum.

        Returns:
            Plain values by the names of the arguments that they come from.
        """
        buckets = self.buckets if self._shapes > 1 else None
        return {
            "train": [list(part) for part in self.mixed],
            "resolution": buckets.resolution if buckets else None,
            "bucket_step": buckets.step if buckets else None,
            "max_ratio": buckets.max_ratio if buckets else None,
            "repeats": self.repeats,
            "min_size": stage.min_size,
            "ladder": list(stage.ladder),
            "batch_multiple": stage.batch_multiple,
        }

    def schedule(self, stage: BudgetStage, streams: int) -> Schedule:
        """The micro-batches of a stage.

        Args:
            stage: of the curriculum.
            streams: canonical streams C. Mixtures, buckets and ladders use one stream.

        Returns:
            Whole passes over a single set, or a mixture.

        Raises:
            ValueError: a set without samples, or a mixture with a ladder.
        """
        sets, size = self._kept(stage.min_size), stage.global_batch_size
        seeds = [key_seed(self.seed, "set", number) if number else self.seed for number in range(len(sets))]
        if len(sets) == 1:
            return Passes(self._order(stage, sets[0], seeds[0], streams), self.passes)
        weights = [Fraction(part.weight) for part in self.mixed]
        if stage.ladder:
            raise ValueError("a ladder of token budgets needs a single data set, not a mixture")
        if self._shapes == 1:
            mixed = (sets, seeds, weights, stage.tokens, size, self.block_shards, self.passes)
            return SampleMixture(*mixed, shape=self.shape)
        orders = [self._order(stage, shards, seed, 1) for shards, seed in zip(sets, seeds, strict=True)]
        return BatchMixture(orders, weights, size, self.passes)

    def groups(self) -> npt.NDArray[np.int64] | None:
        """Which samples can stand in for each other: those of one set and one bucket.

        Returns:
            int64, (N,), a number for every sample; None = any for any.
        """
        if len(self.mixed) == 1 and self._shapes == 1:
            return None
        samples, first = list[int](), 0
        for part in self.mixed:
            samples.append(sum(self.counts[first : first + part.shards]))
            first += part.shards
        owner = np.repeat(np.arange(len(samples), dtype=np.int64), samples)
        return owner if self._shapes == 1 else owner * self._shapes + self._bucket

    @property
    def _shapes(self) -> int:
        return len(self.buckets.shapes) if self.buckets is not None else 1

    @property
    def shape(self) -> tuple[int, int] | None:
        """The shape of every picture where there is a single one."""
        return self.buckets.shapes[0] if self.buckets is not None else None

    @functools.cached_property
    def _bucket(self) -> npt.NDArray[np.int64]:
        assert self.buckets is not None
        return self.buckets.assign(self.all_sizes)

    def _order(self, stage: BudgetStage, shards: list[Indices], seed: int, streams: int) -> Order:
        size, tokens = stage.global_batch_size, stage.tokens
        if self.repeats > 1:
            if size % self.repeats or stage.ladder:
                raise ValueError(f"the batch of {size} rows is not a whole number of groups of {self.repeats} repeats")
            part = size // self.repeats
            plain = PlainOrder(shards, seed, tokens, part, 1, self.block_shards, self.shape)
            return RepeatOrder(plain, self.repeats, seed)
        if stage.ladder:
            return LadderOrder(shards, seed, stage.ladder, stage.batches, self.block_shards)
        if self.buckets is None or self._shapes == 1:
            return PlainOrder(shards, seed, tokens, size, streams, self.block_shards, self.shape)
        return BucketOrder(shards, self._bucket, self.buckets.shapes, seed, tokens, size, self.block_shards)

    def allowed(self, min_size: int | None) -> npt.NDArray[np.bool_]:
        """Which samples are used.

        Args:
            min_size: shortest side in pixels, 0 or None = any.

        Returns:
            bool, (N,), False = on the list of samples left out, or too small.
        """
        allowed = np.ones(sum(self.counts), np.bool_)
        allowed[np.asarray(self.excluded, np.int64)] = False
        if min_size:
            # Where the size is unknown the picture is judged, and counted, when it is decoded.
            smallest = self.all_sizes.min(1)
            allowed &= (smallest == 0) | (smallest >= min_size)
        return allowed

    def _kept(self, min_size: int | None) -> list[list[Indices]]:
        """The samples of every shard of every set that are used."""
        ends, allowed = np.cumsum(self.counts), self.allowed(min_size)
        shards = [np.arange(e - n, e, dtype=np.int64) for e, n in zip(ends.tolist(), self.counts, strict=True)]
        if not allowed.all():
            shards = [shard[allowed[shard]] for shard in shards]
        kept, first = list[list[Indices]](), 0
        for part in self.mixed:
            kept.append([shard for shard in shards[first : first + part.shards] if len(shard)])
            first += part.shards
            if not kept[-1]:
                raise ValueError(f"no sample is left of set {len(kept) - 1} (min_size={min_size}, quarantine list)")
        return kept
