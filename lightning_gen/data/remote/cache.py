"""Remote shards on the local disk: fetched once for all processes of a node, checked before use, within a limit.

Processes agree through file locks alone. A shard is held with a shared lock while it is read and removed under an
exclusive one, so a shard in use is never removed.

The folder holds ``shards`` (complete and checked; a file's time is that of its last use), ``parts`` (not complete yet,
with where they come from), ``indices``, ``locks``, and ``failed`` (why a shard could not be fetched).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from lightning_gen.data.index import replace_file
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.remote.cache_locks import hold, is_locked, locked, remove_unless_held
from lightning_gen.data.remote.openers import UrlOpener
from lightning_gen.data.remote.retrying import ChangedError, RemoteError, RemoteOptions, Version
from lightning_gen.data.remote.urls import base_name, shown
from lightning_gen.data.tarfiles import describe_start

__all__ = ["CacheError", "ShardCache"]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_CHUNK = 1 << 20
_LARGEST_INDEX = 1 << 30
_FOLDERS = ("shards", "parts", "indices", "locks", "failed")


class CacheError(OSError):
    """There is no room for a shard: not the shard's fault, so it stops the run instead of counting as a bad sample."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A shard and where it goes.

    Attributes:
        folder: the cache.
        key: of the content.
        urls: where it can be fetched, in order.
        name: its base name.
        size: its bytes.
        sha256: its hash, empty = unknown.
    """

    folder: Path
    key: str
    urls: tuple[str, ...]
    name: str
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        return self.folder / "shards" / f"{self.key}-{re.sub(r'[^A-Za-z0-9._-]+', '_', self.name)[-80:]}"

    @property
    def part(self) -> Path:
        return self.folder / "parts" / f"{self.key}.part"

    @property
    def origin(self) -> Path:
        return self.folder / "parts" / f"{self.key}.json"

    @property
    def lock(self) -> Path:
        return self.folder / "locks" / f"{self.key}.lock"

    @property
    def failed(self) -> Path:
        return self.folder / "failed" / f"{self.key}.json"


class ShardCache:
    """Whole shards on the local disk. May be pickled, and used by any number of processes at once.

    Args:
        folder: a folder on a local disk; it is made if it is not there.
        max_bytes: what was not used for longest is removed before a new shard would lead beyond this. What is being
            read or fetched is never removed, so the sum can be larger by that.
        options: limits and retries of the network.
        lock_timeout: seconds to wait for another process that fetches the same shard and does not get on.

    Raises:
        ValueError: the limit is not positive.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        max_bytes: int,
        options: RemoteOptions | None = None,
        lock_timeout: float = 1800.0,
    ) -> None:
        if max_bytes < 1:
            raise ValueError(f"the size limit of a cache is a positive number of bytes, got {max_bytes}")
        self.folder = Path(folder)
        self.max_bytes, self.lock_timeout = max_bytes, lock_timeout
        self.opener = UrlOpener(options)
        self.retried, self.bytes_fetched = 0, 0
        self._fetched: Counter[str] = Counter()
        # Failures that others met since then are believed; older ones are tried again.
        self._since = time.time()

    def open(self, manifest: Manifest, shard: int) -> int:
        """Open a shard for reading, fetching it first if it is not there.

        Args:
            manifest: the data set.
            shard: number of the shard.

        Returns:
            A file descriptor; the shard is not removed before it is closed.

        Raises:
            ShardError: no location has the shard, or none as the manifest says.
            CacheError: the disk is full, or the limit is too small for the shard.
        """
        return self._opened(self._entry(manifest, shard))

    def _opened(self, entry: _Entry) -> int:
        # More than once only where others remove it between our fetching and opening it.
        for _ in range(8):
            handle = hold(entry.path)
            if handle is not None:
                return handle
            self._ensure(entry)
        raise CacheError(
            f"{entry.name} was removed from {self.folder} again and again before it could be opened: raise the size "
            f"limit of the cache ({self.max_bytes} bytes)"
        )

    def learn(self, url: str, version: Version, use: Callable[[BinaryIO], _Result]) -> tuple[_Result, str]:
        """Fetch a shard that no manifest describes yet, and keep it under its own hash.

        Args:
            url: where it is.
            version: what is there; its size must be known.
            use: is called with the open file.

        Returns:
            What ``use`` returned, and the sha256 of the shard.

        Raises:
            ShardError: it cannot be fetched.
            CacheError: see :meth:`open`.
        """
        assert version.size is not None
        key = hashlib.sha256(f"{shown(url)} {version}".encode()).hexdigest()
        entry = _Entry(self.folder, key[:32], (url,), base_name(url), version.size, "")
        with os.fdopen(self._opened(entry), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            result = use(file)
            os.replace(entry.path, dataclasses.replace(entry, key=digest[:32]).path)
        return result, digest

    def index(self, manifest: Manifest, shard: int) -> bytes:
        """Content of a remote .idx, fetched once.

        Args:
            manifest: the data set.
            shard: number of the shard.

        Returns:
            The bytes, as the manifest's hash says.

        Raises:
            ShardError: it cannot be fetched, or is not the manifest's.
        """
        wanted, url = manifest.shards[shard].idx_sha256, manifest.idx_location(shard)
        self._make_folders()
        path = self.folder / "indices" / f"{wanted}.idx"
        with locked(self.folder / "locks" / f"{wanted}.lock", self.lock_timeout, lambda: 0, shown(url)):
            if path.is_file() and _sha256(path) == wanted:
                return path.read_bytes()
            for _ in range(2):
                data = self.opener.read_all(url, _LARGEST_INDEX)
                if hashlib.sha256(data).hexdigest() == wanted:
                    with self._disk_full_is_said(shown(url)):
                        replace_file(path, data)
                    return data
        raise ShardError(f"index {shown(url)} is not the manifest's (sha256 differs), also when it was fetched again")

    def _entry(self, manifest: Manifest, shard: int) -> _Entry:
        record = manifest.shards[shard]
        # Equal content is kept once. Without a hash of the content, that of the index stands for it: keys and offsets.
        key = record.sha256 or hashlib.sha256(f"{record.idx_sha256} {record.bytes}".encode()).hexdigest()
        urls = manifest.tar_locations(shard)
        return _Entry(self.folder, key[:32], urls, record.name, record.bytes, record.sha256)

    def _make_folders(self) -> None:
        for name in _FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def _ensure(self, entry: _Entry) -> None:
        if entry.size > self.max_bytes:
            raise CacheError(
                f"{entry.name} has {entry.size} bytes, the whole cache {self.folder} may have {self.max_bytes}: raise "
                "its size limit"
            )
        self._make_folders()
        with locked(entry.lock, self.lock_timeout, lambda: _size(entry.part), entry.name):
            if entry.path.exists():
                return
            self._believe_failure(entry)
            try:
                with self._disk_full_is_said(entry.name):
                    self._make_room(entry)
                    self._fetch(entry)
            except CacheError:
                _forget(entry)  # What came so far helps nobody and takes the room of others.
                raise
            except ShardError as error:
                replace_file(entry.failed, json.dumps({"time": time.time(), "reason": str(error)}).encode())
                raise
            entry.failed.unlink(missing_ok=True)
        self._count(entry)

    def _believe_failure(self, entry: _Entry) -> None:
        try:
            found = json.loads(entry.failed.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if float(found["time"]) >= self._since:
            raise ShardError(str(found["reason"]))

    def _fetch(self, entry: _Entry) -> None:
        """Try every location, and each of them twice where what came is not what the manifest says."""
        problems = list[str]()
        for url in entry.urls:
            for attempt in range(2):
                self.retried += attempt
                try:
                    problem = self._transfer(entry, url)
                except ChangedError as error:
                    problem = str(error)
                except RemoteError as error:
                    problems.append(str(error))
                    break
                if not problem:
                    os.replace(entry.part, entry.path)
                    entry.origin.unlink(missing_ok=True)
                    return
                _forget(entry)
            else:
                problems.append(f"shard {problem}, also when it was fetched again")
        raise ShardError("; ".join(problems))

    def _transfer(self, entry: _Entry, url: str) -> str:
        """Bring the part to its full size from where it stands; say what is wrong with it then."""
        have, seen = _resumable(entry, url)
        if have < entry.size:
            with self.opener.open(url, have, seen) as stream:
                try:
                    version = stream.begin()
                    if version.size not in (None, entry.size):
                        return f"{shown(url)} has {version.size} bytes, the manifest says {entry.size}"
                    stream.version = dataclasses.replace(version, size=entry.size)
                    _announce(entry, url, version.tag)
                    with open(entry.part, "r+b" if have else "wb") as file:
                        file.seek(have)
                        while chunk := stream.read(_CHUNK):
                            file.write(chunk)
                            self.bytes_fetched += len(chunk)
                        file.flush()
                        os.fsync(file.fileno())
                finally:
                    self.retried += stream.retried
        if entry.sha256 and _sha256(entry.part) != entry.sha256:
            with open(entry.part, "rb") as file:
                guess = describe_start(file.read(512))
            return f"{shown(url)} has other content than the manifest says (sha256 differs){guess}"
        return ""

    def _make_room(self, entry: _Entry) -> None:
        """Remove what was not used for longest until the shard fits, and let other processes know that it comes."""
        with locked(self.folder / "locks" / "list.lock", self.lock_timeout, lambda: 0, "the list of the cache"):
            used, removable = self._usage(entry)
            for _, path in sorted(removable):
                if used + entry.size <= self.max_bytes:
                    break
                size = _size(path)
                if remove_unless_held(path):
                    used -= size
            if not entry.origin.exists():
                _announce(entry, "", "")

    def _usage(self, wanted: _Entry) -> tuple[int, list[tuple[float, Path]]]:
        """Bytes of all others, what is being fetched counted in full; and (last use, path) of what may be removed."""
        used, removable = 0, list[tuple[float, Path]]()
        for item in (*os.scandir(self.folder / "shards"), *os.scandir(self.folder / "parts")):
            path = Path(item.path)
            if path in (wanted.part, wanted.origin):
                continue
            with contextlib.suppress(OSError, ValueError):
                if path.suffix == ".json" and path.parent.name == "parts":
                    if is_locked(self.folder / "locks" / f"{path.stem}.lock"):
                        coming = int(json.loads(path.read_text(encoding="utf-8"))["bytes"])
                        used += coming - _size(path.with_suffix(".part"))
                    continue
                found = item.stat()
                used += found.st_size
                if path.suffix != ".part" or not is_locked(self.folder / "locks" / f"{path.stem}.lock"):
                    removable.append((found.st_mtime, path))
        used += sum(item.stat().st_size for item in os.scandir(self.folder / "indices"))
        return used, removable

    def _count(self, entry: _Entry) -> None:
        self._fetched[entry.key] += 1
        if self._fetched[entry.key] == 2:
            _log.warning(
                "%s had to be fetched again because it had been removed from %s: %d bytes are fewer than the shards "
                "that are read at a time (block_shards x canonical_streams of them)",
                entry.name,
                self.folder,
                self.max_bytes,
            )

    @contextlib.contextmanager
    def _disk_full_is_said(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CacheError(
                f"the disk of the cache folder {self.folder} is full, {name} does not fit: free some space there, or "
                f"lower the size limit of the cache ({self.max_bytes} bytes)"
            ) from None


def _resumable(entry: _Entry, url: str) -> tuple[int, Version]:
    """How much of the part can be kept, and of which content it is."""
    have = _size(entry.part)
    try:
        origin = json.loads(entry.origin.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        origin = {}
    tag = str(origin.get("tag", "")) if origin.get("url") == _digest(url) else ""
    # Without a tag only the hash at the end can tell whether both halves are of one content.
    if not 0 < have <= entry.size or not (tag or entry.sha256):
        return 0, Version()
    return have, Version(entry.size, tag)


def _announce(entry: _Entry, url: str, tag: str) -> None:
    replace_file(entry.origin, json.dumps({"bytes": entry.size, "url": _digest(url), "tag": tag}).encode())


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _forget(entry: _Entry) -> None:
    entry.part.unlink(missing_ok=True)
    entry.origin.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
