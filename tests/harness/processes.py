"""One pair of gloo processes for the whole session.

Starting a process costs seconds (imports), so the pair is started by the first test that asks and then serves all of
them. A job that fails or overruns its limit ends both processes, because the other rank may wait in a collective for
ever; the next job starts a fresh pair. Nothing here can hang the suite.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

__all__ = ["WorkerError", "two_processes"]

START_LIMIT = 120.0
GRACE = 2.0


class WorkerError(RuntimeError):
    """A job failed on a rank; the message holds that rank's traceback."""


def two_processes(job: Callable[..., Any], *arguments: Any, limit: float = 120.0) -> list[Any]:
    """Run ``job(*arguments)`` on two ranks of one gloo group.

    Args:
        job: a function of an importable module (it travels by name).
        *arguments: pickled to both ranks.
        limit: seconds until the job is given up.

    Returns:
        What rank 0 and rank 1 returned.

    Raises:
        WorkerError: a rank raised, or its process died.
        TimeoutError: the limit passed; the message shows where both ranks were.
    """
    global _pair
    if _pair is None:
        _pair = _Pair()
    try:
        return _pair.run(job, arguments, limit)
    except BaseException:
        _pair.close()
        _pair = None
        raise


class _Pair:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="pair-")
        folder = Path(self._folder.name)
        self._connections: list[Connection] = []
        self._processes = []
        # Spawned processes must see these before they import torch.
        with _environment({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}):
            for rank in range(2):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(rank, folder, there), daemon=True)
                process.start()
                there.close()
                self._connections.append(here)
                self._processes.append(process)
        self._collect(START_LIMIT)

    def run(self, job: Callable[..., Any], arguments: tuple[Any, ...], limit: float) -> list[Any]:
        # Bytes, not objects: torch teaches multiprocessing to share tensors by file handle, and a handle dies with its
        # process.
        message = pickle.dumps((job, arguments))
        for connection in self._connections:
            connection.send_bytes(message)
        return self._collect(limit)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join(5.0)
        for connection in self._connections:
            connection.close()
        self._folder.cleanup()

    def _collect(self, limit: float) -> list[Any]:
        answers: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + limit
        while len(answers) < 2:
            if any(not good for good, _ in answers.values()):
                end = min(end, time.monotonic() + GRACE)
            waiting = {self._connections[rank]: rank for rank in range(2) if rank not in answers}
            ready = wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = waiting[connection]
                try:
                    answers[rank] = pickle.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    self._processes[rank].join(1.0)
                    answers[rank] = (False, f"its process ended with exit code {self._processes[rank].exitcode}")
        failed = [f"rank {rank}: {answer}" for rank, (good, answer) in sorted(answers.items()) if not good]
        if failed:
            raise WorkerError("\n".join(failed))
        if len(answers) < 2:
            raise TimeoutError(f"no answer after {limit:.0f} s; {self._stacks()}")
        return [answers[rank][1] for rank in range(2)]

    def _stacks(self) -> str:
        for process in self._processes:
            if process.is_alive() and process.pid is not None and hasattr(signal, "SIGUSR1"):
                os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.5)
        files = [Path(self._folder.name) / f"stack-{rank}" for rank in range(2)]
        return "\n".join(f"rank {rank}: {f.read_text() if f.exists() else ''}" for rank, f in enumerate(files))


_pair: _Pair | None = None


@atexit.register
def _close() -> None:
    if _pair is not None:
        _pair.close()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Any:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(rank: int, folder: Path, connection: Connection) -> None:
    """The life of one rank: join the group, then answer jobs until the pipe closes."""
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, file=open(folder / f"stack-{rank}", "w"))  # noqa: SIM115
    try:
        _join_group(rank, folder)
        connection.send_bytes(pickle.dumps((True, None)))
        while True:
            try:
                job, arguments = pickle.loads(connection.recv_bytes())
            except EOFError:
                return
            connection.send_bytes(pickle.dumps((True, job(*arguments))))
    except BaseException:
        with contextlib.suppress(OSError):
            connection.send_bytes(pickle.dumps((False, traceback.format_exc())))


def _join_group(rank: int, folder: Path) -> None:
    # What torchrun would have set: Lightning then knows that its processes exist already.
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
        TORCHELASTIC_RUN_ID="tests",
    )
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
