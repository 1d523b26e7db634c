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
from typing import Final, NamedTuple

import numpy as np

from lightning_gen.data.layout import Layout
from lightning_gen.data.mixture import Passes
from lightning_gen.data.order import Indices, Step
from lightning_gen.training.curriculum import BudgetStage, check_stages, stage_at

__all__ = ["EvaluationPlan", "Origin", "Plan", "Planner", "rank_part"]


class Origin(NamedTuple):
    """Where a curriculum takes over from an earlier one.

    Attributes:
        plan: number of its first plan.
        step: optimiser steps taken before it.
        sample: samples taken before it, over all ranks.
    """

    plan: int = 0
    step: int = 0
    sample: int = 0


_START: Final = Origin()


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """One epoch of the trainer.

    Attributes:
        number: k.
        stage: index into the curriculum.
        tokens: largest token budget of an image of this plan.
        global_batch_size: G, images of every step over all ranks (with a ladder: of a step of the largest budget).
        first_step: optimiser steps taken before this plan.
        first_sample: samples taken before this plan, over all ranks.
        steps: micro-batches, a multiple of ``accumulate``.
        accumulate: micro-batches per optimiser step.
        planner: where the order comes from.
    """

    number: int
    stage: int
    tokens: int
    global_batch_size: int
    first_step: int
    first_sample: int
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
        return self.planner.schedule(self.stage).step(self.number, self.first_sample, number)

    def samples_before(self, number: int) -> int:
        """Samples of the first micro-batches, over all ranks.

        Args:
            number: micro-batches.

        Returns:
            Their samples.
        """
        return self.planner.schedule(self.stage).samples_before(self.number, self.first_sample, number)

    def step_at(self, samples: int) -> int:
        """The micro-batch that holds a sample.

        Args:
            samples: samples of this plan before it.

        Returns:
            The largest number of micro-batches that hold no more than these samples; beyond the end, one too many.
        """
        low, high = 0, self.steps + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.samples_before(middle) <= samples else (low, middle)
        return low + (samples - self.samples_before(low)) // self.global_batch_size if low == self.steps else low

    @property
    def dropped(self) -> int:
        """Samples that each pass of this plan leaves out; other ones in every pass. 0 for a mixture, which has none."""
        schedule = self.planner.schedule(self.stage)
        if not isinstance(schedule, Passes):
            return 0
        first = self.number * schedule.passes
        return schedule.total - schedule.order.samples_before(first, schedule.order.steps)


class Planner:
    """Makes plans.

    Args:
        layout: data set, order and shapes.
        fingerprint: hash of the data set, kept in checkpoints.
        stages: the token-budget curriculum.
        accumulate: micro-batches per optimiser step; every plan is a whole number of optimiser steps.
        canonical_streams: C; None = gcd(64, G) for each stage.
        origin: where this curriculum takes over from an earlier one.

    Raises:
        ValueError: the data set is smaller than a global batch, or C does not divide G.
    """

    def __init__(
        self,
        layout: Layout,
        fingerprint: str,
        stages: Sequence[BudgetStage],
        *,
        accumulate: int = 1,
        canonical_streams: int | None = None,
        origin: Origin = _START,
    ) -> None:
        if min(accumulate, canonical_streams or 1) < 1:
            raise ValueError("accumulate and canonical_streams must be at least 1")
        self.layout, self.fingerprint, self.origin = layout, fingerprint, origin
        self.stages = check_stages(stages)
        self.accumulate, self.canonical_streams = accumulate, canonical_streams
        self.schedule = functools.cache(lambda stage: layout.schedule(self.stages[stage], self.streams(stage)))
        for number in range(len(self.stages)):
            self._check(number)

    def _check(self, number: int) -> None:
        size, streams = self.stages[number].global_batch_size, self.streams(number)
        if size % streams:
            raise ValueError(f"stage {number}: canonical_streams={streams} does not divide global_batch_size={size}")
        if self.steps_per_plan(number) == 0:
            raise ValueError(
                f"stage {number}: {self.schedule(number).total} samples in {self.layout.passes} pass(es) do not fill "
                f"one optimiser step of {self.accumulate} x {size} images. Lower global_batch_size or "
                "accumulate_grad_batches, or raise passes"
            )

    def continued(self, origin: Origin, canonical_streams: int | None) -> Planner:
        """The same curriculum taking over at a plan of an earlier one.

        Args:
            origin: where.
            canonical_streams: C to go on with, None = gcd(64, G).

        Returns:
            A new planner.
        """
        return Planner(
            self.layout,
            self.fingerprint,
            self.stages,
            accumulate=self.accumulate,
            canonical_streams=canonical_streams,
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

    def steps_per_plan(self, stage: int) -> int:
        """Micro-batches in a plan that no boundary cuts.

        Args:
            stage: index into the curriculum.

        Returns:
            All passes, rounded down to whole optimiser steps.
        """
        steps = self.schedule(stage).steps
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
        current, step, sample = self.origin
        if number < current:
            raise ValueError(f"plan {number} lies before plan {current}, where this curriculum began")
        stage = stage_at(self.stages, step)
        while True:
            budget, full = self.stages[stage], self.steps_per_plan(stage) // self.accumulate
            images = self.accumulate * budget.global_batch_size
            in_stage = math.inf if budget.until_step is None else -(-(budget.until_step - step) // full)
            if number - current < in_stage:
                first = step + (number - current) * full
                steps = full if budget.until_step is None else min(full, budget.until_step - first)
                return Plan(
                    number=number,
                    stage=stage,
                    tokens=max(budget.tokens, *budget.ladder, 0),
                    global_batch_size=budget.global_batch_size,
                    first_step=first,
                    first_sample=sample + (first - step) * images,
                    steps=steps * self.accumulate,
                    accumulate=self.accumulate,
                    planner=self,
                )
            assert budget.until_step is not None
            sample += (budget.until_step - step) * images
            current, step, stage = current + int(in_stage), budget.until_step, stage + 1

    def shortest_plan(self) -> int:
        """Fewest micro-batches that any plan of this run has.

        Returns:
            The minimum over the full and the cut plan of every stage.
        """
        lengths = [self.plan(self.origin.plan).steps]
        current = self.origin.plan
        for stage in range(self.plan(current).stage, len(self.stages)):
            lengths.append(self.steps_per_plan(stage))
            until = self.stages[stage].until_step
            if until is not None:
                first = self.plan(current).first_step
                current += -(-(until - first) // (self.steps_per_plan(stage) // self.accumulate))
                lengths.append(self.plan(current - 1).steps)
        return min(lengths)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of everything that decides which sample comes when."""
        stages = [(dataclasses.astuple(stage), self.layout.describe(stage)) for stage in self.stages]
        layout = [self.layout.seed, self.layout.block_shards, self.layout.passes, self.layout.excluded_hash]
        key = [self.fingerprint, stages, layout, self.accumulate, self.canonical_streams, self.origin]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """Every sample once, in the order of the manifest; the last batch is filled up with samples marked invalid.

    Attributes:
        total: samples N.
        samples: int64, (N,), their global indices, ascending; None = 0 to N - 1.
        global_batch_size: G.
        tokens: token budget of every image.
        shape: height and width that every picture is brought to, None = its own.
    """

    total: int
    global_batch_size: int
    tokens: int
    shape: tuple[int, int] | None = None
    samples: Indices | None = dataclasses.field(default=None, repr=False, compare=False)

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
        places = np.minimum(index, self.total - 1)
        chosen = places if self.samples is None else self.samples[places]
        return Step(chosen, index < self.total, 0, self.tokens, self.shape)
