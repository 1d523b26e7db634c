"""Watches the token-budget curriculum: which stage training is in, and that batches keep to it.

The data plan owns the budget (it changes only where a plan ends, so that a resumed run changes it at the same step);
this callback reports and checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_gen.nn.tokens import Tokens
from lightning_gen.training.curriculum import BudgetStage, check_stages, stage_at

__all__ = ["BudgetCurriculum"]


class BudgetCurriculum(Callback):
    """Logs the token budget and the stage, says when they change, and stops at a batch that breaks the budget.

    Args:
        stages: the curriculum; None = that of the data module (its ``curriculum``).

    Raises:
        ValueError: the curriculum has a hole or is empty.
    """

    def __init__(self, stages: Sequence[BudgetStage] | None = None) -> None:
        self.stages: tuple[BudgetStage, ...] = () if stages is None else check_stages(stages)
        self._announced: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the data module's curriculum where none was given."""
        if stage != "fit" or self.stages:
            return
        stages: Sequence[BudgetStage] | None = getattr(getattr(trainer, "datamodule", None), "curriculum", None)
        if not stages:
            raise TypeError(
                "BudgetCurriculum was given no stages, and the data module has none; set stages under the callback or "
                "under data.init_args"
            )
        self.stages = check_stages(stages)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Announce the first stage of this fit, also after a resume."""
        self._announced = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Check the batch against the stage of the optimiser step that it belongs to, and log the stage.

        Raises:
            ValueError: an image of the batch has more tokens than the stage allows.
        """
        number = stage_at(self.stages, trainer.global_step)
        stage = self.stages[number]
        if number != self._announced:
            self._announced = number
            end = "to the end" if stage.until_step is None else f"until step {stage.until_step}"
            rank_zero_info(
                f"step {trainer.global_step}: token budget {stage.tokens}, {stage.global_batch_size} images per batch, "
                f"{end} (stage {number + 1} of {len(self.stages)})"
            )
        images, budget = getattr(batch, "images", None), max(stage.ladder, default=stage.tokens)
        if isinstance(images, Tokens):
            most = _most_tokens(images, budget)
            if most > budget:
                raise ValueError(
                    f"rank {trainer.global_rank}, step {trainer.global_step}, batch {batch_idx}: an image has {most} "
                    f"tokens, but the budget of stage {number + 1} is {budget}; give the data module and this "
                    "callback the same stages"
                )
        pl_module.log("budget/tokens", float(stage.tokens), batch_size=len(batch))
        pl_module.log("budget/stage", float(number + 1), batch_size=len(batch))


def _most_tokens(tokens: Tokens, budget: int) -> int:
    """Tokens of the longest image; the device is asked only if rows are longer than the budget."""
    length = tokens.mask.shape[1]
    return length if length <= budget else int(tokens.grid.prod(dim=1).max())
