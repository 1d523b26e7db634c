"""What a training process of these tests carries with it: diaries, and places where it waits to be killed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch

from lightning_gen.rewards.applicability import AppliesEverywhere
from lightning_gen.training.checkpoint import AtomicCheckpointIO

__all__ = ["AdapterDiary", "Brightness", "Diary", "StallingIO", "StallingUpdate"]


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


class AdapterDiary(pl.Callback):
    """Writes one line per rollout: step, rows, what was logged, and fingerprints of all adapters.

    Args:
        path: the file; lines are added.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        logs = {name: float(value).hex() for name, value in sorted(trainer.callback_metrics.items())}
        line = {
            "step": trainer.global_step,
            "rows": [batch.epoch, *zip(batch.index.tolist(), batch.member.tolist(), strict=True)],
            "logs": {name: value for name, value in logs.items() if name.startswith(("train/", "rewards/"))},
            "adapters": {name: _fingerprint(pl_module.bank.parameters(name)) for name in pl_module.bank.names},
        }
        with Path(self.path).open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _fingerprint(parameters: Any) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in parameters)).hexdigest()


class Brightness(AppliesEverywhere):
    """A reward that no two pictures share, so that every rollout teaches something, whatever the machine rounds."""

    def __call__(self, images: Any, prompts: Any, metadata: Any) -> Any:
        return images.mean((1, 2, 3))


class StallingUpdate(pl.Callback):
    """Stops before an optimiser step, says so in a file, and waits to be killed.

    Args:
        step: number of the optimiser steps that were made before.
        marker: file that appears then.
    """

    def __init__(self, step: int, marker: str) -> None:
        self.step, self.marker = step, marker

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            Path(self.marker).touch()
            time.sleep(120)


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
