"""The optimiser and the learning-rate schedule as small records that a config file can hold.

Step numbers: s = 1 is the first optimiser step; a learning rate "of step s" is the one that step s uses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["AdamW", "WarmupCosine", "decay_groups"]


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into one group with weight decay and one without.

    Matrices and larger tensors decay; vectors and scalars (norm weights, biases, LayerScale gains) do not. The rule is
    on the number of dimensions, so a sharded parameter falls into the same group as the whole one.

    Args:
        module: whose parameters to group; frozen ones are left out.
        weight_decay: decay of the first group, >= 0.

    Returns:
        Parameter groups for a torch optimiser, the decaying one first; an empty group is left out.

    Raises:
        ValueError: the module has no trainable parameter.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no trainable parameter, so there is nothing to optimise")
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    others = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW with decoupled weight decay on matrices only, in 32 or in 8 bits.

    Attributes:
        learning_rate: peak learning rate, > 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        weight_decay: decoupled decay of tensors with two or more dimensions, >= 0.
        epsilon: added to the root of the second moment, > 0.
        eight_bit: keep the moments in 8 bits (bitsandbytes, CUDA only): 2 instead of 8 bytes per parameter.
        fused: torch's single-kernel implementation; None = on where every parameter is on a CUDA device.

    Source: arXiv:1711.05101 algorithm 2; 8 bits arXiv:2110.02861.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    epsilon: float = 1e-8
    eight_bit: bool = False
    fused: bool | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0.0 or not self.epsilon > 0.0 or self.weight_decay < 0.0:
            raise ValueError(
                f"AdamW needs learning_rate > 0, epsilon > 0 and weight_decay >= 0; got {self.learning_rate}, "
                f"{self.epsilon} and {self.weight_decay}"
            )
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"AdamW needs two betas in [0, 1), got {self.betas}")
        if self.eight_bit and self.fused:
            raise ValueError("AdamW: eight_bit and fused exclude each other; leave `fused` out")

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimiser for a module's trainable parameters.

        Args:
            module: already on its device and, where it is sharded, already sharded.

        Returns:
            ``torch.optim.AdamW``, or ``bitsandbytes.optim.AdamW8bit`` with ``eight_bit``.

        Raises:
            RuntimeError: ``eight_bit`` where bitsandbytes is missing or a parameter is not on a CUDA device.
            ValueError: nothing to train.
        """
        return self.build_groups(decay_groups(module, self.weight_decay))

    def build_groups(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimiser for groups that the caller has made.

        Args:
            groups: parameter groups for a torch optimiser; a group's own ``lr`` and ``weight_decay`` count for it.

        Returns:
            As ``build``.

        Raises:
            RuntimeError: as ``build``.
        """
        on_cuda = all(parameter.device.type == "cuda" for group in groups for parameter in group["params"])
        if self.eight_bit:
            return self._build_eight_bit(groups, on_cuda)
        return torch.optim.AdamW(
            groups,
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            fused=on_cuda if self.fused is None else self.fused,
        )

    def _build_eight_bit(self, groups: list[dict[str, Any]], on_cuda: bool) -> Optimizer:
        # Checked before the import: on a machine without CUDA the library itself may not load.
        if not on_cuda:
            devices = sorted({str(p.device) for group in groups for p in group["params"] if p.device.type != "cuda"})
            raise RuntimeError(
                f"AdamW with eight_bit: true keeps its moments in CUDA kernels of bitsandbytes, but parameters are on "
                f"{', '.join(devices)}. Train on a CUDA device or set eight_bit: false"
            )
        try:
            from bitsandbytes.optim.adamw import AdamW8bit
        except (ImportError, OSError, RuntimeError) as error:
            raise RuntimeError(
                f"AdamW with eight_bit: true needs the package bitsandbytes, which does not load here ({error}). "
                "Run `pip install bitsandbytes` or set eight_bit: false"
            ) from error
        eight_bit: Callable[..., Optimizer] = AdamW8bit
        return eight_bit(
            groups, lr=self.learning_rate, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay
        )


@dataclasses.dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up to the peak, then half a cosine down to the final learning rate.

    With W = round(warmup_fraction * S) warm-up steps of S in all, peak p, start a and end e:

        lr(s) = a + (p - a) * s / W                                             1 <= s <= W
        lr(s) = e + (p - e) * (1 + cos(pi * (s - W) / (S - W))) / 2             W < s <= S
        lr(s) = e                                                               s > S

    Attributes:
        warmup_fraction: W / S, in [0, 1].
        final_learning_rate: e, >= 0.
        start_learning_rate: a, >= 0.

    Source: arXiv:2605.05331 training details (5 % warm-up, 1e-7 to the peak, down to 1e-5, as in the release).
    """

    warmup_fraction: float = 0.05
    final_learning_rate: float = 1e-5
    start_learning_rate: float = 1e-7

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup_fraction <= 1.0:
            raise ValueError(f"warmup_fraction must be in [0, 1], got {self.warmup_fraction}")
        if self.final_learning_rate < 0.0 or self.start_learning_rate < 0.0:
            raise ValueError(
                f"learning rates cannot be negative: final {self.final_learning_rate}, start {self.start_learning_rate}"
            )

    def learning_rate(self, step: int, total: int, peak: float) -> float:
        """The learning rate that one optimiser step uses.

        Args:
            step: s, counted from 1.
            total: S, number of optimiser steps in the run, >= 1.
            peak: learning rate at the end of the warm-up.

        Returns:
            lr(s).

        Raises:
            ValueError: a step before the first, or a run without steps.
        """
        if step < 1 or total < 1:
            raise ValueError(f"steps are counted from 1 to total; got step {step} of {total}")
        warmup = round(self.warmup_fraction * total)
        if step <= warmup:
            return self.start_learning_rate + (peak - self.start_learning_rate) * step / warmup
        if step >= total:
            return self.final_learning_rate
        angle = math.pi * (step - warmup) / (total - warmup)
        return self.final_learning_rate + (peak - self.final_learning_rate) * (1.0 + math.cos(angle)) / 2.0

    def build(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """Make the scheduler; step it once after every optimiser step (Lightning's interval "step").

        Args:
            optimizer: each of its groups is scheduled from its own learning rate as the peak.
            total_steps: S, optimiser steps in the run.

        Returns:
            A scheduler that has already set the learning rate of step 1.

        Raises:
            ValueError: total_steps is not a positive number; a run must say how long it is.
        """
        if total_steps < 1:
            raise ValueError(
                f"a warm-up cosine needs the number of optimiser steps of the run, got {total_steps}; "
                "set trainer.max_steps or a data module that knows its length"
            )
        peaks = [float(group["lr"]) for group in optimizer.param_groups]
        return LambdaLR(optimizer, [self._factor(total_steps, peak) for peak in peaks])

    def _factor(self, total: int, peak: float) -> Callable[[int], float]:
        """lr(s) / peak as LambdaLR asks for it: by the number of steps already taken, s - 1.

        A plain function on purpose: the fields of a callable object would travel in the checkpoint and, on resume,
        silently win over the config.
        """
        return lambda taken: self.learning_rate(taken + 1, total, peak) / peak
