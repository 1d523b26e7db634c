"""Locks on files between processes of one machine: released by the kernel when a process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lightning_gen.data.quarantine import ShardError

__all__ = ["hold", "is_locked", "locked", "remove_unless_held"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_POLL_SECONDS = 0.02
_TOUCH_SECONDS = 60.0


@contextlib.contextmanager
def locked(path: Path, seconds: float, progress: Callable[[], int], what: str) -> Iterator[None]:
    """Be the only one who works on something.

    A process that died holds nothing. One that lives but does not get on is waited for no longer than ``seconds``.

    Args:
        path: the lock's file; it stays.
        seconds: how long ``progress`` may stay the same while somebody else has the lock.
        progress: tells how far that one is.
        what: the thing, for the message.

    Yields:
        Nothing.

    Raises:
        ShardError: somebody else has the lock and does not get on.
        OSError: the file system has no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        far, since = progress(), time.monotonic()
        while not _try(handle, fcntl.LOCK_EX, path):
            if progress() != far:
                far, since = progress(), time.monotonic()
            if time.monotonic() - since > seconds:
                raise ShardError(
                    f"process {_owner(handle)} has {what} locked and did not get on for {seconds:.0f} s ({path}): "
                    "look at that process"
                )
            time.sleep(_POLL_SECONDS)
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether somebody has a lock at the moment.

    Args:
        path: the lock's file.

    Returns:
        False also where there is no such file.
    """
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try(handle, fcntl.LOCK_EX, path)
    finally:
        os.close(handle)


def hold(path: Path) -> int | None:
    """Open a file so that nobody removes it before it is closed, and note the time of its use.

    Args:
        path: the file.

    Returns:
        A file descriptor; None = the file is not there, or is being removed.

    Raises:
        OSError: it cannot be opened, or the file system has no locks.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if _try(handle, fcntl.LOCK_SH, path):
            found = os.fstat(handle)
            if found.st_nlink:
                if time.time() - found.st_mtime > _TOUCH_SECONDS:
                    os.utime(handle)
                return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def remove_unless_held(path: Path) -> bool:
    """Remove a file that nobody holds.

    Args:
        path: the file.

    Returns:
        False where somebody holds it.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _try(handle, fcntl.LOCK_EX, path):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(handle)


def _try(handle: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise OSError(f"{path.parent} lies on a file system without locks: put the cache on a local disk") from None
        raise
    return True


def _owner(handle: int) -> str:
    return os.pread(handle, 32, 0).decode("ascii", "replace") or "(unknown)"
