"""Settings of training on pairs: at which times, with which optimiser, and where gaps come from.

t = 0 is clean, t = 1 is noise. Shape letters: B pairs, K training times of a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_gen.flow.schedules import logit_normal_times, shifted, uniform_times
from lightning_gen.flow.solvers import SOLVERS
from lightning_gen.training.randomness import normal, uniform

__all__ = ["Adafactor", "PairTimes", "SampleSettings", "WarmupConstant"]

TimeKind = Literal["discrete", "uniform", "logit_normal"]


@dataclasses.dataclass(frozen=True)
class PairTimes:
    """At which times pairs are compared; both pictures of a pair at the same.

    Attributes:
        kind: ``discrete`` = one of the K times that the model was trained at, all alike (published for U-Nets);
            ``uniform`` in (0, 1); ``logit_normal``, which favours the middle, as flow models are trained.
        steps: numbers of the discrete times that come; None = all. Published for SDXL Turbo: 249, 499, 749, 999.
        below: only the first so many discrete times, counted from clean; None = all. Published for the SDXL refiner:
            200.
        mean: of logit(t), for ``logit_normal``.
        std: of logit(t), for ``logit_normal``.
        shift: moves ``uniform`` and ``logit_normal`` times towards noise; 1 = not at all.

    Raises:
        ValueError: an unknown kind, numbers for times that are not discrete, or a value outside its range.

    Source: arXiv:2311.12908, published trainer. For flow models nothing was published with the paper.
    """

    kind: TimeKind = "discrete"
    steps: tuple[int, ...] | None = None
    below: int | None = None
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(TimeKind):
            raise ValueError(f"times.kind is one of {', '.join(get_args(TimeKind))}, got {self.kind!r}")
        chosen = self.steps is not None or self.below is not None
        if chosen and self.kind != "discrete" or (self.steps is not None and self.below is not None):
            raise ValueError("times.steps and times.below choose among discrete times; give one of the two")
        if self.steps is not None and (not self.steps or min(self.steps) < 0):
            raise ValueError(f"times.steps are numbers of training times, 0 = nearly clean, got {self.steps}")
        if (self.below is not None and self.below < 1) or self.std <= 0 or self.shift <= 0:
            raise ValueError(f"times.below, std and shift are positive, got {self.below}, {self.std} and {self.shift}")

    def draw(self, seed: int, number: int, index: Tensor, table: Tensor) -> Tensor:
        """One time per pair, a function of (seed, number, index).

        Args:
            seed: the run's seed.
            number: of the draw: the pass, or the row of a cache.
            index: global numbers of the pairs, int64, (B,).
            table: house times of the model's training, rising, (K,).

        Returns:
            Float in the dtype of ``table``, (B,), on the device of ``index``.

        Raises:
            ValueError: a number that the table does not have.
        """
        if self.kind == "discrete":
            kept = self._kept(len(table)).to(index.device)
            draws = uniform(seed, "pair time", number, index, ())
            return table.to(index.device)[kept[(draws.double() * len(kept)).long()]]
        if self.kind == "uniform":
            times = uniform_times(uniform(seed, "pair time", number, index, ()).double())
        else:
            times = logit_normal_times(normal(seed, "pair time", number, index, ()).double(), self.mean, self.std)
        return shifted(times, self.shift).to(table.dtype)

    def _kept(self, total: int) -> Tensor:
        numbers = torch.arange(total) if self.steps is None else torch.tensor(self.steps)
        if self.below is not None:
            numbers = numbers[: self.below]
        if int(numbers.max()) >= total or (self.below or 0) > total:
            raise ValueError(f"the model was trained at {total} times, times.steps or times.below ask for more")
        return numbers


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How pictures are made to be looked at.

    Attributes:
        steps: of the solver.
        solver: see ``flow.solvers.SOLVERS``.
        guidance: scale of classifier-free guidance; 1 = none.

    Raises:
        ValueError: an unknown solver or no step.

    Source: usual in this family: 50 steps, guidance 7.5 for Stable Diffusion 1.5 and 5 for XL.
    """

    steps: int = 50
    solver: str = "euler"
    guidance: float = 7.5

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS or self.steps < 1:
            raise ValueError(
                f"pictures take at least 1 step of {', '.join(SOLVERS)}, got {self.steps} of {self.solver!r}"
            )


@dataclasses.dataclass(frozen=True)
class WarmupConstant:
    """The learning rate rises linearly and stays.

    lr(s) = p min(1, s / W)

    Attributes:
        steps: W, optimiser steps; 0 = none. Published: 500 for Stable Diffusion 1.5, 200 for XL.

    Raises:
        ValueError: a negative number.

    Source: arXiv:2311.12908, published trainer (``constant_with_warmup``, whose first step has the rate 0; here it has
        p / W).
    """

    steps: int = 500

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"warmup.steps counts optimiser steps and cannot be {self.steps}")

    def build(self, optimizer: Optimizer) -> LambdaLR:
        """Make the scheduler; step it after every optimiser step.

        Args:
            optimizer: its learning rate is the peak p.

        Returns:
            A scheduler that has already set the learning rate of step 1.
        """
        return LambdaLR(optimizer, self._factor())

    def _factor(self) -> Callable[[int], float]:
        warmup = self.steps  # a plain function: the fields of an object would travel in checkpoints
        return lambda taken: min(1.0, (taken + 1) / warmup) if warmup else 1.0


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor with a learning rate of its own and factored second moments: little memory beside a large network.

    Attributes:
        learning_rate: > 0.
        weight_decay: decoupled, of all trained tensors.
        clip_threshold: largest root mean square of an update; the gradient's norm is then left alone.

    Raises:
        ValueError: a number that makes no sense.

    Source: arXiv:1804.04235; settings of arXiv:2311.12908's published trainer for Stable Diffusion XL.
    """

    learning_rate: float
    weight_decay: float = 1e-2
    clip_threshold: float = 1.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or self.weight_decay < 0 or not self.clip_threshold > 0:
            raise ValueError(f"Adafactor needs a positive learning_rate and clip_threshold, got {self}")

    def build_groups(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimiser.

        Args:
            groups: parameter groups for a torch optimiser.

        Returns:
            Adafactor of transformers.

        Raises:
            ModuleNotFoundError: transformers is not installed.
        """
        try:
            from transformers.optimization import Adafactor as Implementation
        except ImportError:
            raise ModuleNotFoundError(
                "Adafactor comes with transformers, which is not installed: pip install transformers, or use AdamW"
            ) from None
        build: Callable[..., Optimizer] = Implementation
        return build(
            groups,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            clip_threshold=self.clip_threshold,
            scale_parameter=False,
            relative_step=False,
            warmup_init=False,
        )
