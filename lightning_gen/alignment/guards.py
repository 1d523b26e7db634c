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

    A run is over when for ``patience`` steps in a row the policy was too far from the base, or pictures were grey,
    glaring or noise, when the mean reward of the last ``patience`` steps is ``reward_drop`` below the best such mean,
    or when loss, divergence or drift are not finite. All adapters, the one that samples too, are then put back to what
    they were at the best mean, or at the start where there is none yet, and averages of ``EMA`` with them, so that the
    last checkpoint and the export hold them; a message says what happened.

    The distance is that of the velocities, ``train/drift`` = mean (v - v_ref)^2, logged by every method whatever it
    weighs in the loss. A divergence cannot be limited by one number: that of Flow-GRPO is (c d)^2 / (2 s^2) times the
    drift (c = |d mean / d v| per length d of the step, s its rate of noise), which over the ten steps of Stable
    Diffusion 3.5 goes from 6e-5 to 0.3 and is 0.04 in the mean, so that it reaches 1 at a change of 4.8 root mean
    square, where velocities themselves are 1 to 2.

    Args:
        largest_drift: of ``train/drift``; 0.1 = 0.3 root mean square, a quarter of a velocity; a choice. None = not
            watched.
        reward_drop: how far the mean reward may fall below its best, in units of the reward; None = not watched.
        least_contrast: smallest mean standard deviation of a picture's pixels, in [0, 1]; grey falls below it.
        largest_contrast: largest one; pictures of black and white alone, at most 0.5, rise above it.
        largest_roughness: of ``train/roughness``, the mean difference of neighbouring pixels over the contrast: about
            1.1 for white noise of any strength, clipped or not; 0.05 to 0.26 for pictures of the embedded world, less
            for larger ones. None = not watched.
        patience: steps.

    Raises:
        ValueError: a patience below 1, or limits that exclude everything.

    Source: none; repositories yifan123/flow_grpo, issues 172 and 182, report both kinds of collapse.
    """

    def __init__(
        self,
        largest_drift: float | None = 0.1,
        reward_drop: float | None = None,
        least_contrast: float = 0.02,
        largest_contrast: float = 0.45,
        largest_roughness: float | None = 0.8,
        patience: int = 20,
    ) -> None:
        if patience < 1 or not 0 <= least_contrast < largest_contrast:
            raise ValueError(
                f"patience is at least 1 and least_contrast below largest_contrast, got {patience}, {least_contrast} "
                f"and {largest_contrast}"
            )
        if any(limit is not None and not limit > 0 for limit in (largest_drift, largest_roughness)):
            raise ValueError(
                f"largest_drift and largest_roughness are positive, or null for not watched, got {largest_drift} and "
                f"{largest_roughness}"
            )
        self.reward_drop, self.patience = reward_drop, patience
        self._limits = {
            "drift": (-math.inf, math.inf if largest_drift is None else largest_drift),
            "contrast": (least_contrast, largest_contrast),
            "roughness": (-math.inf, math.inf if largest_roughness is None else largest_roughness),
        }
        self._recent: list[float] = []
        self._best = -math.inf
        self._good: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        self._bad = dict.fromkeys(self._limits, 0)

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
        # In this order: a step that is broken must not be kept as the best one.
        reason = self._broken(seen) or self._outside(seen)
        reason = reason or self._fallen(pl_module, seen.get("rewards/total", math.nan))
        if reason is not None:
            self._stop(trainer, pl_module, reason)

    def _broken(self, seen: dict[str, float]) -> str | None:
        found = {name: seen.get(f"train/{name}", 0.0) for name in ("loss", "kl", "drift")}
        broken = next((name for name, value in found.items() if not math.isfinite(value)), None)
        return None if broken is None else f"train/{broken} is {found[broken]}"

    def _outside(self, seen: dict[str, float]) -> str | None:
        reason = None
        for name, (least, most) in self._limits.items():
            value = seen.get(f"train/{name}", math.nan)
            self._bad[name] = self._bad[name] + 1 if value < least or value > most else 0  # NaN: not known, not bad
            if self._bad[name] >= self.patience:
                limit = f"below {least:g}" if value < least else f"above {most:g}"
                reason = reason or f"train/{name} is {value:.3g}, {limit}"
        return reason

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
        self._good, self._bad = dict(state_dict["good"]), {**self._bad, **state_dict["bad"]}
