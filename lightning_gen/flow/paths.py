"""The straight path between an image and noise, and every bridge to other conventions of time.

The house has one convention: t = 0 is clean, t = 1 is noise, x_t = (1 - t) x_0 + t eps, velocity v = dx_t/dt =
eps - x_0. No other file converts a time, a state or a prediction.

A time may be a number, or a tensor whose axes are the leading axes of the states it belongs to: (B,) for one time per
row, (B, L) for one time per token.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

__all__ = [
    "alpha_bar_from_time",
    "clean",
    "discrete_step",
    "flow_from_vp",
    "noise",
    "noised",
    "release_timestep",
    "reversed_shift",
    "reversed_time",
    "reversed_velocity",
    "score",
    "time_from_alpha_bar",
    "time_from_release",
    "time_from_sigma",
    "timestep",
    "velocity",
    "velocity_from_clean",
    "velocity_from_noise",
    "velocity_from_vp_noise",
    "velocity_from_vp_velocity",
    "vp_from_flow",
]

Time = TypeVar("Time", float, Tensor)


def noised(x_0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
    """Point of the path at time t.

    x_t = (1 - t) x_0 + t eps

    Args:
        x_0: data, float, (B, ...).
        eps: noise of unit variance, float, (B, ...).
        t: time in [0, 1], 0 = clean, 1 = noise.

    Returns:
        x_t, (B, ...).

    Source: arXiv:2210.02747 eq. 22 with the roles of 0 and 1 exchanged.
    """
    t = _lift(t, x_0)
    return (1 - t) * x_0 + t * eps


def velocity(x_0: Tensor, eps: Tensor) -> Tensor:
    """Velocity of the path, the same at every time.

    v = eps - x_0

    Args:
        x_0: data, float, (B, ...).
        eps: noise, float, (B, ...).

    Returns:
        v, (B, ...).

    Source: arXiv:2210.02747 eq. 23.
    """
    return eps - x_0


def clean(x_t: Tensor, v: Tensor, t: float | Tensor) -> Tensor:
    """Data that a state and its velocity point to.

    x_0 = x_t - t v

    Args:
        x_t: state, float, (B, ...).
        v: velocity, float, (B, ...).
        t: time in [0, 1], 0 = clean.

    Returns:
        x_0, (B, ...).
    """
    return x_t - _lift(t, x_t) * v


def noise(x_t: Tensor, v: Tensor, t: float | Tensor) -> Tensor:
    """Noise that a state and its velocity point to.

    eps = x_t + (1 - t) v

    Args:
        x_t: state, float, (B, ...).
        v: velocity, float, (B, ...).
        t: time in [0, 1], 0 = clean.

    Returns:
        eps, (B, ...).
    """
    return x_t + (1 - _lift(t, x_t)) * v


def velocity_from_clean(x_t: Tensor, x_0: Tensor, t: float | Tensor) -> Tensor:
    """Velocity that belongs to a prediction of the data.

    v = (x_t - x_0) / t

    Args:
        x_t: state, float, (B, ...).
        x_0: predicted data, float, (B, ...).
        t: time in (0, 1]; at 0 the data say nothing about the velocity.

    Returns:
        v, (B, ...).
    """
    return (x_t - x_0) / _lift(t, x_t)


def velocity_from_noise(x_t: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
    """Velocity that belongs to a prediction of the noise.

    v = (eps - x_t) / (1 - t)

    Args:
        x_t: state, float, (B, ...).
        eps: predicted noise, float, (B, ...).
        t: time in [0, 1); at 1 the noise says nothing about the velocity.

    Returns:
        v, (B, ...).
    """
    return (eps - x_t) / (1 - _lift(t, x_t))


def score(x_t: Tensor, v: Tensor, t: float | Tensor) -> Tensor:
    """Gradient of the log-density of the states that belongs to a velocity.

    grad log p_t(x_t) = -eps / t = -(x_t + (1 - t) v) / t

    Args:
        x_t: state, float, (B, ...).
        v: velocity, float, (B, ...).
        t: time in (0, 1].

    Returns:
        The score, (B, ...).
    """
    return -noise(x_t, v, t) / _lift(t, x_t)


def timestep(t: Time) -> Time:
    """What networks of the house, of SD3 and of FLUX get as their time: 1000 t.

    Args:
        t: time in [0, 1], 0 = clean.

    Returns:
        A number in [0, 1000], of the type of ``t``.
    """
    return 1000 * t


def release_timestep(t: Time) -> Time:
    """What the DiT of the ViTok-v2 release gets as its time; inverse of ``time_from_release``.

    k = 1000 t / 0.999 - 1

    Args:
        t: time in [0, 1], 0 = clean.

    Returns:
        The step k, in {0, ..., 999} for the times that the release trains on, of the type of ``t``.

    Source: arXiv:2605.05331, published training script.
    """
    return 1000 * t / 0.999 - 1


def time_from_release(step: Time) -> Time:
    """Time of a training step of the ViTok-v2 release.

    t = 0.999 (k + 1) / 1000

    Args:
        step: k in {0, ..., 999}, 0 = nearly clean.

    Returns:
        t in [0.000999, 0.999], of the type of ``step``.

    Source: arXiv:2605.05331, published training script.
    """
    return 0.999 * (step + 1) / 1000


def reversed_time(t: Time) -> Time:
    """Time of SiT, LightningDiT and the flow-matching library, where 0 is noise and 1 is data; its own inverse.

    t' = 1 - t

    Args:
        t: time in either convention.

    Returns:
        Time in the other one.

    Source: arXiv:2401.08740 section 2.
    """
    return 1 - t


def reversed_shift(shift: float) -> float:
    """The shift of ``schedules.shifted`` that does in one convention what s does in the other; its own inverse.

    1 - shifted(1 - t, s) = shifted(t, 1 / s)

    Args:
        shift: s in either convention, positive; below 1 in reversed time = above 1 here = more noise.

    Returns:
        The shift in the other one.

    Raises:
        ValueError: ``shift`` is not positive.

    Source: arXiv:2605.07915, published code, whose 0.7 (training) and 0.4 (sampling) act on reversed time.
    """
    if shift <= 0:
        raise ValueError(f"a time shift must be positive, got {shift}")
    return 1 / shift


def reversed_velocity(v: Tensor) -> Tensor:
    """Velocity of the same path walked in reversed time; its own inverse. States are the same in both conventions.

    v' = dx/dt' = x_0 - eps = -v

    Args:
        v: velocity in either convention, (B, ...).

    Returns:
        Velocity in the other one.

    Source: arXiv:2401.08740 section 2.
    """
    return -v


def time_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Time with the signal-to-noise ratio of a variance-preserving (DDPM) state.

    t = sqrt(1 - a) / (sqrt(a) + sqrt(1 - a)),  a = alpha-bar

    Args:
        alpha_bar: cumulative signal power in [0, 1], 1 = clean, any shape.

    Returns:
        t in [0, 1], same shape.
    """
    signal, disorder = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return disorder / (signal + disorder)


def alpha_bar_from_time(t: Tensor) -> Tensor:
    """Inverse of ``time_from_alpha_bar``.

    a = (1 - t)^2 / ((1 - t)^2 + t^2)

    Args:
        t: time in [0, 1], 0 = clean, any shape.

    Returns:
        alpha-bar in [0, 1], same shape.
    """
    return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)


def flow_from_vp(x: Tensor, alpha_bar: Tensor) -> Tensor:
    """State of the straight path that carries the same data and noise as a DDPM state.

    x_t = x / (sqrt(a) + sqrt(1 - a))  where  x = sqrt(a) x_0 + sqrt(1 - a) eps

    Args:
        x: variance-preserving state, float, (B, ...).
        alpha_bar: a of the rows, (B,) or a scalar tensor.

    Returns:
        x_t at t = ``time_from_alpha_bar(alpha_bar)``, (B, ...).
    """
    a = _raise(alpha_bar, x)
    return x / (a.sqrt() + (1 - a).sqrt())


def vp_from_flow(x_t: Tensor, t: Tensor) -> Tensor:
    """Inverse of ``flow_from_vp``.

    x = x_t / sqrt((1 - t)^2 + t^2)

    Args:
        x_t: state of the straight path, float, (B, ...).
        t: time in [0, 1] of the rows, (B,) or a scalar tensor.

    Returns:
        Variance-preserving state at a = ``alpha_bar_from_time(t)``, (B, ...).
    """
    t = _raise(t, x_t)
    return x_t / ((1 - t) ** 2 + t**2).sqrt()


def velocity_from_vp_noise(x: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Velocity of the straight path that belongs to the noise prediction of a DDPM network.

    v = eps - x_0,  x_0 = (x - sqrt(1 - a) eps) / sqrt(a)

    Args:
        x: variance-preserving state, float, (B, ...).
        eps: predicted noise, float, (B, ...).
        alpha_bar: a in (0, 1] of the rows, (B,) or a scalar tensor.

    Returns:
        v, (B, ...).
    """
    a = _raise(alpha_bar, x)
    return velocity((x - (1 - a).sqrt() * eps) / a.sqrt(), eps)


def velocity_from_vp_velocity(x: Tensor, v: Tensor, alpha_bar: Tensor) -> Tensor:
    """Velocity of the straight path that belongs to the v-prediction of a DDPM network.

    v_ddpm = sqrt(a) eps - sqrt(1 - a) x_0;  x_0 = sqrt(a) x - sqrt(1 - a) v_ddpm,  eps = sqrt(1 - a) x + sqrt(a) v_ddpm

    Args:
        x: variance-preserving state, float, (B, ...).
        v: v-prediction, float, (B, ...).
        alpha_bar: a in [0, 1] of the rows, (B,) or a scalar tensor.

    Returns:
        eps - x_0, (B, ...).

    Source: arXiv:2202.00512 section 4.
    """
    a = _raise(alpha_bar, x)
    signal, disorder = a.sqrt(), (1 - a).sqrt()
    return velocity(signal * x - disorder * v, disorder * x + signal * v)


def time_from_sigma(sigma: Tensor) -> Tensor:
    """Time of a variance-exploding state x = x_0 + sigma eps, which is (1 + sigma) times that of the straight path.

    t = sigma / (1 + sigma)

    Args:
        sigma: noise level, >= 0, 0 = clean, any shape; infinity is pure noise.

    Returns:
        t in [0, 1], same shape.

    Source: arXiv:2206.00364, whose sigma is sqrt((1 - a) / a) of a DDPM state.
    """
    return 1 - 1 / (1 + sigma)


def discrete_step(t: Tensor, alpha_bars: Tensor) -> Tensor:
    """The number of a DDPM training step with the noise of a time, what U-Nets get as their time.

    k + (t - t_k) / (t_{k+1} - t_k) for t_k <= t <= t_{k+1},  t_k = ``time_from_alpha_bar(alpha_bars[k])``

    Args:
        t: time in [0, 1], 0 = clean, any shape; times outside the table count as its ends.
        alpha_bars: cumulative signal power of the K training steps, falling, (K,), on the device of ``t``.

    Returns:
        Step in [0, K - 1], shape of ``t``, dtype of ``alpha_bars``; whole numbers at the table's own times.
    """
    table = time_from_alpha_bar(alpha_bars)
    t = t.to(table.dtype).clamp(table[0], table[-1])
    above = torch.searchsorted(table, t.contiguous()).clamp(1, len(table) - 1)
    start, end = table[above - 1], table[above]
    return above - 1 + (t - start) / (end - start)


def _lift(t: float | Tensor, x: Tensor) -> float | Tensor:
    return _raise(t, x) if isinstance(t, Tensor) else t


def _raise(t: Tensor, x: Tensor) -> Tensor:
    """Give a time trailing axes until it lies over the states, so that (B,) never meets the last axis by accident."""
    if t.shape != x.shape[: t.ndim]:
        raise ValueError(f"times of shape {tuple(t.shape)} do not lead states of shape {tuple(x.shape)}")
    # Times keep at least single precision beside 16-bit states, and never widen single-precision ones.
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)).to(torch.promote_types(x.dtype, torch.float32))
