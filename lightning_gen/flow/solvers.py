"""Solvers of dx/dt = v(x, t) from noise (t near 1) to clean (t = 0), one pure function each.

All have the signature of a k-diffusion sampler: ``solver(velocity, x, times, callback)``. The velocity gets a state and
a plain number, so that guidance can look at the time without waiting for a device. Coefficients are computed in double
precision on the host, states keep the dtype that they come in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple, Protocol

from torch import Tensor

from lightning_gen.flow import paths

__all__ = [
    "SOLVERS",
    "Callback",
    "Solver",
    "Step",
    "Velocity",
    "dpm_solver",
    "euler",
    "falling",
    "heun",
    "report_step",
    "unipc",
]

Velocity = Callable[[Tensor, float], Tensor]
"""v(x, t): state of any shape and time in [0, 1] to the velocity eps - x_0 of the same shape."""


class Step(NamedTuple):
    """What a callback sees once per step, before the step is taken.

    Attributes:
        number: of the step, from 0.
        time: t, 1 = noise, 0 = clean.
        x: state at which the velocity was evaluated.
        clean: x - t v, the picture that the state is heading for.
    """

    number: int
    time: float
    x: Tensor
    clean: Tensor


Callback = Callable[[Step], None]


class Solver(Protocol):
    """A function that walks a state along a grid of times."""

    def __call__(self, velocity: Velocity, x: Tensor, times: Tensor, callback: Callback | None = None) -> Tensor:
        """Solve.

        Args:
            velocity: v(x, t).
            x: state at ``times[0]``, float, any shape.
            times: falling times in [0, 1], (n + 1,).
            callback: called once per step.

        Returns:
            State at ``times[-1]``.
        """
        ...


def euler(velocity: Velocity, x: Tensor, times: Tensor, callback: Callback | None = None) -> Tensor:
    """First order; n evaluations in n steps.

    x <- x + (t' - t) v(x, t)

    Args:
        velocity: v(x, t).
        x: state at ``times[0]``, float, any shape.
        times: falling times in [0, 1], (n + 1,).
        callback: called once per step.

    Returns:
        State at ``times[-1]``.

    Raises:
        ValueError: the times do not fall from at most 1 to at least 0.
    """
    for index, (now, after) in enumerate(pairwise(falling(times))):
        v = velocity(x, now).to(x.dtype)
        report_step(callback, index, now, x, v)
        x = x + (after - now) * v
    return x


def heun(velocity: Velocity, x: Tensor, times: Tensor, callback: Callback | None = None) -> Tensor:
    """Second order; 2n evaluations in n steps, one less when the grid ends at 0.

    y = x + (t' - t) v(x, t);  x <- x + (t' - t) (v(x, t) + v(y, t')) / 2

    A step that ends at t = 0 is an Euler step: networks are not trained there, and one step's error of second order
    does not lower the order of the whole.

    Args:
        velocity: v(x, t).
        x: state at ``times[0]``, float, any shape.
        times: falling times in [0, 1], (n + 1,).
        callback: called once per step.

    Returns:
        State at ``times[-1]``.

    Raises:
        ValueError: the times do not fall from at most 1 to at least 0.

    Source: arXiv:2206.00364 algorithm 1, on this path.
    """
    for index, (now, after) in enumerate(pairwise(falling(times))):
        v = velocity(x, now).to(x.dtype)
        report_step(callback, index, now, x, v)
        ahead = x + (after - now) * v
        if after == 0:
            return ahead
        x = x + 0.5 * (after - now) * (v + velocity(ahead, after).to(x.dtype))
    return x


def dpm_solver(velocity: Velocity, x: Tensor, times: Tensor, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M): multistep of second order on predicted data; n evaluations in n steps.

    A step from t to t' with l = log((1 - t) / t), h = l' - l, r = h_before / h and the predicted data m = x - t v:

        x' = m + (t' / t) (x - m) + (1 - t' / t) (m - m_before) / (2 r)

    The first step has no m_before and the last one does not use it: both are of first order.

    Args:
        velocity: v(x, t).
        x: state at ``times[0]``, float, any shape.
        times: falling times in [0, 1], (n + 1,).
        callback: called once per step.

    Returns:
        State at ``times[-1]``.

    Raises:
        ValueError: the times do not fall from at most 1 to at least 0.

    Source: arXiv:2211.01095 algorithm 2, on this path.
    """
    spans = [_Span(start, end) for start, end in pairwise(falling(times))]
    m_before = None
    for index, span in enumerate(spans):
        v = velocity(x, span.now).to(x.dtype)
        report_step(callback, index, span.now, x, v)
        m = paths.clean(x, v, span.now)
        last = index == len(spans) - 1
        x = span.predicted(x, m, spans[index - 1], None if last else m_before)
        m_before = m
    return x


def unipc(velocity: Velocity, x: Tensor, times: Tensor, callback: Callback | None = None) -> Tensor:
    """Multistep predictor-corrector of second order (variant B2, data prediction); n evaluations in n steps.

    A step from t to t' with l = log((1 - t) / t), h = l' - l, g = 1 - exp(-h) and m = x - t v, the data predicted at t:

        base = m + (t' / t) (x - m),  D = (m_before - m) / r,  r = (l_before - l) / h
        predict:  x' = base + (1 - t' / t) D / 2
        correct:  x' = base + (1 - t' / t) (rho_1 D + rho_2 (m' - m)),  m' predicted at the predicted x'
        rho_1 + rho_2 = b_1 = 1/g - 1/h,  r rho_1 + rho_2 = b_2 = 1/g - 2 b_1 / h

    The first step has no m_before: D = 0 and rho_2 = 1/2. The last step is base alone, which at t' = 0 is m. In data
    prediction (1 - t') g = 1 - t' / t, so only the differences D and m' - m know of logarithms.

    Args:
        velocity: v(x, t).
        x: state at ``times[0]``, float, any shape.
        times: falling times in [0, 1], (n + 1,).
        callback: called once per step.

    Returns:
        State at ``times[-1]``.

    Raises:
        ValueError: the times do not fall from at most 1 to at least 0.

    Source: arXiv:2302.04867 algorithms 5 to 8 with B_2(h) = exp(h) - 1; rho of the predictor is 1/2 as in its appendix.
    """
    spans = [_Span(start, end) for start, end in pairwise(falling(times))]
    start, m_before, m = x, None, x
    for index, span in enumerate(spans):
        v = velocity(x, span.now).to(x.dtype)
        report_step(callback, index, span.now, x, v)
        m_new = paths.clean(x, v, span.now)
        if index > 0:
            x = spans[index - 1].corrected(start, m, m_new, spans[index - 2], m_before)
            m_before = m
        start, m = x, m_new
        last = index == len(spans) - 1
        x = span.predicted(start, m, spans[index - 1], None if last else m_before)
    return x


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {"euler": euler, "heun": heun, "dpm_solver": dpm_solver, "unipc": unipc}
)
"""Solvers by the name that a configuration gives them."""


class _Span:
    """A step of ``unipc`` or ``dpm_solver``, its weights; ``before``, ``m_before`` are the step behind and its data."""

    def __init__(self, now: float, after: float) -> None:
        self.now = now
        self.kept = after / now
        self.h = _log_ratio(after) - _log_ratio(now)
        self.growth = (1 - self.kept) / (1 - after)

    def predicted(self, x: Tensor, m: Tensor, before: _Span, m_before: Tensor | None) -> Tensor:
        base = m + self.kept * (x - m)
        if m_before is None:
            return base
        return base + 0.5 * (1 - self.kept) * self._slope(m, before, m_before)

    def corrected(self, x: Tensor, m: Tensor, m_new: Tensor, before: _Span, m_before: Tensor | None) -> Tensor:
        base = m + self.kept * (x - m)
        if m_before is None:
            return base + 0.5 * (1 - self.kept) * (m_new - m)
        b_1 = 1 / self.growth - 1 / self.h
        b_2 = 1 / self.growth - 2 * b_1 / self.h
        rho_1 = (b_1 - b_2) / (1 + before.h / self.h)  # 1 - r
        return base + (1 - self.kept) * (rho_1 * self._slope(m, before, m_before) + (b_1 - rho_1) * (m_new - m))

    def _slope(self, m: Tensor, before: _Span, m_before: Tensor) -> Tensor:
        return (m_before - m) * (-self.h / before.h)  # 1 / r


def _log_ratio(t: float) -> float:
    # Pure noise would be infinitely far from every other time; diffusers moves it by the same amount.
    t = min(t, 1 - 1e-6)
    return math.inf if t == 0 else math.log1p(-t) - math.log(t)


def falling(times: Tensor) -> list[float]:
    """The times of a grid as plain numbers, checked.

    Args:
        times: falling times in [0, 1], 1 = noise, (n + 1,).

    Returns:
        n + 1 numbers.

    Raises:
        ValueError: the times do not fall from at most 1 to at least 0.
    """
    grid: list[float] = times.double().tolist()
    fall = all(start > end for start, end in pairwise(grid))
    if len(grid) < 2 or not fall or grid[0] > 1 or grid[-1] < 0:
        shown = ", ".join(f"{t:g}" for t in grid[:4])
        raise ValueError(
            f"sampling times must fall strictly from at most 1 (noise) to at least 0 (clean) and be two or more; "
            f"got {len(grid)} times: {shown}{', ...' if len(grid) > 4 else ''}"
        )
    return grid


def report_step(callback: Callback | None, index: int, time: float, x: Tensor, v: Tensor) -> None:
    """Show a callback the step that is about to be taken.

    Args:
        callback: None = nobody looks.
        index: number of the step, from 0.
        time: t, 1 = noise, 0 = clean.
        x: state.
        v: its velocity, same shape.
    """
    if callback is not None:
        callback(Step(index, time, x, paths.clean(x, v, time)))
