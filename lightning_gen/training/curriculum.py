"""The token-budget curriculum: how many tokens an image may have, and how many images a step sees, over the run.

Plain records without torch. The data plan (data/plan.py) turns them into epochs; nothing else may change the budget, so
that a resumed run changes it at the very same optimiser step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BudgetStage", "check_stages", "stage_at"]


@dataclass(frozen=True)
class BudgetStage:
    """One stretch of training with a fixed token budget.

    ViTok-v2 trains 90 % of its steps with 256 tokens and the last 10 % with 1024, images per step divided by four.

    Attributes:
        tokens: token budget N of one image, >= 1.
        global_batch_size: images of one micro-batch over all ranks, >= 1.
        until_step: optimiser step at which the stage ends (exclusive), None = it lasts to the end of the run.
        min_size: shortest side in pixels that a picture must have to be used in this stage, None = any.
        ladder: token budgets that take turns from step to step; a step of budget n has
            floor(tokens G / n / batch_multiple) batch_multiple images. Empty = ``tokens`` in every step.
        batch_multiple: the batches of a ladder are multiples of this, for instance of the number of ranks.

    Source: arXiv:2605.05331, training stages; the ladder is that of timm's NaFlex loader.
    """

    tokens: int
    global_batch_size: int
    until_step: int | None = None
    min_size: int | None = None
    ladder: tuple[int, ...] = ()
    batch_multiple: int = 1

    @property
    def batches(self) -> tuple[int, ...]:
        """Images of a step of every rung of the ladder."""
        budget = self.tokens * self.global_batch_size
        return tuple(budget // n // self.batch_multiple * self.batch_multiple for n in self.ladder)


def check_stages(stages: Sequence[BudgetStage]) -> tuple[BudgetStage, ...]:
    """Refuse a curriculum that has a hole, runs backwards or asks for nothing.

    Args:
        stages: the stages in the order of training, at least one.

    Returns:
        The same stages as a tuple.

    Raises:
        ValueError: no stage, a number below 1, ``until_step`` not growing, or the last stage not open-ended.
    """
    if not stages:
        raise ValueError("the curriculum has no stage: give at least one {tokens, global_batch_size, until_step: null}")
    start = 0
    for number, stage in enumerate(stages):
        if stage.tokens < 1 or stage.global_batch_size < 1:
            raise ValueError(f"stage {number} needs tokens >= 1 and global_batch_size >= 1, got {stage}")
        _check_ladder(number, stage)
        if number == len(stages) - 1:
            if stage.until_step is not None:
                raise ValueError(
                    f"the last stage must be open (until_step: null), got until_step={stage.until_step}: "
                    "where training ends is said by trainer.max_steps or trainer.max_epochs"
                )
        elif stage.until_step is None:
            raise ValueError(f"stage {number} never ends (until_step: null) but stage {number + 1} follows it")
        elif stage.until_step <= start:
            raise ValueError(f"stage {number} ends at step {stage.until_step}, before it begins at step {start}")
        else:
            start = stage.until_step
    return tuple(stages)


def _check_ladder(number: int, stage: BudgetStage) -> None:
    if stage.batch_multiple < 1 or min(stage.ladder, default=1) < 1 or (stage.min_size or 1) < 1:
        raise ValueError(f"stage {number} needs min_size, ladder and batch_multiple of at least 1, got {stage}")
    if not all(stage.batches):
        raise ValueError(
            f"stage {number}: tokens x global_batch_size = {stage.tokens * stage.global_batch_size} tokens do not hold "
            f"{stage.batch_multiple} images of {max(stage.ladder)} tokens. Lower the ladder or batch_multiple"
        )


def stage_at(stages: Sequence[BudgetStage], step: int) -> int:
    """Which stage an optimiser step belongs to.

    Args:
        stages: a checked curriculum.
        step: optimiser steps taken so far, >= 0.

    Returns:
        Index into ``stages``.
    """
    for number, stage in enumerate(stages):
        if stage.until_step is None or step < stage.until_step:
            return number
    return len(stages) - 1
