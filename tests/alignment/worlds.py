"""A text-to-image model of a few numbers whose pictures are its latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_gen.flow.schedules import linear_grid
from lightning_gen.interfaces import Conditioning

if TYPE_CHECKING:
    from lightning_gen.generators.dit.text_module import TextLatentDiffusion

__all__ = ["ToyPolicy", "tiny_world"]


class ToyPolicy(nn.Module):
    """v = (x - W [prompt's length, 1] t) a; pictures are 2 x 2."""

    def __init__(self, seed: int = 0, start: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.start = start
        self.network = nn.Sequential(nn.Linear(2, 12))
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (3, 2, 2)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        length = torch.tensor([[len(prompt) / 10, float(bool(prompt))] for prompt in prompts])
        return Conditioning(length[:, None], torch.ones(len(prompts), 1, dtype=torch.bool), length)

    def velocity(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.pooled is not None
        target = self.network(conditioning.pooled).view(-1, 3, 2, 2)
        return x_t * 0.8 - target * (1 - 0.3 * t)[:, None, None, None]

    def latents_to_images(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)

    def images_to_latents(self, images: Tensor) -> Tensor:
        return images

    def times(self, steps: int) -> Tensor:
        return linear_grid(steps, self.start)

    def from_noise(self, noise: Tensor, steps: int) -> Tensor:
        return noise * self.start


def tiny_world() -> TextLatentDiffusion:
    """The embedded world's base in miniature, whose network has its own encoder of prompts; pictures are 8 x 8."""
    from lightning_gen.generators.dit.text_module import TextLatentDiffusion
    from lightning_gen.generators.spaces import PixelSpace
    from lightning_gen.shapes.tokenizer import ShapesTokenizer

    model = TextLatentDiffusion(PixelSpace(4), ShapesTokenizer(), variant="w24_d2_h2", canvas=(8, 8))
    model.configure_model()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))  # at the start most layers say 0
    return model
