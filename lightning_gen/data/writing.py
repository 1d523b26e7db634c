"""Writing shards: the same samples give the same bytes, and a crash leaves no half-written file with a real name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from lightning_gen.data.decode import picture_size
from lightning_gen.data.index import PICTURE_FIELDS, ShardIndex, picture_fields, replace_file
from lightning_gen.data.manifest import Manifest, Shard
from lightning_gen.data.tarfiles import end_archive, write_member

__all__ = [
    "ShardWriter",
    "check_split_name",
    "describe_fields",
    "list_pictures",
    "write_shards",
]

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_FIELD = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


def write_shards(
    samples: Iterable[tuple[str, Mapping[str, bytes]]],
    folder: str | os.PathLike[str],
    *,
    name: str = "train",
    max_bytes: int = 512 << 20,
    max_samples: int | None = None,
    schema: Mapping[str, str] | None = None,
    source: str = "",
    overwrite: bool = False,
) -> Manifest:
    """Write samples into tar shards with their indices and a manifest.

    Args:
        samples: pairs (key, {field: bytes}) in the order to be kept; a key matches ``[A-Za-z0-9_-]+`` and is unique,
            a field is for instance ``jpg``, ``cls`` or ``json``.
        folder: where ``NAME-000000.tar``, ``NAME-000000.idx``, ..., ``manifest.json`` and ``_info.json`` go. One split
            per folder.
        name: name of the split and start of every file name.
        max_bytes: a shard is closed before it would grow beyond this (a single larger sample gets its own).
        max_samples: samples per shard at most, None = no limit.
        schema: field -> what it holds, for people.
        source: where the data came from, for people.
        overwrite: replace a manifest that is already there.

    Returns:
        The manifest, already on disk.

    Raises:
        FileExistsError: the folder has a manifest and ``overwrite`` is off.
        ValueError: a bad or repeated key, a bad field name, no field, or no sample at all.
    """
    folder = Path(folder)
    if (folder / "manifest.json").exists() and not overwrite:
        raise FileExistsError(
            f"{folder} already holds a data set (manifest.json): choose another folder or overwrite=True"
        )
    check_split_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    shards, fields = list[Shard](), set[str]()
    writer: ShardWriter | None = None
    try:
        for key, sample in _unique(samples):
            fields |= set(sample)
            size = sum(len(data) + 1024 for data in sample.values())
            if writer is not None and (writer.num_bytes + size > max_bytes or writer.num_samples == max_samples):
                shards.append(writer.close())
                writer = None
            if writer is None:
                writer = ShardWriter(folder / f"{name}-{len(shards):06d}.tar")
            writer.add(key, sample)
        if writer is None:
            raise ValueError(f"there is no sample to write into {folder}")
        shards.append(writer.close())
    finally:
        if writer is not None:
            writer.discard()
    described = describe_fields(fields) | dict(schema or {})
    manifest = Manifest(name, folder, tuple(shards), described, source)
    manifest.write()
    return manifest


def _unique(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    seen = set[str]()
    for key, sample in samples:
        if key in seen:
            raise ValueError(f"key {key!r} comes twice: keys name samples, choose others")
        seen.add(key)
        yield key, sample


def _check_names(key: str, sample: Mapping[str, bytes]) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"key {key!r} may hold letters, digits, _ and - only: a dot would split the sample in two")
    if not sample:
        raise ValueError(f"sample {key!r} has no field")
    bad = [field for field in sample if not _FIELD.fullmatch(field)]
    if bad:
        raise ValueError(f"sample {key!r} has the field {bad[0]!r}: use lower-case letters, digits, _ and single dots")


def check_split_name(name: str) -> None:
    """Refuse a split's name that could not start a file name.

    Args:
        name: the name.

    Raises:
        ValueError: it holds more than letters, digits, _ and -.
    """
    if not _KEY.fullmatch(name):
        raise ValueError(f"the split's name {name!r} may hold letters, digits, _ and - only")


def describe_fields(fields: Iterable[str]) -> dict[str, str]:
    """What the fields of a data set hold, for people.

    Args:
        fields: their names.

    Returns:
        The schema of a manifest.
    """
    known = {"cls": "class, integer as text", "json": "metadata", "txt": "caption"}
    return {
        field: "encoded picture" if picture_fields([field]) else known.get(field, "bytes") for field in sorted(fields)
    }


class ShardWriter:
    """A tar under a temporary name; it gets its own name, and an index beside it, when it is complete and on the disk.

    As a context it throws the temporary file away unless the shard was closed.

    Args:
        path: the tar's own path; its folder exists.
        hashes: work out sha256 and md5 while writing; False = leave them empty.
    """

    def __init__(self, path: Path, hashes: bool = True) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._places: dict[str, dict[str, tuple[int, int]]] = {}
        self._shapes: dict[str, dict[str, tuple[int, int]]] = {}
        self._file: BinaryIO = _Hashed(self._temporary) if hashes else open(self._temporary, "wb")  # noqa: SIM115

    @property
    def num_samples(self) -> int:
        """Samples written so far."""
        return len(self._places)

    @property
    def num_bytes(self) -> int:
        """Bytes written so far, without the end mark."""
        return self._file.tell()

    def add(self, key: str, sample: Mapping[str, bytes]) -> None:
        """Append a sample.

        Args:
            key: its key, ``[A-Za-z0-9_-]+``.
            sample: field -> bytes.

        Raises:
            ValueError: the key or a field has a bad name, the key is there already, or there is no field.
        """
        _check_names(key, sample)
        if key in self._places:
            raise ValueError(f"key {key!r} comes twice: keys name samples, choose others")
        self._places[key] = {
            field: (write_member(self._file, f"{key}.{field}", sample[field]), len(sample[field]))
            for field in sorted(sample)
        }
        self._shapes[key] = {}
        for field in picture_fields(sample):
            # Bytes pass through unjudged; whoever reads an unusable picture reports it.
            with contextlib.suppress(ValueError):
                self._shapes[key][field] = picture_size(sample[field])

    def close(self) -> Shard:
        """Finish the tar, write its index, and give both their names.

        Returns:
            The manifest's line for it.
        """
        end_archive(self._file)
        size = self._file.tell()
        self._file.flush()
        os.fsync(self._file.fileno())
        sha256, md5 = self._file.digests() if isinstance(self._file, _Hashed) else ("", "")
        self._file.close()
        idx = self.path.with_suffix(".idx")
        index = ShardIndex.from_samples(self._places, self._shapes, size)
        idx_hash = replace_file(idx, index.to_bytes())
        os.replace(self._temporary, self.path)
        return Shard(self.path.name, len(self._places), size, idx.name, idx_hash, sha256=sha256, md5=md5)

    def discard(self) -> None:
        """Throw the temporary file away; without effect on a shard that was closed."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Discard what was not closed."""
        self.discard()


class _Hashed(io.BufferedWriter):
    """A new file that hashes what goes through it, so that a shard need not be read again for its manifest."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self._hashes = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def write(self, data: Any) -> int:
        for one in self._hashes:
            one.update(data)
        return super().write(data)

    def digests(self) -> tuple[str, str]:
        sha256, md5 = self._hashes
        return sha256.hexdigest(), md5.hexdigest()


def list_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the pictures below a folder.

    Args:
        folder: where to look; folders inside it too, hidden names left out. A folder or a pipe that is called like a
            picture is none; a link that leads nowhere is listed, so that somebody misses its picture.

    Returns:
        Paths in the order of their names relative to the folder.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    endings = {f".{field}" for field in PICTURE_FIELDS}
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (path.is_file() or not path.exists())
    ]
    if not found:
        raise FileNotFoundError(f"there is no picture in {folder} (looked for {', '.join(sorted(endings))})")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
