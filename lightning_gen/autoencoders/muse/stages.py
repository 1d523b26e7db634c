"""The curriculum: structure first, then meaning, then all together.

t counts optimiser steps of the generator here; no diffusion time occurs in this room.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

__all__ = ["PAPER_STAGES", "Stage", "StageKind", "locate_stage"]

StageKind = Literal[1, 2, 3]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the curriculum; the defaults are stage 1 of MUSE-1B.

    Attributes:
        kind: 1 = topology: encoder and semantic head do not learn; 2 = semantics: the head learns too; 3 = synergy: the
            encoder learns too, at ``encoder_learning_rate_factor`` times the learning rate.
        steps: optimiser steps.
        learning_rate: peak.
        warmup_steps: linear warm-up from 0.
        end_learning_rate: where the cosine ends.
        structure_weight: w_topo.
        semantic_weight: w_itc; not computed in stage 1.
        perceptual_weight: w_perc.
        gradient_scale: gamma, on the gradient from the latent into the blocks.
        discriminator_start: step of the stage from which the discriminator takes part; at least ``steps`` = never.
        discriminator_weight: w_g.
        discriminator_learning_rate: peak of the discriminator's.
        encoder_learning_rate_factor: factor of the encoder in stage 3.

    Source: arXiv:2605.05646, configuration of the published code.
    """

    kind: StageKind = 1
    steps: int = 50_000
    learning_rate: float = 4e-4
    warmup_steps: int = 2_000
    end_learning_rate: float = 1e-5
    structure_weight: float = 2.0
    semantic_weight: float = 0.0
    perceptual_weight: float = 1.1
    gradient_scale: float = 0.5
    discriminator_start: int = 1_000_000
    discriminator_weight: float = 0.1
    discriminator_learning_rate: float = 4e-4
    encoder_learning_rate_factor: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in (1, 2, 3):
            raise ValueError(f"kind of a stage is 1, 2 or 3, got {self.kind}")
        if self.steps < 1 or not 0 <= self.warmup_steps <= self.steps or self.discriminator_start < 0:
            raise ValueError(
                f"stage {self.kind}: steps are at least 1 and warmup_steps between 0 and steps, got {self.steps} and "
                f"{self.warmup_steps}; discriminator_start is not negative, got {self.discriminator_start}"
            )
        if not self.learning_rate > 0 or self.end_learning_rate < 0 or not self.discriminator_learning_rate > 0:
            raise ValueError(f"stage {self.kind}: learning rates must be positive, got {self}")
        factors = (self.structure_weight, self.semantic_weight, self.perceptual_weight, self.discriminator_weight)
        if min(*factors, self.gradient_scale, self.encoder_learning_rate_factor) < 0:
            raise ValueError(f"stage {self.kind}: weights must be 0 (off) or more, got {factors}")

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder learns."""
        return self.kind == 3

    @property
    def trains_semantics(self) -> bool:
        """Whether captions are read and the semantic head learns."""
        return self.kind > 1 and self.semantic_weight > 0

    @property
    def uses_discriminator(self) -> bool:
        """Whether the discriminator ever takes part."""
        return self.discriminator_start < self.steps and self.discriminator_weight > 0

    def factor(self, step: int) -> float:
        """Learning rate of a step divided by the peak.

        lr(s) = peak s / W for s < W;  end + (peak - end) (1 + cos(pi (s - W) / (S - W))) / 2 after that

        The discriminator uses the same quotient, made of the generator's numbers, as the published code does.

        Args:
            step: s, steps of this stage already taken, >= 0.

        Returns:
            lr(s) / peak, in [0, 1].

        Source: arXiv:2605.05646, schedule of the published code.
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        end = self.end_learning_rate / self.learning_rate
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2


PAPER_STAGES: tuple[Stage, Stage, Stage] = (
    Stage(),
    Stage(2, 50_000, 2e-4, 5_000, 1e-5, 5.0, 0.2, discriminator_learning_rate=2e-4),
    Stage(3, 50_000, 5e-5, 1_000, 1e-6, 0.2, 0.1, 2.0, 1.0, 0, 0.5, 1e-4),
)
"""The three stages of MUSE-1B. MUSE-3B: stages 1 and 2 have 75,000 steps and stage 1 a warm-up of 5,000."""


def locate_stage(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """Which stage a step belongs to.

    Args:
        stages: of the run, one after another.
        step: optimiser steps taken.

    Returns:
        Number of the stage from 0, and steps already taken in it; beyond the last stage, the last one.
    """
    for number, stage in enumerate(stages):
        if step < stage.steps or number == len(stages) - 1:
            return number, step
        step -= stage.steps
    raise ValueError("a run needs at least one stage")
