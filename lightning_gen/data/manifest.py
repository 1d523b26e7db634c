"""manifest.json: the list of a data set's shards.

One file is read by three programs: by this package, by timm (its ``splits`` table, also written as ``_info.json``) and
by wids (its ``shardlist``).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gen.data.index import replace_file
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.remote.openers import UrlOpener
from lightning_gen.data.remote.retrying import RemoteError, RemoteOptions
from lightning_gen.data.remote.urls import base_name, check_listed, is_remote, join_location, parent_of, shown

__all__ = ["Manifest", "Shard", "verify_shards"]

_KIND, _VERSION = "lg-wds", 1
_LARGEST_LIST = 1 << 28


@dataclasses.dataclass(frozen=True)
class Shard:
    """One tar of a data set.

    Attributes:
        url: where the tar is: relative to the manifest's folder, absolute (in the index of a foreign set), or a URL.
        num_samples: samples in it.
        bytes: size of the tar.
        idx: path of its .idx, written like ``url``.
        idx_sha256: hash of the .idx; it covers keys, offsets and sizes.
        sha256: hash of the tar, empty where the tar was never read in full.
        md5: hash that wids wants, empty likewise.
        set: name of the data set inside a mixture, empty = the manifest has one set.
        alternates: further locations of a remote tar, written like ``url``; they are tried in order where it cannot be
            read.
    """

    url: str
    num_samples: int
    bytes: int
    idx: str
    idx_sha256: str
    sha256: str = ""
    md5: str = ""
    set: str = ""
    alternates: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Base name of the tar, behind the name of its set if there are several: for messages and quarantine.jsonl."""
        return f"{self.set}/{base_name(self.url)}" if self.set else base_name(self.url)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The shards of one split, in order.

    Attributes:
        name: name of the split.
        folder: where the relative paths start.
        shards: the tars.
        schema: field -> what it holds, for people.
        source: where the data came from, for people.
        base: URL of the folder of a remote manifest; empty = ``folder``.
    """

    name: str
    folder: Path
    shards: tuple[Shard, ...]
    schema: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    base: str = ""

    @property
    def total(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of what the shards hold, independent of where they lie."""
        rows = [(shard.name, shard.num_samples, shard.bytes, shard.idx_sha256) for shard in self.shards]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @functools.cached_property
    def has_remote(self) -> bool:
        """Whether a tar or an index lies anywhere but on this machine, so that reading needs a cache."""
        return bool(self.base) or any(is_remote(shard.url) or is_remote(shard.idx) for shard in self.shards)

    def tar_location(self, shard: int) -> str:
        """Where a tar is.

        Args:
            shard: its number.

        Returns:
            A local path or a URL.
        """
        return self._location(self.shards[shard].url)

    def tar_locations(self, shard: int) -> tuple[str, ...]:
        """Everywhere a tar is.

        Args:
            shard: its number.

        Returns:
            Its location and its alternates, in the order in which they are tried.
        """
        record = self.shards[shard]
        return tuple(self._location(name) for name in (record.url, *record.alternates))

    def idx_location(self, shard: int) -> str:
        """Where an index is.

        Args:
            shard: number of its tar.

        Returns:
            A local path or a URL.
        """
        return self._location(self.shards[shard].idx)

    def tar_path(self, shard: int) -> Path:
        """Local path of a tar.

        Args:
            shard: its number.

        Returns:
            The path.

        Raises:
            ShardError: the tar is remote.
        """
        return _local(self.tar_location(shard))

    def idx_path(self, shard: int) -> Path:
        """Local path of an index.

        Args:
            shard: number of its tar.

        Returns:
            The path.

        Raises:
            ShardError: the index is remote.
        """
        return _local(self.idx_location(shard))

    def _location(self, name: str) -> str:
        if self.base:
            return join_location(self.base, name)
        return name if is_remote(name) else str(self.folder / name)

    def write(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write manifest.json, and timm's _info.json beside it, each in one step.

        Args:
            path: the manifest's path; default ``folder/manifest.json``.

        Returns:
            Where it was written.
        """
        path = Path(path) if path is not None else self.folder / "manifest.json"
        splits = {self.name: self._timm_split()}
        replace_file(path.with_name("_info.json"), _json({"splits": splits}))
        # Last: where it is, everything is.
        replace_file(path, _json({**self._own(), **self._wids(), "splits": splits}))
        return path

    def _own(self) -> dict[str, Any]:
        from lightning_gen import __version__

        # What is not used is not written, so that older versions can read what they could always read.
        optional = ("set", "alternates")
        rows = [
            {name: value for name, value in dataclasses.asdict(shard).items() if value or name not in optional}
            for shard in self.shards
        ]
        return {
            "kind": _KIND,
            "version": _VERSION,
            "name": self.name,
            "schema": dict(self.schema),
            "source": self.source,
            "code_version": __version__,
            "total": self.total,
            "fingerprint": self.fingerprint,
            "shards": rows,
        }

    def _timm_split(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "num_samples": self.total,
            "filenames": [shard.url for shard in self.shards],
            "shard_lengths": [shard.num_samples for shard in self.shards],
        }

    def _wids(self) -> dict[str, Any]:
        rows = [{"url": s.url, "md5sum": s.md5, "nsamples": s.num_samples, "filesize": s.bytes} for s in self.shards]
        return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": rows}

    @classmethod
    def load(cls, path: str | os.PathLike[str], options: RemoteOptions | None = None) -> Manifest:
        """Read a manifest.json.

        Args:
            path: the file, or its URL.
            options: limits of the network.

        Returns:
            The manifest; the shards themselves are not touched.

        Raises:
            ShardError: the file cannot be read, is not a manifest of this version, or names what a manifest must not
                name.
        """
        where = os.fspath(path)
        path = shown(where) if is_remote(where) else Path(where)
        try:
            data = json.loads(_content(where, options))
        except OSError as error:
            raise ShardError(f"manifest {path} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise ShardError(f"manifest {path} is not JSON ({error}): write it again") from None
        if not isinstance(data, dict) or data.get("kind") != _KIND or data.get("version") != _VERSION:
            raise ShardError(
                f"{path} is not an {_KIND} manifest of version {_VERSION}: write it again with this version"
            )
        try:
            shards = tuple(Shard(**{**row, "alternates": tuple(row.get("alternates", ()))}) for row in data["shards"])
            place = (Path(), parent_of(where)) if is_remote(where) else (Path(where).parent, "")
            found = cls(data["name"], place[0], shards, data["schema"], data["source"], place[1])
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"manifest {path} lacks something ({error}): write it again") from None
        for name in (name for shard in shards for name in (shard.url, shard.idx, *shard.alternates)):
            check_listed(name, where)
        if found.fingerprint != data["fingerprint"]:
            raise ShardError(f"manifest {path} was changed by hand (its fingerprint differs): write it again")
        return found


def _content(where: str, options: RemoteOptions | None) -> bytes:
    if is_remote(where):
        return UrlOpener(options).read_all(where, _LARGEST_LIST)
    return Path(where).read_bytes()


def _local(location: str) -> Path:
    if is_remote(location):
        raise ShardError(f"{shown(location)} is remote: read it through a cache (cache=ShardCache(folder, max_bytes))")
    return Path(location)


def verify_shards(manifest: Manifest, hashes: bool = False, options: RemoteOptions | None = None) -> list[str]:
    """Compare the files with the manifest. Indices are small: those of this machine are always compared in full.

    Args:
        manifest: what should be there.
        hashes: read every local tar and compare its sha256, where the manifest has one; False = compare sizes. The
            hash of a remote tar is compared when it enters a cache, here only its size.
        options: limits of the network.

    Returns:
        One sentence per shard that is missing or differs; empty = all is well.
    """
    opener = UrlOpener(options)
    problems: list[str] = []
    for number in range(len(manifest.shards)):
        if is_remote(manifest.tar_location(number)):
            problems += _remote_problem(manifest, number, opener)
        else:
            problems += _local_problem(manifest, number, hashes)
        idx = manifest.idx_location(number)
        if not is_remote(idx) and not Path(idx).is_file():
            problems.append(f"index {idx} is missing")
        elif not is_remote(idx) and _sha256(Path(idx)) != manifest.shards[number].idx_sha256:
            problems.append(f"index {idx} has other content than the manifest says (sha256 differs)")
    return problems


def _local_problem(manifest: Manifest, number: int, hashes: bool) -> list[str]:
    shard, path = manifest.shards[number], manifest.tar_path(number)
    if not path.is_file():
        return [f"shard {path} is missing"]
    if path.stat().st_size != shard.bytes:
        return [f"shard {path} has {path.stat().st_size} bytes, the manifest says {shard.bytes}"]
    if hashes and shard.sha256 and _sha256(path) != shard.sha256:
        return [f"shard {path} has other content than the manifest says (sha256 differs)"]
    return []


def _remote_problem(manifest: Manifest, number: int, opener: UrlOpener) -> list[str]:
    shard, url = manifest.shards[number], manifest.tar_location(number)
    try:
        size = opener.size(url)
    except RemoteError as error:
        return [str(error)]
    if size not in (None, shard.bytes):
        return [f"shard {shown(url)} has {size} bytes, the manifest says {shard.bytes}"]
    return []


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(data: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
