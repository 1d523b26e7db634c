"""Shards of small smooth pictures for the tests of this room."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from lightning_gen.data.modules import ShardDataModule
from tests.data.samples import shards

__all__ = ["FOLDER", "TINY", "data", "write_pictures"]

TINY = "w32_d1_h2-w32_d2_h2/1x4x8"
_VARIABLE = "VITOK_V2_TEST_PICTURES"


def _session_folder() -> Path:
    """A new folder for every session, and the same one in the processes that its tests start."""
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="vitok-v2-pictures-")
        atexit.register(shutil.rmtree, os.environ[_VARIABLE], ignore_errors=True)
    return Path(os.environ[_VARIABLE])


FOLDER = _session_folder()
"""Where tests that do not write into it share one set of pictures."""


def write_pictures(folder: Path, count: int = 24) -> Path:
    """Training shards under ``train`` and validation shards under ``val``."""
    if not (folder / "val").exists():
        shards(folder / "train", count, per_shard=7)
        shards(folder / "val", 5, per_shard=5, name="val")
    return folder


def data(folder: Path, tokens: int = 48, global_batch_size: int = 4) -> ShardDataModule:
    """A data module over them."""
    return ShardDataModule(
        train=str(folder / "train"),
        val=str(folder / "val"),
        patch_size=4,
        tokens=tokens,
        global_batch_size=global_batch_size,
    )
