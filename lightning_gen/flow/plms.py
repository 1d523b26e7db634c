"""The solver that Stable Diffusion was published with, for grids that begin below t = 1 (t = 0 clean, t = 1 noise)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from lightning_gen.flow import paths
from lightning_gen.flow.solvers import Callback, Velocity, falling, report_step

__all__ = ["plms"]

_WEIGHTS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(velocity: Velocity, x: Tensor, times: Tensor, callback: Callback | None = None) -> Tensor:
    """Pseudo linear multistep (PNDM without its Runge-Kutta start): up to fourth order on predicted noise.

    A step from t to t' with the predicted noise e = x + (1 - t) v, e_1, e_2, e_3 those of the steps before:

        d = (55 e - 59 e_1 + 37 e_2 - 9 e_3) / 24 (of lower order while fewer are known),  m = (x - t d) / (1 - t)
        x' = (1 - t') m + t' d

    The first step is taken twice, the second time with the mean of the noise at both of its ends: n + 1 evaluations in
    n steps, n when there is only a step to t = 0.

    Args:
        velocity: v(x, t).
        x: state at ``times[0]``, float, any shape.
        times: falling times in [0, 1), (n + 1,).
        callback: called once per step.

    Returns:
        State at ``times[-1]``.

    Raises:
        ValueError: the times do not fall from below 1 to at least 0.

    Source: arXiv:2202.09778 eqs. 9 and 12, on this path; the start of Stable Diffusion's published sampler.
    """
    grid = falling(times)
    if grid[0] == 1:
        raise ValueError("plms averages predicted noise, which says nothing about the data at t = 1: begin below 1")
    known: list[Tensor] = []
    for index, (now, after) in enumerate(pairwise(grid)):
        v = velocity(x, now).to(x.dtype)
        report_step(callback, index, now, x, v)
        known = [paths.noise(x, v, now), *known[:3]]
        if index == 0 and after > 0:
            ahead = _moved(x, known[0], now, after)
            end = paths.noise(ahead, velocity(ahead, after).to(x.dtype), after)
            x = _moved(x, 0.5 * (known[0] + end), now, after)
        else:
            weights = _WEIGHTS[len(known) - 1]
            x = _moved(x, sum((w * e for w, e in zip(weights, known, strict=True)), start=0 * x), now, after)
    return x


def _moved(x: Tensor, eps: Tensor, now: float, after: float) -> Tensor:
    return x + (after - now) * paths.velocity_from_noise(x, eps, now)
