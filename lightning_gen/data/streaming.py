"""Un-indexed tars read from front to back, by webdataset underneath: statistical epochs, approximate resume.

What is exact: the order, as a pure function of (seed, epoch, rank, world, worker, workers); the number of samples, the
same for every rank; and that everything that is not delivered is counted. What is not: an epoch may miss some samples
and repeat others, since nobody knows how many samples a tar holds before it was read, and a resume continues at a
shard boundary plus a number of skipped samples, which is exact only where the lengths of the shards are known and
``shuffle_buffer`` is 0. For exact epochs and an exact resume there are indexed shards.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from lightning_gen.data.access import Consumer, Pass, StreamSample
from lightning_gen.data.finding import list_shards
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import BadSample, BadSamples, DataError, ShardError
from lightning_gen.data.remote.openers import UrlOpener
from lightning_gen.data.remote.retrying import RemoteOptions
from lightning_gen.data.remote.urls import base_name, scheme_of, shown
from lightning_gen.data.shard_lists import Listed, expand_pattern
from lightning_gen.data.tarfiles import CheckedTar, safe_name

__all__ = ["StreamPosition", "StreamShards"]

_MOST_BARREN = 16
_READ_AHEAD = 1 << 18


@dataclasses.dataclass(frozen=True)
class StreamPosition:
    """How far a run has come.

    Attributes:
        epoch: number of the pass.
        samples: samples of it that all ranks together have used.
        fingerprint: of the list of shards.
    """

    epoch: int
    samples: int
    fingerprint: str

    def state_dict(self) -> dict[str, int | str]:
        """The position for a checkpoint; the number of ranks and workers is not in it.

        Returns:
            Plain numbers and strings.
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> StreamPosition:
        """Read what :meth:`state_dict` wrote.

        Args:
            state: from a checkpoint.

        Returns:
            The position.

        Raises:
            DataError: it is not the state of a stream.
        """
        try:
            return cls(int(state["epoch"]), int(state["samples"]), str(state["fingerprint"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the checkpoint's position is not that of streamed shards ({error})") from None


class StreamShards:
    """The samples of tars that have no index: local, http(s), s3, gs, hf or ``pipe:``. May be pickled.

    Each consumer (a worker of a rank) reads every n-th shard of an order that changes with the epoch, and goes on with
    the order of another round until it has its share. Where there are fewer shards than consumers, several read the
    same shard and take every n-th sample of it.

    Args:
        locations: of the tars. A ``pipe:`` command among them is run: they must come from the user.
        samples: samples of one pass; what the user states, since nobody can look it up.
        lengths: samples of each tar where they are known.
        shuffle_buffer: samples that each consumer holds to mix them; 0 = the order of the tars.
        options: limits and retries of the network.

    Raises:
        ValueError: no shard, no sample, or as many lengths as there are not shards.
    """

    def __init__(
        self,
        locations: Sequence[str],
        samples: int,
        *,
        lengths: Sequence[int] | None = None,
        shuffle_buffer: int = 256,
        options: RemoteOptions | None = None,
    ) -> None:
        if not locations or samples < 1:
            raise ValueError(f"{len(locations)} shards and {samples} samples: name shards, and say how many there are")
        if lengths is not None and len(lengths) != len(locations):
            raise ValueError(f"{len(lengths)} lengths for {len(locations)} shards")
        if shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer must not be negative, got {shuffle_buffer}")
        self.locations, self.samples = list(locations), samples
        self.lengths = list(lengths) if lengths is not None else [-(-samples // len(locations))] * len(locations)
        self.shuffle_buffer = shuffle_buffer
        self.opener = UrlOpener(options)
        self.retried, self.bytes_read = 0, 0
        self._damaged: dict[int, str] = {}

    @classmethod
    def find(
        cls,
        where: str,
        samples: int | None = None,
        *,
        shuffle_buffer: int = 256,
        options: RemoteOptions | None = None,
    ) -> StreamShards:
        """Streamed shards from what a user writes behind ``train:``.

        Args:
            where: what :func:`lightning_gen.data.finding.find_manifest` accepts, or ``pipe:COMMAND``, in which
                ``{0000..0003}`` stands for a number too.
            samples: of one pass; None = what stands behind the bar, in ``_info.json`` or in the manifest.
            shuffle_buffer: see the class.
            options: limits and retries of the network.

        Returns:
            The shards; none of them is opened.

        Raises:
            ShardError: nothing there, or a list that is no list.
            ValueError: nobody says how many samples there are.
        """
        found = _piped(where) if scheme_of(where) == "pipe" else list_shards(where, options)
        if isinstance(found, Manifest):
            locations = [found.tar_location(number) for number in range(len(found.shards))]
            counts = (shard.num_samples for shard in found.shards)
            found = Listed(found.name, locations, dict(zip(locations, counts, strict=True)))
        known = [found.stated[location] for location in found.locations if location in found.stated]
        lengths = known if len(known) == len(found.locations) else None
        stated = samples or found.stated.get("") or (sum(lengths) if lengths else None)
        if stated is None:
            raise ValueError(
                f"nobody says how many samples {shown(where)} holds: write |NUMBER behind it, or set samples. Streamed "
                "shards cannot be counted, and all ranks must end an epoch together"
            )
        return cls(found.locations, stated, lengths=lengths, shuffle_buffer=shuffle_buffer, options=options)

    def __len__(self) -> int:
        """Samples of one pass."""
        return self.samples

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the list of shards, independent of where they lie."""
        rows = [self.samples, *(base_name(location) for location in self.locations)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def position(self, epoch: int, samples: int) -> StreamPosition:
        """The position of a run.

        Args:
            epoch: number of the pass.
            samples: samples of it that all ranks together have used.

        Returns:
            For a checkpoint.
        """
        return StreamPosition(epoch, samples, self.fingerprint)

    def resume(self, position: StreamPosition) -> tuple[int, int]:
        """Where to go on.

        Args:
            position: from a checkpoint.

        Returns:
            ``epoch`` and ``seen`` of the :class:`lightning_gen.data.access.Pass`.

        Raises:
            DataError: the checkpoint belongs to another list of shards.
        """
        if position.fingerprint != self.fingerprint:
            raise DataError(
                "the checkpoint belongs to other streamed shards (names or number of samples differ): give the same "
                "list, or begin a new run"
            )
        return position.epoch, position.samples

    def sample_stream(
        self, consumer: Consumer, quarantine: BadSamples, which: Pass, endless: bool = False
    ) -> Iterator[StreamSample]:
        """The samples of a pass, dealt to ranks and workers, see :class:`lightning_gen.data.access.SampleReader`.

        Args:
            consumer: who reads.
            quarantine: is told of shards that cannot be read to their end. Give all processes of a node the same file,
                so that they count together.
            which: the pass.
            endless: do not end after the consumer's share.

        Yields:
            The samples.

        Raises:
            DataError: more is lost than the quarantine allows, or nothing can be read.
            ModuleNotFoundError: webdataset, or the package for such addresses, is not installed.
        """
        import webdataset as wds

        from lightning_gen.training.randomness import key_seed

        wanted = None if endless else consumer.share(self.samples) - consumer.share(which.seen)
        rounds = self._rounds(consumer, quarantine, which)
        # Cut before they are mixed: else samples of the next round would take the places of this one's.
        stages: list[Any] = [lambda: itertools.islice(rounds, wanted)]
        if self.shuffle_buffer > 1:
            key = (which.epoch, consumer.number, consumer.count, which.seen)
            mixed = random.Random(key_seed(which.seed, "stream buffer", *key))
            stages.append(wds.shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=mixed))
        for sample in cast("Iterator[StreamSample]", iter(wds.DataPipeline(*stages))):
            self.bytes_read += sum(map(len, sample.fields.values()))
            yield sample

    def _rounds(self, consumer: Consumer, quarantine: BadSamples, which: Pass) -> Iterator[StreamSample]:
        """This consumer's part of one round through all shards after another."""
        barren, skip = 0, consumer.share(which.seen)
        for number in itertools.count():
            came = skipped = 0
            for shard, stride, offset in self._part(consumer, which, number):
                if shard in self._damaged:
                    continue
                expected = len(range(offset, self.lengths[shard], stride))
                if 0 < expected <= skip:
                    skip, skipped = skip - expected, skipped + expected
                    continue
                for sample in itertools.islice(self._shard(shard, quarantine), offset, None, stride):
                    if skip:
                        skip, skipped = skip - 1, skipped + 1
                        continue
                    came += 1
                    yield sample
            # A consumer may be unlucky: shards are bad, or shorter than the consumers who share them are many.
            barren = 0 if came or skipped else barren + 1
            if len(self._damaged) == len(self.locations) or barren > _MOST_BARREN * consumer.count:
                raise DataError(self._nothing())

    def _part(self, consumer: Consumer, which: Pass, number: int) -> Iterator[tuple[int, int, int]]:
        """The shards of a consumer in a round, each with the stride and the first of the samples it takes."""
        from lightning_gen.training.randomness import numpy_generator

        draws = numpy_generator(which.seed, "stream", which.epoch, number)
        order = draws.permutation(len(self.locations)).tolist()
        if len(order) >= consumer.count:
            for shard in order[consumer.number :: consumer.count]:
                yield shard, 1, 0
            return
        place, turn = consumer.number % len(order), consumer.number // len(order)
        stride = len(range(place, consumer.count, len(order)))
        yield order[place], stride, (turn + number) % stride

    def _shard(self, shard: int, quarantine: BadSamples) -> Iterator[StreamSample]:
        """The samples of one tar, until its end or its damage. webdataset expands and groups; errors are counted."""
        import webdataset as wds
        from webdataset.tariterators import group_by_keys, tar_file_expander

        location, name, given = self.locations[shard], base_name(self.locations[shard]), 0
        stream = self.opener.open(location)
        retried = 0
        try:
            # tarfile asks for 10 kB at a time.
            checked = CheckedTar(io.BufferedReader(stream, _READ_AHEAD), shown(location))
            source = [{"url": name, "stream": checked}]
            expand = functools.partial(tar_file_expander, rename_files=lambda path: safe_name(path, shown(location)))
            for sample in wds.DataPipeline(lambda: iter(source), expand, functools.partial(group_by_keys, lcase=False)):
                fields = {field: data for field, data in sample.items() if not field.startswith("__")}
                yield StreamSample(name, sample["__key__"], fields)
                given += 1
                retried = self._count(stream.retried, retried)
            if given == 0:
                raise ShardError(f"shard {shown(location)} holds no sample: remove it from the list or fetch it again")
        except ModuleNotFoundError:
            raise
        except Exception as error:
            reason = _reason(error)
            self._damaged[shard] = reason
            lost = max(1, self.lengths[shard] - given)
            quarantine.report(BadSample(name, "", -1, "shard", f"{reason}; {given} samples came before", lost))
        finally:
            self._count(stream.retried, retried)
            stream.close()

    def _count(self, now: int, before: int) -> int:
        self.retried += now - before
        return now

    def _nothing(self) -> str:
        lines = [f"{base_name(self.locations[shard])}: {reason}" for shard, reason in sorted(self._damaged.items())]
        return f"{len(lines)} of {len(self.locations)} shards cannot be read. {'; '.join(lines[:8])}"


def _piped(where: str) -> Listed:
    # The shell has bars of its own: only a number behind the last one is ours.
    command, _, number = where.rpartition("|")
    is_counted = number.strip().isdigit()
    locations = expand_pattern(command.rstrip() if is_counted else where)
    return Listed("shards", locations, {"": int(number)} if is_counted else {})


def _reason(error: Exception) -> str:
    """What webdataset was told before it added to the message, or what it says itself."""
    text = str(error.args[0]) if error.args else str(error)
    text = text.split(" @ ")[0]
    return text if isinstance(error, DataError) else f"{type(error).__name__}: {text}"
