"""Shards of small smooth pictures for the tests of this room."""

from __future__ import annotations

from pathlib import Path

from lightning_gen.data.modules import ShardDataModule
from tests.data.samples import shards

__all__ = ["TINY", "data", "write_pictures"]

TINY = "w32_d1_h2-w32_d2_h2/1x4x8"


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
