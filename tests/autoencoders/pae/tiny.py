"""Small PAEs of the embedded world for the tests of this room."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lightning_gen.autoencoders.pae.module import PAE
from lightning_gen.autoencoders.pae.settings import Adversary, LossWeights
from lightning_gen.autoencoders.pae.variants import PAEShape
from lightning_gen.backbones.patch_features import UntrainedPatches
from lightning_gen.data.batches import ImageBatch
from lightning_gen.shapes.module import ShapesDataModule
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.randomness import uniform

__all__ = ["ADVERSARY", "SHAPE", "batch", "data", "encoder", "module", "shape"]

SHAPE = PAEShape(
    channels=6,
    prior_width=16,
    prior_heads=2,
    prior_patch=4,
    grid=4,
    patch=8,
    modulator_depth=1,
    decoder="w16_d1_h2",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)

ADVERSARY = Adversary(
    encoder=UntrainedPatches(patch=4, width=8, seed=1),
    width=[8, 8],
    layers=[1, 2],
    grid=4,
    kernel=3,
    group=1,
    discriminator_start=1,
    generator_start=2,
    optimizer=AdamW(learning_rate=1e-3, betas=(0.5, 0.9), weight_decay=0.0, epsilon=1e-3),
    schedule=WarmupCosine(0.0, 1e-3, 1e-3),
)


def shape(**changes: Any) -> PAEShape:
    return dataclasses.replace(SHAPE, **changes)


def encoder() -> UntrainedPatches:
    return UntrainedPatches(patch=4, width=16)


def module(**settings: Any) -> PAE:
    given: dict[str, Any] = {
        "encoder": encoder(),
        "shape": SHAPE,
        "refined": "untrained",
        "losses": LossWeights(lpips=0.0, adversarial=0.0),
        # With Adam's usual epsilon gradients near 0, which are rounding noise, would make steps of full length.
        "optimizer": AdamW(learning_rate=3e-3, betas=(0.9, 0.95), weight_decay=0.0, epsilon=1e-3),
        "schedule": WarmupCosine(0.0, 1e-3, 1e-3),
    }
    return PAE(**{**given, **settings})


def data(global_batch_size: int = 4) -> ShapesDataModule:
    return ShapesDataModule(size=32, global_batch_size=global_batch_size, samples=16, val_samples=4)


def batch(count: int = 2, size: int = 32, epoch: int = 0) -> ImageBatch:
    index = torch.arange(count)
    return ImageBatch(
        raw=uniform(0, "pae test pictures", 0, index, (3, size, size)) * 2 - 1,
        label=torch.full((count,), -1),
        index=index,
        valid=torch.ones(count, dtype=torch.bool),
        original_size=torch.full((count, 2), size),
        key=tuple(f"k{number}" for number in range(count)),
        epoch=epoch,
    )
