"""SHARD.idx: where every field of every sample of a tar lies, and how large its pictures are.

Layout: the magic line, one line of JSON (fields, number of samples, size of the tar, length of the key block), then
little-endian arrays without gaps: offsets int64 (S, F), sizes int64 (S, F) with -1 = no such field, heights and widths
uint32 (S, F) with 0 = unknown or not a picture, key ends int64 (S), and the keys one after another in UTF-8. S samples,
F fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.tarfiles import split_name, walk_file

__all__ = [
    "INDEX_FORMAT",
    "PICTURE_FIELDS",
    "REMEDY",
    "ShardIndex",
    "index_file",
    "index_tar",
    "picture_field",
    "picture_fields",
    "replace_file",
]

INDEX_FORMAT = "lg-wds idx 2"
_MAGIC = f"{INDEX_FORMAT}\n".encode()
REMEDY = (
    "fetch it again, or make it anew from its tar: lightning data index FOLDER --overwrite (or delete the folder of an "
    "index that training made by itself)"
)
"""What to do about an index that is not what it should be."""

PICTURE_FIELDS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif", "ppm")


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """The index of one tar.

    Attributes:
        fields: names of the F fields, sorted.
        key_block: the keys of the S samples one after another, UTF-8, in the order of the tar.
        key_ends: int64, (S,), where each key ends in the block.
        offsets: int64, (S, F), first byte of a field.
        sizes: int64, (S, F), bytes of a field, -1 = the sample has no such field.
        heights: uint32, (S, F), height of the picture after its EXIF rotation, 0 = unknown or not a picture.
        widths: uint32, (S, F), width likewise.
        tar_bytes: size of the tar the index belongs to.
    """

    fields: tuple[str, ...]
    key_block: bytes
    key_ends: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    heights: npt.NDArray[np.uint32]
    widths: npt.NDArray[np.uint32]
    tar_bytes: int

    def __len__(self) -> int:
        """Number of samples S."""
        return len(self.key_ends)

    def key(self, row: int) -> str:
        """Key of a sample.

        Args:
            row: its number in the tar.

        Returns:
            The key.
        """
        return self.key_block[self.key_ends[row - 1] if row else 0 : self.key_ends[row]].decode("utf-8")

    def places(self, row: int) -> list[tuple[str, int, int]]:
        """Where the fields of a sample lie.

        Args:
            row: its number in the tar.

        Returns:
            For every field the sample has: its name, its first byte and the byte behind its last one.
        """
        unpack, width, offsets, sizes = self._rows
        offset, size = unpack(offsets, row * width), unpack(sizes, row * width)
        return [(f, a, a + n) for f, a, n in zip(self.fields, offset, size) if n >= 0]  # noqa: B905 (hot)

    @functools.cached_property
    def _rows(self) -> tuple[Callable[[memoryview, int], tuple[int, ...]], int, memoryview, memoryview]:
        """Reads a row of offsets or sizes out of their bytes, twice as fast as NumPy makes a list of one."""
        row = struct.Struct(f"<{len(self.fields)}q")
        offsets, sizes = (np.ascontiguousarray(table, "<i8").data.cast("B") for table in (self.offsets, self.sizes))
        return row.unpack_from, row.size, offsets, sizes

    def shapes(self, stem: str = "") -> npt.NDArray[np.int64]:
        """Sizes of one picture of every sample.

        Args:
            stem: which picture, see :func:`picture_field`.

        Returns:
            int64, (S, 2), height and width, 0 = unknown.
        """
        out = np.zeros((len(self), 2), np.int64)
        lower = [field.lower() for field in self.fields]
        for name in reversed(_names(stem)):
            for column in (number for number, field in enumerate(lower) if field == name):
                there = self.sizes[:, column] >= 0
                out[there, 0], out[there, 1] = self.heights[there, column], self.widths[there, column]
        return out

    def to_bytes(self) -> bytes:
        """The content of the .idx file.

        Returns:
            Bytes that depend on the index alone.
        """
        head = {"fields": self.fields, "num_samples": len(self), "tar_bytes": self.tar_bytes}
        out = io.BytesIO()
        out.write(_MAGIC + json.dumps({**head, "key_bytes": len(self.key_block)}, sort_keys=True).encode() + b"\n")
        for array, kind in self._arrays():
            out.write(np.ascontiguousarray(array, dtype=kind).tobytes())
        out.write(self.key_block)
        return out.getvalue()

    def _arrays(self) -> list[tuple[npt.NDArray[np.generic], str]]:
        sizes = [(self.heights, "<u4"), (self.widths, "<u4")]
        return [(self.offsets, "<i8"), (self.sizes, "<i8"), *sizes, (self.key_ends, "<i8")]

    @classmethod
    def from_bytes(cls, data: bytes, path: str | os.PathLike[str] = "(memory)") -> ShardIndex:
        """Read what :meth:`to_bytes` wrote.

        Args:
            data: content of an .idx file.
            path: its name, for messages.

        Returns:
            The index.

        Raises:
            ShardError: the bytes are not an index of this version, or cut short.
        """
        try:
            if not data.startswith(_MAGIC):
                raise ValueError("the first line is not that of an lg-wds index")
            end = data.index(b"\n", len(_MAGIC)) + 1
            head = json.loads(data[len(_MAGIC) : end])
            samples, fields, total = int(head["num_samples"]), tuple(head["fields"]), int(head["tar_bytes"])
            if samples < 0 or not all(isinstance(field, str) for field in fields):
                raise ValueError(f"{samples} samples with the fields {fields}")
            table = (samples, len(fields))
            shapes = [("<i8", table)] * 2 + [("<u4", table)] * 2 + [("<i8", (samples,))]
            arrays = []
            for kind, shape in shapes:
                count = int(np.prod(shape))
                arrays.append(np.frombuffer(data, kind, count, end).reshape(shape))
                end += arrays[-1].nbytes
            if len(data) != end + int(head["key_bytes"]):
                raise ValueError(f"{len(data)} bytes instead of {end + int(head['key_bytes'])}")
            offsets, sizes, heights, widths, ends = arrays
            _check_places(offsets, sizes, total)
            _check_keys(data[end:], ends)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ShardError(f"index {path} is damaged ({error}): {REMEDY}") from None
        return cls(fields, data[end:], ends, offsets, sizes, heights, widths, total)

    @classmethod
    def from_samples(
        cls,
        samples: Mapping[str, Mapping[str, tuple[int, int]]],
        shapes: Mapping[str, Mapping[str, tuple[int, int]]],
        tar_bytes: int,
    ) -> ShardIndex:
        """Build an index from a table.

        Args:
            samples: key -> field -> (offset, size), in the order of the tar.
            shapes: key -> field -> (height, width) of a picture; keys and fields may be missing.
            tar_bytes: size of the tar.

        Returns:
            The index.
        """
        fields = tuple(sorted({field for places in samples.values() for field in places}))
        offsets = np.zeros((len(samples), len(fields)), np.int64)
        sizes = np.full_like(offsets, -1)
        shape = np.zeros((*offsets.shape, 2), np.uint32)
        for row, (key, places) in enumerate(samples.items()):
            known = shapes.get(key, {})
            for column, field in enumerate(fields):
                if field in places:
                    offsets[row, column], sizes[row, column] = places[field]
                if field in known:
                    shape[row, column] = known[field]
        keys = [key.encode("utf-8") for key in samples]
        ends = np.cumsum([len(key) for key in keys], dtype=np.int64)
        return cls(fields, b"".join(keys), ends, offsets, sizes, shape[..., 0], shape[..., 1], tar_bytes)


def _check_places(offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], total: int) -> None:
    """Every field lies inside its tar."""
    # Compared by differences: the sum of two large numbers could overflow.
    outside = (sizes < -1) | ((sizes >= 0) & ((offsets < 0) | (offsets > total) | (sizes > total - offsets)))
    if outside.any():
        row, column = np.argwhere(outside)[0].tolist()
        raise ValueError(
            f"a field of sample {row} has {sizes[row, column]} bytes at {offsets[row, column]}, its tar has {total}"
        )


def _check_keys(block: bytes, ends: npt.NDArray[np.int64]) -> None:
    """The keys fill their block one after another, and each is a text."""
    starts = np.concatenate([np.zeros(1, np.int64), ends])
    if (np.diff(starts) < 0).any() or starts[-1] != len(block):
        raise ValueError("the keys do not fill their block")
    block.decode("utf-8")
    letters = np.frombuffer(block, np.uint8)
    if (letters[starts[starts < len(block)]] & 0xC0 == 0x80).any():
        raise ValueError("a key begins inside a letter")


def picture_field(fields: Mapping[str, object], stem: str = "") -> str | None:
    """Which field of a sample is its picture.

    Args:
        fields: the sample, or anything keyed by its field names.
        stem: what stands before the ending where a sample has several pictures: ``0`` for ``0.jpg``, ``src`` for
            ``src.png``; empty = the ending alone.

    Returns:
        The first of jpg, jpeg, png, webp, tif, tiff, bmp, gif, ppm that is there, in any case; None = no picture.
    """
    lower = {name.lower(): name for name in fields}
    return next((lower[name] for name in _names(stem) if name in lower), None)


def picture_fields(fields: Iterable[str]) -> tuple[str, ...]:
    """Which fields of a sample are pictures.

    Args:
        fields: the sample, or its field names.

    Returns:
        Those that end like a picture, in their order.
    """
    return tuple(name for name in fields if name.lower().rsplit(".", 1)[-1] in PICTURE_FIELDS)


def _names(stem: str) -> list[str]:
    return [f"{stem}.{ending}" if stem else ending for ending in PICTURE_FIELDS]


def index_tar(path: str | os.PathLike[str], measure: Callable[[BinaryIO], tuple[int, int]] | None = None) -> ShardIndex:
    """Index a tar that somebody else wrote, by walking its headers.

    Args:
        path: an uncompressed tar whose samples are adjacent members that share a key.
        measure: picture file -> (height, width), reads its header only; None = leave the sizes unknown.

    Returns:
        The index.

    Raises:
        ShardError: the tar is damaged, a sample has the same field twice, or its members are not adjacent.
    """
    try:
        with open(path, "rb") as file:
            return index_file(file, str(path), os.fstat(file.fileno()).st_size, measure)
    except OSError as error:
        raise ShardError(f"shard {path} cannot be read: {error.strerror or error}") from None


def index_file(
    file: BinaryIO, name: str, total: int, measure: Callable[[BinaryIO], tuple[int, int]] | None = None
) -> ShardIndex:
    """Index an open tar, wherever its bytes come from. Reads go forward, but for what ``measure`` does in a picture.

    Args:
        file: the tar, to read and to seek in.
        name: what to call it in messages.
        total: its bytes.
        measure: see :func:`index_tar`. A picture whose header cannot be read keeps an unknown size and is judged when
            it is used.

    Returns:
        The index.

    Raises:
        ShardError: see :func:`index_tar`.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    shapes: dict[str, dict[str, tuple[int, int]]] = {}
    last = ""
    for member in walk_file(file, name, total):
        split = split_name(member.name)
        if split is None or _is_meta(split[0]):
            continue
        key, field = split
        if key in samples and (key != last or field in samples[key]):
            why = f"holds {member.name} twice" if field in samples[key] else f"has the members of {key} apart"
            raise ShardError(f"shard {name} {why}: the members of a sample must be adjacent and differ")
        samples.setdefault(key, {})[field] = (member.offset, member.size)
        last = key
        if measure is not None and picture_fields((field,)):
            with contextlib.suppress(ValueError), io.BufferedReader(_Part(file, member.offset, member.size)) as part:
                shapes.setdefault(key, {})[field] = measure(part)
    return ShardIndex.from_samples(samples, shapes, total)


def _is_meta(key: str) -> bool:
    base = key.rsplit("/", 1)[-1]
    return base.startswith("__") and base.endswith("__")


class _Part(io.RawIOBase):
    """A stretch of an open file as a file of its own: whoever reads a header from it reads no more than that."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._position = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._offset + self._position)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def replace_file(path: str | os.PathLike[str], data: bytes) -> str:
    """Write a file so that nobody ever sees half of it.

    Args:
        path: the file; its folder exists.
        data: its content.

    Returns:
        sha256 of the content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return hashlib.sha256(data).hexdigest()
