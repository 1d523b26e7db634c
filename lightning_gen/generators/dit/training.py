"""What the generators of this room share in training: what the network predicts, at which times, and how it samples.

t = 0 is clean, t = 1 is noise. Shape letters: B rows, L tokens, C channels, I images.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from lightning_gen.flow.guidance import Guidance
from lightning_gen.flow.schedules import linear_grid, logit_normal_times, shifted, uniform_times
from lightning_gen.flow.solvers import SOLVERS, Solver
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.randomness import normal, uniform

__all__ = ["Building", "Learning", "Prediction", "Sampling", "TimeSampling", "as_velocity"]

Prediction = Literal["velocity", "clean"]
"""What the network's numbers mean: eps - x_0, or x_0."""


def as_velocity(output: Tensor, x_t: Tensor, time: Tensor, prediction: Prediction, least: float = 0.05) -> Tensor:
    """The velocity that the network's output stands for.

    velocity: v = output;   clean: v = (x_t - output) / max(t, least)

    Args:
        output: of the network, (B, L, C).
        x_t: its input, (B, L, C).
        time: t of every token, (B, L).
        prediction: what the output means.
        least: smallest divisor; below it the loss would see hardly anything but rounding.

    Returns:
        v, (B, L, C), float32 or better.

    Source: clean data predicted under the velocity's loss: arXiv:2511.13720.
    """
    exact = output.to(torch.promote_types(output.dtype, torch.float32))
    if prediction == "velocity":
        return exact
    return (x_t - exact) / time.clamp(min=least)[..., None]


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
        solver: ``euler``, ``heun``, ``dpm_solver`` or ``unipc``.
        shift: moves the times towards noise.
        guidance: scale of classifier-free guidance, 1 = none.
        guidance_low: guidance acts from this time on.
        guidance_high: guidance acts up to this time.
        rescale: see ``Guidance``.

    Raises:
        ValueError: no step, an unknown solver, or guidance that makes no sense.
    """

    steps: int = 50
    solver: str = "unipc"
    shift: float = 1.0
    guidance: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.shift <= 0:
            raise ValueError(f"sampling needs at least one step and a positive shift, got {self.steps}, {self.shift}")
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}: choose one of {', '.join(SOLVERS)}")
        self.strength()

    def times(self) -> Tensor:
        """The grid, float64, (steps + 1,), from 0.999 to 0."""
        return shifted(linear_grid(self.steps), self.shift)

    def strength(self) -> Guidance:
        """The guidance."""
        return Guidance(self.guidance, self.guidance_low, self.guidance_high, self.rescale)

    def solve(self) -> Solver:
        """The solver."""
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

    Raises:
        ValueError: a drop rate outside [0, 1], or an unknown prediction.
    """

    prediction: Prediction
    times: TimeSampling
    drop_rate: float
    optimizer: AdamW
    schedule: WarmupCosine

    def __post_init__(self) -> None:
        if not 0 <= self.drop_rate <= 1:
            raise ValueError(f"drop_rate is a share in [0, 1], got {self.drop_rate}")
        if self.prediction not in ("velocity", "clean"):
            raise ValueError(f"prediction is velocity or clean, got {self.prediction!r}")


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
