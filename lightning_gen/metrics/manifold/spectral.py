"""Spectral clustering of the tokens of one image, and how well two labellings agree. float64.

The k-means is written here because none is at hand where the package runs: scikit-learn is an extra, its results move
with its versions and it does not know GPUs. This one draws from given numbers, so a score is the same everywhere.

Shape letters: L tokens, C channels, k clusters, R restarts, D numbers per point.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["k_means", "normalised_mutual_information", "spectral_clustering", "token_affinity"]

_ITERATIONS: Final = 300


def token_affinity(tokens: Tensor, sigma: float = 0.1) -> Tensor:
    """How alike the tokens of an image are.

    A_ij = exp(<z_i, z_j> / sigma) for i != j,  A_ii = 0,  z = tokens of length 1

    Args:
        tokens: float, (L, C).
        sigma: temperature, > 0.

    Returns:
        float64, (L, L), divided by exp(1 / sigma), which changes no clustering and keeps small sigmas finite.

    Source: arXiv:2605.07915 eq. 7.
    """
    unit = F.normalize(tokens.detach().double(), dim=1)
    return ((unit @ unit.T - 1) / sigma).exp().fill_diagonal_(0)


def spectral_clustering(affinity: Tensor, num_clusters: int, uniform: Tensor) -> Tensor:
    """Normalised spectral clustering.

    L_sym = I - D^(-1/2) A D^(-1/2),  D = diag(row sums);  U = eigenvectors of its k smallest eigenvalues;
    rows of U are scaled to length 1 and clustered by k-means

    Args:
        affinity: float64, (L, L), symmetric, not negative.
        num_clusters: k, 1 to L.
        uniform: float in [0, 1), (R, k), see :func:`k_means`.

    Returns:
        int64, (L,), a cluster for every token; their numbers mean nothing.

    Raises:
        ValueError: k below 1 or above L, or a token without any affinity.

    Source: Ng, Jordan and Weiss, 2001, as in von Luxburg, A tutorial on spectral clustering, 2007.
    """
    if not 1 <= num_clusters <= len(affinity):
        raise ValueError(f"{len(affinity)} tokens cannot make {num_clusters} clusters")
    degree = affinity.sum(1)
    if num_clusters < len(affinity) and not bool((degree > 0).all()):
        raise ValueError("a token has no affinity to any other: sigma is too small for float64, take a larger one")
    if num_clusters == len(affinity):
        return torch.arange(len(affinity), device=affinity.device)
    scale = degree.rsqrt()
    # The largest eigenvalues of the scaled affinity are the smallest of the Laplacian.
    vectors = torch.linalg.eigh(scale[:, None] * affinity * scale)[1][:, -num_clusters:]
    return k_means(F.normalize(vectors, dim=1), num_clusters, uniform)


def k_means(points: Tensor, num_clusters: int, uniform: Tensor, max_iterations: int = _ITERATIONS) -> Tensor:
    """Lloyd's k-means from several starts of k-means++; the one with the least inertia wins.

    Args:
        points: float, (L, D).
        num_clusters: k, at most L.
        uniform: float in [0, 1), (R, k): the draws of k-means++, one row per start.
        max_iterations: of every start.

    Returns:
        int64, (L,), the nearest centre of every point.

    Raises:
        ValueError: more clusters than points, or draws of another shape.

    Source: Lloyd, 1982; Arthur and Vassilvitskii, 2007. A cluster that loses all its points takes the point that lies
    farthest from its own centre, as scikit-learn does it.
    """
    if num_clusters > len(points) or uniform.ndim != 2 or uniform.shape[1] != num_clusters:
        raise ValueError(f"{num_clusters} clusters of {len(points)} points from draws of {tuple(uniform.shape)}")
    centres = _starts(points, uniform.to(points))
    labels = None
    while True:
        nearest = _distances(points, centres).min(2)
        if max_iterations <= 0 or (labels is not None and torch.equal(nearest.indices, labels)):
            return nearest.indices[nearest.values.sum(1).argmin()]
        labels, max_iterations = nearest.indices, max_iterations - 1
        centres = _moved(points, labels, nearest.values, num_clusters)


def _starts(points: Tensor, uniform: Tensor) -> Tensor:
    """Centres of k-means++: each next one is drawn with the squared distance to the nearest one as weight."""
    restarts, count = uniform.shape
    chosen = (uniform[:, 0] * len(points)).long().clamp(max=len(points) - 1)
    centres, nearest = [points[chosen]], points.new_full((restarts, len(points)), torch.inf)
    for number in range(1, count):
        nearest = torch.minimum(nearest, _distances(points, centres[-1][:, None]).squeeze(2))
        # Where all points coincide with a centre every weight is 0: any of them will do.
        weights = torch.where((nearest.sum(1, keepdim=True) > 0), nearest, torch.ones_like(nearest))
        total = weights.cumsum(1)
        place = torch.searchsorted(total, uniform[:, number, None] * total[:, -1:], right=True).squeeze(1)
        centres.append(points[place.clamp(max=len(points) - 1)])
    return torch.stack(centres, 1)


def _moved(points: Tensor, labels: Tensor, distance: Tensor, count: int) -> Tensor:
    """Means of the clusters, (R, k, D)."""
    member = F.one_hot(labels, count).to(points).transpose(1, 2)
    size = member.sum(2)
    means = member @ points / size.clamp(min=1)[..., None]
    empty = size == 0
    farthest = points[distance.topk(count, 1).indices]
    order = (empty.cumsum(1) - 1).clamp(min=0)[..., None].expand_as(farthest)
    return torch.where(empty[..., None], farthest.gather(1, order), means)


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Squared, (R, L, k), without the cancellation of the expanded square."""
    every = points[None].expand(len(centres), -1, -1)
    return torch.cdist(every, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def normalised_mutual_information(first: Tensor, second: Tensor) -> float:
    """How much one labelling says about another.

    NMI = I(a; b) / sqrt(H(a) H(b))

    Args:
        first: whole numbers, (L,).
        second: whole numbers, (L,).

    Returns:
        In [0, 1]; 1 for labellings that are equal up to names, also if both have one label; 0 if one of them alone has.

    Raises:
        ValueError: no labels, or different numbers of them.

    Source: arXiv:2605.07915 eq. 8; Strehl and Ghosh, 2002.
    """
    if first.ndim != 1 or first.shape != second.shape or len(first) == 0:
        raise ValueError(f"labellings of {tuple(first.shape)} and {tuple(second.shape)} do not compare")
    (a, count_a), (b, count_b) = (
        (found, int(found.max()) + 1) for found in (torch.unique(x, return_inverse=True)[1] for x in (first, second))
    )
    joint = torch.bincount(a * count_b + b, minlength=count_a * count_b).double().view(count_a, count_b) / len(a)
    if count_a == count_b == 1:
        return 1.0
    entropies = [float(-torch.xlogy(x, x).sum()) for x in (joint, joint.sum(1), joint.sum(0))]
    shared = max(0.0, entropies[1] + entropies[2] - entropies[0])
    if min(entropies[1:]) <= 0:
        return 0.0
    # Equal labellings differ from 1 by rounding only.
    return min(1.0, float(shared / (entropies[1] * entropies[2]) ** 0.5))
