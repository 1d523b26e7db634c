"""Pairs of pictures of 2 x 2 pixels for the toy model, whose latents they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gen.alignment.arena_po.module import DiffusionDPO
from lightning_gen.alignment.arena_po.settings import WarmupConstant
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.batches import ImageBatch, PreferenceBatch
from lightning_gen.training.optim import AdamW
from tests.alignment.worlds import ToyPolicy

__all__ = ["LORA", "ToyPairs", "fit", "module", "moved", "pairs", "trained_weights"]

LORA = LoRASettings(2, 4.0, ("0",))
MODELS = ("fine", "poor")


def images(pixels: Tensor, index: Tensor, epoch: int) -> ImageBatch:
    count = len(index)
    size = torch.full((count, 2), 2)
    captions = tuple("x" * (1 + int(number) % 3) for number in index)
    return ImageBatch(
        pixels, torch.full((count,), -1), index, torch.ones(count, dtype=torch.bool), size,
        tuple(str(int(number)) for number in index), epoch, captions,
    )  # fmt: skip


def pairs(first: int = 0, count: int = 8, epoch: int = 0, gap: float = 1.0, size: int = 2) -> PreferenceBatch:
    """Winners are bright, losers are dark; pair n is the same in every batch."""
    index = torch.arange(first, first + count)
    grain = torch.stack([torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(int(n))) for n in index])
    winner, loser = (0.4 + 0.2 * grain[:, 0]).clamp(-1, 1), (-0.4 + 0.2 * grain[:, 1]).clamp(-1, 1)
    return PreferenceBatch(
        images(winner, index, epoch), images(loser, index, epoch), torch.ones(count),
        gap * (1.0 + (index % 4).float()), torch.ones(count), (MODELS,) * count,
    )  # fmt: skip


class ToyPairs(pl.LightningDataModule):
    """Batches of ``size`` pairs out of ``total``, in order; an epoch is a pass. ``left_out`` more never come."""

    def __init__(
        self, total: int = 16, size: int = 8, fingerprint: str = "toy", edge: int = 2, left_out: int = 0
    ) -> None:
        super().__init__()
        self.total, self.size, self.name, self.edge, self.left_out = total, size, fingerprint, edge, left_out

    def batches(self, epoch: int) -> Iterator[PreferenceBatch]:
        for first in range(0, self.total, self.size):
            yield pairs(first, self.size, epoch, size=self.edge)

    def train_dataloader(self) -> Any:
        return DataLoader(list(self.batches(0 if self.trainer is None else self.trainer.current_epoch)), None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(list(self.batches(0)), None)  # type: ignore[arg-type]

    def planner(self) -> Any:
        excluded = range(self.total, self.total + self.left_out)
        layout = SimpleNamespace(counts=[self.total, self.left_out], excluded=excluded)
        return SimpleNamespace(fingerprint=self.name, layout=layout)


def module(
    kind: type[DiffusionDPO] = DiffusionDPO,
    lora: bool | LoRASettings | None = True,
    configure: bool = True,
    **rest: Any,
) -> Any:
    """``lora``: True = that of the toy model."""
    settings: dict[str, Any] = {
        "lora": LORA if lora is True else lora or None, "seed": 3, "warmup": WarmupConstant(0),
        "optimizer": AdamW(1e-2, betas=(0.9, 0.999), weight_decay=0.0),
    } | rest  # fmt: skip
    made = kind(settings.pop("policy", None) or ToyPolicy(), **settings)
    if configure:
        made.configure_model()
    return made


def fit(model: Any, data: Any, folder: Path, steps: int = 4, **rest: Any) -> pl.Trainer:
    arguments: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_steps": steps, "limit_val_batches": 0, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
        "reload_dataloaders_every_n_epochs": 1, "enable_checkpointing": False, "use_distributed_sampler": False,
        "gradient_clip_val": 1.0,
    }  # fmt: skip
    ckpt = rest.pop("ckpt_path", None)
    trainer = pl.Trainer(**(arguments | rest))
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return trainer


def trained_weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def moved(model: Any, by: float = 0.3, seed: int = 5) -> Any:
    """Away from the reference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model
