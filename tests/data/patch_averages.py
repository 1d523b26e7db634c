"""The smallest auto-encoder: a token is a linear map of its patch. And a data set of its latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.data.finding import find_manifest
from lightning_gen.data.latents.caching import Caching, cache_latents
from lightning_gen.data.latents.reading import PictureSize
from lightning_gen.data.latents.record import LatentRecord
from lightning_gen.nn.tokens import Tokens, patchify, unpatchify

__all__ = ["PatchAverages", "cached"]


class PatchAverages(nn.Module):
    """z = W x + b of every patch; decoding is the pseudo-inverse.

    After ``stop_after`` pictures it fails, as a machine would.
    """

    def __init__(self, patch: int = 8, channels: int = 4, seed: int = 0, stop_after: int | None = None) -> None:
        super().__init__()
        self.patch, self.stop_after, self.seen = patch, stop_after, 0
        self.linear = nn.Linear(3 * patch**2, channels).requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.linear.weight, std=0.3, generator=generator)
        nn.init.normal_(self.linear.bias, std=2.0, generator=generator)

    def encode(self, images: Tensor | Tokens) -> Tokens:
        tokens = images if isinstance(images, Tokens) else patchify(images, self.patch)
        self.seen += tokens.num_images
        if self.stop_after is not None and self.seen > self.stop_after:
            raise InterruptedError("the power went out")
        return tokens.with_values(self.linear(tokens.values))

    def decode(self, latents: Tokens) -> list[Tensor]:
        patches = (latents.values - self.linear.bias) @ torch.linalg.pinv(self.linear.weight).T
        return unpatchify(replace(latents, values=patches))


def cached(
    pictures: Path, out: Path, autoencoder: Any = None, *, mirror: bool = False, tokens: int = 16, **options: Any
) -> LatentRecord:
    """Latents of a folder of shards by the smallest auto-encoder."""
    caching = Caching(PictureSize(tokens), mirror=mirror, dtype=options.pop("dtype", "float16"))
    model = PatchAverages() if autoencoder is None else autoencoder
    return cache_latents(find_manifest(pictures), out, model, caching, **{"weights": "toy", "batch_size": 4, **options})
