"""Threads that rewards are computed in: one call after the other, each with a time limit, and the caller never stuck.

A call that hangs cannot be stopped from outside; what can be done is to say which one it is, and to end the run. So the
threads are daemons: a process that ends does not wait for them.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

import torch
from torch import Tensor

__all__ = ["Call", "Lane", "RewardError"]

_BETWEEN: Final = 0.02
"""Seconds until a waiting caller looks again while a thread goes from one call to the next."""


class RewardError(RuntimeError):
    """A reward gave no scores that can be used; the message names the reward and says why."""


class Call:
    """One call of one reward.

    Args:
        name: of the reward.
        score: what to call.
        limit: seconds that it may take once it has begun.
    """

    def __init__(self, name: str, score: Callable[[], Tensor], limit: float) -> None:
        self.name = name
        self.score = score
        self.limit = limit
        self.done = threading.Event()
        self.cancelled = False
        self.scores: Tensor | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call the reward without gradients, unless the caller has given it up; errors are kept."""
        try:
            if not self.cancelled:
                # The grad mode belongs to the thread.
                with torch.no_grad():
                    self.scores = self.score()
        # Also what would end the thread: nobody would answer the calls behind it.
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


@dataclasses.dataclass
class _Running:
    """What a thread does at the moment, and since when on the monotonic clock."""

    call: Call | None = None
    since: float = 0.0


class Lane:
    """One thread that makes calls in the order in which they were given; it begins with the first one."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Call | None] | None = None
        self._running = _Running()

    def __reduce__(self) -> tuple[type[Lane], tuple[()]]:
        """A copy, here or in another process, has a thread of its own."""
        return Lane, ()

    def start(self, call: Call) -> None:
        """Have a call made when those before it are done.

        Args:
            call: what.
        """
        if self._calls is None:
            self._calls = SimpleQueue()
            thread = threading.Thread(target=_work, args=(self._calls, self._running), name="rewards", daemon=True)
            thread.start()
            # The thread knows the queue only, so that it ends with the lane.
            weakref.finalize(self, self._calls.put, None)
        self._calls.put(call)

    def wait(self, call: Call) -> Tensor:
        """Wait for a call. No longer than the sum of the limits of the calls before it and its own.

        Args:
            call: that was started here.

        Returns:
            What the reward returned.

        Raises:
            RewardError: the reward raised, or a call that stands before this one or this one has not ended in time.
        """
        while not call.done.is_set():
            current, since = self._running.call, self._running.since
            if current is None:
                call.done.wait(_BETWEEN)
                continue
            left = since + current.limit - time.monotonic()
            if left <= 0 and current is self._running.call:
                raise RewardError(
                    f"the reward {current.name!r} has not answered within {current.limit:g} seconds; it still runs. "
                    f"Raise its time_limit, or look at what it waits for"
                )
            call.done.wait(max(left, _BETWEEN))
        if call.error is not None:
            raise RewardError(
                f"the reward {call.name!r} failed: {type(call.error).__name__}: {call.error}"
            ) from call.error
        if call.scores is None:
            raise RewardError(f"the reward {call.name!r} returned nothing, or its call was given up")
        return call.scores


def _work(calls: SimpleQueue[Call | None], running: _Running) -> None:
    while (call := calls.get()) is not None:
        running.since = time.monotonic()
        running.call = call
        call.run()
        running.call = None
        # Pictures and networks must not live on until the next call.
        del call
