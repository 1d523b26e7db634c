"""One way to open everything that a shard may lie behind.

========================  =====================================================================================
location                  read by
========================  =====================================================================================
a path                    the operating system
``http://``, ``https://``  the standard library; ranges, If-Range, Retry-After
``s3://``                 fsspec and s3fs
``gs://``                 fsspec and gcsfs
``hf://``                 fsspec and huggingface_hub, with the account of ``hf auth login``
``pipe:COMMAND``          the shell; from the user's own configuration or command line only
========================  =====================================================================================
"""

from __future__ import annotations

import io
from typing import Any, Protocol

from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.remote.retrying import RemoteError, RemoteOptions, ResumedStream, Transport, Version
from lightning_gen.data.remote.urls import SCHEMES, scheme_of, shown

__all__ = ["Opener", "RangeFile", "UrlOpener"]

_GAP = 1 << 20
_READ_AHEAD = 1 << 16


class Opener(Protocol):
    """What reading shards needs of a place."""

    def size(self, url: str) -> int | None:
        """Bytes of a file, None = the other side does not say."""
        ...

    def read(self, url: str, offset: int, size: int) -> bytes:
        """The bytes [offset, offset + size) of a file."""
        ...

    def open(self, url: str, offset: int = 0) -> io.RawIOBase:
        """A file's bytes from an offset to its end."""
        ...


class UrlOpener:
    """Opens paths, URLs and commands, with the limits and retries of the options. May be pickled.

    Whether a ``pipe:`` may be run is decided where it is read: lists of shards may not name one, see
    :func:`lightning_gen.data.remote.urls.check_listed`.

    Args:
        options: the limits.
    """

    def __init__(self, options: RemoteOptions | None = None) -> None:
        self.options = options or RemoteOptions()

    def version(self, url: str) -> Version:
        """Size and tag of a file as it is now.

        Args:
            url: its location.

        Returns:
            What the other side says.

        Raises:
            RemoteError: it cannot be read.
        """
        with self.open(url) as stream:
            return stream.begin()

    def size(self, url: str) -> int | None:
        """Bytes of a file.

        Args:
            url: its location.

        Returns:
            The number, None = the other side does not say.

        Raises:
            RemoteError: it cannot be read.
        """
        return self.version(url).size

    def read(self, url: str, offset: int, size: int) -> bytes:
        """Read a range.

        Args:
            url: the file's location.
            offset: first byte.
            size: number of bytes.

        Returns:
            Exactly these bytes.

        Raises:
            RemoteError: it cannot be read, or it ends before the range does.
        """
        with ResumedStream(self._transport(url), url, self.options, offset, offset + size) as stream:
            data = stream.readall() or b""
        if len(data) != size:
            raise RemoteError(f"{shown(url)} has no {size} bytes at {offset}: it ends at {offset + len(data)}")
        return data

    def read_all(self, url: str, limit: int) -> bytes:
        """Read a small file.

        Args:
            url: its location.
            limit: most bytes it may have.

        Returns:
            Its content.

        Raises:
            RemoteError: it cannot be read, or it is larger.
        """
        with ResumedStream(self._transport(url), url, self.options, 0, None) as stream:
            parts, total = list[bytes](), 0
            while part := stream.read(1 << 20):
                total += len(part)
                if total > limit:
                    raise RemoteError(f"{shown(url)} has more than {limit} bytes: that is no list or index of shards")
                parts.append(part)
        return b"".join(parts)

    def open(self, url: str, offset: int = 0, seen: Version | None = None) -> ResumedStream:
        """Stream a file.

        Args:
            url: its location.
            offset: first byte.
            seen: the content that earlier bytes came from; another one is an error.

        Returns:
            A raw file; nothing is asked for before the first read.

        Raises:
            ShardError: nothing can open such a location.
        """
        return ResumedStream(self._transport(url), url, self.options, offset, seen=seen or Version())

    def _transport(self, url: str) -> Transport:
        scheme = scheme_of(url)
        if scheme in ("http", "https"):
            from lightning_gen.data.remote.http import HttpTransport

            return HttpTransport(self.options)
        if scheme in SCHEMES:
            from lightning_gen.data.remote.object_stores import FsspecTransport

            return FsspecTransport(self.options)
        if scheme in ("", "pipe"):
            from lightning_gen.data.remote.local import LocalTransport, PipeTransport

            return PipeTransport(self.options) if scheme else LocalTransport(self.options)
        raise ShardError(f"{shown(url)}: a shard is a path, pipe:COMMAND, or one of {', '.join(SCHEMES)}, not {scheme}")


class RangeFile(io.RawIOBase):
    """A remote file that can be sought in: short gaps are read through, long ones are jumped over by a new request.

    Args:
        opener: opens it.
        url: its location.

    Raises:
        RemoteError: it cannot be read, or its size is not known.
    """

    def __init__(self, opener: UrlOpener, url: str) -> None:
        super().__init__()
        self._opener, self._url, self._position = opener, url, 0
        self._stream = opener.open(url)
        version = self._stream.begin()
        if version.size is None:
            raise RemoteError(f"{shown(url)}: the server does not say how long it is, so it cannot be indexed in place")
        self.size = version.size

    @classmethod
    def buffered(cls, opener: UrlOpener, url: str) -> io.BufferedReader:
        """A remote file with 64 KiB of read-ahead, see the class.

        Args:
            opener: opens it.
            url: its location.

        Returns:
            A file to read and to seek in.
        """
        return io.BufferedReader(cls(opener, url), _READ_AHEAD)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go somewhere; nothing is read.

        Args:
            offset: bytes from there.
            whence: start, current position or end.

        Returns:
            The position.
        """
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Read from the position on.

        Args:
            buffer: where the bytes go.

        Returns:
            How many; 0 = the end.

        Raises:
            RemoteError: it cannot be read.
        """
        gap = self._position - self._stream.position
        if not 0 <= gap <= _GAP:
            version = self._stream.version
            self._stream.close()
            self._stream = self._opener.open(self._url, self._position, version)
        while (gap := self._position - self._stream.position) > 0:
            if not self._stream.read(gap):
                return 0
        count = self._stream.readinto(buffer)
        self._position += count
        return count

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()
        super().close()
