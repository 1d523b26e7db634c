"""The plan: which samples make which step, for everybody and for ever.

One epoch of the trainer is one plan. Plan k is a pure function of (seed, data set, curriculum, k); neither the number
of ranks nor that of workers is in it. It owns the token budget: a plan that would reach into the next stage of the
curriculum is cut at the boundary, so a budget changes between two plans only.

Shape letters: N samples, G global batch, C canonical streams, R ranks, T steps (micro-batches) of one pass.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_gen.training.curriculum import BudgetStage, check_stages, stage_at

__all__ = ["EvaluationPlan", "Plan", "Planner", "Step", "canonical_order", "rank_part"]

Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Step:
    """One micro-batch over all ranks.

    Attributes:
        index: int64, (G,), global sample indices.
        valid: bool, (G,), False = only fills the batch.
        epoch: number of the pass over the data.
    """

    index: Indices
    valid: npt.NDArray[np.bool_]
    epoch: int


def rank_part(global_batch: int, rank: int, world: int) -> slice:
    """Where a rank's samples stand in a global batch.

    Args:
        global_batch: G, a multiple of ``world``.
        rank: r in [0, world).
        world: number of ranks R.

    Returns:
        The r-th contiguous part of length G / R.

    Raises:
        ValueError: G cannot be divided among the ranks, or there is no such rank.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} ranks")
    if global_batch % world:
        raise ValueError(
            f"the global batch of {global_batch} images is not a multiple of the {world} ranks: choose one"
        )
    size = global_batch // world
    return slice(rank * size, (rank + 1) * size)


def canonical_order(shards: Sequence[Indices], seed: int, epoch: int, streams: int, block_shards: int) -> Indices:
    """The order of one pass, one row per canonical stream.

    1. Permute the shards. 2. Lay them end to end and cut the list into C streams of L = floor(N / C) samples, wherever
    that falls. 3. In every stream, permute the samples inside blocks of ``block_shards`` shards. Where all shards fit
    into one block, all samples are permuted before the cut instead, so that small data sets are mixed completely.

    Args:
        shards: global sample indices of every shard.
        seed: the run's seed.
        epoch: number of the pass.
        streams: C.
        block_shards: shards mixed with each other at a time.

    Returns:
        int64, (C, L). Step t is made of columns [t G / C, (t + 1) G / C) of all rows, row after row.
    """
    order = _generator(seed, epoch, 0).permutation(len(shards))
    whole = np.concatenate([shards[number] for number in order])
    length = len(whole) // streams
    if len(shards) <= block_shards:
        whole = _generator(seed, epoch, 1).permutation(whole)
        return whole[: streams * length].reshape(streams, length)
    ends = np.cumsum([len(shards[number]) for number in order])
    rows = whole[: streams * length].reshape(streams, length)
    for stream in range(streams):
        start, stop = stream * length, (stream + 1) * length
        inside = ends[(ends > start) & (ends < stop)] - start
        cuts = [0, *inside[block_shards - 1 :: block_shards].tolist(), length]
        for block, (low, high) in enumerate(zip(cuts, cuts[1:], strict=False)):
            rows[stream, low:high] = _generator(seed, epoch, 1, stream, block).permutation(rows[stream, low:high])
    return rows


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """One epoch of the trainer.

    Attributes:
        number: k.
        stage: index into the curriculum.
        tokens: token budget of every image of this plan.
        global_batch_size: G, images of every step over all ranks.
        first_step: optimiser steps taken before this plan.
        steps: micro-batches, a multiple of ``accumulate``.
        accumulate: micro-batches per optimiser step.
        planner: where the order comes from.
    """

    number: int
    stage: int
    tokens: int
    global_batch_size: int
    first_step: int
    steps: int
    accumulate: int
    planner: Planner = dataclasses.field(repr=False, compare=False)

    def step(self, number: int) -> Step:
        """One micro-batch.

        Args:
            number: t in [0, steps).

        Returns:
            Its samples.

        Raises:
            IndexError: the plan has no such step.
        """
        if not 0 <= number < self.steps:
            raise IndexError(f"step {number} of plan {self.number}, which has {self.steps} steps")
        size, streams = self.global_batch_size, self.planner.streams(self.stage)
        turn, inside = divmod(number, self.planner.pass_steps(self.stage))
        epoch = self.number * self.planner.passes + turn
        part = size // streams
        order = self.planner.order(epoch, streams)
        index = order[:, inside * part : (inside + 1) * part].reshape(-1)
        return Step(index, np.ones(size, np.bool_), epoch)

    @property
    def dropped(self) -> int:
        """Samples that each pass of this plan leaves out; other ones in every pass."""
        return self.planner.total - self.planner.pass_steps(self.stage) * self.global_batch_size


class Planner:
    """Makes plans.

    Args:
        counts: samples of every shard.
        fingerprint: hash of the data set, kept in checkpoints.
        seed: the run's seed.
        stages: the token-budget curriculum.
        accumulate: micro-batches per optimiser step; every plan is a whole number of optimiser steps.
        block_shards: shards mixed with each other at a time.
        canonical_streams: C; None = gcd(64, G) for each stage.
        passes: passes over the data in one plan; more than one keeps epochs of tiny data sets from being trifles.
        excluded: global sample indices that are left out (the quarantine list).
        origin: plan number and optimiser step at which this curriculum takes over from an earlier one.

    Raises:
        ValueError: the data set is smaller than a global batch, or C does not divide G.
    """

    def __init__(
        self,
        counts: Sequence[int],
        fingerprint: str,
        seed: int,
        stages: Sequence[BudgetStage],
        *,
        accumulate: int = 1,
        block_shards: int = 16,
        canonical_streams: int | None = None,
        passes: int = 1,
        excluded: Sequence[int] = (),
        origin: tuple[int, int] = (0, 0),
    ) -> None:
        if min(accumulate, block_shards, passes, canonical_streams or 1) < 1:
            raise ValueError("accumulate, block_shards, canonical_streams and passes must be at least 1")
        self.stages = check_stages(stages)
        self.seed, self.fingerprint, self.origin = seed, fingerprint, origin
        self.accumulate, self.block_shards, self.passes = accumulate, block_shards, passes
        self.canonical_streams = canonical_streams
        self.excluded = tuple(sorted(set(excluded)))
        self._counts = tuple(counts)
        self._shards = _kept(counts, self.excluded)
        self.total = sum(map(len, self._shards))
        self.order = functools.lru_cache(maxsize=2)(self._order)
        for number in range(len(self.stages)):
            self._check(number)

    def _check(self, number: int) -> None:
        size, streams = self.stages[number].global_batch_size, self.streams(number)
        if size % streams:
            raise ValueError(f"stage {number}: canonical_streams={streams} does not divide global_batch_size={size}")
        if self.steps_per_plan(number) == 0:
            raise ValueError(
                f"stage {number}: {self.total} samples in {self.passes} pass(es) do not fill one optimiser step of "
                f"{self.accumulate} x {size} images. Lower global_batch_size or accumulate_grad_batches, or raise "
                "passes"
            )

    def continued(self, origin: tuple[int, int], canonical_streams: int | None) -> Planner:
        """The same curriculum taking over at a plan of an earlier one.

        Args:
            origin: that plan's number and the optimiser step at which it began.
            canonical_streams: C to go on with, None = gcd(64, G).

        Returns:
            A new planner.
        """
        return Planner(
            self._counts,
            self.fingerprint,
            self.seed,
            self.stages,
            accumulate=self.accumulate,
            block_shards=self.block_shards,
            canonical_streams=canonical_streams,
            passes=self.passes,
            excluded=self.excluded,
            origin=origin,
        )

    def streams(self, stage: int) -> int:
        """Canonical streams of a stage.

        Args:
            stage: index into the curriculum.

        Returns:
            C.
        """
        return self.canonical_streams or math.gcd(64, self.stages[stage].global_batch_size)

    def pass_steps(self, stage: int) -> int:
        """Micro-batches in one pass over the data.

        Args:
            stage: index into the curriculum.

        Returns:
            floor(floor(N / C) / (G / C)) = floor(N / G).
        """
        return self.total // self.stages[stage].global_batch_size

    def steps_per_plan(self, stage: int) -> int:
        """Micro-batches in a plan that no boundary cuts.

        Args:
            stage: index into the curriculum.

        Returns:
            All passes, rounded down to whole optimiser steps.
        """
        steps = self.passes * self.pass_steps(stage)
        return steps - steps % self.accumulate

    def plan(self, number: int) -> Plan:
        """Plan k.

        Args:
            number: k, at least that of the origin.

        Returns:
            The plan.

        Raises:
            ValueError: plan k lies before the origin.
        """
        current, step = self.origin
        if number < current:
            raise ValueError(f"plan {number} lies before plan {current}, where this curriculum began")
        stage = stage_at(self.stages, step)
        while True:
            full = self.steps_per_plan(stage) // self.accumulate
            until = self.stages[stage].until_step
            in_stage = math.inf if until is None else -(-(until - step) // full)
            if number - current < in_stage:
                first = step + (number - current) * full
                steps = full if until is None else min(full, until - first)
                budget = self.stages[stage]
                return Plan(
                    number,
                    stage,
                    budget.tokens,
                    budget.global_batch_size,
                    first,
                    steps * self.accumulate,
                    self.accumulate,
                    self,
                )
            assert until is not None
            current, step, stage = current + int(in_stage), until, stage + 1

    def shortest_plan(self) -> int:
        """Fewest micro-batches that any plan of this run has.

        Returns:
            The minimum over the full and the cut plan of every stage.
        """
        lengths = [self.plan(self.origin[0]).steps]
        current = self.origin[0]
        for stage in range(self.plan(current).stage, len(self.stages)):
            lengths.append(self.steps_per_plan(stage))
            until = self.stages[stage].until_step
            if until is not None:
                first = self.plan(current).first_step
                current += -(-(until - first) // (self.steps_per_plan(stage) // self.accumulate))
                lengths.append(self.plan(current - 1).steps)
        return min(lengths)

    @functools.cached_property
    def excluded_hash(self) -> str:
        """sha256 of the quarantine list, empty where nothing is left out."""
        return hashlib.sha256(json.dumps(self.excluded).encode()).hexdigest() if self.excluded else ""

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of everything that decides which sample comes when."""
        stages = [dataclasses.astuple(stage) for stage in self.stages]
        key = [self.fingerprint, self.seed, stages, self.accumulate, self.block_shards, self.canonical_streams]
        key += [self.passes, self.excluded, self.origin]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def _order(self, epoch: int, streams: int) -> Indices:
        return canonical_order(self._shards, self.seed, epoch, streams, self.block_shards)


def _kept(counts: Sequence[int], excluded: tuple[int, ...]) -> list[Indices]:
    ends = np.cumsum(counts)
    shards = [np.arange(end - count, end, dtype=np.int64) for end, count in zip(ends.tolist(), counts, strict=True)]
    if excluded:
        shards = [shard[~np.isin(shard, excluded)] for shard in shards]
    return [shard for shard in shards if len(shard)]


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """Every sample once, in the order of the manifest; the last batch is filled up with samples marked invalid.

    Attributes:
        total: samples N.
        global_batch_size: G.
        tokens: token budget of every image.
    """

    total: int
    global_batch_size: int
    tokens: int

    @property
    def steps(self) -> int:
        """Number of batches, ceil(N / G), the same for every rank."""
        return -(-self.total // self.global_batch_size)

    def step(self, number: int) -> Step:
        """One batch.

        Args:
            number: t in [0, steps).

        Returns:
            Its samples; what lies beyond N repeats the last sample and is not valid.

        Raises:
            IndexError: there is no such batch.
        """
        if not 0 <= number < self.steps:
            raise IndexError(f"batch {number} of an evaluation of {self.steps} batches")
        index = np.arange(number * self.global_batch_size, (number + 1) * self.global_batch_size, dtype=np.int64)
        return Step(np.minimum(index, self.total - 1), index < self.total, 0)
