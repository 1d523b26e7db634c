"""What holds for every test: no network, and nothing that a test changed in the process is left to the next one."""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

# Before anything imports a hub client: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"


class NetworkUsed(Exception):
    """A test tried to reach another machine."""


def _is_here(host: Any) -> bool:
    if host in (None, "", "localhost", b"localhost", socket.gethostname()):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that looks up or connects to anything beyond this machine, even if it swallows the exception."""
    used: list[str] = []
    connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: Any) -> None:
        if not _is_here(host):
            used.append(str(host))
            raise NetworkUsed(f"a test tried to reach {host!r}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            check(address[0])
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family != socket.AF_UNIX:
            check(address[0])
        return connect_ex(self, address)

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        check(host)
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)
    yield
    if used:
        pytest.fail(f"network used: {', '.join(used)}")


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Put back environment, folder, import path, rank, process group, threads, default dtype and random generators."""
    environment, folder, path, python_state = dict(os.environ), os.getcwd(), list(sys.path), random.getstate()
    restore = [_numpy_state(), _torch_state()]
    yield
    for undo in restore:
        undo()
    _free_log_handlers()
    random.setstate(python_state)
    sys.path[:] = path
    os.chdir(folder)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


def _free_log_handlers() -> None:
    """Lightning's handlers keep the stream they were made with: that of a test which has ended."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.stream = sys.__stderr__


def _numpy_state() -> Any:
    if "numpy" not in sys.modules:
        return lambda: None
    import numpy as np

    state = np.random.get_state()
    return lambda: np.random.set_state(state)


def _torch_state() -> Any:
    if "torch" not in sys.modules:
        return _forget_rank
    import torch

    threads, dtype, generator = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    was_grouped = torch.distributed.is_available() and torch.distributed.is_initialized()

    def undo() -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized() and not was_grouped:
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_rng_state(generator)
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        _forget_rank()

    return undo


def _forget_rank() -> None:
    """Lightning keeps the rank on its functions."""
    for module in ("lightning.fabric.utilities.rank_zero", "lightning_utilities.core.rank_zero"):
        if module in sys.modules:
            sys.modules[module].rank_zero_only.rank = 0  # type: ignore[attr-defined]
