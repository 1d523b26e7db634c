"""Work that is done by several processes, in any order, and that ends when its owner ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from lightning_gen.data.quarantine import DataError

__all__ = ["Watch", "run_tasks"]

Watch = Callable[[str, int, int], None]
"""Told now and then: what is being done, how many rows or samples are done, and of how many."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_work: Callable[[Any], Any] | None = None


def run_tasks(
    work: Callable[[_Task], _Result], tasks: Iterable[_Task], workers: int = 0, patience: float = 3600.0
) -> Iterator[_Result]:
    """Call a function for many tasks.

    Args:
        work: the function; with workers it and its results are pickled, the function once per worker.
        tasks: its arguments, taken from the iterator as workers become free.
        workers: processes; 0 and 1 = work in this process.
        patience: seconds without a single result after which the work is given up.

    Yields:
        The results, with workers in order of completion.

    Raises:
        DataError: what a task raised of this kind; a worker was killed; or nothing came for too long.
    """
    if workers < 2:
        yield from map(work, tasks)
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(work,))
    try:
        queue = iter(tasks)
        waiting: set[Future[Any]] = {pool.submit(_call, task) for task in islice(queue, 2 * workers)}
        while waiting:
            done, waiting = wait(waiting, patience, FIRST_COMPLETED)
            if not done:
                raise DataError(f"the workers gave no result in {patience:.0f} s: is the disk still there?")
            for future in done:
                yield _result(future)
            waiting |= {pool.submit(_call, task) for task in islice(queue, len(done))}
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    pool.shutdown()


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps for lack of memory, or could not start: start the same command "
            "again, it goes on where it was, or give fewer --workers"
        ) from None
    except DataError as error:
        # Raised here again: the command line shows the message of an error that this package raised alone.
        raise type(error)(*error.args) from None


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    # The owner decides what an interrupt means, and a worker must not outlive an owner that was killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_owner, name="owner-watch", daemon=True).start()


def _end_with_owner() -> None:
    owner = multiprocessing.parent_process()
    if owner is not None:
        wait_for([owner.sentinel])
        os._exit(1)


def _call(task: Any) -> Any:
    assert _work is not None
    return _work(task)
