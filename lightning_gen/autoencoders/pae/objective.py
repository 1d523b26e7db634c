"""The losses of PAE: refinement (stage 0), SSR, MCR, SCR, and those of the auto-encoders it is compared with.

Z are the latents of a picture as N tokens of d numbers; a bar is L2 normalisation.
Shape letters: B images, N tokens, d and D channels, S radii, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.autoencoders.pae.layers import to_sphere
from lightning_gen.autoencoders.pae.variants import NormAxis

__all__ = [
    "GramNorm",
    "PerceptualDistance",
    "Reduction",
    "cascade",
    "gram",
    "gram_distance",
    "kl_to_normal",
    "low_pass",
    "perturbed",
    "refine_loss",
    "semantic_consistency",
    "structure_regularity",
    "tangent_direction",
    "vision_foundation_loss",
]

GramNorm = Literal["cosine", "raw"]
Reduction = Literal["mean", "sum"]
PerceptualDistance = Callable[[Tensor, Tensor], Tensor]
"""Of two batches of pictures, (B,); the second is the target."""


def gram(tokens: Tensor, norm: GramNorm = "cosine") -> Tensor:
    """Inner products of all pairs of tokens of a picture.

    G_ij = <z_i, z_j>, of unit vectors with ``cosine``

    Args:
        tokens: (B, N, d).
        norm: ``cosine`` or ``raw``; on the sphere of radius sqrt(d) raw = d cosine.

    Returns:
        (B, N, N), float32 (float64 for float64).

    Source: arXiv:2605.07915 eq. 3; its normalisation is not stated.
    """
    exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    if norm == "cosine":
        exact = F.normalize(exact, dim=-1)
    with torch.autocast(exact.device.type, enabled=False):
        return exact @ exact.transpose(1, 2)


def gram_distance(first: Tensor, second: Tensor, norm: GramNorm = "cosine", reduction: Reduction = "mean") -> Tensor:
    """Squared difference of two token Grams, mean over pictures.

    mean_b mean_ij (G_ij - G'_ij)^2, or the sum over ij

    Args:
        first: (B, N, d).
        second: (B, N, D); the widths may differ.
        norm: of the Grams.
        reduction: over the N^2 entries.

    Returns:
        Scalar.

    Raises:
        ValueError: the numbers of tokens differ.

    Source: arXiv:2605.07915 eq. 3.
    """
    if first.shape[:2] != second.shape[:2]:
        raise ValueError(
            f"Grams of {tuple(first.shape[:2])} and {tuple(second.shape[:2])} (pictures, tokens) cannot be compared: "
            "both must stand on one grid"
        )
    error = (gram(first, norm) - gram(second, norm)).square().sum((1, 2)).mean()
    return error / first.shape[1] ** 2 if reduction == "mean" else error


def structure_regularity(z: Tensor, target: Tensor, norm: GramNorm = "cosine", reduction: Reduction = "mean") -> Tensor:
    """SSR: the spatial structure of the latents is that of the refined prior.

    L = |G(Z) - G(Z_T)|_F^2, a mean over entries by default

    Args:
        z: (B, N, d).
        target: Z_T, (B, N, D), a constant.
        norm: of the Grams.
        reduction: over the N^2 entries.

    Returns:
        Scalar.

    Source: arXiv:2605.07915 eq. 3.
    """
    return gram_distance(z, target.detach(), norm, reduction)


def tangent_direction(noise: Tensor, z: Tensor, tangent: bool = True, axis: NormAxis = "token") -> Tensor:
    """A direction of unit root mean square, for every token or for every picture.

    e <- e - (<e, z> / <z, z>) z;  Delta = e / sqrt(mean e^2)

    Args:
        noise: e, standard normal numbers, (B, N, d).
        z: where the direction starts, (B, N, d); a constant here.
        tangent: project e to the tangent plane of the sphere at z; False = any direction.
        axis: what lies on one sphere: products and means run over the channels of a token, or over a picture.

    Returns:
        (B, N, d).

    Source: arXiv:2605.07915 eq. 4 (one direction for both radii), arXiv:2602.15030 (noise on a sphere).
    """
    z = z.detach()
    over = (-1,) if axis == "token" else (-2, -1)
    if tangent:
        along = (noise * z).sum(over, keepdim=True) / z.square().sum(over, keepdim=True).clamp(min=1e-12)
        noise = noise - along * z
    return to_sphere(noise, axis, eps=1e-12)


def perturbed(
    z: Tensor,
    direction: Tensor,
    angles: Sequence[float],
    renorm: bool = True,
    axis: NormAxis = "token",
    jitter: Tensor | None = None,
) -> Tensor:
    """Latents at several radii along one direction.

    z_s = RMSNorm(z + tan(theta_s) Delta): with a tangent direction the angle between z and z_s is theta_s

    Args:
        z: (B, N, d), on the sphere.
        direction: Delta, (B, N, d), unit root mean square.
        angles: theta_s in degrees, below 90.
        renorm: back to the sphere; without it the norm grows by 1 / cos(theta_s).
        axis: of the sphere that ``renorm`` goes back to.
        jitter: factors on the angles, (B,), in (0, 1]; None = 1.

    Returns:
        (S, B, N, d).

    Source: arXiv:2605.07915 eq. 4; alpha = tan(theta) from arXiv:2602.15030.
    """
    factor = z.new_ones(len(z)) if jitter is None else jitter.to(z)
    moved = []
    for angle in angles:
        radius = torch.tan(math.radians(angle) * factor)[:, None, None]
        there = z + radius * direction
        moved.append(to_sphere(there, axis) if renorm else there)
    return torch.stack(moved)


def cascade(images: Tensor, distance: PerceptualDistance | None = None, chained: bool = True) -> Tensor:
    """MCR: decodings further out look like those one step further in.

    L = sum_s |x_s - sg(x_{s-1})|_1 + LPIPS(x_s, sg(x_{s-1})), x_0 the reconstruction

    Args:
        images: x_0, x_1, ..., x_S, (1 + S, B, 3, H, W), in [0, 1] but for what the decoder leaves.
        distance: LPIPS of pictures in [-1, 1]; None = without.
        chained: compare with the radius before; False = all with x_0.

    Returns:
        Scalar; L1 is a mean over numbers.

    Source: arXiv:2605.07915 eq. 4; deviates: LPIPS sees its target clamped to its range.
    """
    total = images.new_zeros(())
    for number in range(1, len(images)):
        target = images[number - 1 if chained else 0].detach()
        total = total + (images[number] - target).abs().mean()
        if distance is not None:
            total = total + distance(2 * images[number] - 1, (2 * target - 1).clamp(-1, 1)).mean()
    return total


def semantic_consistency(z: Tensor, target: Tensor, pooled: bool = True, tokens: bool = True) -> Tensor:
    """SCR: latents point where the refined prior points, each token and on average.

    L = (1 - cos(mean_i Z_T, mean_i Z)) + mean_i (1 - cos(Z_T,i, Z_i)), mean over pictures

    Args:
        z: (B, N, d).
        target: Z_T, (B, N, d), a constant.
        pooled: the first term.
        tokens: the second one.

    Returns:
        Scalar in [0, 4].

    Raises:
        ValueError: the shapes differ.

    Source: arXiv:2605.07915 eq. 5.
    """
    if z.shape != target.shape:
        raise ValueError(
            f"the latents are {tuple(z.shape)}, the refined prior's {tuple(target.shape)}: SCR compares them number by "
            "number, refine the prior with the same channels and grid"
        )
    target = target.detach().to(z.dtype)
    loss = z.new_zeros(())
    if pooled:
        loss = loss + (1 - F.cosine_similarity(z.mean(1), target.mean(1), dim=-1)).mean()
    if tokens:
        loss = loss + (1 - F.cosine_similarity(z, target, dim=-1)).mean()
    return loss


def refine_loss(
    restored: Tensor,
    features: Tensor,
    latents: Tensor,
    reference: Tensor,
    representation_weight: float = 1.0,
    gram_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Stage 0: latents from which the features can be restored, with the structure of the reference.

    L = w_rep mean (H^ - H)^2 + w_gram mean (G(Z_T) - G(H_ref))^2

    Args:
        restored: H^, (B, N, D).
        features: H, (B, N, D).
        latents: Z_T, (B, N, d).
        reference: H_ref, (B, N, D).
        representation_weight: w_rep.
        gram_weight: w_gram.

    Returns:
        ``representation`` and ``gram``, weighted; their sum is the loss.

    Source: arXiv:2605.07915 section 3.3; the weights and the reductions are not stated.
    """
    error = (restored.float() - features.float()).square().mean()
    return {
        "representation": representation_weight * error,
        "gram": gram_weight * gram_distance(latents, reference.detach()),
    }


def low_pass(maps: Tensor, strength: float = 0.4, sigma: float = 8.0) -> Tensor:
    """Take a share of the fine detail out of feature maps and bring every place to unit length.

    F <- (1 - s) F + s (G_sigma * F), then F / |F|_2 place by place

    Args:
        maps: (B, D, H, W).
        strength: s in [0, 1]; paper: 0.4.
        sigma: of the Gaussian in places of the map.

    Returns:
        The same shape, float32.

    Source: arXiv:2605.07915 section 3.3 (strength); the operator itself is not stated.
    """
    maps = maps.float()
    if strength > 0:
        smooth = _gaussian(_gaussian(maps, sigma).transpose(2, 3), sigma).transpose(2, 3)
        maps = (1 - strength) * maps + strength * smooth
    return F.normalize(maps, dim=1)


def _gaussian(maps: Tensor, sigma: float) -> Tensor:
    """Blur along the last axis; what lies beyond the edge is the edge."""
    reach = min(math.ceil(3 * sigma), maps.shape[-1] * 4)
    place = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (place / sigma).square())
    rows = F.pad(maps.flatten(0, 2)[:, None], (reach, reach), mode="replicate")
    return F.conv1d(rows, (kernel / kernel.sum())[None, None])[:, 0].view_as(maps)


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a diagonal Gaussian to the standard one.

    L = 1/2 mean_b sum (mu^2 + sigma^2 - 1 - log sigma^2)

    Args:
        mean: (B, N, d).
        log_variance: (B, N, d).

    Returns:
        Scalar: the sum over a picture, mean over pictures.

    Source: arXiv:1312.6114 appendix B, summed as in arXiv:2112.10752.
    """
    bounded = log_variance.clamp(-30, 20)
    return 0.5 * (mean.square() + bounded.exp() - 1 - bounded).sum((1, 2)).mean()


def vision_foundation_loss(
    aligned: Tensor, features: Tensor, cosine_margin: float = 0.5, distance_margin: float = 0.25
) -> Tensor:
    """The alignment of VA-VAE, which PAE is compared with.

    L = mean_i relu(1 - m_1 - cos(W z_i, h_i)) + mean_ij relu(|G_ij(W Z) - G_ij(H)| - m_2), cosine Grams

    Args:
        aligned: W z, latents projected to the prior's width, (B, N, D).
        features: H, (B, N, D), a constant.
        cosine_margin: m_1.
        distance_margin: m_2.

    Returns:
        Scalar.

    Source: arXiv:2501.01423 eqs. 5 and 6 and its public code.
    """
    features = features.detach().float()
    marginal = F.relu(1 - cosine_margin - F.cosine_similarity(aligned.float(), features, dim=-1)).mean()
    distance = F.relu((gram(aligned) - gram(features)).abs() - distance_margin).mean()
    return marginal + distance
