"""Stochastic sampling steps with their densities: what a policy does when it denoises. t = 0 is clean, t = 1 is noise.

A step from t to t' < t draws the next state from a Gaussian, next = mean + deviation z. Reinforcement learning takes
the state as the observation, the next state as the action, and needs the density of an action that was taken.

Averages over everything but the first axis stand in place of sums throughout: a log-probability here is that of a state
per number in it.

Shape letters: B pictures.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_gen.flow import paths

__all__ = [
    "DivergenceForm",
    "Kind",
    "Stochasticity",
    "Transition",
    "cps_log_prob",
    "cps_transition",
    "gaussian_divergence",
    "gaussian_log_prob",
    "sde_transition",
]

Kind = Literal["sde", "cps"]

DivergenceForm = Literal["published", "exact"]
"""Which of two factors a divergence between transitions has, see :func:`gaussian_divergence`."""


class Transition(NamedTuple):
    """The Gaussian from which the next state is drawn.

    Attributes:
        mean: float32 or float64, (B, ...).
        deviation: of the noise that is added, >= 0; 0 = the step is deterministic.
        rate: deviation per square root of time; the deviation itself where time plays no part.
    """

    mean: Tensor
    deviation: float
    rate: float

    def sample(self, noise: Tensor) -> Tensor:
        """Draw the next state.

        Args:
            noise: z, standard normal, (B, ...).

        Returns:
            mean + deviation z.
        """
        return self.mean + self.deviation * noise.to(self.mean.dtype) if self.deviation > 0 else self.mean


def sde_transition(x: Tensor, v: Tensor, t: float, after: float, noise_level: float, first: float) -> Transition:
    """A step of the reverse-time diffusion with the marginals of the straight path.

    s = a sqrt(t / (1 - t)), and with t = 1 in the denominator replaced by the grid's second time
    mean = x (1 + s^2 / (2 t) d) + v (1 + s^2 (1 - t) / (2 t)) d,  d = t' - t < 0;  deviation = s sqrt(-d)

    Args:
        x: state, float, (B, ...); computed in float32 at least, since half precision overflows.
        v: velocity there, same shape.
        t: time in (0, 1].
        after: t', smaller.
        noise_level: a >= 0; 0 = the Euler step of the ODE, bit for bit.
        first: second time of the grid, which stands in where t = 1.

    Returns:
        The transition.

    Source: arXiv:2505.05470 (ODE to SDE), its published sampler.
    """
    x, v = _exact(x), _exact(v)
    step = after - t
    rate = noise_level * math.sqrt(t / (1 - (first if t == 1 else t)))
    mean = x * (1 + rate**2 / (2 * t) * step) + v * ((1 + rate**2 * (1 - t) / (2 * t)) * step)
    return Transition(mean, rate * math.sqrt(-step), rate)


def cps_transition(x: Tensor, v: Tensor, t: float, after: float, noise_level: float) -> Transition:
    """A step that keeps the coefficients of picture and noise (coefficient preserving sampling).

    deviation = t' sin(a pi / 2);  mean = (1 - t') x_0 + sqrt(t'^2 - deviation^2) eps
    with the predicted picture x_0 = x - t v and the predicted noise eps = x + (1 - t) v

    Args:
        x: state, float, (B, ...).
        v: velocity there, same shape.
        t: time in (0, 1].
        after: t', smaller; at 0 the step is deterministic.
        noise_level: a in [0, 1]; 0 = the ODE, 1 = new noise in every step.

    Returns:
        The transition.

    Source: the later published sampler of arXiv:2505.05470.
    """
    x, v = _exact(x), _exact(v)
    deviation = after * math.sin(noise_level * math.pi / 2)
    kept = math.sqrt(max(after**2 - deviation**2, 0.0))
    return Transition((1 - after) * paths.clean(x, v, t) + kept * paths.noise(x, v, t), deviation, deviation)


def gaussian_log_prob(action: Tensor, transition: Transition) -> Tensor:
    """Log-density of a next state, per number in it.

    mean over the numbers of  -(next - mean)^2 / (2 deviation^2) - ln deviation - ln sqrt(2 pi)

    Args:
        action: the next state that was drawn, (B, ...); no gradient flows into it.
        transition: as the policy has it now.

    Returns:
        (B,); NaN for a deterministic step, which has no density.

    Source: arXiv:2505.05470, published sampler.
    """
    if transition.deviation == 0:
        return transition.mean.new_full(action.shape[:1], math.nan)
    error = (_exact(action).detach() - transition.mean).square() / (2 * transition.deviation**2)
    return -_mean(error) - math.log(transition.deviation) - 0.5 * math.log(2 * math.pi)


def cps_log_prob(action: Tensor, transition: Transition) -> Tensor:
    """What coefficient preserving sampling takes for a log-probability: all constants and the scale are left out.

    -mean over the numbers of (next - mean)^2

    Args:
        action: the next state that was drawn, (B, ...); no gradient flows into it.
        transition: as the policy has it now.

    Returns:
        (B,).

    Source: the later published sampler of arXiv:2505.05470.
    """
    return -_mean((_exact(action).detach() - transition.mean).square())


def gaussian_divergence(transition: Transition, reference: Transition, form: DivergenceForm = "published") -> Tensor:
    """Kullback-Leibler divergence between two transitions of one deviation, per number.

    published: mean over the numbers of (mean - mean_ref)^2 / (2 rate^2);  exact: / (2 deviation^2)

    The published form is the exact one times the length of the step; its weight in the loss is tuned to that.

    Args:
        transition: of the policy.
        reference: of another one, at the same state and times.
        form: which of the two.

    Returns:
        (B,), >= 0.

    Raises:
        ValueError: the transitions have different deviations, so that they are not of the same step, or none at all.
    """
    if transition.deviation != reference.deviation:
        raise ValueError(
            f"transitions of deviation {transition.deviation:g} and {reference.deviation:g} are not of the same step"
        )
    if transition.deviation == 0:
        raise ValueError("a deterministic step has no divergence: take those of the stochastic steps alone")
    spread = transition.rate if form == "published" else transition.deviation
    return _mean((transition.mean - reference.mean).square()) / (2 * spread**2)


@dataclasses.dataclass(frozen=True)
class Stochasticity:
    """How noise enters sampling.

    Attributes:
        kind: ``sde`` (:func:`sde_transition`) or ``cps`` (:func:`cps_transition`).
        noise_level: a; in [0, 1] for ``cps``. Several = one for every step of the grid, so that for instance the late
            steps of a short grid, whose noise stays in the picture, can be quieter.

    Raises:
        ValueError: an unknown kind, or a level that makes no sense.
    """

    kind: Kind = "sde"
    noise_level: float | tuple[float, ...] = 0.7

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"noise enters as one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        levels = self.noise_level if isinstance(self.noise_level, tuple) else (self.noise_level,)
        if not levels or min(levels) < 0 or (self.kind == "cps" and max(levels) > 1):
            raise ValueError(f"noise_level must be at least 0, and at most 1 for cps, got {self.noise_level}")

    def level(self, step: int, steps: int) -> float:
        """Noise level of a step.

        Args:
            step: its number, from 0.
            steps: of the grid.

        Returns:
            a.

        Raises:
            ValueError: there are levels for a grid of another length.
        """
        if not isinstance(self.noise_level, tuple):
            return self.noise_level
        if len(self.noise_level) != steps:
            raise ValueError(f"noise_level has {len(self.noise_level)} numbers for a grid of {steps} steps")
        return self.noise_level[step]

    def transition(self, x: Tensor, v: Tensor, times: Tensor, step: int, stochastic: bool = True) -> Transition:
        """The transition of a step on a grid.

        Args:
            x: state, (B, ...).
            v: velocity there.
            times: the falling grid, (n + 1,).
            step: its number, from 0.
            stochastic: False = the step of the ODE.

        Returns:
            The transition.
        """
        t, after = float(times[step]), float(times[step + 1])
        level = self.level(step, len(times) - 1) if stochastic else 0.0
        if self.kind == "cps":
            return cps_transition(x, v, t, after, level)
        return sde_transition(x, v, t, after, level, float(times[1]))

    def log_prob(self, action: Tensor, transition: Transition) -> Tensor:
        """What the policy gradient takes for the log-probability of an action.

        Args:
            action: next state, (B, ...).
            transition: as the policy has it now.

        Returns:
            (B,).
        """
        return (cps_log_prob if self.kind == "cps" else gaussian_log_prob)(action, transition)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)
