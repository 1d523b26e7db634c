"""Outer steps of Flow-GRPO and DiffusionNFT under Lightning's Trainer, and what of them nobody can leave out.

Beside every step the same passes are made by hand, on the same network with the same adapters and in the same
micro-batches: those of sampling with one decoding, those of training with their gradients; prompts are encoded once per
micro-batch, and the rewards are called directly. No record is kept, no likelihood, no loss, no optimiser, no log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from measure import Row, paired
from torch import Tensor

from lightning_gen.alignment.flow_grpo.module import FlowGRPO
from lightning_gen.alignment.online import OnlineTraining
from lightning_gen.alignment.rollout import Rollout, micro_batches
from lightning_gen.data.batches import PromptBatch
from lightning_gen.data.transforms import uint8_to_unit, unit_to_uint8
from lightning_gen.interfaces import Conditioning
from lightning_gen.rewards.rewards import RewardScores

__all__ = ["Machine", "Turns", "compared", "outer_steps", "split"]

Clock = Callable[[], float]
PHASES = ("sampling", "scoring", "training")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where steps are taken, and by which clock.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: of Lightning's Trainer.
        clock: seconds.
    """

    device: str = "cpu"
    precision: str = "32-true"
    clock: Clock = time.process_time

    def seconds(self, function: Callable[[], object]) -> float:
        """Time a call, the device's work included.

        Args:
            function: called once.

        Returns:
            Seconds.
        """
        start = self.clock()
        function()
        self.wait()
        return self.clock() - start

    def wait(self) -> None:
        """Until the device has done what it was asked for."""
        if self.device != "cpu":
            torch.accelerator.synchronize()


class Turns(pl.Callback):
    """Times every outer step but the first, and the passes by hand after it.

    Attributes:
        ours: phase or ``step`` -> seconds, one per outer step.
        bare: the same of what nobody can leave out.
        pictures: of an outer step.
        learned: rows that a step learned from.
        peaks: most bytes on the GPU during a step, and during the passes by hand; empty on a CPU.

    Args:
        machine: where, and by which clock.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.ours: list[dict[str, float]] = []
        self.bare: list[dict[str, float]] = []
        self.pictures = 0
        self.peaks: list[tuple[int, int]] = []
        self._rollout: list[Rollout] = []
        self._rows: list[int] = []
        self.learned: list[int] = []
        self._is_warm = False

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        """See what is scored and how many rows are learned from."""
        module.clock, compare, learn = self.machine.clock, module.advantages, module.learn

        def watched_advantages(scores: RewardScores, rollout: Rollout) -> Tensor:
            self._rollout = [rollout]
            found: Tensor = compare(scores, rollout)
            return found

        def watched_learn(rollout: Rollout, advantages: Tensor, share: Any) -> None:
            self._rows.append(len(share.rows))
            learn(rollout, advantages, share)

        module.advantages, module.learn = watched_advantages, watched_learn

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: PromptBatch, batch_idx: int) -> None:
        """Start the clock."""
        self._rows.clear()
        self._forget_peak()
        self._start = self.machine.clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Stop the clock, and make the passes by hand."""
        self.machine.wait()
        step = self.machine.clock() - self._start
        if not self._is_warm:
            self._is_warm = True
            return
        found = {phase: float(trainer.callback_metrics[f"seconds/{phase}"]) for phase in PHASES}
        self.ours.append(found | {"step": step})
        self.learned.append(sum(self._rows))
        peak, self.pictures = self._forget_peak(), len(batch)
        with trainer.precision_plugin.train_step_context():
            bare = {
                "sampling": self.machine.seconds(lambda: _sample(module, batch)),
                "scoring": self.machine.seconds(lambda: _score(module, self._rollout[0])),
                "training": self.machine.seconds(lambda: _train(module, batch, self._rows)),
            }
        self.bare.append(bare | {"step": sum(bare.values())})
        if peak:
            self.peaks.append((peak, self._forget_peak()))

    def _forget_peak(self) -> int:
        if self.machine.device != "cuda":
            return 0
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


def outer_steps(model: OnlineTraining, data: pl.LightningDataModule, repetitions: int, machine: Machine) -> Turns:
    """Train for some outer steps.

    Args:
        model: without weights yet.
        data: prompts in groups.
        repetitions: steps that count; one more warms up.
        machine: where.

    Returns:
        What they took.
    """
    turns = Turns(machine)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=machine.device,
            devices=1,
            precision=machine.precision,  # type: ignore[arg-type]
            max_steps=(repetitions + 1) * model.updates.per_rollout,
            limit_val_batches=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            default_root_dir=folder,
            callbacks=[turns],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, datamodule=data)
    return turns


def split(part: str, name: str, turns: Turns) -> Iterator[Row]:
    """Rows of an algorithm with a policy: the step, and what it is made of.

    Args:
        part: letter of the question.
        name: of both.
        turns: what steps took.

    Yields:
        A row for the whole step and one for each phase.
    """
    whole = statistics.median(step["step"] for step in turns.ours)
    for phase in ("step", *PHASES):
        pairs = [(ours[phase], bare[phase]) for ours, bare in zip(turns.ours, turns.bare, strict=True)]
        share = statistics.median(ours for ours, _ in pairs) / whole
        rows = f" on {statistics.median(turns.learned):g} of them" if phase == "training" else ""
        what = f"{phase}{rows}, {share:.1%}"
        what = f"a step of {turns.pictures} pictures, {whole:.3g} s" if phase == "step" else what
        other = "rewards called directly" if phase == "scoring" else "bare passes"
        yield paired(part, f"{name}: {what}; {other}", pairs, items=turns.pictures)


def compared(part: str, case: str, ours: Turns, other: Turns) -> Row:
    """Outer steps of one algorithm against those of another; they did not take turns.

    Args:
        part: letter of the question.
        case: which.
        ours: of the one.
        other: of the other one, of as many pictures.

    Returns:
        The row.
    """
    pairs = [(a["step"], b["step"]) for a, b in zip(ours.ours, other.ours, strict=True)]
    return paired(part, case, pairs, items=ours.pictures)


# ---------------------------------------------------------------------- by hand


def _texts(module: Any, prompts: Any) -> list[Conditioning]:
    """The prompts encoded; where guidance is on, the empty one too."""
    guided = module.how.guidance != 1.0
    with torch.no_grad():
        return [module.policy.encode_prompts(text) for text in (prompts, [""] * len(prompts))[: 1 + guided]]


def _state(module: Any, rows: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, *module.policy.latent_shape, device=module.device)
    return x, torch.full((rows,), 0.5, device=module.device)


@torch.no_grad()
def _sample(module: Any, batch: PromptBatch) -> None:
    for part in micro_batches(len(batch), module.updates.micro_batch_size):
        texts, (x, t) = _texts(module, batch.prompt[part]), _state(module, len(batch.prompt[part]))
        with _sampling_policy(module):
            for _ in range(module.how.steps):
                for text in texts:
                    v = module.policy.velocity(x, t, text)
        module.policy.latents_to_images(v)


def _sampling_policy(module: Any) -> contextlib.AbstractContextManager[None]:
    old: contextlib.AbstractContextManager[None] = (
        module.bank.using("old") if "old" in module.bank.names else contextlib.nullcontext()
    )
    return old


@torch.no_grad()
def _score(module: Any, rollout: Rollout) -> None:
    pictures = uint8_to_unit(unit_to_uint8(rollout.images))
    for entry in module.rewards.entries:
        entry.reward(pictures, rollout.prompts, rollout.metadata)


def _train(module: Any, batch: PromptBatch, shares: list[int]) -> None:
    how = module.how
    passes = how.steps - 1 if isinstance(module, FlowGRPO) else how.times_per_picture
    has_reference = (module.kl if isinstance(module, FlowGRPO) else module.loss.kl) > 0
    for rows in shares:
        for part in micro_batches(rows, module.updates.micro_batch_size):
            prompts = batch.prompt[part]
            texts, (x, t) = _texts(module, prompts), _state(module, len(prompts))
            for _ in range(passes):
                with torch.no_grad():
                    if "old" in module.bank.names:
                        with module.bank.using("old"):
                            module.policy.velocity(x, t, texts[0])
                    if has_reference:
                        with module.bank.disabled():
                            for text in texts:
                                module.policy.velocity(x, t, text)
                torch.stack([module.policy.velocity(x, t, text) for text in texts]).float().mean().backward()
    for parameter in module.bank.parameters(module.bank.trainable):
        parameter.grad = None
