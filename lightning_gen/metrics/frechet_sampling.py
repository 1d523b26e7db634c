"""What the number of samples does to a Frechet distance: its standard error, and its value for infinitely many.

Both need the features themselves, not only their moments.

Shape letters: N samples, D features.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lightning_gen.metrics.frechet import FrechetReference, Gaussian, Moments

__all__ = ["FrechetInfinity", "frechet_infinity", "frechet_standard_error"]

_ROWS: Final = 4096
_POINTS: Final = 15
_SMALLEST: Final = 5000
_RANK_TOLERANCE: Final = 1e-10


@dataclasses.dataclass(frozen=True)
class FrechetInfinity:
    """A Frechet distance extrapolated to infinitely many samples.

    Attributes:
        value: the intercept of the line d(N) = value + slope / N.
        slope: c, what the bias is proportional to.
        sizes: the subset sizes.
        distances: the distance of each subset.
        error: standard error of the intercept, from how far the points lie off the line; NaN for two points or fewer.
    """

    value: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    error: float


def frechet_standard_error(features: Tensor, reference: FrechetReference) -> float:
    """Standard error of a Frechet distance, the reference taken as exact.

    se = sd(h(f_1), ..., h(f_N)) / sqrt(N)
    h(f) = 2 (mu - mu_1)^T (f - mu) + (f - mu)^T (I - T) (f - mu)
    T = A (A^T S A)^(-1/2) A^T,  A A^T = S_1

    h is the first-order effect of one sample on the distance, T the linear map that carries N(mu, S) to N(mu_1, S_1).
    This is the jackknife's limit at the cost of one eigendecomposition; leaving out blocks of samples would cost one
    for every block. It describes the scatter of the distance, not its bias of about c / N, and is too small where the
    distance is mostly this bias: h vanishes where both sets have one distribution.

    Args:
        features: the samples that are measured, float, (N, D); a rank-deficient covariance takes the pseudo-inverse.
        reference: the set they are compared with.

    Returns:
        One standard error.

    Raises:
        ValueError: fewer than two samples, or another number of features.

    Source: the infinitesimal jackknife (Efron, 1982) on the gradient of the Bures distance (arXiv:1805.07594, eq. 9).
    """
    gaussian, first = _gaussian(features, reference.gaussian.mean), reference.gaussian
    factor = reference.factor
    cross = factor.T @ gaussian.covariance @ factor
    values, vectors = torch.linalg.eigh((cross + cross.T) / 2)
    inverse_root = torch.where(values > _RANK_TOLERANCE * values[-1], values.clamp(min=0).rsqrt(), 0.0)
    # T = V diag(lambda^(-1/2)) V^T with V = A U; half of the root on either side gives squares of one product.
    halves = (factor @ vectors) * inverse_root.sqrt()
    direction = 2 * (gaussian.mean - first.mean)
    effects = []
    for rows in torch.split(features, _ROWS):
        centred = rows.detach().double() - gaussian.mean
        effects.append(centred @ direction + centred.square().sum(1) - (centred @ halves).square().sum(1))
    return float(torch.cat(effects).std() / len(features) ** 0.5)


def frechet_infinity(
    features: Tensor, reference: FrechetReference, points: int = _POINTS, seed: int = 0
) -> FrechetInfinity:
    """Frechet distance for infinitely many samples, by a line through the distances of subsets.

    d(N) = d_inf + c / N, least squares over ``points`` sizes from min(5000, max(N / 10, 2)) to N

    Args:
        features: the samples that are measured, float, (N, D).
        reference: the set they are compared with; its own number of samples is left as it is.
        points: number of subsets, each drawn anew without replacement.
        seed: of the draws.

    Returns:
        The intercept and what it was found from. It may be negative.

    Raises:
        ValueError: fewer than 3 samples, or fewer than two points.

    Source: arXiv:1911.07023 section 4; sizes as in github.com/layer6ai-labs/dgm-eval.
    """
    count = len(features)
    if count < 3 or points < 2:
        raise ValueError(f"a line needs at least 3 samples and 2 points, got {count} samples and {points} points")
    smallest = int(min(_SMALLEST, max(count / 10, 2)))
    sizes = np.unique(np.linspace(smallest, count, points).astype(int)).tolist()
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for size in sizes:
        chosen = torch.randperm(count, generator=generator)[:size].to(features.device)
        gaussian = _gaussian(features[chosen], reference.gaussian.mean)
        distances.append(reference.distance_of_any(gaussian))
    x, y = 1 / torch.tensor(sizes, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)
    design = torch.stack((torch.ones_like(x), x), 1)
    line = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    left_over = (y - design @ line).square().sum() / max(len(sizes) - 2, 0)
    error = float((left_over * torch.linalg.inv(design.T @ design)[0, 0]).sqrt()) if len(sizes) > 2 else float("nan")
    return FrechetInfinity(float(line[0]), float(line[1]), tuple(sizes), tuple(distances), error)


def _gaussian(features: Tensor, shift: Tensor) -> Gaussian:
    if features.shape[1:] != shift.shape:
        raise ValueError(f"features {tuple(features.shape)} against a reference of {len(shift)}: another extractor?")
    moments = Moments(features.shape[1], shift, features.device)
    for rows in torch.split(features, _ROWS):
        moments.add(rows)
    return moments.gaussian()
