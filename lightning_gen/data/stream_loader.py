"""Batches of streamed shards: the plan says how many and of which budget, the stream says which samples.

Stands in for :class:`~lightning_gen.data.loader.BatchFactory` where shards have no index. An epoch has exactly the
planned number of batches on every rank; which samples they hold is a statistical matter, see data/streaming.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_gen.data.access import Consumer, Pass, StreamSample
from lightning_gen.data.dataset import Place, Recipe, Report, Request
from lightning_gen.data.loader import Counters, StartMethod
from lightning_gen.data.plan import Plan, rank_part
from lightning_gen.data.quarantine import BadSample, DataError, Quarantine, SampleError
from lightning_gen.data.sources import ShardSource
from lightning_gen.data.streaming import StreamShards

__all__ = ["StreamFactory", "StreamSource", "sample_number"]


def sample_number(shard: str, key: str) -> int:
    """A number for a sample that nobody has counted.

    Args:
        shard: name of its tar.
        key: its key.

    Returns:
        63 bits of a hash of both: the sample's random draws are keyed by it, and it is its index in the batch.
    """
    digest = hashlib.blake2b(f"{shard}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class StreamSource:
    """Streamed shards as far as a plan needs to know them: how many samples there are, nothing about any of them.

    Args:
        shards: the stream.
    """

    def __init__(self, shards: StreamShards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        """Samples of one pass."""
        return len(self.shards)

    def read(self, index: int) -> Any:
        """Samples of a stream have no places.

        Args:
            index: of a sample.

        Raises:
            DataError: always.
        """
        raise DataError(f"sample {index} of streamed shards cannot be asked for: index them (lightning data index)")

    def name(self, index: int) -> tuple[str, str]:
        """Samples of a stream have no numbers.

        Args:
            index: of a sample.

        Returns:
            What to call it.
        """
        return "(stream)", str(index)

    def damage(self, index: int) -> int:
        """One sample.

        Args:
            index: of a sample.

        Returns:
            1.
        """
        del index
        return 1

    def sizes(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Nothing is known before it is read.

        Args:
            indices: of samples.

        Returns:
            Zeros, (n, 2).
        """
        return np.zeros((len(indices), 2), np.int64)


@dataclasses.dataclass(frozen=True)
class _Work:
    """The batches of one iteration."""

    which: Pass
    requests: list[Request]
    batch: int


class _Noted:
    """Passes bad samples on, and keeps them for the report that goes to the loader's process with the next batch."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine, self._found = quarantine, list[BadSample]()

    def report(self, sample: BadSample) -> None:
        self._found.append(sample)
        self._quarantine.report(sample)

    def taken(self) -> tuple[BadSample, ...]:
        """What came since the last call."""
        found, self._found = tuple(self._found), []
        return found


class _Batches(IterableDataset[Any]):
    """One rank's batches of one plan; worker w of W makes every W-th of them."""

    def __init__(
        self,
        source: ShardSource[Any],
        recipe: Recipe[Any, Any, Any],
        seed: int,
        rank: int,
        world: int,
        quarantine: Quarantine,
    ) -> None:
        self.source, self.recipe, self.seed = source, recipe, seed
        self.rank, self.world, self.noted = rank, world, _Noted(quarantine)
        self.work: _Work | None = None

    def __iter__(self) -> Iterator[tuple[Any, Report]]:
        work, info = self.work, get_worker_info()
        assert work is not None
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        consumer = Consumer(self.rank, self.world, worker, workers)
        shards = cast("StreamShards", self.source.shards)
        samples = self._passes(shards, consumer, work.which)
        for request in work.requests[worker::workers]:
            before = shards.retried, shards.bytes_read
            examples = [self._next(samples, request) for _ in range(work.batch)]
            batch = self.recipe.collate(examples, request)
            yield batch, Report(self.noted.taken(), shards.retried - before[0], shards.bytes_read - before[1])

    def _passes(self, shards: StreamShards, consumer: Consumer, which: Pass) -> Iterator[StreamSample]:
        """This pass and, where samples of it had to be passed over, the beginning of the next ones."""
        while True:
            yield from shards.sample_stream(consumer, self.noted, which)
            which = Pass(which.seed, which.epoch + 1)

    def _next(self, samples: Iterator[StreamSample], request: Request) -> Any:
        """The next sample that can be used."""
        for shard, key, fields in samples:
            number = sample_number(shard, key)
            rows = self.recipe.draws(self.seed, request.epoch, [number])
            wanted = dataclasses.replace(request, index=number)
            place = Place(wanted, number, key, True, None if rows is None else rows[0])
            try:
                example = self.recipe.example(self.source.parse(fields), place)
            except SampleError as error:
                self.noted.report(BadSample(shard, key, -1, "sample", str(error)))
                continue
            if example is not None:
                return example
        raise DataError("the stream ended before its plan did")


class StreamFactory:
    """Workers that decode the batches of one plan after another.

    Args:
        source: streamed shards with what is read from their fields.
        recipe: what is made of a sample.
        seed: the run's seed.
        rank: this rank.
        world: number of ranks.
        quarantine: counts and bounds what is bad; its file, where it has one, is shared by the workers.
        num_workers: worker processes; 0 = decode in this process.
        timeout: seconds to wait for a batch, 0 = for ever.
        start_method: how workers are started; None = torch's default.
        pin_memory: copy batches to page-locked memory.
        prefetch_factor: batches that each worker prepares ahead.
    """

    def __init__(
        self,
        source: ShardSource[Any],
        recipe: Recipe[Any, Any, Any],
        seed: int,
        rank: int,
        world: int,
        quarantine: Quarantine,
        *,
        num_workers: int = 0,
        timeout: float = 300.0,
        start_method: StartMethod | None = None,
        pin_memory: bool = False,
        prefetch_factor: int = 2,
    ) -> None:
        self.rank, self.world, self.quarantine = rank, world, quarantine
        self.counters = Counters()
        self._seed = seed
        self._dataset = _Batches(source, recipe, seed, rank, world, quarantine)
        self._options: dict[str, Any] = {
            "batch_size": None,
            "num_workers": num_workers,
            "timeout": timeout if num_workers else 0,
            "multiprocessing_context": start_method if num_workers else None,
            "prefetch_factor": prefetch_factor if num_workers else None,
            "pin_memory": pin_memory,
        }

    def batches(self, plan: Plan, start: int, name: str) -> Iterator[Any]:
        """Batches of a plan from some step on.

        Args:
            plan: how many, and of which budget.
            start: first step; the stream passes over about as many samples as the steps before it used.
            name: what to call it in messages.

        Yields:
            This rank's batches.

        Raises:
            DataError: too much is bad, or the workers died or do not answer.
        """
        part = rank_part(plan.global_batch_size, self.rank, self.world)
        layout, total = plan.planner.layout, len(self._dataset.source)
        turn, seen = divmod(plan.samples_before(start), total)
        which = Pass(self._seed, plan.number * layout.passes + turn, seen)
        one = Request(-1, plan.number, plan.tokens, plan.tokens, True, layout.shape)
        self._dataset.work = _Work(which, [one] * (plan.steps - start), part.stop - part.start)
        iterator = iter(DataLoader(self._dataset, **self._options))
        for number in range(start, plan.steps):
            began = time.perf_counter()
            try:
                batch, report = next(iterator)
            except (DataError, OSError) as error:
                raise DataError(str(error)) from None
            except RuntimeError as error:
                raise DataError(
                    f"rank {self.rank} of {self.world}: the workers failed at step {number} of {name}: {error}"
                ) from None
            self.counters.wait_seconds += time.perf_counter() - began
            self.counters.batches += 1
            self.counters.retried += report.retried
            self.counters.bytes_read += report.bytes_read
            for bad in report.bad:
                self.quarantine.report(bad)
            self.quarantine.look()
            yield batch

    def close(self) -> None:
        """Nothing lives longer than an iteration."""
