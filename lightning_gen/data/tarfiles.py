"""Tar archives as flat files: where the bytes of every member lie, and how to write the same bytes every time.

Nothing is ever extracted: an archive is an index into itself. Names that climb out of the archive are refused all the
same, since they are the mark of a hostile file.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from lightning_gen.data.quarantine import ShardError

__all__ = [
    "CheckedTar",
    "Member",
    "describe_start",
    "end_archive",
    "safe_name",
    "split_name",
    "walk",
    "walk_bytes",
    "walk_file",
    "write_member",
]

_BLOCK = 512
# WebDataset's rule: the key ends at the first dot of the base name, the rest is the field.
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_LARGEST_EXTENSION = 1 << 20


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file inside a tar.

    Attributes:
        name: path inside the archive.
        offset: position of its first byte in the tar.
        size: length in bytes.
    """

    name: str
    offset: int
    size: int


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and field at the first dot of the base name.

    Args:
        name: path inside the archive.

    Returns:
        (key, field), or None for a name without a field (hidden files, folders, names without a dot).
    """
    match = _NAME.match(name)
    return (match.group(1), match.group(2)) if match else None


def write_member(file: BinaryIO, name: str, data: bytes) -> int:
    """Append one member with owner 0, mode 0644 and time 0, so that equal input gives equal bytes.

    Args:
        file: the tar, positioned at its end (a multiple of 512).
        name: path inside the archive.
        data: its content.

    Returns:
        Offset of the content in the tar.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), 0, 0o644
    # The pax format is plain ustar unless a name or a size does not fit.
    file.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
    offset = file.tell()
    file.write(data)
    file.write(b"\0" * (-len(data) % _BLOCK))
    return offset


def end_archive(file: BinaryIO) -> None:
    """Write the end mark and fill the last record.

    Args:
        file: the tar, positioned after its last member.
    """
    file.write(b"\0" * (2 * _BLOCK))
    file.write(b"\0" * (-file.tell() % tarfile.RECORDSIZE))


def walk(path: str | os.PathLike[str]) -> Iterator[Member]:
    """Visit the headers of a tar, skipping over the content.

    Args:
        path: an uncompressed tar on a local disk.

    Yields:
        Its regular files in the order of the archive. Folders, links and devices are passed over.

    Raises:
        ShardError: the file is missing, empty, truncated, compressed or not a tar, or a name climbs out of it.
    """
    try:
        with open(path, "rb") as file:
            yield from walk_file(file, str(path), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise ShardError(f"shard {path} cannot be read: {error.strerror or error}") from None


def walk_file(file: BinaryIO, name: str, total: int) -> Iterator[Member]:
    """Visit the headers of an open tar, wherever its bytes come from.

    Args:
        file: the tar; only its headers are read, and it may be sought in between two members.
        name: what to call it in messages.
        total: its bytes.

    Yields:
        Its regular files, see :func:`walk`.

    Raises:
        ShardError: see :func:`walk`.
    """
    if total == 0:
        raise ShardError(f"shard {name} is empty (0 bytes): fetch or write it again")
    yield from _members(file, name, total)


def walk_bytes(data: bytes, name: str) -> Iterator[Member]:
    """Visit the members of a piece of a tar in memory, for instance those of one sample.

    Args:
        data: whole headers and contents, without an end mark.
        name: where the piece comes from, for messages.

    Yields:
        Its regular files, with offsets into the piece.

    Raises:
        ShardError: the piece is cut or not a piece of a tar.
    """
    yield from _members(io.BytesIO(data + b"\0" * _BLOCK), name, len(data))


def _members(file: BinaryIO, path: str, total: int) -> Iterator[Member]:
    position, override = 0, dict[str, str]()
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise ShardError(f"shard {path} is truncated: no end mark at byte {position} of {total}. Fetch it again")
        if not header.strip(b"\0"):
            return
        kind, name, size = _parse(header, path, position)
        start = position + _BLOCK
        if kind in (b"x", b"L") and size <= _LARGEST_EXTENSION:
            extension = file.read(size)
            override |= _pax(extension, path) if kind == b"x" else {"path": extension.rstrip(b"\0").decode("utf-8")}
        else:
            name, size = override.get("path", name), int(override.get("size", size))
            if start + size > total:
                raise ShardError(
                    f"shard {path} is truncated: member {name} needs bytes {start} to {start + size}, the file has "
                    f"{total}. Fetch it again"
                )
            if kind in (b"0", b"\0", b"7"):
                yield Member(safe_name(name, path), start, size)
            override = {}
        position = start + size + -size % _BLOCK


def _parse(header: bytes, path: str, position: int) -> tuple[bytes, str, int]:
    try:
        stated = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        stated = -1
    if stated != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        what = describe_start(header) or ": the header's checksum is wrong"
        raise ShardError(f"shard {path} is not a tar at byte {position}{what}. Fetch or write it again")
    size_field = header[124:136]
    if size_field[0] & 0x80:
        size = int.from_bytes(bytes([size_field[0] & 0x7F]) + size_field[1:], "big")
    else:
        size = int(size_field.strip(b" \0") or b"0", 8)
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    prefix = header[345:500].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    if prefix and header[257:263] == b"ustar\0":
        name = f"{prefix}/{name}"
    return header[156:157], name, size


def describe_start(header: bytes) -> str:
    """What a file seems to be that is no tar.

    Args:
        header: its first bytes.

    Returns:
        A clause that begins with a colon, for the end of a sentence; empty = it could be anything.
    """
    start = header[:64].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return ": it starts like a web page, probably an error message saved by a download"
    if header[:2] == b"\x1f\x8b" or header[:4] == b"\x28\xb5\x2f\xfd":
        return ": it is compressed; decompress it, random access needs a plain tar"
    return ""


def _pax(data: bytes, path: str) -> dict[str, str]:
    records, position = dict[str, str](), 0
    try:
        while position < len(data) and data[position] != 0:
            length = int(data[position : data.index(b" ", position)])
            if length < 1:
                raise ValueError("a record of length 0")
            text = data[data.index(b" ", position) + 1 : position + length - 1].decode("utf-8")
            keyword, _, value = text.partition("=")
            records[keyword] = value
            position += length
    except ValueError as error:
        raise ShardError(f"shard {path} has a damaged pax header ({error}). Fetch it again") from None
    return records


def safe_name(name: str, path: str) -> str:
    """Refuse the name of a member that climbs out of its archive.

    Args:
        name: as it stands in the header.
        path: the archive, for the message.

    Returns:
        The name without a leading ``./``.

    Raises:
        ShardError: the name is absolute or climbs.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:$", parts[0]):
        raise ShardError(f"shard {path} holds the name {name!r}, which climbs out of the archive: do not use this file")
    return name[2:] if name.startswith("./") else name


class CheckedTar(io.RawIOBase):
    """A stream of a tar that notices what readers of streams pass over in silence: a wrong header, a missing end.

    Everything before the damage is delivered; the error comes with the read after it.

    Args:
        stream: the bytes, from the first one on.
        name: what to call them in messages.
    """

    def __init__(self, stream: io.RawIOBase | io.BufferedReader, name: str) -> None:
        super().__init__()
        self._stream, self._name = stream, name
        self._header, self._skip, self._position = b"", 0, 0
        self._ended = False
        self._error: ShardError | None = None

    def __repr__(self) -> str:
        """What it is called."""
        return self._name

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read the next bytes.

        Args:
            buffer: where they go.

        Returns:
            How many; 0 = the end.

        Raises:
            ShardError: the tar is truncated or not a tar at the position that was reached.
        """
        if self._error is not None:
            raise self._error
        count = self._stream.readinto(buffer) or 0
        if count == 0 and len(buffer) and not self._ended:
            raise ShardError(
                f"shard {self._name} is truncated: no end mark at byte {self._position}. Fetch or write it again"
            )
        good = self._look(memoryview(buffer)[:count])
        if good == 0 and self._error is not None:
            raise self._error
        return good

    def _look(self, data: memoryview) -> int:
        """Follow the headers; how many bytes are good."""
        at = 0
        while at < len(data) and not self._ended:
            step = min(self._skip or _BLOCK - len(self._header), len(data) - at)
            if self._skip:
                self._skip -= step
            else:
                self._header += bytes(data[at : at + step])
            at += step
            self._position += step
            if len(self._header) == _BLOCK:
                header, self._header = self._header, b""
                if not header.strip(b"\0"):
                    self._ended = True
                    break
                try:
                    size = _parse(header, self._name, self._position - _BLOCK)[2]
                except ShardError as error:
                    self._error = error
                    return max(0, at - _BLOCK)
                self._skip = size + -size % _BLOCK
        return len(data)
