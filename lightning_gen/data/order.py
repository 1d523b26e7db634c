"""In which order the samples of one data set are taken during one pass.

An order is a pure function of (seed, data set, pass number); neither the number of ranks nor that of workers is in it.
Every step names its samples and the shape they share, so all ranks compute on the same shape at the same time.

Shape letters: N samples, G global batch, C canonical streams, T steps (micro-batches) of one pass.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "Indices",
    "LadderOrder",
    "Order",
    "PlainOrder",
    "RepeatOrder",
    "Step",
    "canonical_order",
    "generator",
    "interleaved_order",
]

Indices = npt.NDArray[np.int64]
_STREAMS = 8


@dataclasses.dataclass(frozen=True)
class Step:
    """One micro-batch over all ranks.

    Attributes:
        index: int64, (G,), global sample indices.
        valid: bool, (G,), False = only fills the batch.
        epoch: number of the pass over the data, or another number that makes the draws of this step its own.
        tokens: token budget of every image.
        shape: height and width that every picture is brought to, None = every picture keeps its own.
        slot: int64, (G,), places in the step before its rows were shuffled; None = they were not. With samples that
            come k times, slot // k is the group of a row and slot % k its number in the group.
    """

    index: Indices
    valid: npt.NDArray[np.bool_]
    epoch: int
    tokens: int
    shape: tuple[int, int] | None = None
    slot: Indices | None = None


class Order(Protocol):
    """One pass after another over one data set."""

    @property
    def total(self) -> int:
        """Samples N of the data set."""
        ...

    @property
    def steps(self) -> int:
        """Steps T of one pass, the same for every pass."""
        ...

    @property
    def keeps_order(self) -> bool:
        """Whether samples come in the same order for another batch size."""
        ...

    def step(self, epoch: int, number: int) -> Step:
        """Step ``number`` in [0, T) of pass ``epoch``."""
        ...

    def samples_before(self, epoch: int, number: int) -> int:
        """Samples taken by the first ``number`` steps of pass ``epoch``."""
        ...


def generator(*key: int) -> np.random.Generator:
    """NumPy's generator of one key.

    Args:
        *key: non-negative integers.

    Returns:
        A Philox generator.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


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
        int64, (C, L). Step t is made of columns [t G / C, (t + 1) G / C) of all rows.
    """
    order = generator(seed, epoch, 0).permutation(len(shards))
    whole = np.concatenate([shards[number] for number in order])
    length = len(whole) // streams
    if len(shards) <= block_shards:
        whole = generator(seed, epoch, 1).permutation(whole)
        return whole[: streams * length].reshape(streams, length)
    ends = np.cumsum([len(shards[number]) for number in order])
    rows = whole[: streams * length].reshape(streams, length)
    for stream in range(streams):
        start, stop = stream * length, (stream + 1) * length
        inside = ends[(ends > start) & (ends < stop)] - start
        cuts = [0, *inside[block_shards - 1 :: block_shards].tolist(), length]
        for block, (low, high) in enumerate(zip(cuts, cuts[1:], strict=False)):
            rows[stream, low:high] = generator(seed, epoch, 1, stream, block).permutation(rows[stream, low:high])
    return rows


def interleaved_order(shards: Sequence[Indices], seed: int, epoch: int, block_shards: int) -> Indices:
    """The order of one pass as a single list, for steps of changing sizes: neighbours come from different streams.

    Args:
        shards: global sample indices of every shard.
        seed: the run's seed.
        epoch: number of the pass.
        block_shards: shards mixed with each other at a time.

    Returns:
        int64, (N,): sample by sample from up to 8 canonical streams in turn, and what they leave over at the end.
    """
    total = sum(map(len, shards))
    streams = min(_STREAMS, max(1, len(shards) // block_shards), total)
    rows = canonical_order(shards, seed, epoch, streams, block_shards)
    if rows.size == total:
        return rows.T.reshape(-1)
    return np.concatenate([rows.T.reshape(-1), np.setdiff1d(np.concatenate(list(shards)), rows)])


class PlainOrder:
    """Steps of G samples from C canonical streams; the last N mod G samples of a pass are left out, others each pass.

    Args:
        shards: global sample indices of every shard.
        seed: the run's seed.
        tokens: token budget of every image.
        global_batch: G.
        streams: C, a divisor of G.
        block_shards: shards mixed with each other at a time.
        shape: shape of every picture, None = its own.
    """

    def __init__(
        self,
        shards: Sequence[Indices],
        seed: int,
        tokens: int,
        global_batch: int,
        streams: int,
        block_shards: int,
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.total = sum(map(len, shards))
        self.steps = self.total // global_batch
        self.tokens, self.global_batch, self.streams, self.shape = tokens, global_batch, streams, shape
        self.keeps_order = True
        self._rows = functools.lru_cache(maxsize=2)(
            lambda epoch: canonical_order(shards, seed, epoch, streams, block_shards)
        )

    def step(self, epoch: int, number: int) -> Step:
        """One step.

        Args:
            epoch: number of the pass.
            number: t in [0, T).

        Returns:
            Columns [t G / C, (t + 1) G / C) of the canonical order; groups of C / 8 streams take turns in it.
        """
        part, near = self.global_batch // self.streams, max(1, self.streams // _STREAMS)
        columns = self._rows(epoch)[:, number * part : (number + 1) * part]
        # Inside groups of streams sample by sample: neighbours in a step do not come from one block of shards.
        index = columns.reshape(self.streams // near, near, part).swapaxes(1, 2).reshape(-1)
        return Step(index, np.ones(len(index), np.bool_), epoch, self.tokens, self.shape)

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


class RepeatOrder:
    """Every sample of a step comes k times; the rows of a step are shuffled, so that ranks share the groups.

    Args:
        order: gives steps of G / k samples.
        repeats: k.
        seed: the run's seed.

    Source: arXiv:2505.05470, the group sampler of Flow-GRPO.
    """

    def __init__(self, order: Order, repeats: int, seed: int) -> None:
        self._order, self.repeats, self._seed = order, repeats, seed
        self.total, self.steps, self.keeps_order = order.total, order.steps, order.keeps_order

    def step(self, epoch: int, number: int) -> Step:
        """One step.

        Args:
            epoch: number of the pass.
            number: t in [0, T).

        Returns:
            G rows.
        """
        step = self._order.step(epoch, number)
        slot = generator(self._seed, epoch, 3, number).permutation(len(step.index) * self.repeats)
        place = slot // self.repeats
        return dataclasses.replace(step, index=step.index[place], valid=step.valid[place], slot=slot)

    def samples_before(self, epoch: int, number: int) -> int:
        """Rows of the first steps of a pass.

        Args:
            epoch: number of the pass.
            number: steps t.

        Returns:
            t G.
        """
        return self._order.samples_before(epoch, number) * self.repeats


class LadderOrder:
    """Steps of changing token budgets: few large images or many small ones, about the same number of tokens.

    A rung n of the ladder makes steps of floor(tokens G / n / m) m images with a budget of n tokens each. Every pass
    takes every rung equally often, in an order of its own, which is the same on all ranks.

    Args:
        shards: global sample indices of every shard.
        seed: the run's seed.
        ladder: token budgets.
        batches: images of a step of each rung.
        block_shards: shards mixed with each other at a time.

    Source: the batches of timm's NaFlex loader.
    """

    def __init__(
        self, shards: Sequence[Indices], seed: int, ladder: Sequence[int], batches: Sequence[int], block_shards: int
    ) -> None:
        self.total = sum(map(len, shards))
        self.ladder, self._seed, self.keeps_order = tuple(ladder), seed, True
        self._batches = np.asarray(batches, np.int64)
        turn = int(self._batches.sum())
        ends = np.cumsum(self._batches)
        self.steps = self.total // turn * len(ladder) + int((ends <= self.total % turn).sum())
        self._pass = functools.lru_cache(maxsize=2)(
            lambda epoch: (interleaved_order(shards, seed, epoch, block_shards), *self._rungs(epoch))
        )

    def step(self, epoch: int, number: int) -> Step:
        """One step.

        Args:
            epoch: number of the pass.
            number: t in [0, T).

        Returns:
            The next samples of the pass, with the budget of this step's rung.
        """
        order, rungs, starts = self._pass(epoch)
        index = order[starts[number] : starts[number + 1]]
        return Step(index, np.ones(len(index), np.bool_), epoch, self.ladder[rungs[number]])

    def samples_before(self, epoch: int, number: int) -> int:
        """Samples of the first steps of a pass.

        Args:
            epoch: number of the pass.
            number: steps t.

        Returns:
            Sum of their batches.
        """
        return int(self._pass(epoch)[2][number])

    def _rungs(self, epoch: int) -> tuple[Indices, Indices]:
        rungs = np.arange(self.steps, dtype=np.int64) % len(self.ladder)
        rungs = generator(self._seed, epoch, 2).permutation(rungs)
        return rungs, np.concatenate([[0], np.cumsum(self._batches[rungs])])
