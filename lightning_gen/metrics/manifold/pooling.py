"""The mean token of every image: what global measures of a latent space look at.

Shape letters: I images, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gen.nn.tokens import Tokens, unpack

__all__ = ["check_latents", "pooled_latents"]


def check_latents(latents: Tokens) -> None:
    """Refuse latents that no measure can be taken of.

    Args:
        latents: packed or unpacked.

    Raises:
        ValueError: a number of a token is NaN or infinite.
    """
    if not bool(torch.isfinite(latents.values[latents.mask]).all()):
        raise ValueError("a latent is NaN or infinite: look at the weights of the tokenizer and at its precision")


def pooled_latents(latents: Tokens) -> Tensor:
    """The mean over the tokens of every image; padding does not count.

    Args:
        latents: packed or unpacked, on any grid.

    Returns:
        float64, (I, C).

    Raises:
        ValueError: a latent that is not finite.
    """
    check_latents(latents)
    single = unpack(latents)
    mask = single.mask[..., None]
    values = torch.where(mask, single.values.detach().double(), 0.0)
    return values.sum(1) / mask.sum(1)
