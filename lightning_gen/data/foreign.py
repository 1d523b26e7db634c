"""Tars of strangers: indexed once by their headers, here or over the network; the index is kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from lightning_gen.data.decode import picture_size
from lightning_gen.data.index import INDEX_FORMAT, ShardIndex, index_file, index_tar, replace_file
from lightning_gen.data.manifest import Manifest, Shard
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.remote.openers import RangeFile, UrlOpener
from lightning_gen.data.remote.retrying import RemoteOptions
from lightning_gen.data.remote.urls import shown
from lightning_gen.data.shard_lists import Listed

if TYPE_CHECKING:
    from lightning_gen.data.remote.cache import ShardCache

__all__ = ["LocalTars", "RemoteTars", "Tars", "index_shards", "indexed"]

_AT_ONCE = 8
Stamp = tuple[str, int | None, str]
Found = tuple[ShardIndex, str]


class Tars(Protocol):
    """Tars that can be indexed."""

    @property
    def names(self) -> list[str]:
        """Where they are, as an index and a message may say it."""
        ...

    @property
    def stamps(self) -> list[Stamp]:
        """What changes when one of them does: name, bytes, and a time or a tag."""
        ...

    def indices(self, numbers: Sequence[int]) -> Iterator[Found]:
        """Index and sha256 (empty = unknown) of some of them, in order."""
        ...


class LocalTars:
    """Tars of this machine.

    Args:
        paths: where they are, in order.

    Raises:
        ShardError: one of them is missing.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise ShardError(
                f"{len(missing)} of {len(paths)} shards are missing, the first is {missing[0]}: fetch them"
            )
        self.names = [str(Path(path).resolve()) for path in paths]

    @property
    def stamps(self) -> list[Stamp]:
        """Path, bytes and time of the last change of each."""
        found = [os.stat(path) for path in self.names]
        return [(name, stat.st_size, str(stat.st_mtime_ns)) for name, stat in zip(self.names, found, strict=True)]

    def indices(self, numbers: Sequence[int]) -> Iterator[Found]:
        """Walk their headers.

        Args:
            numbers: which of them.

        Yields:
            Index and no hash.

        Raises:
            ShardError: a shard is damaged or not a tar.
        """
        for number in numbers:
            yield index_tar(self.names[number], picture_size), ""


class RemoteTars:
    """Tars behind URLs.

    With a cache that has room for all of them they are brought there, since they are needed anyway, and hashed. Else
    only what stands between their contents is read: the headers, and the first bytes of the pictures; gaps of less than
    1 MiB are read through, since a new request would cost more.

    Args:
        locations: where they are, in order.
        options: limits of the network.
        cache: where whole tars may go.

    Raises:
        ShardError: one of them cannot be reached.
    """

    def __init__(self, locations: Sequence[str], options: RemoteOptions | None, cache: ShardCache | None) -> None:
        self.locations, self.names = list(locations), [shown(url) for url in locations]
        self._opener = UrlOpener(options)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            self._versions = list(pool.map(self._opener.version, self.locations))
        total = sum(version.size or 0 for version in self._versions)
        self._cache = cache if cache is not None and total <= cache.max_bytes else None

    @property
    def stamps(self) -> list[Stamp]:
        """URL without secrets, bytes and tag of each."""
        return [(name, version.size, version.tag) for name, version in zip(self.names, self._versions, strict=True)]

    def indices(self, numbers: Sequence[int]) -> Iterator[Found]:
        """Index them, several at once.

        Args:
            numbers: which of them.

        Yields:
            Index, and hash where the whole tar was fetched.

        Raises:
            ShardError: a shard cannot be read, is damaged or not a tar.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                yield from pool.map(self._index, numbers)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _index(self, number: int) -> Found:
        url, name, version = self.locations[number], self.names[number], self._versions[number]
        size = version.size
        if self._cache is not None and size:
            return self._cache.learn(url, version, lambda file: index_file(file, name, size, picture_size))
        with RangeFile.buffered(self._opener, url) as file:
            return index_file(file, name, file.seek(0, os.SEEK_END), picture_size), ""


def index_shards(tars: Tars, folder: Path, name: str, each: Callable[[], None] = lambda: None) -> Manifest:
    """Index foreign tars by their headers and write .idx files and a manifest.

    The size of every picture is read from its own header, since a JSON beside it may be wrong or lack the rotation.
    What an interrupted call has indexed is kept.

    Args:
        tars: the shards, in order.
        folder: where the index goes; it belongs to the stamps of these tars.
        name: name of the split.
        each: called after every shard.

    Returns:
        The manifest, already on disk; it names the tars by absolute paths or URLs.

    Raises:
        ShardError: a shard is damaged, not a tar, or holds no sample.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [folder / f"{number:06d}.json" for number in range(len(tars.names))]
    wanted = [number for number, row in enumerate(rows) if not row.is_file()]
    for number, (index, sha256) in zip(wanted, tars.indices(wanted), strict=True):
        tar = tars.names[number]
        if len(index) == 0:
            raise ShardError(f"shard {tar} holds no sample: remove it from the list or fetch it again")
        idx = folder / f"{number:06d}-{PurePosixPath(tar).stem}.idx"
        digest = replace_file(idx, index.to_bytes())
        record = [tar, len(index), index.tar_bytes, idx.name, digest, sha256]
        replace_file(rows[number], json.dumps(record).encode())
        each()
    shards = tuple(Shard(*json.loads(row.read_text(encoding="utf-8"))) for row in rows)
    manifest = Manifest(name, folder, shards, {}, "indexed from existing tars")
    manifest.write()
    for row in rows:
        row.unlink(missing_ok=True)
    return manifest


def indexed(listed: Listed, tars: Tars, folders: Sequence[Path], progress: bool) -> Manifest:
    """The manifest of foreign tars: the one that was made earlier, or a new one.

    Args:
        listed: what was asked for.
        tars: the same, found.
        folders: where the index may be, in order; a new one goes to the first that can be written.
        progress: show a progress bar while indexing.

    Returns:
        The manifest.

    Raises:
        ShardError: a shard is damaged, or of another length than stated.
    """
    place = hashlib.sha256(json.dumps([INDEX_FORMAT, tars.stamps]).encode()).hexdigest()[:16]
    found = next((folder / place for folder in folders if (folder / place / "manifest.json").is_file()), None)
    if found is not None:
        manifest = Manifest.load(found / "manifest.json")
    else:
        folder = next((folder for folder in folders if _writable(folder)), folders[-1]) / place
        manifest = _index_with_bar(tars, folder, listed.name, progress)
    _compare(manifest, listed)
    return manifest


def _index_with_bar(tars: Tars, folder: Path, name: str, progress: bool) -> Manifest:
    if not progress:
        return index_shards(tars, folder, name)
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(f"indexing {len(tars.names)} shards of {name}", total=len(tars.names))
        return index_shards(tars, folder, name, lambda: bar.advance(task))


def _compare(manifest: Manifest, listed: Listed) -> None:
    stated = listed.stated
    if "" in stated and stated[""] != manifest.total:
        folder = shown(listed.locations[0]).rpartition("/")[0]
        raise ShardError(f"{stated['']} samples were announced behind the bar, {folder} holds {manifest.total}")
    for tar, shard in zip(listed.locations, manifest.shards, strict=True):
        if stated.get(tar, shard.num_samples) != shard.num_samples:
            raise ShardError(
                f"shard {shown(tar)} holds {shard.num_samples} samples, _info.json says {stated[tar]}: fetch it again"
            )


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
