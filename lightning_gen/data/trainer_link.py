"""Where the data plan meets Lightning's loops.

Lightning counts batches and epochs by itself and restores these counts before it asks for a loader. Here both counts
are brought together, and the settings that would part them are refused. Written against the loops of lightning 2.6.6
(``fit_loop`` and ``fit_loop.epoch_loop``).
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_gen.data.loader import Batches, PlanLoader
from lightning_gen.data.plan import Origin, Planner
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.resume import Position, resume

__all__ = ["TrainerLink", "check_trainer", "quarantine_lists", "rank_and_world"]

_log = logging.getLogger(__name__)


def rank_and_world(trainer: pl.Trainer | None) -> tuple[int, int]:
    """This process's place among those that see different data.

    Args:
        trainer: None = alone.

    Returns:
        Rank and number of ranks; under tensor parallelism those of the data-parallel group.
    """
    if trainer is None:
        return 0, 1
    place = trainer.distributed_sampler_kwargs
    return (int(place["rank"]), int(place["num_replicas"])) if place else (trainer.global_rank, trainer.world_size)


def quarantine_lists(trainer: pl.Trainer | None, split: str) -> tuple[Path | None, tuple[Path, ...]]:
    """Where bad samples are written down. All ranks must call this together.

    The ranks of one machine append to one file. Every further machine has a file of its own in the run folder,
    ``quarantine.node1.jsonl`` and so on; where the folder is shared all ranks read all of them, and the bounds hold for
    the whole run. Where it is not they hold for each machine, and the log says so.

    Args:
        trainer: None = nothing is written.
        split: whose samples.

    Returns:
        The file of this machine and those of the others.
    """
    if trainer is None:
        return None, ()
    folder, kind = Path(trainer.default_root_dir), "" if split == "train" else f".{split}"
    machines = [folder / f"quarantine{kind}{f'.node{n}' if n else ''}.jsonl" for n in range(trainer.num_nodes)]
    if len(machines) > 1 and not _is_shared(trainer, folder):
        _log.warning(
            "the run folder %s is not shared by the %d machines: bad samples are listed and bounded on each of them by "
            "itself, so the whole run may meet %d times as many as data.init_args.max_bad_fraction says",
            folder,
            len(machines),
            len(machines),
        )
    own = machines.pop(trainer.node_rank)
    return own, tuple(machines)


def _is_shared(trainer: pl.Trainer, folder: Path) -> bool:
    """Whether every rank sees what rank 0 writes. The name is a new one: no network file system can remember it."""
    mark = folder / f".shared-{trainer.strategy.broadcast(uuid.uuid4().hex)}"
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    trainer.strategy.barrier("run folder written")
    is_seen = trainer.strategy.reduce_boolean_decision(mark.exists(), all=True)
    if trainer.is_global_zero:
        mark.unlink(missing_ok=True)
    return is_seen


def check_trainer(trainer: pl.Trainer, planner: Planner) -> None:
    """Refuse settings under which the trainer would not follow the plan.

    Args:
        trainer: about to fit.
        planner: what it should follow.

    Raises:
        ValueError: names the setting and what to put instead.
    """
    # Lightning sets many of its own attributes where a type checker does not see them.
    settings: Any = trainer
    if settings.reload_dataloaders_every_n_epochs != 1:
        raise ValueError(
            "every epoch has its own plan: set Trainer(reload_dataloaders_every_n_epochs=1), now "
            f"{settings.reload_dataloaders_every_n_epochs}"
        )
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ValueError("the plan deals samples to the ranks itself: set Trainer(use_distributed_sampler=False)")
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in settings.callbacks):
        raise ValueError(
            "GradientAccumulationScheduler changes the batch inside a plan: write it as stages of the data"
        )
    limited = settings.limit_train_batches != 1.0 and not settings.fast_dev_run
    if limited and not settings.overfit_batches and len(planner.stages) > 1:
        raise ValueError(
            "limit_train_batches cuts plans short, so until_step would be wrong: use it with one stage only"
        )
    interval = settings.val_check_interval
    by_epoch = settings.check_val_every_n_epoch is not None and settings.limit_val_batches > 0
    if isinstance(interval, int) and by_epoch and interval > planner.shortest_plan():
        raise ValueError(
            f"val_check_interval={interval} is longer than the shortest plan, {planner.shortest_plan()} steps: set "
            "Trainer(check_val_every_n_epoch=None), which counts training steps across epochs"
        )


class TrainerLink:
    """Gives the trainer the loader of its epoch, and carries the position through checkpoints."""

    def __init__(self) -> None:
        self._current: PlanLoader | None = None
        self._origin = Origin()
        self._streams: int | None = None
        self._shift = 0
        self._served_at = 0
        self._restored: dict[str, Any] | None = None

    def loader(self, trainer: pl.Trainer | None, planner: Planner, factory: Batches) -> PlanLoader:
        """The loader of the trainer's current epoch.

        Args:
            trainer: None = the first plan.
            planner: of the configured curriculum.
            factory: the workers.

        Returns:
            The loader, placed where the checkpoint left it.

        Raises:
            ValueError: see :func:`check_trainer`.
            DataError: the checkpoint's position does not fit.
        """
        if trainer is None:
            return PlanLoader(planner.plan(0), factory)
        check_trainer(trainer, planner)
        if self._restored is not None:
            loader = self._resumed(trainer, planner, factory, self._restored)
            self._restored = None
        else:
            planner = self._continued(planner)
            number = 0 if getattr(trainer, "overfit_batches", 0) else trainer.current_epoch - self._shift
            loader = PlanLoader(planner.plan(number), factory)
            if trainer.fit_loop.restarting:
                # The checkpoint was taken behind the last batch of a plan, and this is already the next one.
                _set_progress(trainer, 0, len(loader))
        self._current, self._served_at = loader, trainer.current_epoch
        return loader

    def state_dict(self, trainer: pl.Trainer | None) -> dict[str, Any]:
        """The position, with the trainer's own count of batches beside it.

        Args:
            trainer: None = nothing to save.

        Returns:
            Plain numbers and strings; empty outside training.
        """
        if trainer is None or self._current is None:
            return {}
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        return {
            "position": self._current.state_dict(),
            "trainer_batches": progress.current.processed + self._current.hidden,
            "trainer_epoch": self._served_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a position for the next loader.

        Args:
            state: what :meth:`state_dict` gave.
        """
        self._restored = dict(state) if state else None

    def _continued(self, planner: Planner) -> Planner:
        if self._origin == Origin() and self._streams is None:
            return planner
        return planner.continued(self._origin, self._streams or planner.canonical_streams)

    def _resumed(self, trainer: pl.Trainer, planner: Planner, factory: Batches, state: Mapping[str, Any]) -> PlanLoader:
        position = Position.from_state(state["position"])
        stored, step = position, _trusted_step(position.step_in_epoch, int(state["trainer_batches"]))
        if step != position.step_in_epoch:
            seen = position.samples_seen_global - position.global_batch
            position = dataclasses.replace(position, step_in_epoch=step, samples_seen_global=seen)
        planner, step = resume(planner, position)
        self._origin, self._streams = planner.origin, planner.canonical_streams
        ahead = trainer.current_epoch - int(state["trainer_epoch"])
        number = position.epoch
        if ahead not in (0, 1):
            raise DataError(
                f"the checkpoint contradicts itself: its data was served in epoch {state['trainer_epoch']}, its "
                f"trainer stands in epoch {trainer.current_epoch}"
            )
        if ahead and step == planner.plan(number).steps:
            number, step = number + 1, 0
        self._shift = trainer.current_epoch - number
        loader = PlanLoader(planner.plan(number), factory)
        loader.agreed = stored
        restarting = trainer.fit_loop.restarting
        # An epoch that the trainer counts as new although the plan goes on: it counts the batches from 0.
        loader.seek(step, hide=bool(ahead) and step > 0 and not restarting)
        if restarting:
            _set_progress(trainer, step, len(loader))
        return loader


def _trusted_step(loader: int, trainer: int) -> int:
    """Batches that are really done.

    The loader counts what it handed out; a batch that was under way when the checkpoint was written (an exception in a
    step) is one too many, and the trainer is going to do it again. A loader at 0 beside a trainer that is not has just
    been made for the next epoch.
    """
    if loader in (0, trainer):
        return loader
    if loader == trainer + 1:
        return trainer
    raise DataError(f"the checkpoint contradicts itself: {loader} batches were handed out, the trainer did {trainer}")


def _set_progress(trainer: pl.Trainer, step: int, length: int) -> None:
    """Tell a restarting trainer at which batch of the epoch it stands.

    Its own count is right except in two cases: behind the last batch of a plan it would take the count of that plan
    into the next one, unless the next one happens to be no longer; and after a change of the batch size a step is
    another step.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    if progress.total.completed < progress.total.processed:
        # Saved in on_train_batch_end: the loop is going to count this batch as completed, and starts anew at `length`.
        progress.current.completed = step - 1 if step > 0 else length
    else:
        progress.current.completed = step
    if step < length:
        progress.is_last_batch = False
