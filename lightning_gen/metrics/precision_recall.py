"""Precision, recall, density and coverage: how two sets of features lie inside each other's neighbourhoods.

Distances are computed block by block on the device of the features and never stored as a whole.

Shape letters: N samples, M references, D features.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
from torch import Tensor

from lightning_gen.backbones.frozen import full_float32

__all__ = ["ManifoldScores", "manifold_scores", "neighbourhood_radii"]

_BLOCK: Final = 4096


@dataclasses.dataclass(frozen=True)
class ManifoldScores:
    """How a set of samples and a set of references cover each other.

    Attributes:
        precision: share of samples inside the neighbourhood of any reference.
        recall: share of references inside the neighbourhood of any sample.
        density: mean over samples of the number of neighbourhoods of references they lie in, divided by k.
        coverage: share of references whose neighbourhood holds a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(
    samples: Tensor, reference: Tensor, k: int = 3, strict: bool = False, half: bool = False, block: int = _BLOCK
) -> ManifoldScores:
    """Precision and recall as the ADM evaluator computes them, with density and coverage from the same distances.

    The neighbourhood of a point reaches to its k-th nearest neighbour in its own set, r^2 = the (k + 1)-th smallest
    squared distance including the one to itself; a point is inside if its squared distance is <= r^2. Swapping the two
    sets swaps precision and recall. The numbers depend on N and M: published ones have M = 10,000 and N = 50,000.

    Args:
        samples: the samples that are measured, float, (N, D).
        reference: what they are compared with, float, (M, D).
        k: which neighbour.
        strict: inside means < r^2, as the prdc package has it (which takes k = 5); it differs for equal pictures.
        half: compute distances in float16 as the ADM evaluator does, except in blocks where that overflows.
        block: rows and columns of a block of distances.

    Returns:
        The four numbers.

    Raises:
        ValueError: k or fewer points in a set, sides of different D, or a number that is not finite.

    Source: arXiv:1904.06991 eq. 1-2; arXiv:2002.09797 eq. 3-4; github.com/openai/guided-diffusion, evaluations.
    deviates: float32 instead of float16 unless ``half``; the origin is first moved to the reference's mean, which
        changes no distance but leaves more digits.
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(f"features {tuple(samples.shape)} against {tuple(reference.shape)}: another extractor?")
    samples, reference = _prepared(samples, reference, half)
    sample_radii = _radii(samples, k, half, block)
    reference_radii = _radii(reference, k, half, block)
    inside_any = samples.new_zeros(len(samples), dtype=torch.bool)
    inside = samples.new_zeros(len(samples), dtype=torch.int64)
    recalled = samples.new_zeros(len(reference), dtype=torch.bool)
    covered = torch.zeros_like(recalled)
    for rows in _ranges(len(samples), block):
        for columns in _ranges(len(reference), block):
            distances = _squared_distances(samples[rows], reference[columns], half)
            within = _inside(distances, reference_radii[columns], strict)
            inside[rows] += within.sum(1)
            inside_any[rows] |= within.any(1)
            covered[columns] |= within.any(0)
            recalled[columns] |= _inside(distances, sample_radii[rows, None], strict).any(0)
    precision, recall, coverage = (float(hits.double().mean()) for hits in (inside_any, recalled, covered))
    return ManifoldScores(precision, recall, float(inside.double().mean()) / k, coverage)


def neighbourhood_radii(features: Tensor, k: int = 3, half: bool = False, block: int = _BLOCK) -> Tensor:
    """Squared distance of every point to its k-th nearest neighbour in the set.

    Args:
        features: float, (N, D).
        k: which neighbour; the point itself is not one.
        half: see :func:`manifold_scores`.
        block: rows and columns of a block of distances.

    Returns:
        float, (N,).

    Raises:
        ValueError: k or fewer points, or a number that is not finite.
    """
    return _radii(_prepared(features, features, half)[0], k, half, block)


def _prepared(samples: Tensor, reference: Tensor, half: bool) -> tuple[Tensor, Tensor]:
    """Both sides in at least float32, on one device."""
    dtype = torch.float64 if samples.dtype == reference.dtype == torch.float64 else torch.float32
    pair = [side.detach().to(samples.device, dtype) for side in (samples, reference)]
    if not all(torch.isfinite(side).all() for side in pair):
        raise ValueError("a feature is NaN or infinite: look at the images and at the extractor")
    # What float16 rounds depends on where the origin is, so there it stays.
    origin = 0 if half else pair[1].mean(0)
    return pair[0] - origin, pair[1] - origin


def _radii(points: Tensor, k: int, half: bool, block: int) -> Tensor:
    if not 1 <= k < len(points):
        raise ValueError(f"{len(points)} points have no neighbour number {k}: give more points, or a smaller k")
    radii = []
    for rows in _ranges(len(points), block):
        nearest = points.new_full((len(points[rows]), k + 1), float("inf"))
        for columns in _ranges(len(points), block):
            distances = _squared_distances(points[rows], points[columns], half)
            some = distances.topk(min(k + 1, distances.shape[1]), largest=False).values
            nearest = torch.cat((nearest, some), 1).topk(k + 1, largest=False).values
        radii.append(nearest.amax(1))
    return torch.cat(radii)


def _squared_distances(rows: Tensor, columns: Tensor, half: bool) -> Tensor:
    """max(|u|^2 - 2 u . v + |v|^2, 0)."""
    if half:
        distances = _expanded(rows.half(), columns.half())
        if torch.isfinite(distances).all():
            return distances.to(rows.dtype)
    return _expanded(rows, columns)


def _expanded(rows: Tensor, columns: Tensor) -> Tensor:
    with full_float32(rows.device):
        lengths = rows.square().sum(1)[:, None], columns.square().sum(1)[None]
        return (lengths[0] - 2 * (rows @ columns.T) + lengths[1]).clamp(min=0)


def _inside(distances: Tensor, radii: Tensor, strict: bool) -> Tensor:
    return distances < radii if strict else distances <= radii


def _ranges(count: int, block: int) -> list[slice]:
    return [slice(start, start + block) for start in range(0, count, block)]
