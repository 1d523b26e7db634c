"""Stops training by rewards before a policy is ruined, and puts the last good adapters back."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_gen.alignment.online import OnlineTraining
from lightning_gen.backbones.lora_weights import AdapterWeights
from lightning_gen.training.ema import EMA

__all__ = ["DivergenceGuard"]


class DivergenceGuard(Callback):
    """Watches what is logged after every step, keeps the best adapters so far, and stops a run that collapses.

    A run is over when the divergence from the reference was above ``largest_kl`` for ``patience`` steps in a row, when
    the mean reward of the last ``patience`` steps is ``reward_drop`` below the best such mean, when pictures were grey
    or glaring for as long, or when loss or divergence are not finite. All adapters, the one that samples too, are then
    put back to what they were at the best mean, or at the start where there is none yet, and averages of ``EMA`` with
    them, so that the last checkpoint and the export hold them; a message says what happened.

    The divergence is logged whatever its weight in the loss, so a run without that term is watched too.

    Args:
        largest_kl: of ``train/kl``; None = not watched.
        reward_drop: how far the mean reward may fall below its best, in units of the reward; None = not watched.
        least_contrast: smallest mean standard deviation of a picture's pixels, in [0, 1]; a run that makes grey or blue
            noise falls below it or rises above ``largest_contrast``.
        largest_contrast: largest one.
        patience: steps.

    Raises:
        ValueError: a patience below 1, or limits of the contrast that exclude everything.

    Source: none; repositories yifan123/flow_grpo, issues 172 and 182, report both kinds of collapse.
    """

    def __init__(
        self,
        largest_kl: float | None = 1.0,
        reward_drop: float | None = None,
        least_contrast: float = 0.02,
        largest_contrast: float = 0.45,
        patience: int = 20,
    ) -> None:
        if patience < 1 or not 0 <= least_contrast < largest_contrast:
            raise ValueError(
                f"patience is at least 1 and least_contrast below largest_contrast, got {patience}, {least_contrast} "
                f"and {largest_contrast}"
            )
        self.largest_kl, self.reward_drop, self.patience = largest_kl, reward_drop, patience
        self.least_contrast, self.largest_contrast = least_contrast, largest_contrast
        self._recent: list[float] = []
        self._best = -math.inf
        self._good: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        self._bad = {"kl": 0, "contrast": 0}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module without adapters."""
        if not isinstance(pl_module, OnlineTraining):
            raise TypeError(f"DivergenceGuard watches training by rewards, not {type(pl_module).__name__}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the run begins with, unless a checkpoint brought something better."""
        assert isinstance(pl_module, OnlineTraining)
        if not self._good:
            self._keep(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step that has ended."""
        assert isinstance(pl_module, OnlineTraining)
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        reward, contrast = seen.get("rewards/total", math.nan), seen.get("train/contrast", math.nan)
        reason = self._broken(seen) or self._fallen(pl_module, reward)
        self._bad["contrast"] += 1
        if math.isnan(contrast) or self.least_contrast <= contrast <= self.largest_contrast:
            self._bad["contrast"] = 0
        if reason is None and self._bad["contrast"] >= self.patience:
            reason = f"pictures have a contrast of {contrast:.3f}"
        if reason is not None:
            self._stop(trainer, pl_module, reason)

    def _broken(self, seen: dict[str, float]) -> str | None:
        loss, kl = seen.get("train/loss", 0.0), seen.get("train/kl", 0.0)
        if not math.isfinite(loss) or not math.isfinite(kl):
            return f"the loss is {loss} and the divergence {kl}"
        self._bad["kl"] = self._bad["kl"] + 1 if self.largest_kl is not None and kl > self.largest_kl else 0
        if self._bad["kl"] >= self.patience:
            return f"the divergence from the reference is {kl:.3g}, above {self.largest_kl}"
        return None

    def _fallen(self, module: OnlineTraining, reward: float) -> str | None:
        if math.isnan(reward):
            return None
        self._recent = [*self._recent, reward][-self.patience :]
        mean = sum(self._recent) / len(self._recent)
        if len(self._recent) == self.patience and mean > self._best:
            self._best = mean
            self._keep(module)
        elif self.reward_drop is not None and mean < self._best - self.reward_drop:
            return f"the mean reward of {self.patience} steps fell to {mean:.3g} from {self._best:.3g}"
        return None

    def _keep(self, module: OnlineTraining) -> None:
        # Whole tensors, so that a sharded run can be continued on another number of devices.
        self._good = {name: dict(module.bank.weights(name).factors) for name in module.bank.names}

    def _stop(self, trainer: Trainer, module: OnlineTraining, reason: str) -> None:
        for name, factors in self._good.items():
            module.bank.load(name, AdapterWeights(factors, module.bank.settings(name).alpha))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                callback.restart(module)
        best = f"of the best {self.patience} steps (mean reward {self._best:.3g})"
        kept = f"the adapter {best if self._best > -math.inf else 'of the start'} is back in place"
        rank_zero_warn(f"step {trainer.global_step}: training stops because {reason}; {kept}")
        trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on watching."""
        return {"recent": self._recent, "best": self._best, "good": self._good, "bad": dict(self._bad)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on watching.

        Args:
            state_dict: of :meth:`state_dict`.
        """
        self._recent, self._best = list(state_dict["recent"]), float(state_dict["best"])
        self._good, self._bad = dict(state_dict["good"]), dict(state_dict["bad"])
