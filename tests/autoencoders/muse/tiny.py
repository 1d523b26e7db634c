"""A MUSE of a few thousand parameters, its data and its frozen networks."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lightning_gen.autoencoders.muse.decoder import DCAEShape
from lightning_gen.autoencoders.muse.module import Muse
from lightning_gen.autoencoders.muse.network import MuseShape
from lightning_gen.autoencoders.muse.stages import Stage
from lightning_gen.autoencoders.muse.teacher import AttentionMap
from lightning_gen.autoencoders.muse.text import WordVectors
from lightning_gen.backbones.intern_vit import InternViTShape
from lightning_gen.data.batches import ImageBatch
from lightning_gen.nn.tokens import Tokens
from lightning_gen.shapes.module import ShapesDataModule
from lightning_gen.training.needs import WeightNeed

ENCODER = InternViTShape(width=16, depth=1, heads=2, hidden=32, patch=4, image_size=16)
DECODER = DCAEShape(latent_channels=4, widths=(8, 16, 16), layers=(1, 1, 1), attention_from=2, head_dim=8)
SHAPE = MuseShape(ENCODER, DECODER, width=16, depth=3, heads=2, latent_channels=6, text_width=12)


class Gaze:
    """A teacher whose every token looks at its neighbours, more in bright pictures than in dark ones."""

    def load(self) -> None:
        """Nothing."""

    def need(self) -> WeightNeed | None:
        """Nothing."""
        return None

    def attention(self, images: Tensor) -> AttentionMap:
        """A 5 x 6 grid."""
        place = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij"), -1).flatten(0, 1)
        distance = torch.cdist(place, place)[None]
        sharpness = 1 + images.mean((1, 2, 3)).abs()[:, None, None]
        return AttentionMap((-distance * sharpness).softmax(-1), (5, 6))


def stage(kind: int = 3, **settings: Any) -> Stage:
    given: dict[str, Any] = {
        "kind": kind,
        "steps": 100,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "semantic_weight": 0.0 if kind == 1 else 0.5,
        "perceptual_weight": 0.0,
        "discriminator_start": 0 if kind == 3 else 1_000_000,
        "discriminator_learning_rate": 1e-2,
    }
    return Stage(**{**given, **settings})


def module(*stages: Stage, **settings: Any) -> Muse:
    given: dict[str, Any] = {
        "shape": SHAPE,
        "stages": stages or (stage(),),
        "start": "anything",
        "encoder_source": "random",
        "teacher": Gaze(),
        "text": WordVectors(12),
        "discriminator_width": 32,
    }
    return Muse(**{**given, **settings})


def data(size: int = 32) -> ShapesDataModule:
    return ShapesDataModule(size=size, samples=64, val_samples=5, global_batch_size=4, num_workers=0)


def with_images(given: ImageBatch, images: Tensor | Tokens) -> ImageBatch:
    return ImageBatch(images, *(getattr(given, field.name) for field in dataclasses.fields(given)[1:]))


def batch(count: int = 4, size: tuple[int, int] = (32, 32), captions: bool = True) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    return ImageBatch(
        torch.rand(count, 3, *size, generator=generator) * 2 - 1,
        label=torch.arange(count) % 2,
        index=torch.arange(count),
        valid=torch.ones(count, dtype=torch.bool),
        original_size=torch.tensor([size] * count),
        key=tuple(f"k{i}" for i in range(count)),
        epoch=0,
        caption=tuple(f"a picture of {['one', 'two', 'three', 'four', 'five', 'six'][i % 6]}" for i in range(count))
        if captions
        else (),
    )
