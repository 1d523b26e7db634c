"""The loader: a rank's part of every step of a plan, with an exact length and a position that survives a restart.

Underneath is torch's DataLoader over a map-style dataset, so batches come in the plan's order for any number of
workers. The position counts batches that were handed out, not those that workers have prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset

from lightning_gen.data.dataset import Collate, Report, Request, SampleDataset
from lightning_gen.data.order import Step
from lightning_gen.data.plan import EvaluationPlan, Plan, rank_part
from lightning_gen.data.quarantine import DataError, Quarantine
from lightning_gen.data.remote.cache import CacheError
from lightning_gen.data.resume import Position, resume

__all__ = ["BatchFactory", "Batches", "Counters", "EvaluationLoader", "PadTo", "PlanLoader", "StartMethod"]

PadTo = Literal["budget", "longest"]
_Padding = Literal["budget", "longest", "rank"]
_STOP_SECONDS = 30.0
StartMethod = Literal["fork", "spawn", "forkserver"]


@dataclasses.dataclass
class Counters:
    """What this rank's loader has seen since it was made.

    Attributes:
        batches: batches handed out.
        retried: reads that were tried again.
        bytes_read: bytes read from shards.
        wait_seconds: time the trainer waited for a batch.
    """

    batches: int = 0
    retried: int = 0
    bytes_read: int = 0
    wait_seconds: float = 0.0


class _AnyPlan(Protocol):
    @property
    def steps(self) -> int: ...

    def step(self, number: int) -> Step: ...


class _Schedule:
    """The batch sampler: requests of one rank for the steps from ``start`` on. Kept while plans come and go."""

    def __init__(self, dataset: SampleDataset[Any, Any, Any], rank: int, world: int, pad_to: _Padding) -> None:
        self.dataset, self.rank, self.world, self.pad_to = dataset, rank, world, pad_to
        self.plan: _AnyPlan | None = None
        self.start = 0

    def __iter__(self) -> Iterator[list[Request]]:
        assert self.plan is not None
        plan = self.plan
        for number in range(self.start, plan.steps):
            yield self.requests(plan, number)

    def requests(self, plan: _AnyPlan, number: int) -> list[Request]:
        step = plan.step(number)
        length = None if self.pad_to == "rank" else step.tokens
        if self.pad_to == "longest":
            # Of the global batch, so that all ranks compute on one shape.
            length = self.dataset.planned_tokens(step.index, step.epoch, step.tokens) or step.tokens
        part = rank_part(len(step.index), self.rank, self.world)
        slots = np.arange(len(step.index)) if step.slot is None else step.slot
        places = zip(step.index[part].tolist(), step.valid[part].tolist(), slots[part].tolist(), strict=True)
        return [Request(index, step.epoch, step.tokens, length, ok, step.shape, slot) for index, ok, slot in places]


class BatchFactory:
    """Workers that decode batches for one plan after another; they live as long as this object.

    Args:
        dataset: the samples.
        rank: this rank.
        world: number of ranks.
        quarantine: counts and bounds bad samples.
        pad_to: ``budget`` = every row has the plan's tokens; ``longest`` = those of the longest image of the global
            batch; ``rank`` = of this rank's batch (prediction, where ranks need not agree).
        num_workers: worker processes; 0 = decode in this process.
        timeout: seconds to wait for a batch from the workers before giving up, 0 = for ever.
        start_method: how workers are started; None = torch's default.
        pin_memory: copy batches to page-locked memory.
        prefetch_factor: batches that each worker prepares ahead.
    """

    def __init__(
        self,
        dataset: SampleDataset[Any, Any, Any],
        rank: int,
        world: int,
        quarantine: Quarantine,
        *,
        pad_to: _Padding = "budget",
        num_workers: int = 0,
        timeout: float = 300.0,
        start_method: StartMethod | None = None,
        pin_memory: bool = False,
        prefetch_factor: int = 2,
    ) -> None:
        self.rank, self.world, self.quarantine, self.timeout = rank, world, quarantine, timeout
        self.counters = Counters()
        self._schedule = _Schedule(dataset, rank, world, pad_to)
        self._loader: DataLoader[Any] | None = DataLoader(
            cast("Dataset[Any]", dataset),
            batch_sampler=cast(Any, self._schedule),
            collate_fn=Collate(dataset.recipe),
            num_workers=num_workers,
            timeout=timeout if num_workers else 0,
            multiprocessing_context=start_method if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor if num_workers else None,
        )

    def batches(self, plan: _AnyPlan, start: int, name: str) -> Iterator[Any]:
        """Batches of a plan from some step on. Only the newest of these iterators may be used.

        Args:
            plan: what to decode.
            start: first step.
            name: what to call it in messages.

        Yields:
            This rank's batches.

        Raises:
            DataError: too many bad samples, or the workers died or do not answer.
        """
        if self._loader is None:
            raise DataError("the loader was closed: call setup() of the DataModule again")
        self._schedule.plan, self._schedule.start = plan, start
        iterator = iter(self._loader)
        for number in range(start, plan.steps):
            began = time.perf_counter()
            try:
                batch, report = cast("tuple[Any, Report]", next(iterator))
            except (DataError, CacheError) as error:
                raise DataError(_last_line(error)) from None
            except RuntimeError as error:
                raise DataError(self._lost(plan, number, name, error)) from None
            self.counters.wait_seconds += time.perf_counter() - began
            self.counters.batches += 1
            self.counters.retried += report.retried
            self.counters.bytes_read += report.bytes_read
            for bad in report.bad:
                self.quarantine.report(bad)
            self.quarantine.look()
            yield batch

    def _lost(self, plan: _AnyPlan, number: int, name: str, error: RuntimeError) -> str:
        requests = self._schedule.requests(plan, number)
        shards = sorted({self._schedule.dataset.source.name(request.index)[0] for request in requests})
        what = f"did not answer in {self.timeout} s" if "timed out" in str(error) else f"failed: {error}"
        return (
            f"rank {self.rank} of {self.world}: the workers {what} at step {number} of {name}, which reads from "
            f"{', '.join(shards[:8])}. Look at these shards and at the memory of the machine; num_workers: 0 shows the "
            "first error itself"
        )

    def close(self) -> None:
        """Stop the workers, also dead and hanging ones, in a bounded time."""
        stop = getattr(getattr(self._loader, "_iterator", None), "_shutdown_workers", None)
        self._loader = None
        if stop is not None:
            # A killed worker may hold a lock that this takes; workers are daemons and need not be waited for.
            stopping = threading.Thread(target=stop, name="stop-workers", daemon=True)
            with contextlib.suppress(RuntimeError):  # torch tells of dead workers by a signal, wherever one is
                stopping.start()
                stopping.join(_STOP_SECONDS)


def _last_line(error: DataError | CacheError) -> str:
    """The message itself: an error from a worker comes wrapped in the worker's traceback."""
    text = str(error)
    if "Traceback" not in text:
        return text
    named = list(re.finditer(rf"^(?:\w+\.)*{type(error).__name__}: ", text, re.MULTILINE))
    return text[named[-1].end() :].strip() if named else text


class Batches(Protocol):
    """Whatever gives the batches of a plan."""

    def batches(self, plan: Any, start: int, name: str) -> Iterator[Any]:
        """Batches from a step on."""
        ...


class PlanLoader:
    """A rank's batches of one training plan.

    Args:
        plan: the epoch.
        factory: the workers.
    """

    def __init__(self, plan: Plan, factory: Batches) -> None:
        self.plan = plan
        self.factory = factory
        self.start = 0
        self.position = 0
        self.hidden = 0
        self.agreed: Position | None = None

    def __len__(self) -> int:
        """Batches of the whole plan, the same for every rank, also when it is resumed in the middle."""
        return self.plan.steps - self.hidden

    def __iter__(self) -> Iterator[Any]:
        """From where the loader was told to begin; an iteration after that begins at the start of the plan.

        Yields:
            Batches. Nothing is read and no worker is started before the first one is asked for.
        """
        start, self.start = self.start, 0
        self.position = start
        for batch in self.factory.batches(self.plan, start, f"plan {self.plan.number}"):
            self.position += 1
            yield batch

    def seek(self, step: int, hide: bool = False) -> None:
        """Let the next iteration begin at a step.

        Args:
            step: micro-batches of the plan that are done.
            hide: leave these steps out of the length too, for a trainer that counts them as another epoch's.

        Raises:
            IndexError: the plan has fewer.
        """
        if not 0 <= step <= self.plan.steps:
            raise IndexError(f"plan {self.plan.number} has {self.plan.steps} steps, cannot begin at {step}")
        self.start = self.position = step
        self.hidden = step if hide else 0

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands: the same on every rank, for any number of ranks and workers.

        Returns:
            Plain numbers and strings.
        """
        return Position.of(self.plan, self.position).state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Args:
            state: the position; its plan becomes this loader's plan. Where the DataModule has restored the position
                already, it must be the same one.

        Raises:
            DataError: the position belongs to other data or another order, or it is not the DataModule's.
        """
        position = Position.from_state(state)
        if self.agreed is not None:
            if position != self.agreed:
                raise DataError(
                    f"the checkpoint contradicts itself: its loader stands at {position.step_in_epoch} of plan "
                    f"{position.epoch}, its DataModule at {self.agreed.step_in_epoch} of plan {self.agreed.epoch}"
                )
            return
        planner, step = resume(self.plan.planner, position)
        self.plan = planner.plan(position.epoch)
        self.seek(step)


class EvaluationLoader:
    """A rank's batches of an evaluation; every sample counts once whatever the number of ranks.

    Args:
        plan: what to evaluate.
        factory: the workers.
    """

    def __init__(self, plan: EvaluationPlan, factory: Batches) -> None:
        self.plan = plan
        self.factory = factory

    def __len__(self) -> int:
        """Batches, the same for every rank."""
        return self.plan.steps

    def __iter__(self) -> Iterator[Any]:
        """All batches from the beginning.

        Yields:
            Batches; ``valid`` marks what counts.
        """
        yield from self.factory.batches(self.plan, 0, "the evaluation")
