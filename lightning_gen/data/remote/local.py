"""Streams that this machine makes: files that may hang in a dead file system, and the output of shell commands."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lightning_gen.data.remote.retrying import Interrupted, MissingError, Pace, RemoteError, RemoteOptions, Version
from lightning_gen.data.remote.urls import shown

__all__ = ["BlockAnswer", "LocalTransport", "PipeTransport", "bounded"]

_Result = TypeVar("_Result")
_STOP_SECONDS = 5.0
_LOCAL_BLOCK = 1 << 20


def bounded(function: Callable[[], _Result], seconds: float) -> _Result:
    """Call something that may never return.

    The call runs in a thread of its own, which is left behind when it takes too long: it hangs in the kernel or in a
    library and cannot be stopped. It does not keep the process from ending.

    Args:
        function: what to call.
        seconds: how long to wait.

    Returns:
        What the function returned.

    Raises:
        Interrupted: there was no answer in time.
    """
    answers: queue.SimpleQueue[tuple[bool, _Result | BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, function()))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=run, name="bounded", daemon=True).start()
    try:
        is_good, value = answers.get(timeout=seconds)
    except queue.Empty:
        raise Interrupted(f"no answer came in {seconds:.1f} s") from None
    if not is_good:
        assert isinstance(value, BaseException)
        raise value
    return value  # type: ignore[return-value]


class BlockAnswer:
    """An answer that is fetched block by block, where a library offers reads that cannot be watched.

    Args:
        fetch: (start, stop) -> the bytes between, or fewer.
        start: first byte.
        version: which content this is; its size must be known.
        block: bytes per read.
        done: called once at the end.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        start: int,
        version: Version,
        block: int,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.start, self.version = start, version
        self._fetch, self._block, self._done = fetch, block, done
        self._position, self._held = start, memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes.

        Args:
            buffer: where they go.

        Returns:
            How many; 0 = the end.

        Raises:
            Interrupted: no answer in time, or an error that another attempt may not meet.
        """
        if not self._held:
            assert self.version.size is not None
            stop = min(self.version.size, self._position + max(self._block, len(buffer)))
            if stop <= self._position:
                return 0
            self._held = memoryview(self._fetch(self._position, stop))
            self._position += len(self._held)
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def close(self) -> None:
        """Stop."""
        done, self._done = self._done, lambda: None
        done()


class LocalTransport:
    """Files of this machine.

    Args:
        options: the limits.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self.options = options

    def open(self, url: str, start: int, stop: int | None, seen: Version) -> BlockAnswer:
        """Open once.

        Args:
            url: the path.
            start: first byte.
            stop: not needed: nothing is sent that is not asked for.
            seen: the content that earlier bytes came from.

        Returns:
            The answer.

        Raises:
            Interrupted: the file system does not answer.
            RemoteError: there is no such file, or it may not be read.
        """
        del stop, seen
        try:
            handle = bounded(lambda: os.open(url, os.O_RDONLY), self.options.read_timeout)
        except FileNotFoundError:
            raise MissingError(f"shard {url} is missing") from None
        except OSError as error:
            raise RemoteError(f"shard {url} cannot be opened: {error.strerror or error}") from None
        found = os.fstat(handle)

        def fetch(first: int, last: int) -> bytes:
            try:
                return bounded(lambda: os.pread(handle, last - first, first), self.options.read_timeout)
            except OSError as error:
                raise Interrupted(error.strerror or str(error)) from None

        version = Version(found.st_size, str(found.st_mtime_ns))
        return BlockAnswer(fetch, start, version, _LOCAL_BLOCK, lambda: os.close(handle))


class PipeTransport:
    """What a shell command writes. It begins at the start again when it fails.

    Args:
        options: the limits.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self.options = options

    def open(self, url: str, start: int, stop: int | None, seen: Version) -> _Output:
        """Start the command.

        Args:
            url: ``pipe:COMMAND``.
            start: not possible: the answer begins at 0.
            stop: not possible.
            seen: the content that earlier bytes came from.

        Returns:
            The answer.

        Raises:
            RemoteError: there is no shell.
        """
        del start, stop, seen
        try:
            # A session of its own, so that the command can be stopped together with what it started.
            process = subprocess.Popen(
                url.removeprefix("pipe:"),
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise RemoteError(f"{shown(url)} cannot be started: {error.strerror or error}") from None
        return _Output(process, Pace(self.options))


class _Output:
    """The output of a running command."""

    def __init__(self, process: subprocess.Popen[bytes], pace: Pace) -> None:
        self.start, self.version = 0, Version()
        self._process, self._pace = process, pace

    def readinto(self, buffer: memoryview, /) -> int:
        assert self._process.stdout is not None
        limit, began = self._pace.limit(), time.monotonic()
        is_ready = bool(select.select([self._process.stdout], [], [], limit)[0])
        data = os.read(self._process.stdout.fileno(), min(len(buffer), 1 << 16)) if is_ready else b""
        self._pace.note(time.monotonic() - began, len(data))
        if not is_ready:
            raise Interrupted(f"the command wrote nothing for {limit:.1f} s")
        if not data:
            self._end()
        buffer[: len(data)] = data
        return len(data)

    def _end(self) -> None:
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise Interrupted("the command closed its output and does not end") from None
        if code:
            raise Interrupted(f"the command ended with code {code}")

    def close(self) -> None:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
                break
        if self._process.stdout is not None:
            self._process.stdout.close()
