"""Training on any kind of data, also on the two processes of the harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gen.data.batches import Batch
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.report import DataReport
from tests.data.kinds import KINDS, main_part
from tests.harness.training import fit

__all__ = ["KeyRecorder", "count_bad", "train_kind"]


class KeyRecorder(LightningModule):
    """Writes down which samples every step saw, and the sum of everything in them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[list[int], float]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        part = main_part(batch)
        images = getattr(part, "images", None)
        total = float(images.double().sum()) if isinstance(images, torch.Tensor) else float(part.index.sum())
        self.seen.append((part.index.tolist(), total))
        return (self.weight * 1.0).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def train_kind(
    kind: str, folder: Path, kept: Path, steps: int, checkpoint: Path | None = None, devices: int = 1, **options: Any
) -> list[tuple[list[int], float]]:
    """What every step of a run saw; a checkpoint is kept after every step."""
    module, data = KeyRecorder(), KINDS[kind](folder, write=False, **options)
    keeper = ModelCheckpoint(kept, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    strategy = "ddp" if devices > 1 else "auto"
    settings = {"devices": devices, "max_steps": steps, "callbacks": (keeper,), "ckpt_path": checkpoint}
    fit(module, data, kept, strategy=strategy, **settings)  # type: ignore[arg-type]
    data.teardown()
    return module.seen


def count_bad(folder: Path, kept: Path, devices: int) -> tuple[float, float, float]:
    """Train one pass: the bad samples that were logged in a step and in the epoch, and those counted at the end."""
    data = ShardDataModule(str(folder), patch_size=8, tokens=9, global_batch_size=8, max_bad_fraction=0.2)
    strategy = "ddp" if devices > 1 else "auto"
    trainer = fit(KeyRecorder(), data, kept, devices=devices, strategy=strategy, max_steps=5, callbacks=(DataReport(),))
    logged = trainer.callback_metrics
    return float(logged["data/bad"]), float(logged["data_epoch/bad"]), data.counters()["bad"]
