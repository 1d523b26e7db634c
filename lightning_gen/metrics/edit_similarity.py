"""What two edits have in common, as functions of features: the direction of a change, and what leaked from an example.

Nothing here holds a network; features come from any image encoder, embeddings from CLIP (``metrics/clip.py``).

Shape letters: B pairs, N patches, C channels, D numbers of an embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "DeltaCosine",
    "attractor_margin",
    "delta_cosine",
    "directional_similarity",
    "exemplar_leak",
    "semantic_delta",
]

_EPSILON = 1e-6


class DeltaCosine(NamedTuple):
    """Agreement of two changes, of every pair.

    Attributes:
        patches: patch by patch, weighted, (B,); for images of the same layout.
        pooled: of the mean change, (B,); does not ask where the change is.
    """

    patches: Tensor
    pooled: Tensor


def semantic_delta(before: Tensor, after: Tensor) -> Tensor:
    """The change of an image in the space of its patch features.

    delta = LN(after) - LN(before),  LN over channels without scale and shift, eps 1e-6

    Args:
        before: patch features, (B, N, C).
        after: the same shape, of the edited image under the same crop.

    Returns:
        (B, N, C); 0 where nothing changed.

    Raises:
        ValueError: shapes differ.

    Source: Delta-Adapter, semantic delta.
    """
    if before.shape != after.shape or before.ndim != 3:
        raise ValueError(f"features must both be (B, N, C), got {tuple(before.shape)} and {tuple(after.shape)}")
    size = (before.shape[-1],)
    return F.layer_norm(after, size, eps=_EPSILON) - F.layer_norm(before, size, eps=_EPSILON)


def delta_cosine(change: Tensor, reference: Tensor) -> DeltaCosine:
    """How far the change of a result points where the change of the example points.

    patches = sum_i w_i cos(change_i, reference_i) / sum_i w_i,  w_i = |reference_i|
    pooled  = cos(mean_i change_i, mean_i reference_i)

    Patches that the example changes much weigh much. Where the other image has another layout only ``pooled`` says
    something.

    Args:
        change: delta of the query and its result, (B, N, C).
        reference: delta of the example (or of the true result), the same shape.

    Returns:
        Both cosines, float64, [-1, 1]. A change of nothing scores 0; a reference of nothing has no direction: NaN.

    Raises:
        ValueError: shapes differ.

    Source: Delta-Adapter, section "Evaluation" (weights: norm of the reference).
    """
    if change.shape != reference.shape or change.ndim != 3:
        raise ValueError(f"changes must both be (B, N, C), got {tuple(change.shape)} and {tuple(reference.shape)}")
    first, second = change.double(), reference.double()
    weight = second.norm(dim=-1)
    # A patch that the reference leaves alone has weight 0 and no direction.
    cosines = torch.where(weight > 0, _cosine(first, second), 0)
    return DeltaCosine((weight * cosines).sum(1) / weight.sum(1), _cosine(first.mean(1), second.mean(1)))


def directional_similarity(before: Tensor, after: Tensor, example_before: Tensor, example_after: Tensor) -> Tensor:
    """CLIP directional similarity of an edit and its example.

    cos(E(after) - E(before), E(example_after) - E(example_before))

    Args:
        before: embedding of the query, (B, D).
        after: of the result.
        example_before: of the example before its edit.
        example_after: of the example after its edit.

    Returns:
        float64, (B,), [-1, 1]; 0 where the result equals the query, NaN where the example changes nothing.

    Raises:
        ValueError: shapes differ.
    """
    embeddings = _embeddings(before, after, example_before, example_after)
    return _cosine(embeddings[1] - embeddings[0], embeddings[3] - embeddings[2])


def exemplar_leak(result: Tensor, truth: Tensor, example_after: Tensor) -> Tensor:
    """How much more a result resembles the example than it should: content that was copied along with the edit.

    cos(E(result), E(example_after)) - cos(E(truth), E(example_after))

    Args:
        result: embedding of the edited query, (B, D).
        truth: of the true edited query.
        example_after: of the example after its edit.

    Returns:
        float64, (B,), [-2, 2]; above 0 = something leaked.

    Raises:
        ValueError: shapes differ.
    """
    embeddings = _embeddings(result, truth, example_after)
    return _cosine(embeddings[0], embeddings[2]) - _cosine(embeddings[1], embeddings[2])


def attractor_margin(image: Tensor, prompt: Tensor, attractor: Tensor) -> Tensor:
    """How much closer an image is to its prompt than to what a model would rather paint.

    cos(x, p) - cos(x, q)

    Args:
        image: embedding x of the image, (B, D).
        prompt: embedding p of the target prompt.
        attractor: embedding q of the prompt without its rare part.

    Returns:
        float64, (B,), [-2, 2].

    Raises:
        ValueError: shapes differ.

    Source: arXiv:2605.06512, CLIPScore minus attractor similarity; the difference is ours.
    """
    embeddings = _embeddings(image, prompt, attractor)
    return _cosine(embeddings[0], embeddings[1]) - _cosine(embeddings[0], embeddings[2])


def _embeddings(*tensors: Tensor) -> list[Tensor]:
    if len({tensor.shape for tensor in tensors}) > 1 or tensors[0].ndim != 2:
        raise ValueError(f"embeddings must all be (B, D), got {[tuple(tensor.shape) for tensor in tensors]}")
    return [tensor.double() for tensor in tensors]


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine over the last axis: 0 where the first vector is 0, NaN where the second one is."""
    length = first.norm(dim=-1)
    cosine: Tensor = (first * second).sum(-1) / (torch.where(length > 0, length, 1) * second.norm(dim=-1))
    return cosine
