"""Flow matching on latents. t = 0 is clean, t = 1 is noise; the target is the velocity eps - x_0.

Shape letters: B rows, L tokens, C channels, I images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gen.flow import paths
from lightning_gen.nn.tokens import Tokens

__all__ = [
    "direction_loss",
    "drop_labels",
    "flow_matching_loss",
    "flow_matching_losses",
    "noised_tokens",
    "token_times",
]


def token_times(tokens: Tokens, time: Tensor) -> Tensor:
    """Give every token the time of its image.

    Args:
        tokens: packed or unpacked tokens.
        time: t in [0, 1], 0 = clean, float, (I,).

    Returns:
        (B, L); padding gets some image's time.
    """
    return time[tokens.image.clamp(min=0)]


def noised_tokens(latents: Tokens, eps: Tensor, time: Tensor) -> tuple[Tokens, Tensor]:
    """Noised latents and the velocity to be learned there.

    z_t = (1 - t) z + t eps,  v = eps - z

    Args:
        latents: clean latents z, packed or unpacked, values (B, L, C).
        eps: noise of unit variance, float, (B, L, C).
        time: t in [0, 1], 0 = clean, 1 = noise, float, (I,).

    Returns:
        z_t as tokens, and v, (B, L, C).

    Source: arXiv:2605.05331 (generator).
    """
    x_t = paths.noised(latents.values, eps, token_times(latents, time))
    return latents.with_values(x_t), paths.velocity(latents.values, eps)


def flow_matching_losses(prediction: Tensor, target: Tensor, tokens: Tokens) -> Tensor:
    """Squared error of every image.

    loss_i = mean over real tokens of image i of mean over channels of (v_hat - v)^2, in float32

    Args:
        prediction: v_hat, float, (B, L, C).
        target: v, float, (B, L, C).
        tokens: whose mask and image say what counts.

    Returns:
        float32 (float64 for float64), (I,); an image without tokens has 0.
    """
    exact = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    # Padding is replaced before the square, so that not even an overflow there can reach a gradient.
    error = torch.where(tokens.mask[..., None], prediction.to(exact) - target.to(exact), 0.0)
    return _image_means(error.square().mean(-1), tokens)


def flow_matching_loss(prediction: Tensor, target: Tensor, tokens: Tokens) -> Tensor:
    """Mean of ``flow_matching_losses``: every image weighs the same whatever its number of tokens.

    Args:
        prediction: v_hat, float, (B, L, C).
        target: v, float, (B, L, C).
        tokens: whose mask and image say what counts.

    Returns:
        Scalar, float32 (float64 for float64).

    Source: arXiv:2605.05331 (generator). deviates: padding is left out; the release counts it.
    """
    return flow_matching_losses(prediction, target, tokens).mean()


def direction_loss(prediction: Tensor, target: Tensor, tokens: Tokens) -> Tensor:
    """How far predicted velocities point away from the true ones; every image weighs the same.

    loss_i = mean over real tokens of image i of (1 - <v_hat, v> / (|v_hat| |v|)), over the channels, in float32

    Args:
        prediction: v_hat, float, (B, L, C).
        target: v, float, (B, L, C).
        tokens: whose mask and image say what counts.

    Returns:
        Scalar in [0, 2], float32 (float64 for float64).

    Source: arXiv:2501.01423 (velocity direction loss); arXiv:2605.07915, published training. deviates: a prediction of
    exactly 0, which is what the network starts with, has no direction and no gradient here; the published code divides
    by 1e-8 and begins with gradients of that size, which the moments of Adam remember for hundreds of steps.
    """
    exact = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    counted = tokens.mask[..., None] & (prediction != 0).any(-1, keepdim=True)
    # Replaced before the norm, whose gradient at 0 would reach the others as NaN.
    guess, truth = torch.where(counted, prediction.to(exact), 1.0), torch.where(counted, target.to(exact), 1.0)
    cosine = torch.where(counted[..., 0], torch.cosine_similarity(guess, truth, dim=-1), 0.0)
    return _image_means(torch.where(tokens.mask, 1 - cosine, 0.0), tokens).mean()


def drop_labels(label: Tensor, uniforms: Tensor, rate: float, num_classes: int) -> Tensor:
    """Hide some labels, so that one network learns the conditional and the unconditional velocity.

    label' = null where u < rate or the image has no label

    Args:
        label: class, -1 = none, int64, (I,).
        uniforms: u in [0, 1), (I,).
        rate: share of hidden labels in [0, 1]; the paper's value is 0.1.
        num_classes: number of classes = index of the null class.

    Returns:
        int64, (I,).

    Raises:
        ValueError: ``rate`` is outside [0, 1].

    Source: arXiv:2207.12598 algorithm 1.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the share of dropped labels must lie in [0, 1], got {rate}")
    return torch.where((uniforms < rate) | (label < 0), num_classes, label)


def _image_means(per_token: Tensor, tokens: Tokens) -> Tensor:
    """Mean over the real tokens of every image; what stands at padding must be 0. (B, L) to (I,)."""
    slot = torch.where(tokens.mask, tokens.image, 0).flatten()
    total = per_token.new_zeros(tokens.num_images).index_add(0, slot, per_token.flatten())
    count = per_token.new_zeros(tokens.num_images).index_add(0, slot, tokens.mask.flatten().to(per_token.dtype))
    return total / count.clamp(min=1)
