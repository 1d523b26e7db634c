"""The position in the data, as it stands in a checkpoint, and how a run goes on from it.

The state is the same on every rank and knows neither ranks nor workers, because only the first rank's state reaches the
checkpoint and because the next run may have another number of both.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

from lightning_gen.data.plan import Origin, Plan, Planner
from lightning_gen.data.quarantine import DataError

__all__ = ["Position", "resume"]

_VERSION = 2
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run has come in its data.

    Attributes:
        epoch: number of the plan.
        step_in_epoch: micro-batches of it that are done.
        samples_seen_global: samples of it that are done, over all ranks.
        global_batch: images per micro-batch.
        canonical_streams: C.
        first_step: optimiser steps before this plan.
        first_sample: samples before this plan, over all ranks.
        origin_plan: plan at which this curriculum took over.
        origin_step: optimiser steps before that plan.
        origin_sample: samples before that plan.
        seed: the data seed.
        accumulate: micro-batches per optimiser step.
        passes: passes over the data per plan.
        block_shards: shards mixed with each other.
        excluded: sha256 of the list of samples left out, empty if there is none.
        layout: mixture, buckets, smallest size and ladder of the plan's stage, as JSON text.
        manifest_sha256: the data set's fingerprint.
        plan_hash: hash over all that decides the order.
        version: of this record.
    """

    epoch: int
    step_in_epoch: int
    samples_seen_global: int
    global_batch: int
    canonical_streams: int
    first_step: int
    first_sample: int
    origin_plan: int
    origin_step: int
    origin_sample: int
    seed: int
    accumulate: int
    passes: int
    block_shards: int
    excluded: str
    layout: str
    manifest_sha256: str
    plan_hash: str
    version: int = _VERSION

    @classmethod
    def of(cls, plan: Plan, step: int) -> Position:
        """The position inside a plan.

        Args:
            plan: the plan.
            step: micro-batches of it that are done.

        Returns:
            The record.
        """
        planner = plan.planner
        return cls(
            epoch=plan.number,
            step_in_epoch=step,
            samples_seen_global=plan.samples_before(step),
            global_batch=plan.global_batch_size,
            canonical_streams=planner.streams(plan.stage),
            first_step=plan.first_step,
            first_sample=plan.first_sample,
            origin_plan=planner.origin.plan,
            origin_step=planner.origin.step,
            origin_sample=planner.origin.sample,
            seed=planner.layout.seed,
            accumulate=planner.accumulate,
            passes=planner.layout.passes,
            block_shards=planner.layout.block_shards,
            excluded=planner.layout.excluded_hash,
            layout=json.dumps(planner.layout.describe(planner.stages[plan.stage]), sort_keys=True),
            manifest_sha256=planner.fingerprint,
            plan_hash=planner.hash,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, safe to load with ``weights_only=True``.

        Returns:
            The fields.
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Position:
        """Read what :meth:`state_dict` gave.

        Args:
            state: the fields.

        Returns:
            The record.

        Raises:
            DataError: another version, or not such a record.
        """
        if state.get("version") != _VERSION:
            raise DataError(
                f"the data position in the checkpoint has version {state.get('version')}, this is {_VERSION}"
            )
        try:
            return cls(**state)
        except TypeError as error:
            raise DataError(f"the data position in the checkpoint is damaged ({error})") from None


def resume(planner: Planner, position: Position) -> tuple[Planner, int]:
    """Find the place where a run goes on, also after its curriculum was changed.

    Nothing that decides the order changed: the very next micro-batch. Later stages changed: likewise. The global batch
    or the accumulation changed: the same pass goes on behind the samples already seen, to within one global batch, and
    a warning says so.

    Args:
        planner: made from this run's configuration.
        position: from the checkpoint.

    Returns:
        The planner to go on with, and the number of micro-batches of plan ``position.epoch`` that are done.

    Raises:
        DataError: other data, another seed or another way of mixing: the rest of the pass would not be the rest.
    """
    origin = Origin(position.origin_plan, position.origin_step, position.origin_sample)
    same = planner.continued(origin, planner.canonical_streams)
    plan = same.plan(position.epoch)
    layout, stage = planner.layout, planner.stages[plan.stage]
    fixed = {
        "the data set": (planner.fingerprint, position.manifest_sha256),
        "seed": (layout.seed, position.seed),
        "block_shards": (layout.block_shards, position.block_shards),
        "passes": (layout.passes, position.passes),
        "the quarantine list of samples left out": (layout.excluded_hash, position.excluded),
    }
    then_layout = json.loads(position.layout)
    fixed |= {name: (now, then_layout.get(name)) for name, now in layout.describe(stage).items()}
    for name, (now, then) in fixed.items():
        if now != then:
            raise DataError(
                f"{name} is not that of the checkpoint ({now} now, {then} then), so the rest of epoch {position.epoch} "
                "cannot be told. Set it back, or start from the weights alone (init_from instead of ckpt_path)"
            )
    if same.hash == position.plan_hash:
        return same, position.step_in_epoch
    if (plan.first_step, plan.global_batch_size, same.accumulate, same.streams(plan.stage)) == (
        position.first_step,
        position.global_batch,
        position.accumulate,
        position.canonical_streams,
    ):
        _check_reach(plan, position.step_in_epoch)
        return same, position.step_in_epoch
    return _regrouped(planner, position)


def _regrouped(planner: Planner, position: Position) -> tuple[Planner, int]:
    streams: int | None = position.canonical_streams
    if any(stage.global_batch_size % position.canonical_streams for stage in planner.stages):
        streams = planner.canonical_streams
    taken = position.first_step + position.step_in_epoch // position.accumulate
    first = planner.continued(Origin(position.epoch, taken, position.first_sample), streams).plan(position.epoch)
    step = first.step_at(position.samples_seen_global)
    if first.steps == planner.steps_per_plan(first.stage):
        # No boundary cuts this plan: what was seen is all of it, and the next one begins.
        step = min(step, first.steps)
    origin = Origin(position.epoch, taken - step // planner.accumulate, position.first_sample)
    moved = planner.continued(origin, streams)
    plan = moved.plan(position.epoch)
    _check_reach(plan, step)
    repeated = max(0, position.samples_seen_global - plan.samples_before(step))
    same = streams == position.canonical_streams and planner.schedule(plan.stage).keeps_order
    kept = "the same order" if same else "a new order, so some samples come twice and others not at all"
    _log.warning(
        "the batch changed from %d x %d to %d x %d images in the middle of epoch %d: it goes on in %s at sample %d, "
        "which repeats %d samples",
        position.accumulate,
        position.global_batch,
        planner.accumulate,
        plan.global_batch_size,
        position.epoch,
        kept,
        plan.samples_before(step),
        repeated,
    )
    return moved, step


def _check_reach(plan: Plan, step: int) -> None:
    if step > plan.steps:
        raise DataError(
            f"the checkpoint has done {step} micro-batches of epoch {plan.number}, the new curriculum ends it after "
            f"{plan.steps}: let stage {plan.stage} end (until_step) no earlier than the checkpoint's step"
        )
