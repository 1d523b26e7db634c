"""From a place in the plan to a decoded example: what a worker does.

Everything is a pure function of the request, so it does not matter which worker, rank or restart serves it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lightning_gen.data.quarantine import BadSample, DataError, ShardError
from lightning_gen.data.shards import IndexedShards, ReadError
from lightning_gen.data.sources import Source
from lightning_gen.training.randomness import key_seed

__all__ = ["Collate", "Draws", "Fetched", "Place", "Pools", "Recipe", "Report", "Request", "SampleDataset"]

_REPLACEMENTS = 32
Draws = npt.NDArray[np.float32]
S = TypeVar("S")
E = TypeVar("E")
B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)
S_contra = TypeVar("S_contra", contravariant=True)


@dataclasses.dataclass(frozen=True)
class Request:
    """One place in a batch.

    Attributes:
        index: global sample index.
        epoch: number of the pass.
        tokens: token budget.
        length: tokens the row is padded to, None = the longest of the rank's batch.
        valid: False = only fills an evaluation batch.
        shape: height and width that the picture is brought to, None = its own.
        slot: its place in the step before rows were shuffled.
    """

    index: int
    epoch: int
    tokens: int
    length: int | None
    valid: bool
    shape: tuple[int, int] | None = None
    slot: int = 0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an example stands.

    Attributes:
        request: what was asked for.
        index: the sample that serves the request; another one than was asked for if that is bad.
        key: its key.
        valid: whether it counts.
        draws: the sample's random numbers in [0, 1), None = nothing is random.
    """

    request: Request
    index: int
    key: str
    valid: bool
    draws: Draws | None

    @property
    def replaces(self) -> bool:
        """Whether it stands in for a bad sample."""
        return self.index != self.request.index


class Recipe(Protocol[S_contra, E, B_co]):
    """What is made of stored samples. Immutable and safe to pickle; it works in several processes."""

    @property
    def training(self) -> bool:
        """Whether a replacement is as good as the sample that was asked for."""
        ...

    def draws(self, seed: int, epoch: int, index: Sequence[int]) -> Draws | None:
        """Random numbers of some samples, (n, numbers); None = nothing is random."""
        ...

    def example(self, stored: S_contra, place: Place) -> E | None:
        """Decode and transform; None = this replacement does not fit the batch. Raises a SampleError."""
        ...

    def collate(self, examples: Sequence[E], request: Request) -> B_co:
        """Make a batch; ``request`` is one of the batch's."""
        ...

    def planned_tokens(self, sizes: npt.NDArray[np.int64], draws: Draws | None, tokens: int) -> int | None:
        """Tokens of the longest of some samples before anything is decoded; None = unknown, or not a matter here."""
        ...


class Fetched(NamedTuple):
    """What the dataset returns for one request.

    Attributes:
        example: the decoded sample, or the one that took its place.
        request: what was asked for.
        bad: what was found on the way.
        retried: reads that were tried again.
        bytes_read: bytes that were read.
    """

    example: Any
    request: Request
    bad: tuple[BadSample, ...]
    retried: int
    bytes_read: int


class Pools:
    """Which samples may stand in for which.

    Args:
        group: int64, (N,), number of the group of every sample, None = one group.
        allowed: bool, (N,), False = never a replacement.
    """

    def __init__(self, group: npt.NDArray[np.int64] | None, allowed: npt.NDArray[np.bool_]) -> None:
        self._group = np.zeros(len(allowed), np.int64) if group is None else group
        places = np.flatnonzero(allowed)
        places = places[np.argsort(self._group[places], kind="stable")]
        ends = np.cumsum(np.bincount(self._group[places], minlength=int(self._group.max()) + 1))
        self._places, self._ends = places, ends

    def pick(self, index: int, number: int) -> int | None:
        """A member of a sample's group.

        Args:
            index: global sample index.
            number: a large random integer.

        Returns:
            A global sample index, None = the group has no member that may serve.
        """
        group = int(self._group[index])
        start, stop = int(self._ends[group - 1]) if group else 0, int(self._ends[group])
        return int(self._places[start + number % (stop - start)]) if stop > start else None


class SampleDataset(Generic[S, E, B]):
    """A map-style dataset whose "index" is a :class:`Request`.

    Args:
        source: where the bytes come from.
        recipe: what is made of them.
        seed: the run's seed.
        strict: True = a bad sample is an error; False = it is replaced, and the replacement is marked invalid where a
            request was for an evaluation.
        pools: what may replace what, None = anything anything.
    """

    def __init__(
        self,
        source: Source[S],
        recipe: Recipe[S, E, B],
        seed: int,
        *,
        strict: bool = False,
        pools: Pools | None = None,
    ) -> None:
        self.source, self.recipe, self.seed, self.strict, self.pools = source, recipe, seed, strict, pools

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.source)

    def __getitems__(self, requests: list[Request]) -> list[Fetched]:
        """Decode the samples of a batch, or those that deterministically take their places.

        Args:
            requests: what the plan asks for, all of one pass.

        Returns:
            Examples with reports.

        Raises:
            DataError: with ``strict``, a sample is bad; else, no replacement could be found either.
        """
        rows = self.recipe.draws(self.seed, requests[0].epoch, [request.index for request in requests])
        return [self._fetch(request, None if rows is None else rows[number]) for number, request in enumerate(requests)]

    def __getitem__(self, request: Request) -> Fetched:
        """Decode one sample, see :meth:`__getitems__`.

        Args:
            request: what the plan asks for.

        Returns:
            The example and a report.
        """
        return self.__getitems__([request])[0]

    def planned_tokens(self, index: npt.NDArray[np.int64], epoch: int, tokens: int) -> int | None:
        """Tokens of the longest of some samples, known before anything is decoded.

        Args:
            index: global sample indices.
            epoch: number of the pass.
            tokens: token budget.

        Returns:
            The maximum; None where the size of one of them is unknown, or where shapes are not a matter of tokens.
        """
        return self.recipe.planned_tokens(
            self.source.sizes(index), self.recipe.draws(self.seed, epoch, index.tolist()), tokens
        )

    def candidate(self, request: Request, attempt: int) -> int | None:
        """The sample that is tried at an attempt: h(seed, pass, sample, attempt).

        Args:
            request: what the plan asks for.
            attempt: 0 = the sample itself.

        Returns:
            A global sample index, None = nothing may replace the sample.
        """
        if attempt == 0:
            return request.index
        number = key_seed(self.seed, "replacement", request.epoch, request.index, attempt)
        return number % len(self.source) if self.pools is None else self.pools.pick(request.index, number)

    def _fetch(self, request: Request, draws: Draws | None) -> Fetched:
        before = self._counters()
        bad: list[BadSample] = []
        for attempt in range(_REPLACEMENTS):
            index = self.candidate(request, attempt)
            if index is None:
                break
            try:
                example = self._example(request, index, draws if attempt == 0 else None)
            except DataError as error:
                bad.append(self._report(index, error))
                if self.strict:
                    raise DataError(f"shard {bad[-1].shard}, key {bad[-1].key}: {error}") from None
                continue
            if example is not None:
                after = self._counters()
                return Fetched(example, request, tuple(bad), after[0] - before[0], after[1] - before[1])
        raise DataError(
            f"sample {request.index} is bad, and so are all replacements tried; the first: "
            f"shard {bad[0].shard}, key {bad[0].key}: {bad[0].reason}"
        )

    def _example(self, request: Request, index: int, draws: Draws | None) -> E | None:
        replaces = index != request.index
        if replaces:
            rows = self.recipe.draws(self.seed, request.epoch, [index])
            draws = None if rows is None else rows[0]
        # A replacement is as good as any sample in training, but an evaluation must not count it twice.
        valid = request.valid and (not replaces or self.recipe.training)
        stored = self.source.read(index)
        return self.recipe.example(stored, Place(request, index, self.source.name(index)[1], valid, draws))

    def _report(self, index: int, error: DataError) -> BadSample:
        shard, key = self.source.name(index)
        if isinstance(error, ReadError):
            return BadSample(shard, key, index, "io", str(error))
        if isinstance(error, ShardError):
            return BadSample(shard, "", index, "shard", str(error), self.source.damage(index))
        return BadSample(shard, key, index, "sample", str(error))

    def _counters(self) -> tuple[int, int]:
        shards = getattr(self.source, "shards", None)
        return (shards.retried, shards.bytes_read) if isinstance(shards, IndexedShards) else (0, 0)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a batch cost.

    Attributes:
        bad: bad samples that were met.
        retried: reads that were tried again.
        bytes_read: bytes read.
    """

    bad: tuple[BadSample, ...]
    retried: int
    bytes_read: int


@dataclasses.dataclass(frozen=True)
class Collate(Generic[B]):
    """Makes a batch and its report; an object instead of a closure, so that spawned workers can have it.

    Attributes:
        recipe: what makes the batch.
    """

    recipe: Recipe[Any, Any, B]

    def __call__(self, fetched: Sequence[Fetched]) -> tuple[B, Report]:
        """Collate.

        Args:
            fetched: what the dataset returned for one rank's batch.

        Returns:
            The batch and its report.
        """
        batch = self.recipe.collate([one.example for one in fetched], fetched[0].request)
        bad = tuple(sample for one in fetched for sample in one.bad)
        return batch, Report(bad, sum(one.retried for one in fetched), sum(one.bytes_read for one in fetched))
