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

__all__ = ["Manifest", "Shard", "verify_shards"]

_KIND, _VERSION = "lg-wds", 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """One tar of a data set.

    Attributes:
        url: path of the tar, relative to the manifest's folder (absolute in a cached index of a foreign set).
        num_samples: samples in it.
        bytes: size of the tar.
        idx: path of its .idx, written like ``url``.
        idx_sha256: hash of the .idx; it covers keys, offsets and sizes.
        sha256: hash of the tar, empty where the tar was never read in full.
        md5: hash that wids wants, empty likewise.
    """

    url: str
    num_samples: int
    bytes: int
    idx: str
    idx_sha256: str
    sha256: str = ""
    md5: str = ""

    @property
    def name(self) -> str:
        """Base name of the tar, used in messages and in quarantine.jsonl."""
        return Path(self.url).name


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The shards of one split, in order.

    Attributes:
        name: name of the split.
        folder: where the relative paths start.
        shards: the tars.
        schema: field -> what it holds, for people.
        source: where the data came from, for people.
    """

    name: str
    folder: Path
    shards: tuple[Shard, ...]
    schema: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""

    @property
    def total(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of what the shards hold, independent of where they lie."""
        rows = [(shard.name, shard.num_samples, shard.bytes, shard.idx_sha256) for shard in self.shards]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def tar_path(self, shard: int) -> Path:
        """Local path of a tar.

        Args:
            shard: its number.

        Returns:
            The path.
        """
        return self.folder / self.shards[shard].url

    def idx_path(self, shard: int) -> Path:
        """Local path of an index.

        Args:
            shard: number of its tar.

        Returns:
            The path.
        """
        return self.folder / self.shards[shard].idx

    def write(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write manifest.json, and timm's _info.json beside it, each in one step.

        Args:
            path: the manifest's path; default ``folder/manifest.json``.

        Returns:
            Where it was written.
        """
        path = Path(path) if path is not None else self.folder / "manifest.json"
        splits = {self.name: self._timm_split()}
        replace_file(path, _json({**self._own(), **self._wids(), "splits": splits}))
        replace_file(path.with_name("_info.json"), _json({"splits": splits}))
        return path

    def _own(self) -> dict[str, Any]:
        from lightning_gen import __version__

        rows = [dataclasses.asdict(shard) for shard in self.shards]
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
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a manifest.json.

        Args:
            path: the file.

        Returns:
            The manifest; the shards themselves are not touched.

        Raises:
            ShardError: the file is missing, not a manifest of this version, or names a shard outside the local disk.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ShardError(f"manifest {path} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise ShardError(f"manifest {path} is not JSON ({error}): write it again") from None
        if not isinstance(data, dict) or data.get("kind") != _KIND or data.get("version") != _VERSION:
            raise ShardError(
                f"{path} is not an {_KIND} manifest of version {_VERSION}: write it again with this version"
            )
        try:
            shards = tuple(Shard(**row) for row in data["shards"])
            found = cls(data["name"], path.parent, shards, data["schema"], data["source"])
        except (KeyError, TypeError) as error:
            raise ShardError(f"manifest {path} lacks something ({error}): write it again") from None
        for shard in shards:
            _check_local(shard.url, path)
            _check_local(shard.idx, path)
        if found.fingerprint != data["fingerprint"]:
            raise ShardError(f"manifest {path} was changed by hand (its fingerprint differs): write it again")
        return found


def _check_local(url: str, manifest: Path) -> None:
    if "://" in url or url.startswith("pipe:"):
        raise ShardError(f"manifest {manifest} names the remote shard {url}: copy the shards to a local disk first")
    if ".." in Path(url).parts:
        raise ShardError(f"manifest {manifest} names the shard {url}, which climbs out of its folder: do not use it")


def verify_shards(manifest: Manifest, hashes: bool = False) -> list[str]:
    """Compare the files on disk with the manifest.

    Args:
        manifest: what should be there.
        hashes: read every tar and compare its sha256, where the manifest has one; False = compare sizes.

    Returns:
        One sentence per shard that is missing or differs; empty = all is well.
    """
    problems: list[str] = []
    for number, shard in enumerate(manifest.shards):
        path = manifest.tar_path(number)
        if not path.is_file():
            problems.append(f"shard {path} is missing")
        elif path.stat().st_size != shard.bytes:
            problems.append(f"shard {path} has {path.stat().st_size} bytes, the manifest says {shard.bytes}")
        elif hashes and shard.sha256 and _sha256(path) != shard.sha256:
            problems.append(f"shard {path} has other content than the manifest says (sha256 differs)")
        if not manifest.idx_path(number).is_file():
            problems.append(f"index {manifest.idx_path(number)} is missing")
    return problems


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(data: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
