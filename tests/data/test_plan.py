"""The plan: complete, without repetition, mixed, cut at the curriculum's boundaries, the same for everybody."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from lightning_gen.data.buckets import AspectBuckets
from lightning_gen.data.layout import Layout, MixedSet
from lightning_gen.data.order import canonical_order
from lightning_gen.data.plan import EvaluationPlan, Plan, Planner, rank_part
from lightning_gen.data.resume import Position, resume
from lightning_gen.training.curriculum import BudgetStage, check_stages, stage_at

UNEVEN = [int(n) for n in np.random.default_rng(0).integers(60, 140, 37)]


def planner(counts: list[int] | None = None, batch: int = 64, **options: object) -> Planner:
    of_planner = {name: options.pop(name) for name in ("accumulate", "canonical_streams") if name in options}
    layout = Layout(counts or UNEVEN, 7, **options)  # type: ignore[arg-type]
    return Planner(layout, "data", [BudgetStage(256, batch)], **of_planner)  # type: ignore[arg-type]


def batches(plan: Plan) -> np.ndarray:
    return np.stack([plan.step(t).index for t in range(plan.steps)])


def test_a_pass_has_every_sample_once_but_the_declared_drop() -> None:
    plan = planner(canonical_streams=8).plan(0)
    seen = batches(plan).reshape(-1)
    assert plan.steps == sum(UNEVEN) // 64
    assert len(np.unique(seen)) == len(seen) == sum(UNEVEN) - plan.dropped
    assert plan.dropped == sum(UNEVEN) % 64


def test_the_numbers_of_the_prototype() -> None:
    counts = [99] * 18 + [100] * 19  # 37 shards, N = 3682
    plan = planner(counts, canonical_streams=8, block_shards=4).plan(0)
    assert (sum(counts), plan.steps, plan.dropped) == (3682, 57, 34)
    ends = np.cumsum(counts)
    rank0 = batches(plan)[:, rank_part(64, 0, 8)]
    # One of eight ranks reads one of eight streams: 460 samples, that is 5 or 6 shards.
    assert len(np.unique(np.searchsorted(ends, rank0, side="right"))) <= 6


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16])
def test_ranks_share_out_the_same_global_batch(world: int) -> None:
    plan = planner().plan(3)
    parts = [batches(plan)[:, rank_part(64, rank, world)] for rank in range(world)]
    assert all(part.shape == (plan.steps, 64 // world) for part in parts)
    assert np.array_equal(np.concatenate(parts, axis=1), batches(planner().plan(3)))


def test_ranks_that_cannot_share_are_told() -> None:
    with pytest.raises(ValueError, match="64 images is not a multiple of the 3 ranks"):
        rank_part(64, 0, 3)
    with pytest.raises(ValueError, match="rank 4 of 4"):
        rank_part(64, 4, 4)


@pytest.mark.parametrize("counts", [[5], [3, 1, 4], [1] * 30, [100, 1, 1], [0, 9, 0, 9]])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_few_and_uneven_shards(counts: list[int], batch: int) -> None:
    """Fewer shards than ranks times workers are no problem: samples are dealt, not shards."""
    plan = planner(counts, batch, block_shards=2).plan(1)
    seen = batches(plan).reshape(-1)
    assert plan.steps == sum(counts) // batch
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(range(sum(counts)))


@pytest.mark.parametrize("counts", [[14], UNEVEN])
def test_no_sample_is_starved_by_the_drop(counts: list[int]) -> None:
    made = planner(counts, batch=8 if len(counts) == 1 else 64)
    seen = set[int]()
    for number in range(12):
        seen |= set(batches(made.plan(number)).reshape(-1).tolist())
    assert seen == set(range(sum(counts)))


def test_order_changes_with_epoch_and_seed_and_only_with_them() -> None:
    first = batches(planner().plan(0))
    assert np.array_equal(first, batches(planner().plan(0)))
    assert not np.array_equal(first, batches(planner().plan(1)))
    other = Planner(Layout(UNEVEN, 8), "data", [BudgetStage(256, 64)])
    assert not np.array_equal(first, batches(other.plan(0)))
    assert np.array_equal(first, batches(Planner(Layout(UNEVEN, 7), "data", [BudgetStage(1024, 64)]).plan(0)))


CODE = """
import hashlib
from lightning_gen.data.layout import Layout
from lightning_gen.data.plan import Planner
from lightning_gen.training.curriculum import BudgetStage
p = Planner(Layout([50, 61, 72] * 9, 7), "data", [BudgetStage(256, 32)])
steps = [p.plan(2).step(t).index for t in range(p.plan(2).steps)]
print(p.hash, hashlib.sha256(b"".join(s.tobytes() for s in steps)).hexdigest())
"""


def test_the_same_in_another_process_under_any_hash_seed() -> None:
    answers = set()
    for seed in ("0", "123"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=True)
        answers.add(done.stdout)
    made = Planner(Layout([50, 61, 72] * 9, 7), "data", [BudgetStage(256, 32)])
    assert len(answers) == 1
    assert answers.pop().startswith(made.hash)


@pytest.mark.parametrize(("streams", "correlation"), [(64, 0.05), (8, 0.08), (1, 0.08)])
def test_class_sorted_shards_are_mixed(streams: int, correlation: float) -> None:
    """256 classes of 80 neighbouring samples in 512 shards: far displacement, no correlation of neighbours.

    Neighbours of one stream share a block of 16 random shards: their correlation is 1/16 and can be no less. With 64
    streams (the default) and one sample from each, neighbours come from different streams.
    """
    counts = [40] * 512
    order = batches(planner(counts, 64, block_shards=16, canonical_streams=streams).plan(0)).reshape(-1)
    label = order // 80
    assert np.abs(order - np.arange(len(order))).mean() >= sum(counts) / 4
    assert abs(np.corrcoef(label[:-1], label[1:])[0, 1]) < correlation
    distinct = [len(np.unique(step)) for step in label.reshape(-1, 64)]
    assert min(distinct) >= (8 if streams == 1 else 24)


def test_blocks_mix_their_shards_and_no_others() -> None:
    shards = [np.arange(n * 10, n * 10 + 10) for n in range(12)]
    rows = canonical_order(shards, 0, 0, streams=1, block_shards=3)
    for start in range(0, 120, 30):
        block = rows[0, start : start + 30]
        assert len(np.unique(block // 10)) == 3
        assert np.abs(np.diff(block)).max() > 1
    assert not np.array_equal(np.sort(rows[0, :30]), rows[0, :30])


def test_a_rank_reads_few_shards_of_a_large_set() -> None:
    made = planner([1000] * 128, 64, block_shards=4)
    rank0 = batches(made.plan(0))[:, rank_part(64, 0, 8)]
    assert len(np.unique(rank0 // 1000)) <= 128 / 8 + 8


STAGES = [BudgetStage(64, 8, 7), BudgetStage(256, 4, 13), BudgetStage(1024, 2)]


def test_plans_are_cut_at_the_boundary_of_a_stage() -> None:
    made = Planner(Layout([26], 0), "data", STAGES)  # 3, 6 and 13 steps per pass
    plans = [made.plan(k) for k in range(6)]
    assert [p.steps for p in plans] == [3, 3, 1, 6, 13, 13]
    assert [p.first_step for p in plans] == [0, 3, 6, 7, 13, 26]
    assert [p.tokens for p in plans] == [64, 64, 64, 256, 1024, 1024]
    assert [p.global_batch_size for p in plans] == [8, 8, 8, 4, 2, 2]
    assert made.shortest_plan() == 1
    with pytest.raises(IndexError, match="step 1 of plan 2, which has 1 steps"):
        plans[2].step(1)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_every_optimiser_step_has_the_budget_of_its_stage(accumulate: int) -> None:
    made = Planner(Layout([26], 0), "data", STAGES, accumulate=accumulate)
    step, number = 0, 0
    while step < 40:
        plan = made.plan(number)
        assert plan.first_step == step
        assert plan.steps % accumulate == 0
        for inside in range(plan.steps // accumulate):
            assert plan.tokens == STAGES[stage_at(STAGES, step + inside)].tokens
        step += plan.steps // accumulate
        number += 1


def test_far_plans_need_no_walk_through_all_before() -> None:
    made = Planner(Layout([1_281_167], 0), "data", [BudgetStage(256, 6144, 270_000), BudgetStage(1024, 1536)])
    per_plan = 1_281_167 // 6144
    last = made.plan(math.ceil(270_000 / per_plan) - 1)
    assert last.first_step + last.steps == 270_000
    assert made.plan(last.number + 1).first_step == 270_000
    assert made.plan(10**9).tokens == 1024


def test_several_passes_make_one_plan() -> None:
    made = planner([10], 4, passes=3, accumulate=2)
    plan = made.plan(2)
    assert plan.steps == 6
    assert [plan.step(t).epoch for t in range(6)] == [6, 6, 7, 7, 8, 8]
    for first in (0, 2, 4):
        assert len(np.unique(batches(plan)[first : first + 2])) == 8
    assert made.plan(3).step(0).epoch == 9


def test_excluded_samples_never_come() -> None:
    made = planner([10, 10], 4, excluded=(3, 15))
    for number in range(5):
        assert not set(batches(made.plan(number)).reshape(-1).tolist()) & {3, 15}
    assert made.plan(0).steps == 4
    assert made.hash != planner([10, 10], 4).hash


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ValueError, match=r"14 samples in 1 pass\(es\) do not fill one optimiser step of 2 x 8 images"):
        planner([14], 8, accumulate=2)
    assert planner([14], 8, accumulate=2, passes=2).plan(0).steps == 2
    with pytest.raises(ValueError, match="canonical_streams=5 does not divide global_batch_size=64"):
        planner(canonical_streams=5)
    with pytest.raises(ValueError, match="at least 1"):
        planner(passes=0)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "no stage"),
        ([BudgetStage(0, 1)], "tokens >= 1"),
        ([BudgetStage(1, 1, 5)], "must be open"),
        ([BudgetStage(1, 1), BudgetStage(1, 1)], "never ends"),
        ([BudgetStage(1, 1, 5), BudgetStage(1, 1, 5), BudgetStage(1, 1)], "before it begins"),
    ],
)
def test_impossible_curricula_are_refused(stages: list[BudgetStage], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_stages(stages)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("total", [1, 7, 8, 9, 33])
def test_an_evaluation_counts_every_sample_once(world: int, total: int) -> None:
    plan = EvaluationPlan(total, 8, 256)
    counted = []
    for t in range(plan.steps):
        step = plan.step(t)
        for rank in range(world):
            part = rank_part(8, rank, world)
            assert len(step.index[part]) == 8 // world
            counted += step.index[part][step.valid[part]].tolist()
    assert sorted(counted) == list(range(total))


@pytest.mark.parametrize("batch", [8, 32, 64, 96, 128, 256])
def test_neighbours_of_class_sorted_shards_are_not_alike(batch: int) -> None:
    counts = [100] * 512
    made = Planner(Layout(counts, 3), "data", [BudgetStage(256, batch)])
    plan = made.plan(0)
    labels = np.concatenate([plan.step(t).index for t in range(min(plan.steps, 400))]) // 100
    assert abs(np.corrcoef(labels[:-1], labels[1:])[0, 1]) < 0.05


def test_neighbours_are_not_alike_on_a_ladder_or_in_buckets_or_in_mixtures() -> None:
    counts, sizes = [100] * 512, np.tile([[512, 512], [400, 600]], (25_600, 1))
    buckets = Layout(counts, 3, buckets=AspectBuckets(512, 64), sizes=lambda: sizes)
    mixture = Layout(counts, 3, sets=[MixedSet(256, 1.0), MixedSet(256, 1.0)])
    ladder = BudgetStage(256, 64, ladder=(64, 256))
    for layout, stage in ((buckets, BudgetStage(1, 64)), (mixture, BudgetStage(1, 64)), (Layout(counts, 3), ladder)):
        plan = Planner(layout, "data", [stage]).plan(0)
        labels = np.concatenate([plan.step(t).index for t in range(300)]) // 100
        if layout is mixture:
            labels = labels[labels < 256]
        assert abs(np.corrcoef(labels[:-1], labels[1:])[0, 1]) < 0.05


def test_an_epoch_that_is_over_is_over_for_another_accumulation_too() -> None:
    done = Position.of(planner([43], 4).plan(0), 10)
    moved, step = resume(planner([43], 4, accumulate=3), done)
    assert step == moved.plan(0).steps == 9
    assert moved.plan(1).steps == 9
