"""The real Trainer: stopped anywhere and started again, the data go on as if nothing had happened."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.report import DataReport
from lightning_gen.nn.tokens import Tokens
from lightning_gen.training.curriculum import BudgetStage
from tests.data.samples import shards

# 42 samples: plans of 5, then cut to 2 steps; 6 steps of the second stage's 10; then 7 of the last.
STAGES = [BudgetStage(4, 8, 7), BudgetStage(9, 4, 13), BudgetStage(16, 6)]


class Recorder(pl.LightningModule):
    """Writes down what every training step sees."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[object, ...]] = []
        self.validated: list[int] = []
        self.fail_at = fail_at

    def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.fail_at:
            raise RuntimeError("out of memory")
        assert isinstance(batch.images, Tokens)
        values = batch.images.values
        pixels = hashlib.sha256(values.numpy().tobytes()).hexdigest()
        place = (self.global_step, batch_idx, self.trainer.is_last_batch)
        self.seen.append((batch.key, batch.epoch, tuple(values.shape), pixels, *place))
        return (self.weight * values.mean()).sum()

    def validation_step(self, batch: ImageBatch) -> None:
        self.validated.append(int(batch.valid.sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveEverywhere(pl.Callback):
    """A checkpoint in every hook in which one is usually written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _save(self, trainer: pl.Trainer, where: str) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{len(trainer.lightning_module.seen):03d}-{where}.ckpt")  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._save(trainer, "start")

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._save(trainer, "epoch")

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._save(trainer, "end")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    shards(folder / "train", 42, 9)
    shards(folder / "val", 7, 3, "val")
    return folder


def fit(data: Path, *, checkpoint: Path | None = None, save: Path | None = None, **options: Any) -> Recorder:
    """One call of ``Trainer.fit``; ``options`` of the data begin with ``data_``."""
    settings = {
        "stages": STAGES,
        "patch_size": 8,
        "seed": 3,
        "val_batch_size": 4,
        **{name[5:]: value for name, value in options.items() if name.startswith("data_")},
    }
    trainer_options = {name: value for name, value in options.items() if not name.startswith(("data_", "model"))}
    trainer_options = {
        "max_epochs": -1,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 1,
        **trainer_options,
    }
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SaveEverywhere(save)] if save is not None else [],
        default_root_dir=data,
        **trainer_options,
    )
    model = options.get("model") or Recorder()
    module = ShardDataModule(str(data / "train"), str(data / "val"), **settings)
    trainer.fit(model, module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return model


NO_VALIDATION = {"limit_val_batches": 0}
EVERY_TWO = {"val_check_interval": 2, "check_val_every_n_epoch": None}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("steps", {"max_steps": 17, **EVERY_TWO}),
        ("epochs", {"max_epochs": 4, **EVERY_TWO}),
        ("epochs, no validation", {"max_epochs": 4, **NO_VALIDATION}),
        ("accumulation", {"max_steps": 10, "accumulate_grad_batches": 2, **EVERY_TWO}),
        ("accumulation, no validation", {"max_steps": 10, "accumulate_grad_batches": 2, **NO_VALIDATION}),
        ("validation per epoch", {"max_steps": 15}),
    ],
)
def test_resume_at_every_step_in_every_hook(data: Path, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Keys, pixels, rows, optimiser steps, batch numbers and the end of each epoch, all as in the uninterrupted run."""
    whole = fit(data, save=tmp_path, **options)
    budgets = [seen[2][1] for seen in whole.seen]  # type: ignore[index]
    assert len(set(budgets)) >= 2, "the run must cross a change of the budget"
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) > len(whole.seen)
    for checkpoint in checkpoints:
        again = fit(data, checkpoint=checkpoint, **options)
        assert again.seen == whole.seen[int(checkpoint.name[:3]) :], checkpoint.name


def test_the_budget_changes_exactly_at_its_optimiser_step(data: Path) -> None:
    for accumulate in (1, 2):
        seen = fit(data, max_steps=16, accumulate_grad_batches=accumulate, **NO_VALIDATION).seen
        for _, _, (batch, tokens, _), _, step, *_ in seen:  # type: ignore[misc]
            stage = 0 if step < 7 else 1 if step < 13 else 2  # type: ignore[operator]
            assert (tokens, batch) == (STAGES[stage].tokens, STAGES[stage].global_batch_size)


def test_resume_with_other_workers_and_over_the_boundary(data: Path, tmp_path: Path) -> None:
    whole = fit(data, max_steps=9, save=tmp_path, data_num_workers=2, **EVERY_TWO)
    assert whole.seen == fit(data, max_steps=9, **EVERY_TWO).seen
    for step in (1, 6, 7, 8):  # 7 is the last step of the first budget
        for workers in (0, 2):
            checkpoint = tmp_path / f"{step:03d}-batch.ckpt"
            again = fit(data, max_steps=9, checkpoint=checkpoint, data_num_workers=workers, **EVERY_TWO)
            assert again.seen == whole.seen[step:]


def test_validation_does_not_disturb_the_plan(data: Path) -> None:
    with_validation = fit(data, max_steps=9, **EVERY_TWO)
    without = fit(data, max_steps=9, **NO_VALIDATION)
    assert with_validation.seen == without.seen
    assert with_validation.validated[1:] == [4, 3] * 4, "7 samples in batches of 4: the tail is marked invalid"


@pytest.mark.parametrize("stop", [3, 5, 6, 7, 9])
@pytest.mark.parametrize("where", ["batch", "epoch", "end"])
def test_a_longer_run_goes_on_where_a_shorter_one_stopped(data: Path, tmp_path: Path, stop: int, where: str) -> None:
    """Also inside a plan, where the trainer believes that its epoch is over."""
    whole = fit(data, max_steps=15, **NO_VALIDATION).seen
    fit(data, max_steps=stop, save=tmp_path, **NO_VALIDATION)
    again = fit(data, max_steps=15, checkpoint=tmp_path / f"{stop:03d}-{where}.ckpt", **NO_VALIDATION).seen
    assert [seen[:5] for seen in again] == [seen[:5] for seen in whole[stop:]]


def test_a_run_by_steps_can_go_on_by_epochs(data: Path, tmp_path: Path) -> None:
    whole = fit(data, max_steps=13, **NO_VALIDATION).seen
    fit(data, max_steps=3, save=tmp_path, **NO_VALIDATION)
    again = fit(data, max_epochs=4, checkpoint=tmp_path / "003-end.ckpt", **NO_VALIDATION).seen
    assert [seen[:5] for seen in again] == [seen[:5] for seen in whole[3:]]


def test_a_batch_that_was_under_way_is_done_again(data: Path, tmp_path: Path) -> None:
    """An exception checkpoint is written after a batch was handed out and before it was used."""
    from lightning.pytorch.callbacks import OnExceptionCheckpoint

    whole = fit(data, max_steps=9, **NO_VALIDATION).seen
    for step in (1, 4, 5, 7):
        trainer_callback = OnExceptionCheckpoint(tmp_path, filename=f"crash{step}")
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[trainer_callback],
            default_root_dir=data,
            max_steps=9,
            reload_dataloaders_every_n_epochs=1,
            **NO_VALIDATION,  # type: ignore[arg-type]
        )
        module = ShardDataModule(str(data / "train"), stages=STAGES, patch_size=8, seed=3)
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer.fit(Recorder(fail_at=step), module)
        again = fit(data, max_steps=9, checkpoint=tmp_path / f"crash{step}.ckpt", **NO_VALIDATION)
        assert again.seen == whole[step:]


def test_a_later_stage_can_be_added_to_a_running_curriculum(data: Path, tmp_path: Path) -> None:
    fit(data, max_steps=7, save=tmp_path, data_stages=[BudgetStage(4, 8)], **NO_VALIDATION)
    whole = fit(data, max_steps=12, data_stages=[BudgetStage(4, 8, 7), BudgetStage(9, 4)], **NO_VALIDATION).seen
    for step, where in ((3, "batch"), (5, "batch"), (7, "batch"), (7, "end")):
        again = fit(
            data,
            max_steps=12,
            checkpoint=tmp_path / f"{step:03d}-{where}.ckpt",
            data_stages=[BudgetStage(4, 8, 7), BudgetStage(9, 4)],
            **NO_VALIDATION,
        ).seen
        assert [seen[:5] for seen in again] == [seen[:5] for seen in whole[step:]]
    with pytest.raises(DataError, match=r"let stage 0 end \(until_step\) no earlier"):
        fit(
            data,
            max_steps=12,
            checkpoint=tmp_path / "007-batch.ckpt",
            data_stages=[BudgetStage(4, 8, 6), BudgetStage(9, 4)],
            **NO_VALIDATION,
        )


@pytest.mark.parametrize("batch", [4, 20])
def test_another_batch_size_goes_on_behind_the_samples_seen(data: Path, tmp_path: Path, batch: int) -> None:
    one = {"data_canonical_streams": 4, **NO_VALIDATION}
    before = fit(data, max_steps=8, save=tmp_path, data_stages=[BudgetStage(4, 8)], **one)
    seen = {key for step in before.seen[5:] for key in step[0]}  # type: ignore[attr-defined]
    assert len(seen) == 24, "three steps of the second plan"
    after = fit(data, max_steps=14, checkpoint=tmp_path / "008-batch.ckpt", data_stages=[BudgetStage(4, batch)], **one)
    rest = [key for step in after.seen if step[1] == 1 for key in step[0]]  # type: ignore[attr-defined]
    assert len(rest) == len(set(rest)) == (16 if batch == 4 else 20)
    assert len(set(rest) & seen) == (0 if batch == 4 else 4)
    last = [step for step in after.seen if step[1] == 1][-1]
    assert last[-1] is True, "the trainer knows which batch is the plan's last"
    assert {step[1] for step in after.seen} == ({1, 2} if batch == 4 else {1, 2, 3, 4})


def test_state_in_the_checkpoint_is_plain_and_agrees(data: Path, tmp_path: Path) -> None:
    fit(data, max_steps=6, save=tmp_path, **NO_VALIDATION)
    saved = torch.load(tmp_path / "006-batch.ckpt", weights_only=True)
    own = saved["ShardDataModule"]
    assert own["position"] == saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    assert (own["position"]["epoch"], own["position"]["step_in_epoch"]) == (1, 1)
    assert all(isinstance(value, int | str) for value in own["position"].values())
    own["position"]["step_in_epoch"] = 0
    own["position"]["samples_seen_global"] = 0
    torch.save(saved, tmp_path / "forged.ckpt")
    with pytest.raises(DataError, match="contradicts itself"):
        fit(data, max_steps=9, checkpoint=tmp_path / "forged.ckpt", **NO_VALIDATION)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reload_dataloaders_every_n_epochs": 0}, r"set Trainer\(reload_dataloaders_every_n_epochs=1\), now 0"),
        ({"val_check_interval": 3}, r"val_check_interval=3 is longer than the shortest plan, 2 steps"),
        ({"limit_train_batches": 2}, "limit_train_batches cuts plans short"),
        ({"data_stages": [BudgetStage(4, 64)]}, "do not fill one optimiser step of 1 x 64 images"),
    ],
)
def test_settings_that_break_the_plan_are_refused(data: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(data, max_steps=9, **options)


def test_overfit_batches_repeats_the_same_batches_and_fast_dev_run_runs(data: Path) -> None:
    seen = fit(data, max_epochs=3, overfit_batches=2, data_stages=[BudgetStage(4, 8)], **NO_VALIDATION).seen
    assert [step[:4] for step in seen[2:4]] == [step[:4] for step in seen[:2]]
    assert len(seen) == 6
    assert len(fit(data, fast_dev_run=2).seen) == 2


def test_the_same_module_serves_a_new_trainer_from_the_start(data: Path, tmp_path: Path) -> None:
    module = ShardDataModule(str(data / "train"), tokens=9, global_batch_size=8, patch_size=8, seed=3)
    runs = []
    for _ in range(2):
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_steps=6,
            reload_dataloaders_every_n_epochs=1,
            callbacks=[DataReport()],
            log_every_n_steps=2,
            default_root_dir=tmp_path,
        )
        model = Recorder()
        trainer.fit(model, module)
        runs.append(model.seen)
        assert trainer.callback_metrics["data/bytes"] > 0
        assert trainer.callback_metrics["data/bad"] == 0
        assert trainer.callback_metrics["data_epoch/bytes"] > 0
        assert module.counters()["bytes"] >= trainer.callback_metrics["data_epoch/bytes"], "they outlive the workers"
        last = list(module.train_loader(1))[0]  # the sixth step of the run
        padding = 1 - last.images.mask.float().mean().item()
        assert 0 < padding < 1
        assert trainer.callback_metrics["data/padding"].item() == pytest.approx(padding)
    assert runs[0] == runs[1]
