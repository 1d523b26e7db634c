"""A thread that reads from open files, so that somebody else can stop waiting for it."""

from __future__ import annotations

import os
import queue
import threading
import weakref

__all__ = ["ReadingThread"]

_Asked = queue.SimpleQueue[tuple[int, int, int] | None]
_Answers = queue.SimpleQueue[bytes | BaseException]


def _serve(asked: _Asked, answers: _Answers) -> None:
    while (place := asked.get()) is not None:
        try:
            answers.put(os.pread(*place))
        except BaseException as error:
            # Whatever it is, it is an answer: somebody waits for one.
            answers.put(error)


class ReadingThread:
    """Reads one stretch after another.

    A daemon: a thread that hangs in a dead file system must not keep the process from ending. It ends with its owner.
    """

    def __init__(self) -> None:
        self._asked: _Asked = queue.SimpleQueue()
        self._answers: _Answers = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self._asked, self._answers), name="shard-read", daemon=True).start()
        weakref.finalize(self, self._asked.put, None)

    def read(self, handle: int, size: int, offset: int, timeout: float) -> bytes:
        """Read a stretch. After a timeout the thread must not be used again.

        Args:
            handle: file descriptor.
            size: bytes.
            offset: first byte.
            timeout: seconds to wait.

        Returns:
            The bytes, fewer at the end of the file.

        Raises:
            Exception: whatever the read raised: an OSError, a MemoryError, ...
            queue.Empty: no answer in time.
        """
        self._asked.put((handle, size, offset))
        answer = self._answers.get(timeout=timeout)
        if isinstance(answer, BaseException):
            raise answer
        return answer
