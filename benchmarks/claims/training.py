"""One training run of a claim: the package's own modules under Lightning's Trainer, continued where it was stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Timer
from report import write

from lightning_gen.training.checkpoint import AtomicCheckpointIO, RunCheckpoint, newest

__all__ = ["shared_folder", "train"]


def train(
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    steps: int,
    folder: Path,
    save_every: int = 250,
    watching: Sequence[Callback] = (),
) -> float:
    """Train for a number of optimiser steps, from the folder's newest checkpoint if there is one.

    Args:
        model: filled in place.
        data: must continue from a checkpoint, as the package's own DataModules do.
        steps: optimiser steps in all, those before an interruption included.
        folder: gets ``checkpoints/``.
        save_every: optimiser steps between two checkpoints; an interruption loses at most that many.
        watching: callbacks; what they must not lose to an interruption belongs in their ``state_dict``.

    Returns:
        Seconds of training, by the wall clock, those before an interruption included.

    Raises:
        RuntimeError: training ended early.
    """
    clock = Timer(interval="step", verbose=False)
    callbacks: list[Callback] = [clock, *watching, RunCheckpoint(every_n_train_steps=save_every)]
    last = newest(folder / "checkpoints", "*.ckpt")
    with _silent_lightning():
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            # A model that steps its own optimisers clips by itself.
            gradient_clip_val=1.0 if model.automatic_optimization else None,
            limit_val_batches=0,
            reload_dataloaders_every_n_epochs=1,  # one epoch is one plan of the data
            default_root_dir=folder,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, datamodule=data, ckpt_path=None if last is None else str(last), weights_only=True)
    if trainer.global_step < steps:
        raise RuntimeError(f"training under {folder} ended after {trainer.global_step} of {steps} steps")
    return clock.time_elapsed("train")


def shared_folder(folder: Path, setting: Mapping[str, Any]) -> Path:
    """A folder of a policy that several claims look at: whichever comes first trains it.

    Args:
        folder: made if it does not exist.
        setting: what the policy is made with, plain JSON values.

    Returns:
        The folder.

    Raises:
        ValueError: it holds a policy of another setting.
    """
    text, begun = json.dumps(setting, indent=1), folder / "setting.json"
    if not begun.exists():
        write(begun, text)
    if begun.read_text(encoding="utf-8") != text:
        raise ValueError(f"{begun} belongs to another setting of this claim: move {folder} away to start anew")
    return folder


@contextlib.contextmanager
def _silent_lightning() -> Iterator[None]:
    """Without the lines about devices and the advice about workers that every one of many runs would repeat."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            # Frozen networks are.
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
            yield
    finally:
        logger.setLevel(level)
