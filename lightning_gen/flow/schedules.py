"""Times to train at and times to sample at. t = 0 is clean, t = 1 is noise.

Training times are functions of given uniform or normal numbers, so that whoever draws these decides what they depend on
(``training/randomness.py``). Sampling grids run from noise to clean and hold one time more than there are steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gen.flow import paths

__all__ = [
    "double_shift_grid",
    "linear_grid",
    "logit_normal_times",
    "release_times",
    "resolution_shift",
    "shifted",
    "trajectory_levels",
    "uniform_times",
]


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


def double_shift_grid(steps: int, shift: float = 3.0, train_steps: int = 1000) -> Tensor:
    """Sampling times of Stable Diffusion 3's scheduler, which shifts twice.

    a = shifted(1 / K), t_i = shifted(1 + (a - 1) i / (n - 1)) for i = 0..n-1, then t_n = 0

    The last step but one therefore ends at the same time for every n, shifted(shifted(1 / K)) = 0.00893 for shift 3.

    Args:
        steps: number of steps n, at least 2.
        shift: s, positive.
        train_steps: K, discrete times of the training.

    Returns:
        float64, (n + 1,), on the CPU, from 1 to 0.

    Raises:
        ValueError: fewer than two steps.

    Source: arXiv:2403.03206; the rule of diffusers' FlowMatchEulerDiscreteScheduler.
    """
    if steps < 2:
        raise ValueError(f"the doubly shifted grid needs at least 2 steps, got {steps}")
    low = float(shifted(torch.tensor(1 / train_steps, dtype=torch.float64), shift))
    return torch.cat([shifted(linear_grid(steps - 1, 1.0, low), shift), torch.zeros(1, dtype=torch.float64)])


def resolution_shift(num_tokens: int) -> float:
    """The shift that grows with the number of tokens of a picture.

    s = exp(0.5 + 0.65 (L - 256) / (4096 - 256))

    Args:
        num_tokens: L.

    Returns:
        s for :func:`shifted`; e^0.5 at 256 tokens, e^1.15 at 4096.

    Source: FLUX.1's linear rule, as arXiv 2605 NTM section C.4 uses it.
    """
    return math.exp(0.5 + 0.65 * (num_tokens - 256) / (4096 - 256))


def trajectory_levels(steps: int, num_tokens: int, low: float = 0.02) -> Tensor:
    """Noise levels of a normalizing trajectory, from nearly clean to noise.

    t_0 = low,  t_k = shifted(k / T, resolution_shift(L)),  k = 1..T

    Args:
        steps: T, at least 1.
        num_tokens: L.
        low: first level, 0 = clean; must lie below t_1.

    Returns:
        float64, (T + 1,), rising to 1.

    Raises:
        ValueError: no step, or a first level that is not below the second.

    Source: NTM section C.4 and Table 5; the value of ``low`` in sampling is inferred.
    """
    if steps < 1:
        raise ValueError(f"a trajectory needs at least one step, got {steps}")
    levels = shifted(torch.arange(1, steps + 1, dtype=torch.float64) / steps, resolution_shift(num_tokens))
    if not 0 <= low < float(levels[0]):
        raise ValueError(f"the first level must lie in [0, {float(levels[0]):.4g}), got {low}")
    return torch.cat([torch.tensor([low], dtype=torch.float64), levels])
