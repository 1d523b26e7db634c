"""MUSE's losses: structure (an attention map), semantics (a contrast with text), pixels.

Shape letters: B images of a rank, A student heads, N student tokens, M teacher tokens, E width of an embedding, H and W
height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.nn.ranks import gather_over_ranks

__all__ = [
    "Contrast",
    "Grid",
    "Heads",
    "Psi",
    "contrast_of_step",
    "contrastive_loss",
    "generator_objective",
    "reconstruction_loss",
    "resize_attention",
    "structure_loss",
    "unit_range",
]

Grid = tuple[int, int]
Psi = Literal["correct", "official_transposed"]
Heads = Literal["per_head", "mean"]

_ROWS = 1e-6
_LOG = 1e-8


def resize_attention(attention: Tensor, source: Grid, target: Grid, psi: Psi = "correct") -> Tensor:
    """Psi: bring an attention map from the teacher's grid to the student's.

    Psi(A) = R A R^T, rows divided by (their sum + 1e-6), with R the bilinear resize of a 2-D grid (align_corners False,
    no antialiasing).

    Args:
        attention: (B, M, M), query by key.
        source: rows and columns of the teacher's grid, M = rows * cols.
        target: rows and columns of the student's grid.
        psi: ``official_transposed`` gives key by query before the rows are normalised, as the published code does.

    Returns:
        (B, N, N).

    Raises:
        ValueError: the map is not one of the source grid.

    Source: arXiv:2605.05646 (4-D interpolation); deviates: the published code returns the transpose, see ``psi``.
    """
    if psi not in ("correct", "official_transposed"):
        raise ValueError(f"psi is 'correct' or 'official_transposed', got {psi!r}")
    tokens = source[0] * source[1]
    if attention.ndim != 3 or attention.shape[1:] != (tokens, tokens):
        raise ValueError(
            f"an attention map of a teacher with a grid of {source[0]} x {source[1]} has shape (B, {tokens}, "
            f"{tokens}), got {tuple(attention.shape)}"
        )
    by_key = _resize_last(attention, source, target)
    by_query = _resize_last(by_key.transpose(1, 2), source, target)
    resized = by_query.transpose(1, 2) if psi == "correct" else by_query
    return resized / (resized.sum(-1, keepdim=True) + _ROWS)


def _resize_last(x: Tensor, source: Grid, target: Grid) -> Tensor:
    rows = x.reshape(-1, 1, *source)
    return F.interpolate(rows, size=target, mode="bilinear", align_corners=False).reshape(*x.shape[:-1], -1)


def structure_loss(teacher: Tensor, students: Sequence[Tensor], heads: Heads = "per_head") -> Tensor:
    """L_topo: how far the student's attention is from the teacher's.

    mean over images, queries, layers (and heads) of sum_k A_T log(A_T / (A_S + 1e-8))

    Args:
        teacher: Psi(A_T), (B, N, N), without gradient; the mean over the teacher's heads.
        students: A_S of the supervised layers, (B, A, N, N) each.
        heads: ``per_head`` compares every head (the paper), ``mean`` the mean of the heads (the published code, whose
            value is never larger).

    Returns:
        Scalar.

    Raises:
        ValueError: there is no layer, or the grids differ.

    Source: arXiv:2605.05646 (L_topo). Comparing each student head with the mean of the teacher's is inferred: the
    numbers of heads differ.
    """
    if not students:
        raise ValueError("no student attention map to supervise")
    if heads not in ("per_head", "mean"):
        raise ValueError(f"topo_heads is 'per_head' or 'mean', got {heads!r}")
    losses = []
    for student in students:
        if student.shape[-2:] != teacher.shape[-2:]:
            raise ValueError(
                f"the teacher's map {tuple(teacher.shape)} does not lie on the student's grid {tuple(student.shape)}: "
                "resize it first"
            )
        maps = student.mean(1, keepdim=True) if heads == "mean" else student
        target = teacher[:, None].expand_as(maps)
        total = F.kl_div((maps + _LOG).log(), target, reduction="sum")
        losses.append(total / (maps.shape[0] * maps.shape[1] * maps.shape[2]))
    return torch.stack(losses).mean()


def contrastive_loss(image: Tensor, text: Tensor, temperature: Tensor, gather: bool = True) -> Tensor:
    """L_itc: every picture finds its caption among the others, and the other way round.

    L = (CE(s e t^T, I) + CE(s t e^T, I)) / 2

    Args:
        image: e, unit vectors, (B, E).
        text: t, unit vectors, (B, E).
        temperature: s, exp of the learned log temperature.
        gather: negatives come from all ranks; False = from this rank alone, as in the published code.

    Returns:
        Scalar; with ``gather``, its mean over ranks is the loss of the whole batch.

    Raises:
        ValueError: shapes differ.

    Source: arXiv:2605.05646 (L_anchor), arXiv:2103.00020.
    """
    if image.shape != text.shape or image.ndim != 2:
        raise ValueError(
            f"the text tower gives {tuple(text.shape)}, the images are embedded as {tuple(image.shape)}: set the "
            "model's text_width to the width of the text tower"
        )
    (images, first), (texts, _) = (gather_over_ranks(x) if gather else (x, 0) for x in (image, text))
    target = torch.arange(first, first + len(image), device=image.device)
    by_image = F.cross_entropy(temperature * image @ texts.T, target)
    by_text = F.cross_entropy(temperature * text @ images.T, target)
    return (by_image + by_text) / 2


class Contrast(NamedTuple):
    """The contrast of a whole step, for steps that are taken in parts.

    Attributes:
        value: L_itc, a mean over the supervised layers.
        slopes: dL / de, (B, E), of every supervised layer.
        warmth: dL / ds, of the temperature.
    """

    value: Tensor
    slopes: tuple[Tensor, ...]
    warmth: Tensor

    def part(self, embeddings: Sequence[Tensor], temperature: Tensor, rows: slice, share: float) -> Tensor:
        """The loss as a part of the step learns from it.

        L_part = sum over layers of <e[rows], dL / de[rows]> / share + <s, dL / ds> + constant: the parts, weighted with
        their shares, have the gradient of L.

        Args:
            embeddings: e[rows] of the supervised layers, with their graph.
            temperature: s.
            rows: which rows of the step the part has.
            share: of the images of the step.

        Returns:
            Scalar of the value L.

        Source: arXiv:2101.06983 section 3.2 (gradient cache).
        """
        pairs = zip(embeddings, self.slopes, strict=True)
        product = torch.stack([(own * slope[rows]).sum() for own, slope in pairs]).sum() / share
        product = product + (temperature * self.warmth).sum()
        return product - product.detach() + self.value


def contrast_of_step(embeddings: Sequence[Tensor], text: Tensor, temperature: Tensor, gather: bool = True) -> Contrast:
    """L_itc of all images of a step, and its gradients as numbers.

    Args:
        embeddings: e of every supervised layer, (B, E), constants.
        text: t, unit vectors, (B, E).
        temperature: s, a constant.
        gather: see ``contrastive_loss``.

    Returns:
        The contrast, for the parts of the step.
    """
    with torch.enable_grad():
        leaves = [embedding.detach().requires_grad_() for embedding in embeddings]
        warmth = temperature.detach().requires_grad_()
        loss = torch.stack([contrastive_loss(leaf, text, warmth, gather) for leaf in leaves]).mean()
        *slopes, warm = torch.autograd.grad(loss, [*leaves, warmth])
    return Contrast(loss.detach(), tuple(slopes), warm)


def unit_range(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped; what lies outside learns nothing.

    Args:
        images: any shape.

    Returns:
        The same shape.
    """
    return ((images + 1) / 2).clamp(0, 1)


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """L_rec: mean squared error of pictures in [0, 1].

    Args:
        prediction: (B, 3, H, W) in [-1, 1], clamped here.
        target: the same shape.

    Returns:
        Scalar.

    Source: arXiv:2605.05646 (code: reconstruction loss "l2").
    """
    return F.mse_loss(unit_range(prediction), unit_range(target))


def generator_objective(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum of the losses that are there.

    total = L_rec + w_p L_perc + w_g L_G + w_topo L_topo + w_itc L_itc

    Args:
        terms: losses by name.
        weights: factors by name; 1 for a name that is not there.

    Returns:
        Scalar.

    Source: arXiv:2605.05646 (total loss).
    """
    return torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
