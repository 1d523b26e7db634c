"""Stochastic sampling: the reverse-time diffusion with the marginals of the straight path, solved by Euler-Maruyama.

t = 0 is clean, t = 1 is noise; the published codes (SiT, LightningDiT, PAE) write the same in reversed time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from lightning_gen.flow import paths
from lightning_gen.flow.schedules import linear_grid, shifted
from lightning_gen.flow.solvers import Callback, Velocity, falling, report_step

__all__ = ["Endpoint", "StepNoise", "euler_maruyama", "sbdm_diffusion", "sde_grid"]

StepNoise = Callable[[int], Tensor]
"""Number of a step, from 0, to standard normal numbers of the shape of the state; a function of the number alone."""

Endpoint = Literal["exact", "official"]
"""Where the grid ends: where the last step begins, or where the published code ends it."""


def sbdm_diffusion(t: float) -> float:
    """How much noise is added per time: the coefficient with which the drift becomes linear in the state.

    g(t) = t / (1 - t)

    Args:
        t: time in [0, 1), 0 = clean.

    Returns:
        g; the state gets sqrt(2 g h) of noise in a step of length h.

    Source: arXiv:2401.08740 table 1 (SBDM coefficient, sigma d(sigma) - sigma^2 d(alpha) / alpha, halved there);
    arXiv:2605.07915, published sampler: (1 - t') / t' in reversed time.
    """
    return t / (1 - t)


def euler_maruyama(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    callback: Callback | None = None,
    *,
    noise: StepNoise,
    last_clock: float | None = None,
) -> Tensor:
    """First order in distribution; n evaluations in n steps, the last one of the mean alone.

    x <- x - h v + g(t) h score + sqrt(2 g(t) h) n,   h = t - t',  score = -(x + (1 - t) v) / t

    Any g gives the marginals of the path. At t = 1, where g has no bound, the step is taken with g = 0.

    Args:
        velocity: v(x, t).
        x: state at ``times[0]``, float, any shape.
        times: falling times in [0, 1], (n + 1,).
        callback: called once per step.
        noise: n of every step but the last.
        last_clock: time that the last step believes it is, and also its length; None = those of the grid.

    Returns:
        State at ``times[-1]``.

    Raises:
        ValueError: the times do not fall from at most 1 to at least 0.

    Source: arXiv:2401.08740 eq. 5 and section 2.4; arXiv:2605.07915, published sampler (last step "Mean").
    deviates: [inferred] the published code starts where g is infinite, what it does there is not known; g = 0 has the
    same marginals.
    """
    grid = falling(times)
    last = len(grid) - 2
    for index, (now, after) in enumerate(pairwise(grid)):
        length = now - after
        if index == last and last_clock is not None:
            now = length = last_clock
        v = velocity(x, now).to(x.dtype)
        report_step(callback, index, now, x, v)
        diffusion = sbdm_diffusion(now) if now < 1 else 0.0
        x = x + length * (diffusion * paths.score(x, v, now) - v)
        if index < last:
            x = x + math.sqrt(2 * diffusion * length) * noise(index).to(x.dtype)
    return x


def sde_grid(
    steps: int, shift: float = 1.0, start: float = 1.0, last_step: float = 0.004, endpoint: Endpoint = "exact"
) -> Tensor:
    """Times for ``euler_maruyama``: n - 1 shifted steps down to the last one, which ends at 0.

    exact:    shifted(linspace(start, e)), 0   with e chosen so that shifted(e) = last_step
    official: shifted(linspace(start, last_step)), 0

    The published code shifts the end point along with the others: its grid ends at 0.0099 for a shift of 0.4 (in
    reversed time) although its last step starts its clock at 0.004. With ``official`` give the solver
    ``last_clock=last_step`` too.

    Args:
        steps: number of steps n, the last one included, at least 2.
        shift: of :func:`~lightning_gen.flow.schedules.shifted`.
        start: first time before it is shifted.
        last_step: length of the last step.
        endpoint: which of the two.

    Returns:
        float64, (n + 1,), on the CPU.

    Raises:
        ValueError: fewer than two steps, an unknown end point, or a last step that is not between 0 and the start.

    Source: arXiv:2605.07915, published sampler.
    """
    if steps < 2:
        raise ValueError(f"stochastic sampling needs at least 2 steps, got {steps}")
    if endpoint not in ("exact", "official"):
        raise ValueError(f"sde_endpoint is exact or official, got {endpoint!r}")
    if not 0 < last_step < start:
        raise ValueError(f"the last step must lie between 0 and the first time {start}, got {last_step}")
    end = torch.tensor(last_step, dtype=torch.float64, device="cpu")
    before = end if endpoint == "official" else shifted(end, 1 / shift)
    return torch.cat([shifted(linear_grid(steps - 1, start, float(before)), shift), end.new_zeros(1)])
