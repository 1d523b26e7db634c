"""Exponential moving averages of the weights, on one device, replicated (DDP) or sharded (FSDP2).

The averages are kept beside the module, not in it: they have the sharding and the device of the weights, updating them
communicates nothing, and a checkpoint stays loadable by whoever does not know about them. A checkpoint holds raw
weights under ``state_dict`` and averages under ``ema``; :mod:`.averages` reads either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from .averages import AVERAGES, average_key
from .initialisation import copy_into, local, plain_name
from .strategies import FSDP2Strategy

__all__ = ["EMA"]


class EMA(Callback):
    """Keeps one or several exponential moving averages of the trainable parameters.

    After optimiser step s, for each decay d:

        average <- weights                                    s <= start_step
        average <- d * average + (1 - d) * weights            s > start_step

    With ``ramp``, d is min(decay, n / (n + 9)) after n earlier steps: 0 at the first one, so that the first weights
    are soon forgotten.

    Validation, test and prediction run with the first decay's average; training continues with the raw weights.
    Buffers are not averaged. Averages are kept in float32 where weights are in half precision.

    Args:
        decays: each in [0, 1); the first is the one that evaluation uses.
        start_step: number of first steps during which the average is a copy.
        evaluate: False = evaluate the raw weights.
        ramp: begin with small decays.
        every: optimiser steps from one update to the next.

    Raises:
        ValueError: no decay, one outside [0, 1) or twice, a negative start, or ``every`` below 1.

    Source: arXiv:1412.6980 section 7.2 (temporal averaging); 0.9999 from step 5000 in the generator of
    arXiv:2605.05331; the ramp in the trainers of arXiv:2406.07550 and arXiv:2605.05646; every 8 steps in that of
    arXiv:2505.05470.
    """

    def __init__(
        self,
        decays: Sequence[float] = (0.9999,),
        start_step: int = 0,
        evaluate: bool = True,
        ramp: bool = False,
        every: int = 1,
    ) -> None:
        if not decays or len(set(decays)) < len(decays) or not all(0.0 <= decay < 1.0 for decay in decays):
            raise ValueError(f"EMA needs one or more different decays in [0, 1), got {list(decays)}")
        if start_step < 0:
            raise ValueError(f"EMA's start_step counts optimiser steps and cannot be {start_step}")
        if every < 1:
            raise ValueError(f"EMA's every counts optimiser steps and is at least 1, got {every}")
        self.decays = tuple(decays)
        self.start_step = start_step
        self.evaluate = evaluate
        self.ramp = ramp
        self.every = every
        self._averages: dict[str, Tensor] = {}
        self._pending: Mapping[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}
        self._step: int | None = None

    @contextlib.contextmanager
    def averaged(self, module: LightningModule, decay: float | None = None) -> Iterator[None]:
        """Run a block of code with averaged weights in the module.

        Args:
            module: the module that was trained with this callback.
            decay: which average; None = the first.

        Yields:
            Nothing; afterwards the raw weights are back, also after an exception.
        """
        self._swap_in(module, self.decays[0] if decay is None else decay)
        try:
            yield
        finally:
            self._swap_out(module)

    def restart(self, module: LightningModule) -> None:
        """Make every average a copy of the weights as they are now, for instance after they were put back.

        Args:
            module: the module that is trained with this callback.
        """
        self._ensure(module)
        self._update(module, copy=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the strategy, and ask it to carry the averages where it shards."""
        strategy = trainer.strategy
        if isinstance(strategy, FSDP2Strategy):
            strategy.carry(AVERAGES, lambda: self._known(pl_module))
        elif isinstance(strategy, (ModelParallelStrategy, FSDPStrategy, DeepSpeedStrategy)):
            raise MisconfigurationException(
                f"EMA cannot store its sharded averages through {type(strategy).__name__}; use "
                "trainer.strategy: FSDP2Strategy (lightning_gen.training.strategies)"
            )
        light = [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint) and c.save_weights_only]  # type: ignore[attr-defined]
        if stage == "fit" and light and not isinstance(strategy, FSDP2Strategy):
            rank_zero_warn(
                "ModelCheckpoint(save_weights_only=True) asks no callback, so its files will hold the raw weights "
                "without the averages of EMA; use save_weights_only=False"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights as they are now, or from what the checkpoint held."""
        self._ensure(pl_module)
        if self._step is None or self._step > trainer.global_step:
            self._step = trainer.global_step
        # A checkpoint written by an exception between the optimiser's step and ours lacks that one update.
        self._advance(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after a batch that ended with an optimiser step."""
        self._advance(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._begin_evaluation(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back; checkpoint callbacks run after this one."""
        self._swap_out(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._begin_evaluation(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        self._swap_out(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._begin_evaluation(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        self._swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the raw weights back, before anything is saved."""
        self._swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The last optimiser step that is in the averages."""
        return {"step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step counter."""
        self._step = state_dict["step"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the averages; in the middle of evaluation, put the raw weights into ``state_dict``."""
        if self._raw:
            self._put_raw(pl_module, checkpoint["state_dict"])
        if not isinstance(trainer.strategy, FSDP2Strategy):
            checkpoint[AVERAGES] = self._known(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the averages over; those that the checkpoint lacks start as copies of its weights."""
        stored = checkpoint.get(AVERAGES, {})
        if isinstance(stored, list):  # FSDP2Strategy has filled these in place
            self._averages = {key: value for key, value in self._averages.items() if key in stored}
        else:
            # The weights are not on their device yet: kept until they are.
            self._averages, self._pending = {}, stored
        if not stored:
            self._step = None
            if trainer.state.fn != "fit" and self.evaluate:
                rank_zero_warn("the checkpoint holds no averages of EMA: evaluating its raw weights")

    def _known(self, module: LightningModule) -> dict[str, Tensor]:
        self._ensure(module)
        return self._averages

    def _ensure(self, module: LightningModule) -> None:
        """Allocate what is missing as a copy of the weights, then fill in what a checkpoint brought."""
        for name, parameter in _trainable(module).items():
            for decay in self.decays:
                key = average_key(decay, name)
                if key in self._averages:
                    continue
                average = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32)).clone()
                if key in self._pending:
                    copy_into(average, self._pending[key])
                self._averages[key] = average
        self._pending = {}

    def _advance(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if self._step is None or step <= self._step:
            return
        before, self._step = self._step, step
        if step > self.start_step and step // self.every == before // self.every:
            return
        self._update(module, copy=step <= self.start_step, earlier=step - self.start_step - 1)

    @torch.no_grad()
    def _update(self, module: LightningModule, copy: bool, earlier: int = 0) -> None:
        """``earlier``: updates before this one, since the average stopped being a copy."""
        parameters = _trainable(module)
        for decay in self.decays:
            averages = [local(self._averages[average_key(decay, name)]) for name in parameters]
            weights = [local(p).to(a.dtype) for p, a in zip(parameters.values(), averages, strict=True)]
            if copy:
                torch._foreach_copy_(averages, weights)
            else:
                now = min(decay, earlier / (earlier + 9)) if self.ramp else decay
                torch._foreach_lerp_(averages, weights, 1.0 - now)

    def _begin_evaluation(self, module: LightningModule) -> None:
        if self.evaluate and (self._averages or self._pending):
            self._swap_in(module, self.decays[0])

    @torch.no_grad()
    def _swap_in(self, module: LightningModule, decay: float) -> None:
        if self._raw:
            raise RuntimeError("EMA: averaged weights are already in the module")
        self._ensure(module)
        for name, parameter in _trainable(module).items():
            mine = local(parameter)
            self._raw[name] = mine.clone()
            mine.copy_(local(self._averages[average_key(decay, name)]))

    @torch.no_grad()
    def _swap_out(self, module: LightningModule) -> None:
        if not self._raw:
            return
        for name, parameter in _trainable(module).items():
            local(parameter).copy_(self._raw[name])
        self._raw = {}

    def _put_raw(self, module: LightningModule, state: dict[str, Tensor]) -> None:
        from torch.distributed.tensor import DTensor

        for name, parameter in _trainable(module).items():
            raw = self._raw[name]
            if isinstance(parameter, DTensor):
                raw = DTensor.from_local(
                    raw, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
                )
                # Gathered on every rank, although only rank 0 then holds a whole state dict: it is a collective.
                raw = raw if isinstance(state.get(name), DTensor) else raw.full_tensor()
            if name in state:
                state[name] = raw


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters by plain name, in their sharded form.

    FSDP2 leaves the outermost unit gathered after a forward pass without backward; its parameters would then be
    temporary copies, and a change to them would be lost or, worse, stay in use.
    """
    from torch.distributed.fsdp import FSDPModule

    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()
    return {plain_name(name): p for name, p in module.named_parameters() if p.requires_grad}
