"""Several data sets in one plan, each with a weight.

Set i gets its share w_i of the samples (or of the batches, where a batch holds pictures of one bucket) at every moment,
not only on average, and goes through its own passes: no sample comes a second time before the others of its set had
their turn. Everything is a function of how many samples were taken before, so a restart lands on the same sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lightning_gen.data.order import Indices, Order, Step, interleaved_order

__all__ = ["BatchMixture", "Passes", "SampleMixture", "Schedule", "shares"]


def shares(taken: int, weights: Sequence[Fraction]) -> list[int]:
    """How many of the first ``taken`` things belong to each set.

    The first set gets floor(s w_1 / W), and of what remains the second gets floor(s' w_2 / W'), and so on: whole
    numbers that add up and never fall while s grows.

    Args:
        taken: s >= 0.
        weights: positive weights.

    Returns:
        One number per set, their sum is s.
    """
    rest, counts = sum(weights, Fraction(0)), list[int]()
    for weight in weights:
        part = weight / rest
        counts.append(taken * part.numerator // part.denominator)
        taken, rest = taken - counts[-1], rest - weight
    return counts


class Passes:
    """Whole passes over one data set: a plan of ``passes`` of them.

    Args:
        order: of the data set.
        passes: passes in one plan.
    """

    def __init__(self, order: Order, passes: int) -> None:
        self.order, self.passes = order, passes
        self.steps = passes * order.steps
        self.total, self.keeps_order = order.total, order.keeps_order

    def step(self, plan: int, first_sample: int, number: int) -> Step:
        """One micro-batch of a plan.

        Args:
            plan: number of the plan.
            first_sample: not used: a plan begins with a new pass.
            number: micro-batches of the plan before it.

        Returns:
            The step.
        """
        del first_sample
        turn, inside = divmod(number, self.order.steps)
        return self.order.step(plan * self.passes + turn, inside)

    def samples_before(self, plan: int, first_sample: int, number: int) -> int:
        """Samples of the first micro-batches of a plan.

        Args:
            plan: number of the plan.
            first_sample: not used.
            number: micro-batches.

        Returns:
            Their samples.
        """
        del first_sample
        turn, inside = divmod(number, self.order.steps)
        whole = turn * self.order.samples_before(plan * self.passes, self.order.steps)
        return whole + (self.order.samples_before(plan * self.passes + turn, inside) if inside else 0)


class _EvenBatches:
    """Every micro-batch has G samples, plan after plan."""

    global_batch: int

    def samples_before(self, plan: int, first_sample: int, number: int) -> int:
        """Samples of the first micro-batches of a plan.

        Args:
            plan: not used.
            first_sample: not used.
            number: micro-batches.

        Returns:
            Their samples.
        """
        del plan, first_sample
        return number * self.global_batch


class BatchMixture(_EvenBatches):
    """Every micro-batch comes from one of several sets.

    Args:
        orders: one per set, all with batches of G samples.
        weights: of the sets.
        global_batch: G.
        passes: a plan has as many steps as this number of passes over all sets together.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[Fraction], global_batch: int, passes: int) -> None:
        self.orders, self.weights, self.global_batch = tuple(orders), tuple(weights), global_batch
        self.keeps_order = False
        self.total = sum(order.total for order in orders)
        self.steps = passes * sum(order.steps for order in orders) if all(order.steps for order in orders) else 0

    def step(self, plan: int, first_sample: int, number: int) -> Step:
        """One micro-batch of a plan.

        Args:
            plan: not used: sets go on with their passes where the last plan left them.
            first_sample: samples taken by the run before this plan.
            number: micro-batches of the plan before it.

        Returns:
            The step of the set whose turn it is.
        """
        del plan
        done = first_sample // self.global_batch + number
        before, after = shares(done, self.weights), shares(done + 1, self.weights)
        chosen = next(i for i, (low, high) in enumerate(zip(before, after, strict=True)) if high > low)
        order = self.orders[chosen]
        return order.step(*divmod(before[chosen], order.steps))


class SampleMixture(_EvenBatches):
    """Every micro-batch holds samples of all sets, in the proportion of their weights.

    Args:
        sets: for every set the global sample indices of its shards.
        seeds: for every set the seed of its order.
        weights: of the sets.
        tokens: token budget of every image.
        global_batch: G.
        block_shards: shards of one set mixed with each other at a time.
        passes: a plan has as many samples as this number of passes over all sets together.
        shape: shape of every picture, None = its own.

    Raises:
        ValueError: a set is smaller than its share of a batch.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[Indices]],
        seeds: Sequence[int],
        weights: Sequence[Fraction],
        tokens: int,
        global_batch: int,
        block_shards: int,
        passes: int,
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.shape, self.keeps_order = shape, True
        self.lengths = [sum(map(len, shards)) for shards in sets]
        for number, (length, weight) in enumerate(zip(self.lengths, weights, strict=True)):
            share = math.ceil(global_batch * weight / sum(weights))
            if share > length:
                raise ValueError(
                    f"set {number} of the mixture has {length} samples and would give {share} to every batch of "
                    f"{global_batch}, some of them twice: lower its weight or the batch"
                )
        self.total = sum(self.lengths)
        self.weights, self.tokens, self.global_batch = tuple(weights), tokens, global_batch
        self.steps = passes * self.total // global_batch
        self._pass = functools.lru_cache(maxsize=2 * len(sets))(
            lambda number, epoch: interleaved_order(sets[number], seeds[number], epoch, block_shards)
        )

    def step(self, plan: int, first_sample: int, number: int) -> Step:
        """One micro-batch of a plan.

        Args:
            plan: not used: sets go on with their passes where the last plan left them.
            first_sample: samples taken by the run before this plan.
            number: micro-batches of the plan before it.

        Returns:
            Samples of all sets, spread evenly over the batch so that every rank gets its share. Its ``epoch`` is the
            number of samples taken before, since the sets are in different passes.
        """
        del plan
        start = first_sample + number * self.global_batch
        before, after = shares(start, self.weights), shares(start + self.global_batch, self.weights)
        parts = [self._stretch(i, low, high) for i, (low, high) in enumerate(zip(before, after, strict=True))]
        place = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in parts])
        index = np.concatenate(parts)[np.argsort(place, kind="stable")]
        return Step(index, np.ones(len(index), np.bool_), start, self.tokens, self.shape)

    def _stretch(self, number: int, low: int, high: int) -> Indices:
        """Samples [low, high) of a set's endless row of passes."""
        length, parts = self.lengths[number], list[Indices]()
        while low < high:
            epoch, start = divmod(low, length)
            parts.append(self._pass(number, epoch)[start : start + high - low])
            low += len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


Schedule = Passes | BatchMixture | SampleMixture
"""What gives the micro-batches of a stage of the curriculum."""
