"""Times to train at and times to sample at. t = 0 is clean, t = 1 is noise.

Training times are functions of given uniform or normal numbers, so that whoever draws these decides what they depend on
(``training/randomness.py``). Sampling grids run from noise to clean and hold one time more than there are steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gen.flow import paths

__all__ = ["linear_grid", "logit_normal_times", "release_times", "shifted", "uniform_times"]


def uniform_times(uniforms: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Training times spread evenly.

    t = low + (high - low) u

    Args:
        uniforms: u in [0, 1), any shape.
        low: smallest time, 0 = clean.
        high: largest time, 1 = noise.

    Returns:
        t in [low, high), same shape.

    Raises:
        ValueError: not 0 <= low < high <= 1.

    Source: arXiv:2605.05331 (generator): sigma uniform in (0, 1).
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"times need 0 <= low < high <= 1, got low {low} and high {high}")
    return low + (high - low) * uniforms


def logit_normal_times(normals: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Training times that favour the middle of the path.

    t = 1 / (1 + exp(-(mean + std n)))

    Args:
        normals: n of mean 0 and variance 1, any shape.
        mean: of logit(t); positive leans towards noise.
        std: of logit(t), positive.

    Returns:
        t in (0, 1), same shape.

    Raises:
        ValueError: ``std`` is not positive.

    Source: arXiv:2403.03206 eq. 19.
    """
    if std <= 0:
        raise ValueError(f"the logit-normal's std must be positive, got {std}")
    return torch.sigmoid(mean + std * normals)


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise, for training and for sampling alike.

    t' = s t / (1 + (s - 1) t); shifting by a and then by b is shifting by a b

    Args:
        t: times in [0, 1], 0 = clean, any shape.
        shift: s, positive; 1 = unchanged, above 1 = more noise.

    Returns:
        t' in [0, 1], same shape; 0 and 1 stay where they are.

    Raises:
        ValueError: ``shift`` is not positive.

    Source: arXiv:2403.03206 eq. 23.
    """
    if shift <= 0:
        raise ValueError(f"a time shift must be positive, got {shift}")
    return shift * t / (1 + (shift - 1) * t)


def release_times(uniforms: Tensor) -> Tensor:
    """The thousand training times of the ViTok-v2 release.

    t = 0.999 (k + 1) / 1000,  k = floor(1000 u)

    Args:
        uniforms: u in [0, 1), any shape.

    Returns:
        t in {0.000999, ..., 0.999}, same shape.

    Source: arXiv:2605.05331, published training script.
    """
    return paths.time_from_release((1000 * uniforms).floor())


def linear_grid(steps: int, start: float = 0.999, end: float = 0.0) -> Tensor:
    """Equally spaced sampling times from noise to clean.

    t_i = start + (end - start) i / n,  i = 0..n

    Args:
        steps: number of steps n, at least 1.
        start: first time, 1 = noise.
        end: last time, 0 = clean.

    Returns:
        float64, (n + 1,), on the CPU: solvers read it as plain numbers.

    Raises:
        ValueError: no step, or not 0 <= end < start <= 1.

    Source: arXiv:2605.05331, published sampler: linspace(0.999, 0, n + 1).
    """
    if steps < 1 or not 0 <= end < start <= 1:
        raise ValueError(f"a sampling grid needs steps >= 1 and 0 <= end < start <= 1, got {steps}, {start} to {end}")
    return torch.linspace(start, end, steps + 1, dtype=torch.float64, device="cpu")
