"""The interface that both kinds of shards share: the samples of a pass, dealt to ranks and workers.

:class:`~lightning_gen.data.shards.IndexedShards` has random access as well, which the plan of training uses: exact
epochs, exact resume. :class:`~lightning_gen.data.streaming.StreamShards` has this interface alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lightning_gen.data.quarantine import BadSample, BadSamples, DataError, ShardError

if TYPE_CHECKING:
    from lightning_gen.data.shards import IndexedShards

__all__ = ["Consumer", "Pass", "SampleReader", "StreamSample", "indexed_stream"]


class StreamSample(NamedTuple):
    """A sample on its way.

    Attributes:
        shard: name of its tar.
        key: its key.
        fields: name -> bytes.
    """

    shard: str
    key: str
    fields: dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Consumer:
    """One of all the processes that read.

    Attributes:
        rank: number of the rank.
        world: number of ranks.
        worker: number of the rank's worker.
        workers: number of workers of a rank; 1 = the rank reads by itself.
    """

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: a number that does not lie below its count.
        """
        if not (0 <= self.rank < self.world and 0 <= self.worker < self.workers):
            raise ValueError(f"rank {self.rank} of {self.world}, worker {self.worker} of {self.workers}: out of range")

    @property
    def number(self) -> int:
        """Number of this consumer among all of them."""
        return self.rank * self.workers + self.worker

    @property
    def count(self) -> int:
        """Number of consumers."""
        return self.world * self.workers

    def share(self, samples: int) -> int:
        """How many samples of a pass this consumer takes.

        Every rank takes floor(samples / world), so that no rank waits for another at the end of an epoch; its workers
        differ by one at most.

        Args:
            samples: of the whole pass.

        Returns:
            The number.
        """
        mine = samples // self.world
        return mine // self.workers + (self.worker < mine % self.workers)


@dataclasses.dataclass(frozen=True)
class Pass:
    """Which pass over the data, and from where on.

    Attributes:
        seed: the run's seed.
        epoch: number of the pass.
        seen: samples of it that all ranks together have used already.
    """

    seed: int
    epoch: int
    seen: int = 0


class SampleReader(Protocol):
    """Shards of either kind."""

    retried: int
    """Reads and requests that were tried again."""
    bytes_read: int
    """Bytes of the samples that were handed out."""

    def __len__(self) -> int:
        """Samples of one pass."""
        ...

    def sample_stream(
        self, consumer: Consumer, quarantine: BadSamples, which: Pass, endless: bool = False
    ) -> Iterator[StreamSample]:
        """This consumer's samples of a pass, a pure function of the arguments as long as the data can be read.

        Args:
            consumer: who reads.
            quarantine: is told of what cannot be read; raises a DataError where it is too much.
            which: the pass.
            endless: go on with further samples instead of ending after the consumer's share: for whoever replaces
                samples that cannot be used by the next ones, and counts for himself.

        Yields:
            Exactly ``consumer.share(len(self)) - consumer.share(which.seen)`` samples unless ``endless``.
        """
        ...


def indexed_stream(
    shards: IndexedShards, consumer: Consumer, quarantine: BadSamples, which: Pass, endless: bool = False
) -> Iterator[StreamSample]:
    """:meth:`SampleReader.sample_stream` of indexed shards: every sample at most once in a pass.

    The shards are permuted, the samples inside each of them too, and every consumer takes one stretch of that list. A
    bad sample is replaced by the next one behind the stretch.

    Args:
        shards: the reader.
        consumer: who reads.
        quarantine: is told of bad samples.
        which: the pass.
        endless: do not end after the consumer's share.

    Yields:
        Samples.

    Raises:
        DataError: too many bad samples, or no good one in a whole pass.
    """
    from lightning_gen.data.shards import ReadError

    wanted = consumer.share(len(shards)) - consumer.share(which.seen)
    stretch = Consumer(consumer.rank, consumer.world).share(len(shards))
    first = consumer.rank * stretch
    first += sum(dataclasses.replace(consumer, worker=w).share(len(shards)) for w in range(consumer.worker))
    given = barren = 0
    for index in _order(shards, which.seed, which.epoch, first + consumer.share(which.seen)):
        if not endless and given == wanted:
            return
        record = shards.manifest.shards[shards.locate(index)[0]]
        try:
            sample = StreamSample(record.name, shards.key(index), shards[index])
        except ShardError as error:
            if isinstance(error, ReadError):
                quarantine.report(BadSample(record.name, shards.key(index), index, "io", str(error)))
            else:
                quarantine.report(BadSample(record.name, "", index, "shard", str(error), record.num_samples))
            barren += 1
            if barren > len(shards):
                raise DataError(f"no sample of {len(shards)} can be read; the last: {error}") from None
            continue
        given, barren = given + 1, 0
        yield sample


def _order(shards: IndexedShards, seed: int, epoch: int, first: int) -> Iterator[int]:
    """Global sample indices from a place in the list of one pass on, then those of the following passes."""
    from lightning_gen.training.randomness import numpy_generator

    counts = [shard.num_samples for shard in shards.manifest.shards]
    starts = [0, *itertools.accumulate(counts)]
    for number in itertools.count(epoch):
        for shard in numpy_generator(seed, "stream", number).permutation(len(counts)).tolist():
            if first >= counts[shard]:
                first -= counts[shard]
                continue
            rows = numpy_generator(seed, "stream", number, shard).permutation(counts[shard])
            for row in rows[first:].tolist():
                yield starts[shard] + row
            first = 0
