"""Writing shards: the same samples give the same bytes, and a crash leaves no half-written file with a real name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from lightning_gen.data.decode import picture_size
from lightning_gen.data.index import PICTURE_FIELDS, ShardIndex, picture_field, replace_file
from lightning_gen.data.manifest import Manifest, Shard
from lightning_gen.data.quarantine import SampleError
from lightning_gen.data.tarfiles import end_archive, write_member

__all__ = ["list_pictures", "write_image_folder", "write_shards"]

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
    if not _KEY.fullmatch(name):
        raise ValueError(f"the split's name {name!r} may hold letters, digits, _ and - only")
    folder.mkdir(parents=True, exist_ok=True)
    shards, fields = list[Shard](), set[str]()
    open_shard: _OpenShard | None = None
    try:
        for key, sample in _checked(samples):
            fields |= set(sample)
            size = sum(len(data) + 1024 for data in sample.values())
            if open_shard is not None and open_shard.is_full(size, max_bytes, max_samples):
                shards.append(open_shard.close())
                open_shard = None
            if open_shard is None:
                open_shard = _OpenShard(folder / f"{name}-{len(shards):06d}.tar")
            open_shard.add(key, sample)
        if open_shard is None:
            raise ValueError(f"there is no sample to write into {folder}")
        shards.append(open_shard.close())
        open_shard = None
    finally:
        if open_shard is not None:
            open_shard.discard()
    described = {field: _describe(field) for field in sorted(fields)} | dict(schema or {})
    manifest = Manifest(name, folder, tuple(shards), described, source)
    manifest.write()
    return manifest


def _checked(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    seen = set[str]()
    for key, sample in samples:
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {key!r} may hold letters, digits, _ and - only: a dot would split the sample in two")
        if key in seen:
            raise ValueError(f"key {key!r} comes twice: keys name samples, choose others")
        if not sample:
            raise ValueError(f"sample {key!r} has no field")
        bad = [field for field in sample if not _FIELD.fullmatch(field)]
        if bad:
            raise ValueError(
                f"sample {key!r} has the field {bad[0]!r}: use lower-case letters, digits, _ and single dots"
            )
        seen.add(key)
        yield key, sample


def _describe(field: str) -> str:
    if field in PICTURE_FIELDS:
        return "encoded picture"
    return {"cls": "class, integer as text", "json": "metadata", "txt": "caption"}.get(field, "bytes")


class _OpenShard:
    """A tar under a temporary name; it gets its own name when it is complete and on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.places: dict[str, dict[str, tuple[int, int]]] = {}
        self.shapes: dict[str, tuple[int, int]] = {}
        self.file: BinaryIO = open(self.temporary, "w+b")  # noqa: SIM115  (closed by close or discard)

    def is_full(self, size: int, max_bytes: int, max_samples: int | None) -> bool:
        return self.file.tell() + size > max_bytes or len(self.places) == max_samples

    def add(self, key: str, sample: Mapping[str, bytes]) -> None:
        self.places[key] = {
            field: (write_member(self.file, f"{key}.{field}", sample[field]), len(sample[field]))
            for field in sorted(sample)
        }
        picture = picture_field(sample)
        if picture is not None:
            # Bytes pass through unjudged; whoever reads an unusable picture reports it.
            with contextlib.suppress(ValueError):
                self.shapes[key] = picture_size(sample[picture])

    def close(self) -> Shard:
        end_archive(self.file)
        size = self.file.tell()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.seek(0)
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        while chunk := self.file.read(1 << 22):
            sha256.update(chunk)
            md5.update(chunk)
        self.file.close()
        idx = self.path.with_suffix(".idx")
        index = ShardIndex.from_samples(self.places, self.shapes, size)
        idx_hash = replace_file(idx, index.to_bytes())
        os.replace(self.temporary, self.path)
        names = (self.path.name, len(self.places), size, idx.name, idx_hash)
        return Shard(*names, sha256=sha256.hexdigest(), md5=md5.hexdigest())

    def discard(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)


def list_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the pictures below a folder.

    Args:
        folder: where to look; folders inside it too, hidden names left out.

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
        if path.suffix.lower() in endings and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise FileNotFoundError(f"there is no picture in {folder} (looked for {', '.join(sorted(endings))})")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def write_image_folder(
    pictures: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str = "train",
    keep: Callable[[Path], bool] | None = None,
    classes: bool | Sequence[str] = False,
    shuffle_seed: int | None = None,
    max_bytes: int = 512 << 20,
    max_samples: int | None = None,
    source: str = "",
    overwrite: bool = False,
) -> Manifest:
    """Pack a folder of pictures into shards; the files' bytes pass through unchanged.

    Args:
        pictures: folder with jpg, png, webp, tif, bmp, gif or ppm files, at any depth.
        folder: where the shards go, see :func:`write_shards`.
        name: name of the split.
        keep: which files to take, given their paths relative to ``pictures``; default all.
        classes: True = the first folder below ``pictures`` is the class, numbered in order of names; a list = these
            names are the classes, in this order; False = no labels.
        shuffle_seed: pack the files in a random order that this number decides; None = in order of their paths.
        max_bytes: largest shard.
        max_samples: samples per shard at most.
        source: where the pictures came from, for people.
        overwrite: replace a manifest that is already there.

    Returns:
        The manifest, already on disk.

    Raises:
        SampleError: a file that ends like a picture is none.
        ValueError: two files lead to the same key, or a file lies outside every class folder.
    """
    root = Path(pictures)
    paths = [path.relative_to(root) for path in list_pictures(root)]
    paths = [path for path in paths if keep is None or keep(path)]
    if shuffle_seed is not None:
        # Its module needs torch; packing a folder in order does not.
        from lightning_gen.training.randomness import numpy_generator

        paths = [paths[place] for place in numpy_generator(shuffle_seed, "pack").permutation(len(paths))]
    names = sorted({path.parts[0] for path in paths if len(path.parts) > 1}) if classes is True else list(classes or [])
    table = {label: number for number, label in enumerate(names)}
    samples = (_picture_sample(root, path, table if classes else None) for path in paths)
    return write_shards(
        samples,
        folder,
        name=name,
        max_bytes=max_bytes,
        max_samples=max_samples,
        source=source or root.name,
        overwrite=overwrite,
    )


def _picture_sample(root: Path, path: Path, classes: Mapping[str, int] | None) -> tuple[str, dict[str, bytes]]:
    data = (root / path).read_bytes()
    try:
        height, width = picture_size(data)
    except ValueError as error:
        raise SampleError(f"{root / path}: {error}") from None
    record = {"filename": path.as_posix(), "height": height, "width": width}
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", path.with_suffix("").as_posix())
    sample = {path.suffix[1:].lower(): data}
    if classes is not None:
        if path.parts[0] not in classes:
            raise ValueError(f"{root / path} lies in no class folder: the classes are {', '.join(classes)}")
        record["label"] = classes[path.parts[0]]
        sample["cls"] = str(record["label"]).encode()
    sample["json"] = json.dumps(record, sort_keys=True).encode()
    return key, sample
