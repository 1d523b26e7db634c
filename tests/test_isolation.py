"""The suite's own rules (tests/conftest.py) hold: no network, and nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SUITE = """
import os, random, socket
import pytest
import torch

def test_swallowed_connection():
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    except Exception:
        pass

def test_swallowed_lookup():
    try:
        socket.getaddrinfo("a-name.invalid", 80)
    except Exception:
        pass

def test_loopback_is_allowed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()

def test_makes_a_mess(tmp_path):
    os.environ["RANK"] = "3"
    os.environ.pop("HOME", None)
    os.chdir(tmp_path)
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(7)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

def test_finds_no_mess():
    assert "RANK" not in os.environ and "HOME" in os.environ
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.path.exists("here")
    assert torch.get_num_threads() == 2
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.distributed.is_initialized()
    assert torch.initial_seed() != 0
"""


def test_rules(tmp_path):
    shutil.copyfile(Path(__file__).with_name("conftest.py"), tmp_path / "conftest.py")
    (tmp_path / "here").touch()
    (tmp_path / "test_inner.py").write_text("import torch\ntorch.set_num_threads(2)\ntorch.manual_seed(1)\n" + SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", str(tmp_path)]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    for name in ("loopback_is_allowed", "makes_a_mess", "finds_no_mess"):
        assert f"PASSED test_inner.py::test_{name}" in out, out
    for name in ("swallowed_connection", "swallowed_lookup"):
        assert f"ERROR test_inner.py::test_{name} - Failed: network used" in out, out
