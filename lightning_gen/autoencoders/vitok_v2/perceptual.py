"""The DINO distance: how far apart two images are in the eyes of every layer of a frozen DINOv3.

Shape letters: B images, L tokens, D width of the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["LayerFeatures", "dino_distance"]


class LayerFeatures(Protocol):
    """A frozen backbone that shows the tokens of every block; ``backbones.vision.DINOv3Encoder`` is one."""

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Tokens after every block.

        Args:
            images: float, (B, 3, H, W), range [-1, 1].

        Returns:
            One (B, L, D) tensor per block, class token and registers included.
        """
        ...


def dino_distance(encoder: LayerFeatures, prediction: Tensor, target: Tensor, chunk: int | None = None) -> Tensor:
    """Squared distance of unit-length tokens, averaged over dimensions, tokens and layers.

    d = mean_l mean_i mean_k ( f_lik(prediction) / max(|f_li(prediction)|, 1e-6)
                             - f_lik(target) / max(|f_li(target)|, 1e-6) )^2

    Because the mean runs over the D numbers of unit vectors, d lies in [0, 4 / D]; typical values are 1e-4 to 1e-2,
    hence the paper's weight of 500. The gradient reaches the prediction only.

    Args:
        encoder: frozen backbone.
        prediction: reconstructions, float, (B, 3, H, W), range [-1, 1].
        target: originals, same shape; treated as constants.
        chunk: images per pass through the backbone. With gradients each chunk is computed again in the backward pass,
            so that the activations of one chunk at a time are in memory, for one more forward pass of time. Default:
            all at once, nothing twice.

    Returns:
        (B,), float32 (float64 for float64 features).

    Raises:
        ValueError: the shapes differ, or ``chunk`` is smaller than 1.

    Source: arXiv:2605.05331 (perceptual loss) and its published loss package.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"shapes differ: prediction {tuple(prediction.shape)}, target {tuple(target.shape)}")
    if chunk is None:
        return _distance(encoder, prediction, target)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 image, got {chunk}")
    pairs = zip(torch.split(prediction, chunk), torch.split(target, chunk), strict=True)
    if not (torch.is_grad_enabled() and prediction.requires_grad):
        return torch.cat([_distance(encoder, y, x) for y, x in pairs])
    # The frozen backbone draws no random numbers, so their state need not be kept.
    parts = [checkpoint(_distance, encoder, y, x, use_reentrant=False, preserve_rng_state=False) for y, x in pairs]
    return torch.cat(parts)


def _distance(encoder: LayerFeatures, prediction: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = [_unit(tokens) for tokens in encoder.features(target)]
    layers = [
        (_unit(tokens) - goal).square().mean((1, 2))
        for tokens, goal in zip(encoder.features(prediction), wanted, strict=True)
    ]
    return torch.stack(layers).mean(0)


def _unit(tokens: Tensor) -> Tensor:
    exact = torch.promote_types(tokens.dtype, torch.float32)
    return F.normalize(tokens.to(exact), dim=-1, eps=1e-6)
