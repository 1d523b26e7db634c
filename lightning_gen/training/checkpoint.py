"""Checkpoints that a killed run cannot damage.

A file is written beside its final name and renamed when it is on disk. :class:`RunCheckpoint` never writes over an
older checkpoint: each has its step in its name, ``last.ckpt`` points to the newest, and older ones are removed only
after the newest is complete. A folder of shards counts once its last part has been written (:func:`is_complete`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from .safe_reading import load_plain

__all__ = ["AtomicCheckpointIO", "RunCheckpoint", "is_complete", "newest"]

# Written last by torch's distributed checkpoint, and after it by Lightning.
_SHARD_PARTS = (".metadata", "meta.pt")


def is_complete(path: Path) -> bool:
    """Whether a checkpoint was written to its end.

    Args:
        path: checkpoint file, folder of shards, or link to one.

    Returns:
        True if it can be read; a missing path, a broken link, half a file and a folder without its last part cannot.
    """
    if path.is_dir():
        metadata, rest = (path / part for part in _SHARD_PARTS)
        return metadata.is_file() and zipfile.is_zipfile(rest)
    # torch.save writes a zip archive; its directory stands at the end of the file.
    return path.is_file() and zipfile.is_zipfile(path)


def newest(folder: Path, *patterns: str) -> Path | None:
    """The complete checkpoint of a folder that was written last.

    Args:
        folder: where to look; need not exist.
        *patterns: glob patterns of the names that count.

    Returns:
        The checkpoint itself, links resolved, or None if there is none.
    """
    found = {path.resolve() for pattern in patterns for path in folder.glob(pattern) if is_complete(path)}
    return max(found, key=_written, default=None)


def _written(path: Path) -> tuple[int, str]:
    last_part = path / _SHARD_PARTS[-1] if path.is_dir() else path
    return last_part.stat().st_mtime_ns, path.name


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint file to a temporary name on the same disk, waits for the disk, then renames it.

    Lightning's own plugin builds the whole file in memory first and writes its temporary file on another file system,
    where a rename is a copy that a kill can interrupt.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what to save.
            path: final name; addresses with a protocol are left to Lightning.
            storage_options: not supported, as in Lightning's plugin.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        _sync_folder(target.parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: the file.
            map_location: as in ``torch.load``; None = where each tensor was.
            weights_only: None and True = tensors and plain values only; False = Lightning's own way, which runs
                whatever code the file holds.

        Returns:
            Its content.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or holds more than tensors and plain values.
        """
        if weights_only is False or "://" in str(path):
            content: dict[str, Any] = super().load_checkpoint(path, weights_only=weights_only)
            return content
        return load_plain(Path(path), map_location, mmap=False)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class RunCheckpoint(ModelCheckpoint):
    """Saves the run so that it can be continued, in ``checkpoints/`` of the run folder.

    Files are named ``step=0000500.ckpt``; ``last.ckpt`` always points to the newest. One is also written when training
    ends. To keep the best of some metric as well, add Lightning's ``ModelCheckpoint`` to ``trainer.callbacks``.

    Args:
        every_n_train_steps: optimiser steps between two checkpoints; None = once per epoch (one plan of the data).
        keep: number of newest checkpoints that stay, at least 1; -1 = all.
    """

    def __init__(self, every_n_train_steps: int | None = None, keep: int = 1) -> None:
        if keep == 0 or keep < -1:
            raise ValueError(
                f"checkpoint.keep is the number of checkpoints that stay, at least 1, or -1 for all; got {keep}"
            )
        super().__init__(
            filename="step={step:07d}",
            auto_insert_metric_name=False,
            save_top_k=-1,  # removal is done here, after the newest is complete
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )
        self.keep = keep

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the folder.

        Args:
            trainer: the trainer.
            pl_module: the model.
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """
        with warnings.catch_warnings():
            # A continued run has checkpoints; whether starting anew is allowed has been decided before.
            warnings.filterwarnings("ignore", message="Checkpoint directory")
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take over: which checkpoints there are is seen in the folder, wherever it has been moved to.

        Args:
            state_dict: what the checkpoint holds for this callback.
        """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that the state a run was continued from is on disk already.

        Args:
            trainer: the trainer.
            pl_module: the model.
        """
        super().on_train_start(trainer, pl_module)
        if trainer.ckpt_path:
            self._last_global_step_saved = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last steps too.

        Args:
            trainer: the trainer.
            pl_module: the model.
        """
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_checkpoint(trainer, self.format_checkpoint_name(self._monitor_candidates(trainer)))

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        path = Path(filepath)
        replaced = path.with_name(f".{path.name}.replaced")
        if trainer.is_global_zero and path.is_dir():
            # A folder of shards is written file by file: an old one under the same name must not look complete.
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        trainer.strategy.barrier("checkpoint folder is free")
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            shutil.rmtree(replaced, ignore_errors=True)
            _point(path.with_name("last.ckpt"), path)
            self._remove_old(path)
        trainer.strategy.barrier("older checkpoints are removed")

    def _remove_old(self, newest_path: Path) -> None:
        if self.keep == -1:
            return
        others = [path for path in newest_path.parent.glob("step=*.ckpt") if path != newest_path]
        complete = sorted((path for path in others if is_complete(path)), key=_written, reverse=True)
        stay = set(complete[: self.keep - 1])
        for path in [*others, *newest_path.parent.glob("*.ckpt.partial"), *newest_path.parent.glob(".*.partial")]:
            if path not in stay:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _point(link: Path, target: Path) -> None:
    """Point a link to a checkpoint in one step, so that it exists at every moment."""
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    try:
        temporary.symlink_to(target.name)
    except OSError:
        # Systems without links for ordinary users: a second name for the same file, or a copy of the folder.
        shutil.copytree(target, temporary) if target.is_dir() else os.link(target, temporary)
    os.replace(temporary, link)
