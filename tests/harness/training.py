"""Checks of a LightningModule together with its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_gen.training.strategies import FSDP2Strategy
from tests.harness.network import assert_equal_states
from tests.harness.processes import two_processes

__all__ = ["Recorder", "TrainingChecks", "fit", "needs_cpu_fsdp2"]

needs_cpu_fsdp2 = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 7),
    reason="FSDP2 on the CPU (gloo) needs torch 2.7 or newer",
)


class Recorder(Callback):
    """Keeps the loss of each training batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.losses.append(float(loss))


def fit(
    module: LightningModule,
    data: LightningDataModule,
    folder: Path | str,
    *,
    strategy: Any = "auto",
    devices: int = 1,
    max_steps: int = 3,
    callbacks: tuple[Callback, ...] = (),
    ckpt_path: Path | str | None = None,
    **options: Any,
) -> Trainer:
    """Train on the CPU with nothing printed and no logger; every default may be replaced through ``options``."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "gradient_clip_val": 1.0,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "logger": False,
        "max_epochs": -1,
        "num_sanity_val_steps": 0,
        "reload_dataloaders_every_n_epochs": 1,
        "use_distributed_sampler": False,
    }
    trainer = Trainer(
        strategy=strategy,
        devices=devices,
        max_steps=max_steps,
        callbacks=list(callbacks),
        default_root_dir=str(folder),
        **{**settings, **options},
    )
    trainer.fit(module, datamodule=data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return trainer


class TrainingChecks:
    """Inherit, define ``module`` and ``data``, and ``config`` where the class is named in configs.

    Both factories must give the same thing each time. The data must hand each rank its share of one global batch, and
    the loss must be a mean over images, so that the mean over ranks is the loss of the global batch.
    """

    steps = 4
    loss_tolerance = 1e-5
    options: ClassVar[dict[str, Any]] = {}
    """Further arguments of ``fit``."""

    def module(self) -> LightningModule:
        raise NotImplementedError("return a tiny module")

    def data(self) -> LightningDataModule:
        raise NotImplementedError("return a tiny data module")

    def config(self) -> dict[str, Any]:
        """``{"class_path": ..., "init_args": {...}}`` of the module."""
        raise NotImplementedError("return the module's config")

    def learned(self, name: str, value: Tensor) -> Tensor:
        """What of a weight any loss reaches; of the rest Adam makes steps out of rounding."""
        return value

    def test_two_processes_with_ddp_train_as_one(self, tmp_path: Path) -> None:
        self._compare("ddp", tmp_path)

    @needs_cpu_fsdp2
    def test_two_processes_with_fsdp2_train_as_one(self, tmp_path: Path) -> None:
        self._compare("fsdp2", tmp_path)

    def test_resumed_run_continues_bit_for_bit(self, tmp_path: Path) -> None:
        half = self.steps // 2
        keeper = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=half, save_top_k=-1)
        whole, first = Recorder(), self.module()
        fit(first, self.data(), tmp_path, max_steps=self.steps, callbacks=(whole, keeper), **self.options)
        rest, second = Recorder(), self.module()
        path = tmp_path / "kept" / f"step={half}.ckpt"
        options = {**self.options, "callbacks": (rest,), "ckpt_path": path}
        trainer = fit(second, self.data(), tmp_path, max_steps=self.steps, **options)
        assert trainer.global_step == self.steps
        assert rest.losses == whole.losses[-len(rest.losses) :]
        assert len(rest.losses) == self.steps - half
        assert_equal_states(first.state_dict(), second.state_dict())

    def test_config_survives_a_round_trip(self) -> None:
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningModule, "model")
        parsed = parser.parse_object({"model": self.config()})
        text = parser.dump(parsed)
        again = parser.parse_string(text)
        assert again == parsed and parser.dump(again) == text
        first, second = (parser.instantiate(c).model for c in (parsed, again))
        assert type(first) is type(second)
        assert dict(first.hparams) == dict(second.hparams)

    def _compare(self, strategy: str, folder: Path) -> None:
        losses, state = train_job(type(self), "auto", folder / "one", 1)
        pair = two_processes(train_job, type(self), strategy, folder / "two", 2)
        (first, first_state), (second, second_state) = pair
        mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        assert mean == pytest.approx(losses, rel=self.loss_tolerance)
        assert_equal_states(first_state, second_state)
        assert set(first_state) == set(state)
        for name in state:
            found, expected = (self.learned(name, weights[name]) for weights in (first_state, state))
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5), name


def train_job(
    checks: type[TrainingChecks], strategy: str, folder: Path, devices: int
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of this rank and the whole weights after training."""
    recorder, case = Recorder(), checks()
    module = case.module()
    kind: Any = FSDP2Strategy() if strategy == "fsdp2" else strategy
    options = {"strategy": kind, "devices": devices, **case.options}
    fit(module, case.data(), folder, max_steps=case.steps, callbacks=(recorder,), **options)
    return recorder.losses, whole_state(module)


def whole_state(module: LightningModule) -> dict[str, Tensor]:
    """The unsharded state dict, on every rank."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if not torch.distributed.is_initialized():
        return {name: value.clone() for name, value in module.state_dict().items()}
    options = StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(module, options=options)
    # rank 0 alone gets the values of sharded tensors; the tests compare both ranks
    box = [{name: value.clone() for name, value in state.items()}]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
