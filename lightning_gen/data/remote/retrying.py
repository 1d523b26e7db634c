"""Reading over a network that fails: limits, pauses, and going on where the last answer ended.

A :class:`Transport` makes one attempt and says what went wrong; :class:`ResumedStream` makes as many as
:class:`RemoteOptions` allow. Every wait has an end, also for a server that keeps sending, but too slowly.
"""

from __future__ import annotations

import dataclasses
import io
import random
import time
from typing import Any, Protocol

from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.remote.urls import shown

__all__ = [
    "Answer",
    "ChangedError",
    "Interrupted",
    "MissingError",
    "Pace",
    "RemoteError",
    "RemoteOptions",
    "ResumedStream",
    "Transport",
    "Version",
]

_SCRATCH = 1 << 18


class RemoteError(ShardError):
    """A location cannot be read: refused, not there, or still failing after the last attempt."""


class MissingError(RemoteError):
    """There is no such file."""


class ChangedError(RemoteError):
    """The file behind a location is not the one that was begun."""


class Interrupted(Exception):
    """One attempt failed and another one may help.

    Args:
        reason: what happened.
        wait: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclasses.dataclass(frozen=True)
class RemoteOptions:
    """How patient reading over a network is.

    Attributes:
        connect_timeout: seconds to reach a server.
        read_timeout: seconds without a single byte.
        progress_seconds: interval in which ``progress_bytes`` must arrive; only time spent waiting counts.
        progress_bytes: bytes.
        retries: attempts after the first one that may fail in a row without ``progress_bytes`` between them.
        backoff: seconds before the first of them; each pause doubles, and up to as much is added at random.
        max_backoff: longest pause in seconds, also where a server asks for more (Retry-After).
    """

    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    progress_seconds: float = 60.0
    progress_bytes: int = 1 << 16
    retries: int = 5
    backoff: float = 0.5
    max_backoff: float = 30.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a limit that is not positive, or a negative number of retries.
        """
        for name in ("connect_timeout", "read_timeout", "progress_seconds", "max_backoff"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}: every wait needs a limit")
        if min(self.retries, self.backoff, self.progress_bytes) < 0:
            raise ValueError("retries, backoff and progress_bytes must not be negative")

    def pause(self, attempt: int, wait: float = 0.0) -> float:
        """How long to wait before another attempt.

        Args:
            attempt: how many have failed in a row, from 1.
            wait: seconds that the server asked for.

        Returns:
            Seconds, at most ``max_backoff``.
        """
        drawn = self.backoff * 2.0 ** (attempt - 1) * (1 + random.random())
        return min(self.max_backoff, max(wait, drawn))


@dataclasses.dataclass(frozen=True)
class Version:
    """What tells one content of a location from another.

    Attributes:
        size: bytes, None = unknown.
        tag: ETag, time of the last change or the like; empty = unknown.
    """

    size: int | None = None
    tag: str = ""

    def differs(self, other: Version) -> bool:
        """Whether two answers cannot come from one content.

        Args:
            other: of another answer.

        Returns:
            True where both know a size or a tag, and they are not the same.
        """
        sizes = self.size is not None and other.size is not None and self.size != other.size
        return sizes or bool(self.tag and other.tag and self.tag != other.tag)

    def completed(self, other: Version) -> Version:
        """What both know together.

        Args:
            other: of another answer.

        Returns:
            This version, with what it lacks taken from the other.
        """
        return Version(other.size if self.size is None else self.size, self.tag or other.tag)


class Answer(Protocol):
    """The bytes of one attempt."""

    @property
    def start(self) -> int:
        """Position of the first byte; before the wanted one where the other side cannot begin there."""
        ...

    @property
    def version(self) -> Version:
        """Which content this is."""
        ...

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes, 0 = no more will come; raises Interrupted."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class Transport(Protocol):
    """One way to reach files; it tries once."""

    def open(self, url: str, start: int, stop: int | None, seen: Version) -> Answer:
        """Ask for the bytes [start, stop), of the content that was seen before; raises Interrupted or RemoteError."""
        ...


class Pace:
    """Decides how long to wait for the next bytes, and when they come too slowly.

    Args:
        options: the limits.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self._options = options
        self._waited, self._received = 0.0, 0

    def limit(self) -> float:
        """Seconds that the next read may take."""
        return max(1e-3, min(self._options.read_timeout, self._options.progress_seconds - self._waited))

    def note(self, waited: float, received: int) -> None:
        """Count a read.

        Args:
            waited: seconds it took.
            received: bytes it brought, 0 where it ran into the limit.

        Raises:
            Interrupted: the interval is over and too little came in it.
        """
        self._waited += waited
        self._received += received
        if self._waited >= self._options.progress_seconds:
            if self._received < self._options.progress_bytes:
                raise Interrupted(f"only {self._received} bytes came in {self._waited:.1f} s")
            self._waited, self._received = 0.0, 0


class ResumedStream(io.RawIOBase):
    """The bytes of a location from some position on, however often the connection breaks.

    Args:
        transport: makes the attempts.
        url: the location.
        options: the limits.
        start: first byte.
        stop: byte behind the last one, None = the end of the file.
        seen: the content that earlier bytes came from.
    """

    def __init__(
        self,
        transport: Transport,
        url: str,
        options: RemoteOptions,
        start: int = 0,
        stop: int | None = None,
        seen: Version = Version(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.url, self.options, self.position, self.version = url, options, start, seen
        self.retried = 0
        self._transport, self._stop = transport, stop
        self._answer: Answer | None = None
        self._failed, self._mark = 0, start

    def __repr__(self) -> str:
        """The location without its secrets."""
        return shown(self.url)

    def readable(self) -> bool:
        """Always."""
        return True

    def begin(self) -> Version:
        """Ask for the first byte, so that the content is known.

        Returns:
            Size and tag as far as the other side tells.

        Raises:
            RemoteError: see :meth:`readinto`.
        """
        while self._answer is None:
            try:
                self._ask()
            except Interrupted as error:
                self._recover(error)
        return self.version

    def readinto(self, buffer: Any, /) -> int:
        """Read the next bytes.

        Args:
            buffer: where they go.

        Returns:
            How many; 0 = the end.

        Raises:
            RemoteError: the location cannot be read, or too many attempts failed in a row.
            ChangedError: the file changed between two attempts.
        """
        view = memoryview(buffer).cast("B")
        while len(view) and not self._is_over():
            self.begin()
            try:
                count = self._some(view)
            except Interrupted as error:
                self._recover(error)
                continue
            self.position += count
            return count
        return 0

    def close(self) -> None:
        """Stop reading."""
        self._drop()
        super().close()

    def _end(self) -> int | None:
        known = [end for end in (self._stop, self.version.size) if end is not None]
        return min(known, default=None)

    def _is_over(self) -> bool:
        end = self._end()
        return end is not None and self.position >= end

    def _some(self, view: memoryview) -> int:
        assert self._answer is not None
        end = self._end()
        if self._is_over():
            return 0
        count = self._answer.readinto(view if end is None else view[: end - self.position])
        if count == 0 and end is not None:
            raise Interrupted(f"the answer ended at byte {self.position} of {end}")
        return count

    def _ask(self) -> None:
        answer = self._transport.open(self.url, self.position, self._stop, self.version)
        try:
            if answer.version.differs(self.version):
                raise ChangedError(
                    f"{shown(self.url)} changed while it was read: {_told(self.version)} before, "
                    f"{_told(answer.version)} now. Somebody is replacing it; read it again when that is done"
                )
            self.version = self.version.completed(answer.version)
            self._pass_over(answer, self.position - answer.start)
        except BaseException:
            answer.close()
            raise
        self._answer = answer

    def _pass_over(self, answer: Answer, count: int) -> None:
        """Read what is known already from a server that cannot begin in the middle."""
        scratch = memoryview(bytearray(min(count, _SCRATCH)))
        while count > 0:
            came = answer.readinto(scratch[: min(count, _SCRATCH)])
            if came == 0:
                raise Interrupted(f"the answer ended {count} bytes before byte {self.position}")
            count -= came

    def _recover(self, error: Interrupted) -> None:
        self._drop()
        if self.position - self._mark >= max(1, self.options.progress_bytes):
            self._failed, self._mark = 0, self.position
        self._failed += 1
        if self._failed > self.options.retries:
            tries = f" ({self._failed} attempts)" if self._failed > 1 else ""
            raise RemoteError(f"{shown(self.url)} cannot be read from byte {self.position} on{tries}: {error}")
        self.retried += 1
        time.sleep(self.options.pause(self._failed, error.wait))

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None


def _told(version: Version) -> str:
    return f"{'?' if version.size is None else version.size} bytes{f' ({version.tag})' if version.tag else ''}"
