"""A linear tokenizer of patches whose weights are a file: enough for everything that asks for a tokenizer by class."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from lightning_gen.nn.tokens import Tokens, patchify, unpatchify

__all__ = ["PatchTokenizer"]


class PatchTokenizer(nn.Module):
    """z = W x of every 8 x 8 patch x, and back by the pseudo-inverse of W."""

    patch = 8
    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    @classmethod
    def from_pretrained(cls, source: str) -> Self:
        return cls(torch.load(Path(source) / "weight.pt", weights_only=True))

    @classmethod
    def write(cls, folder: Path, weight: Tensor) -> str:
        folder.mkdir(parents=True)
        torch.save(weight, folder / "weight.pt")
        return str(folder)

    @classmethod
    def colours(cls) -> Tensor:
        """The mean of each channel of a patch: sees what is where."""
        return torch.eye(3).repeat_interleave(64, 1) / 64

    @classmethod
    def noise(cls, channels: int = 3, seed: int = 0) -> Tensor:
        """Directions that have nothing to do with the mean colour."""
        weight = torch.randn(channels, 192, generator=torch.Generator().manual_seed(seed)).view(channels, 3, 64)
        return (weight - weight.mean(2, keepdim=True)).flatten(1) / 8

    def encode(self, images: Tensor | Tokens) -> Tokens:
        tokens = images if isinstance(images, Tokens) else patchify(images, self.patch)
        return tokens.with_values(tokens.values @ self.weight.T)

    def decode(self, latents: Tokens) -> Tensor:
        images = unpatchify(latents.with_values(latents.values @ torch.linalg.pinv(self.weight).T))
        return torch.stack(images).clamp(-1, 1)
