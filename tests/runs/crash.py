"""What a training process of these tests carries with it: a diary, and a disk that stalls in the middle of a write."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch

from lightning_gen.training.checkpoint import AtomicCheckpointIO

__all__ = ["Diary", "StallingIO"]


class Diary(pl.Callback):
    """Writes one line per training batch, on the disk before the next batch begins: step, keys, loss.

    Args:
        path: the file; lines are added.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with Path(self.path).open("a") as file:
            line = {"step": trainer.global_step, "keys": batch.key, "loss": outputs["loss"].item().hex()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


class StallingIO(AtomicCheckpointIO):
    """Writes half of checkpoint number ``stall_at``, says so in a file, and waits to be killed.

    Args:
        stall_at: number of the save that stalls, from 1.
        marker: file that appears when half is written.
    """

    def __init__(self, stall_at: int, marker: str) -> None:
        super().__init__()
        self.left, self.marker = stall_at, marker

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.left -= 1
        if self.left:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        whole = io.BytesIO()
        torch.save(checkpoint, whole)

        def stall(_: Any, file: Any) -> None:
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            Path(self.marker).touch()
            time.sleep(120)

        with mock.patch("torch.save", stall):
            super().save_checkpoint(checkpoint, path, storage_options)
