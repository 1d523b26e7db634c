"""Reading samples of tar shards by their number, in any order.

What lies in the page cache is copied out of a memory map. The rest is read by a thread that can be given up, since a
page fault cannot: it may hang in a dead file system, and in a file that was cut short it kills the process (SIGBUS).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import mmap
import os
import queue
import random
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lightning_gen.data.access import Consumer, Pass, StreamSample, indexed_stream
from lightning_gen.data.index import REMEDY, ShardIndex
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import BadSamples, ShardError
from lightning_gen.data.reading import ReadingThread
from lightning_gen.data.remote.urls import is_remote, shown

if TYPE_CHECKING:
    from lightning_gen.data.remote.cache import ShardCache

__all__ = ["IndexedShards", "ReadError"]


class ReadError(ShardError):
    """A read failed or took too long, also after trying again."""


_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_Open = tuple[int, mmap.mmap]


def _close(opened: _Open) -> None:
    opened[1].close()
    os.close(opened[0])


def _close_all(files: OrderedDict[int, _Open]) -> None:
    while files:
        _close(files.popitem()[1])


class IndexedShards:
    """The samples of a manifest as a sequence of ``{field: bytes}``.

    Opens files when they are needed and keeps at most ``max_open`` of them, so file descriptors do not grow. Indices
    stay in memory (about 100 kB per 1000 samples). Safe to pickle (spawned workers) and to fork.

    Args:
        manifest: what to read.
        max_open: tars kept open at a time.
        retries: how often a failed read is tried again, with growing pauses.
        timeout: seconds one read may take, None = for ever.
        cache: where remote shards are brought before they are read; must be given if there are any.

    Raises:
        ValueError: remote shards without a cache.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        max_open: int = 128,
        retries: int = 2,
        timeout: float | None = 120.0,
        cache: ShardCache | None = None,
    ) -> None:
        if manifest.has_remote and cache is None:
            raise ValueError(
                f"the shards of {manifest.name} are remote: give a cache folder and its size limit, or copy them to a "
                "local disk"
            )
        self.manifest = manifest
        self.max_open = max_open
        self.cache = cache
        self.retries = retries
        self.timeout = timeout
        self.retried = 0
        self.bytes_read = 0
        self._starts = [0, *itertools.accumulate(shard.num_samples for shard in manifest.shards)]
        self._files: OrderedDict[int, _Open] = OrderedDict()
        self._indices: dict[int, ShardIndex] = {}
        self._damaged: dict[int, str] = {}
        self._probe = (bytearray(1),)
        self._reader: ReadingThread | None = None
        self._process = os.getpid()
        weakref.finalize(self, _close_all, self._files)

    def __len__(self) -> int:
        """Number of samples."""
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, bytes]:
        """All fields of a sample.

        Args:
            index: global sample index.

        Returns:
            Field -> bytes.

        Raises:
            ShardError: the shard is damaged (every sample of it is lost).
            ReadError: the disk does not answer.
        """
        shard, row = self.locate(index)
        return self._fetch(shard, self.index(shard).places(row))

    def field(self, index: int, name: str) -> bytes | None:
        """One field of a sample, without its other ones.

        Args:
            index: global sample index.
            name: of the field.

        Returns:
            Its bytes, None = the sample has no such field.

        Raises:
            ShardError: the shard is damaged.
            ReadError: the disk does not answer.
        """
        shard, row = self.locate(index)
        places = [place for place in self.index(shard).places(row) if place[0] == name]
        return self._fetch(shard, places)[name] if places else None

    def _fetch(self, shard: int, places: list[tuple[str, int, int]]) -> dict[str, bytes]:
        handle, mapped = self._file(shard)
        end = max([last for _, _, last in places])
        try:
            # Is the last byte there, and in the page cache, so that mapped memory may be touched?
            at_hand = _NOWAIT and os.preadv(handle, self._probe, end - 1, _NOWAIT) == 1
        except OSError:
            at_hand = False
        if not at_hand:
            return self._by_thread(shard, handle, places, end)
        sample = {}
        for field, first, last in places:
            sample[field] = mapped[first:last]
            self.bytes_read += last - first
        return sample

    def _by_thread(self, shard: int, handle: int, places: list[tuple[str, int, int]], end: int) -> dict[str, bytes]:
        # The members of a sample are neighbours: one read fetches them with the headers between them.
        start = min([first for _, first, _ in places])
        data = self._patient(shard, handle, start, end - start)
        self.bytes_read += sum(last - first for _, first, last in places)
        return {field: data[first - start : last - start] for field, first, last in places}

    def locate(self, index: int) -> tuple[int, int]:
        """Where a sample lies.

        Args:
            index: global sample index.

        Returns:
            Number of its shard, and its row there.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"sample {index} of a data set with {len(self)} samples")
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def key(self, index: int) -> str:
        """Key of a sample.

        Args:
            index: global sample index.

        Returns:
            The key.
        """
        shard, row = self.locate(index)
        return self.index(shard).key(row)

    def sizes(self, indices: Sequence[int] | npt.NDArray[np.int64], stem: str = "") -> npt.NDArray[np.int64]:
        """Sizes of pictures as the index has them.

        Args:
            indices: global sample indices.
            stem: which picture where a sample has several, see :func:`lightning_gen.data.index.picture_field`.

        Returns:
            int64, (len(indices), 2), height and width, 0 = unknown.
        """
        wanted = np.asarray(indices, np.int64)
        out = np.empty((len(wanted), 2), np.int64)
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        for shard in np.unique(owners).tolist():
            mine = owners == shard
            out[mine] = self.index(shard).shapes(stem)[wanted[mine] - self._starts[shard]]
        return out

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard.

        Args:
            shard: its number.

        Returns:
            The index, from memory where it was used lately.

        Raises:
            ShardError: it is missing, damaged or not the manifest's.
        """
        if shard in self._indices:
            return self._indices[shard]
        if shard in self._damaged:
            raise ShardError(self._damaged[shard])
        location, record = self.manifest.idx_location(shard), self.manifest.shards[shard]
        path = shown(location)
        if is_remote(location):
            assert self.cache is not None
            data = self.cache.index(self.manifest, shard)
        else:
            data = self._local_index(shard, Path(location))
        try:
            table = ShardIndex.from_bytes(data, path)
        except ShardError as error:
            raise self._damage(shard, str(error)) from None
        if len(table) != record.num_samples or table.tar_bytes != record.bytes:
            raise self._damage(shard, f"index {path} does not belong to the manifest of {record.name}: {REMEDY}")
        self._indices[shard] = table
        return table

    def sample_stream(
        self, consumer: Consumer, quarantine: BadSamples, which: Pass, endless: bool = False
    ) -> Iterator[StreamSample]:
        """The samples of a pass, dealt to ranks and workers; see :func:`lightning_gen.data.access.indexed_stream`.

        Args:
            consumer: who reads.
            quarantine: is told of bad samples.
            which: the pass.
            endless: do not end after the consumer's share.

        Returns:
            The samples, each at most once in a pass.
        """
        return indexed_stream(self, consumer, quarantine, which, endless)

    def close(self) -> None:
        """Close every open file; reading again opens what it needs."""
        _close_all(self._files)
        self._indices.clear()
        self._reader = None

    def _file(self, shard: int) -> _Open:
        if shard in self._damaged:
            raise ShardError(self._damaged[shard])
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        location, record = self.manifest.tar_location(shard), self.manifest.shards[shard]
        path = shown(location)
        if is_remote(location):
            handle = self._cached(shard)
        else:
            try:
                handle = os.open(location, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise self._damage(shard, f"shard {path} cannot be opened: {error.strerror or error}") from None
        size = os.fstat(handle).st_size
        if size != record.bytes:
            os.close(handle)
            raise self._damage(
                shard, f"shard {path} has {size} bytes, the manifest says {record.bytes}. Fetch it again"
            )
        mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        self._files[shard] = (handle, mapped)
        while len(self._files) > self.max_open:
            _close(self._files.popitem(last=False)[1])
        return handle, mapped

    def _cached(self, shard: int) -> int:
        """A shard of the cache. What is open stays there, also beyond its limit: nothing else is held on to."""
        assert self.cache is not None
        _close_all(self._files)
        before = self.cache.retried
        try:
            return self.cache.open(self.manifest, shard)
        except ShardError as error:
            raise self._damage(shard, str(error)) from None
        finally:
            self.retried += self.cache.retried - before

    def _local_index(self, shard: int, path: Path) -> bytes:
        """An index of this machine, with the content that the manifest knows: it decides places, keys and shapes."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._damage(shard, f"index {path} cannot be read ({error.strerror or error}): {REMEDY}") from None
        if hashlib.sha256(data).hexdigest() != self.manifest.shards[shard].idx_sha256:
            raise self._damage(shard, f"index {path} is not the manifest's (sha256 differs): {REMEDY}")
        return data

    def _damage(self, shard: int, reason: str) -> ShardError:
        self._damaged[shard] = reason
        return ShardError(reason)

    def _patient(self, shard: int, handle: int, offset: int, size: int) -> bytes:
        name = self.manifest.shards[shard].name
        for attempt in range(self.retries + 1):
            try:
                data = self._timed(handle, size, offset)
            except Exception as error:
                is_late = isinstance(error, queue.Empty)
                why = f"no answer in {self.timeout} s" if is_late else str(error) or type(error).__name__
                if attempt == self.retries:
                    raise ReadError(f"shard {name}: {size} bytes at {offset} cannot be read: {why}") from None
                self.retried += 1
                time.sleep(0.1 * 2**attempt * (1 + random.random()))
                continue
            if len(data) != size:
                raise self._damage(shard, f"shard {name} was cut short: {size} bytes at {offset} are not there")
            return data
        raise AssertionError("unreachable")

    def _timed(self, handle: int, size: int, offset: int) -> bytes:
        if self.timeout is None:
            return os.pread(handle, size, offset)
        if self._reader is None or self._process != os.getpid():
            # Threads do not survive a fork; open files do.
            self._reader, self._process = ReadingThread(), os.getpid()
        try:
            return self._reader.read(handle, size, offset, self.timeout)
        except queue.Empty:
            # The thread hangs in the kernel and cannot be stopped; leave it behind and take a new one.
            self._reader = None
            raise

    def __getstate__(self) -> dict[str, Any]:
        names = ("manifest", "max_open", "retries", "timeout", "cache")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        manifest = state.pop("manifest")
        self.__init__(manifest, **state)  # type: ignore[misc]
