"""Distances between two sets of features by kernels: KID and CMMD. float64, in blocks, so that memory stays bounded.

Shape letters: N and M samples, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CMMD_SCALE", "CMMD_SIGMA", "KernelDistance", "clip_mmd", "kernel_inception_distance", "polynomial_mmd"]

_ROWS: Final = 2048
CMMD_SIGMA: Final = 10.0
CMMD_SCALE: Final = 1000.0

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """A kernel distance over subsets.

    Attributes:
        mean: mean over the subsets; may be negative. Tables often print 1000 times this.
        deviation: standard deviation over the subsets, their number in the denominator (ddof 0).
        subsets: the distance of every subset.
    """

    mean: float
    deviation: float
    subsets: tuple[float, ...]


def kernel_inception_distance(
    features: Tensor, reference: Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """KID: the mean over random subsets of :func:`polynomial_mmd`.

    Args:
        features: the samples that are measured, float, (N, D).
        reference: what they are compared with, float, (M, D).
        num_subsets: how many pairs of subsets.
        subset_size: rows of either subset, drawn without replacement.
        seed: of NumPy's legacy generator, which draws from ``features`` and then from ``reference`` for every pair; the
            same draws as torch-fidelity's.

    Returns:
        Mean, deviation and the subsets.

    Raises:
        ValueError: fewer samples than a subset holds, or sides of different D.

    Source: arXiv:1801.01401 section 4; settings as in github.com/toshas/torch-fidelity.
    """
    _check(features, reference)
    if num_subsets < 1 or not 2 <= subset_size <= min(len(features), len(reference)):
        raise ValueError(
            f"{num_subsets} subsets of {subset_size} cannot be drawn from {len(features)} and {len(reference)}: "
            "take at least as many samples as a subset holds"
        )
    random = np.random.RandomState(seed)
    subsets = []
    for _ in range(num_subsets):
        pair = [
            side[torch.from_numpy(random.choice(len(side), subset_size, replace=False)).to(side.device)]
            for side in (features, reference)
        ]
        subsets.append(polynomial_mmd(*pair))
    return KernelDistance(float(np.mean(subsets)), float(np.std(subsets)), tuple(subsets))


def polynomial_mmd(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy under a cubic kernel.

    MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 mean_ij k(x_i, y_j)
    k(x, y) = (x . y / D + 1)^3

    The estimate is unbiased for independent sets. Of a set with itself it is negative, not 0: the mean over pairs of
    both sets keeps i = j.

    Args:
        x: float, (N, D).
        y: float, (M, D).

    Returns:
        The discrepancy; may be negative.

    Raises:
        ValueError: fewer than two samples on a side, or sides of different D.

    Source: arXiv:1801.01401 eq. 4.
    """
    _check(x, y)

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.T / first.shape[1] + 1) ** 3

    x, y = x.detach().double(), y.detach().double()
    within = 0.0
    for side in (x, y):
        own = (side.square().sum(1) / side.shape[1] + 1) ** 3
        within += (_kernel_sum(kernel, side, side) - float(own.sum())) / (len(side) * (len(side) - 1))
    return within - 2 * _kernel_sum(kernel, x, y) / (len(x) * len(y))


def clip_mmd(features: Tensor, reference: Tensor) -> float:
    """CMMD: squared maximum mean discrepancy of normalised CLIP embeddings under a Gaussian kernel.

    CMMD = 1000 (mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)),
    k(x, y) = exp(-|x - y|^2 / (2 sigma^2)),  sigma = 10

    All pairs count, also i = j, so it is 0 for equal sets and never negative but for rounding. The kernel stays near 1
    for unit vectors; k - 1 is summed, because the ones cancel and would take digits with them.

    Args:
        features: the samples that are measured, float, (N, D); normalised here.
        reference: what they are compared with, float, (M, D); normalised here.

    Returns:
        The distance, times 1000.

    Raises:
        ValueError: fewer than two samples on a side, or sides of different D.

    Source: arXiv:2401.09603 section 4.
    """
    _check(features, reference)

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        # Unit vectors: |x - y|^2 = 2 - 2 x . y
        return torch.expm1((first @ second.T - 1) / CMMD_SIGMA**2)

    x, y = (F.normalize(side.detach().double(), dim=1) for side in (features, reference))
    means = [_kernel_sum(kernel, a, b) / (len(a) * len(b)) for a, b in ((x, x), (y, y), (x, y))]
    return CMMD_SCALE * (means[0] + means[1] - 2 * means[2])


def _kernel_sum(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    """Sum of the kernel over all pairs."""
    parts = [torch.split(side, _ROWS) for side in (x, y)]
    return sum(float(kernel(rows, columns).sum()) for rows in parts[0] for columns in parts[1])


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features {tuple(x.shape)} against {tuple(y.shape)}: another extractor?")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 samples on each side, got {len(x)} and {len(y)}")
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("a feature is NaN or infinite: look at the images and at the extractor")
