"""What the generators of this room share in training: what the network predicts, at which times, and how it samples.

t = 0 is clean, t = 1 is noise. Shape letters: B rows, L tokens, C channels, I images.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_gen.flow.guidance import Guidance
from lightning_gen.flow.schedules import linear_grid, logit_normal_times, shifted, uniform_times
from lightning_gen.flow.sde import Endpoint, StepNoise, euler_maruyama, sde_grid
from lightning_gen.flow.solvers import SOLVERS, Solver
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.randomness import normal, uniform

__all__ = ["Building", "Learning", "Prediction", "Sampling", "TimeSampling", "as_velocity"]

_STOCHASTIC = "euler_maruyama"

Prediction = Literal["velocity", "clean", "preconditioned"]
"""What the network's numbers mean: eps - x_0, x_0, or what is left of x_0 after a linear guess, in unit variance."""
_DATA_STD = 0.5


def as_velocity(output: Tensor, x_t: Tensor, time: Tensor, prediction: Prediction, least: float = 0.05) -> Tensor:
    """The velocity that the network's output stands for.

    velocity: v = output;   clean: v = (x_t - output) / max(t, least)
    preconditioned: v = ((t - (1 - t) s^2) x_t / d - s output) / d,  d^2 = (1 - t)^2 s^2 + t^2,  s = 0.5

    The last is the best linear guess of v for data of variance s^2, and the network's share of it: its target has unit
    variance at every time, so that it says what is clean near noise and what is noise near the clean picture.

    Args:
        output: of the network, (B, L, C).
        x_t: its input, (B, L, C).
        time: t of every token, (B, L).
        prediction: what the output means.
        least: smallest divisor; below it the loss would see hardly anything but rounding.

    Returns:
        v, (B, L, C), float32 or better.

    Source: clean data predicted under the velocity's loss: arXiv:2511.13720; preconditioned: arXiv:2206.00364 eq. 7 and
        table 1. deviates: for the straight path.
    """
    exact = output.to(torch.promote_types(output.dtype, torch.float32))
    if prediction == "velocity":
        return exact
    t = time[..., None]
    if prediction == "clean":
        return (x_t - exact) / t.clamp(min=least)
    deviation = ((1 - t).square() * _DATA_STD**2 + t.square()).sqrt()
    return ((t - (1 - t) * _DATA_STD**2) / deviation * x_t - _DATA_STD * exact) / deviation


@dataclasses.dataclass(frozen=True)
class TimeSampling:
    """At which times the network is trained.

    Attributes:
        kind: ``logit_normal`` favours the middle, ``uniform`` does not.
        mean: of logit(t), for ``logit_normal``.
        std: of logit(t), for ``logit_normal``.
        shift: moves all times towards noise, see ``flow.schedules.shifted``; 1 = not at all.

    Raises:
        ValueError: an unknown kind, or a std or a shift that is not positive.
    """

    kind: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("logit_normal", "uniform"):
            raise ValueError(f"times are logit_normal or uniform, got {self.kind!r}")
        if self.std <= 0 or self.shift <= 0:
            raise ValueError(f"std and shift of the times must be positive, got {self.std} and {self.shift}")

    def draw(self, seed: int, purpose: str, epoch: int, index: Tensor) -> Tensor:
        """One time per image, a function of (seed, purpose, epoch, index).

        Args:
            seed: the run's seed.
            purpose: what for.
            epoch: number of the pass.
            index: global sample indices, int64, (I,).

        Returns:
            float32, (I,), in (0, 1).
        """
        if self.kind == "uniform":
            times = uniform_times(uniform(seed, purpose, epoch, index, ()).double())
        else:
            times = logit_normal_times(normal(seed, purpose, epoch, index, ()).double(), self.mean, self.std)
        # Rounded once at the end: vectorised float32 functions depend on the place in the batch to the last bit.
        return shifted(times, self.shift).float()


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How pictures are made.

    Attributes:
        steps: of the solver.
        solver: ``euler``, ``heun``, ``dpm_solver``, ``unipc``, or ``euler_maruyama``, which adds noise at every step.
        shift: moves the times towards noise.
        start: first time; 1 = pure noise.
        guidance: scale of classifier-free guidance, 1 = none.
        guidance_low: guidance acts from this time on.
        guidance_high: guidance acts up to this time.
        rescale: see ``Guidance``.
        last_step: length of the last step of ``euler_maruyama``.
        sde_endpoint: where its grid ends, see ``flow.sde.sde_grid``.

    Raises:
        ValueError: no step, an unknown solver, or times or guidance that make no sense.
    """

    steps: int = 50
    solver: str = "unipc"
    shift: float = 1.0
    guidance: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    rescale: float = 0.0
    start: float = 0.999
    last_step: float = 0.004
    sde_endpoint: Endpoint = "exact"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.shift <= 0:
            raise ValueError(f"sampling needs at least one step and a positive shift, got {self.steps}, {self.shift}")
        if self.solver not in SOLVERS and self.solver != _STOCHASTIC:
            raise ValueError(f"unknown solver {self.solver!r}: choose one of {', '.join(SOLVERS)}, {_STOCHASTIC}")
        self.times()
        self.strength()

    def times(self) -> Tensor:
        """The grid, float64, (steps + 1,), from ``start`` to 0."""
        if self.solver == _STOCHASTIC:
            return sde_grid(self.steps, self.shift, self.start, self.last_step, self.sde_endpoint)
        return shifted(linear_grid(self.steps, self.start), self.shift)

    def strength(self) -> Guidance:
        """The guidance."""
        return Guidance(self.guidance, self.guidance_low, self.guidance_high, self.rescale)

    def solve(self, noise: StepNoise) -> Solver:
        """The solver.

        Args:
            noise: what a stochastic one adds at every step; the others do not ask for it.

        Returns:
            A solver for :meth:`times`.
        """
        if self.solver == _STOCHASTIC:
            last_clock = self.last_step if self.sde_endpoint == "official" else None
            stochastic: Solver = functools.partial(euler_maruyama, noise=noise, last_clock=last_clock)
            return stochastic
        return SOLVERS[self.solver]


@dataclasses.dataclass(frozen=True)
class Learning:
    """What a generator learns, and how; arguments of the modules of the same names.

    Attributes:
        prediction: what the network's output means.
        times: at which times it is trained.
        drop_rate: share of the images that are trained without their condition, for guidance.
        optimizer: AdamW with its hyper-parameters.
        schedule: warm-up and cosine.
        direction_weight: of ``objective.direction_loss``, >= 0.

    Raises:
        ValueError: a drop rate outside [0, 1], an unknown prediction, or a negative weight.
    """

    prediction: Prediction
    times: TimeSampling
    drop_rate: float
    optimizer: AdamW
    schedule: WarmupCosine
    direction_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.direction_weight < 0:
            raise ValueError(f"direction_weight cannot be negative, got {self.direction_weight}")
        if not 0 <= self.drop_rate <= 1:
            raise ValueError(f"drop_rate is a share in [0, 1], got {self.drop_rate}")
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"prediction is one of {', '.join(get_args(Prediction))}, got {self.prediction!r}")


@dataclasses.dataclass(frozen=True)
class Building:
    """How a network is made ready; arguments of the modules of the same names.

    Attributes:
        activation_checkpointing: recompute blocks in the backward pass.
        compile_blocks: torch.compile every block.
        seed: seed of the initial weights and of every keyed draw.
    """

    activation_checkpointing: bool
    compile_blocks: bool
    seed: int
