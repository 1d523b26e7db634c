"""Aspect buckets and token ladders: one shape per step for everybody, nothing twice, little dropped, budgets kept."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gen.data.buckets import AspectBuckets
from lightning_gen.data.layout import Layout
from lightning_gen.data.plan import Planner
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.resume import Position, resume
from lightning_gen.training.curriculum import BudgetStage, check_stages

COUNTS = [50, 61, 72, 40, 33] * 4


def sizes(count: int) -> np.ndarray:
    """Ratios as photographs have them: 3:2, 4:3, 1:1, 2:3, a few panoramas, some unknown."""
    rng = np.random.default_rng(3)
    kinds = np.array([[400, 600], [480, 640], [512, 512], [600, 400], [200, 900], [0, 0]])
    return kinds[rng.choice(len(kinds), count, p=[0.4, 0.25, 0.15, 0.15, 0.03, 0.02])]


def planner(batch: int = 8, resolution: int = 512, step: int | None = 64, **options: object) -> Planner:
    known = sizes(sum(COUNTS))
    layout = Layout(COUNTS, 1, block_shards=4, buckets=AspectBuckets(resolution, step), sizes=lambda: known)
    return Planner(layout, "data", [BudgetStage(resolution**2, batch)], **options)  # type: ignore[arg-type]


def test_shapes_have_about_the_area_and_bounded_ratios() -> None:
    for resolution, step in ((512, 64), (1024, 64), (256, 32), (100, 16)):
        shapes = AspectBuckets(resolution, step).shapes
        assert len(set(shapes)) == len(shapes) > 3
        for height, width in shapes:
            assert height % step == width % step == 0
            assert 0.7 * resolution**2 <= height * width <= resolution**2
            assert max(height, width) <= 2 * min(height, width)
        assert (resolution // step * step,) * 2 in shapes
        assert {(w, h) for h, w in shapes} == set(shapes)
    assert AspectBuckets(1024, 64).shapes[0] == (1408, 704)
    assert AspectBuckets(512, None).shapes == ((512, 512),)


def test_a_picture_goes_to_the_nearest_log_ratio() -> None:
    buckets = AspectBuckets(512, 64)
    rng = np.random.default_rng(0)
    pictures = rng.integers(50, 3000, (500, 2))
    ratios = np.array([math.log(h / w) for h, w in buckets.shapes])
    for (height, width), number in zip(pictures, buckets.assign(pictures), strict=True):
        distance = abs(ratios - math.log(height / width))
        assert distance[number] <= distance.min() + 1e-12
    assert buckets.shapes[buckets.assign(np.array([[0, 0]]))[0]] == (512, 512)


def test_a_step_has_one_bucket_and_a_pass_has_no_sample_twice() -> None:
    made, known = planner(), sizes(sum(COUNTS))
    buckets = AspectBuckets(512, 64)
    own, moved, steps = buckets.assign(known), 0, set[int]()
    for k in range(3):
        plan = made.plan(k)
        steps.add(plan.steps)
        seen = [plan.step(t) for t in range(plan.steps)]
        index = np.concatenate([step.index for step in seen])
        assert len(np.unique(index)) == len(index) == sum(COUNTS) - plan.dropped
        assert plan.dropped < 2 * 8 * len(set(own.tolist()))
        for step in seen:
            assert step.shape is not None
            number = buckets.shapes.index(step.shape)
            # The left-overs of one bucket may stand in the next wider one, never further away.
            assert set(own[step.index].tolist()) <= {number, number - 1}
            moved += int((own[step.index] != number).sum())
    assert len(steps) == 1
    assert moved < 3 * 8 * len(set(own.tolist()))


def test_buckets_come_mixed_and_in_the_order_of_the_shards() -> None:
    plan = planner(batch=4).plan(0)
    shapes = [plan.step(t).shape for t in range(plan.steps)]
    changes = sum(a != b for a, b in zip(shapes, shapes[1:], strict=False))
    assert changes > 0.4 * plan.steps


def test_a_shard_is_read_in_a_stretch_of_the_pass() -> None:
    counts = COUNTS * 8  # 8 streams of 20 shards, 5 blocks each
    known = sizes(sum(counts))
    layout = Layout(counts, 1, block_shards=4, buckets=AspectBuckets(512, 64), sizes=lambda: known)
    plan = Planner(layout, "data", [BudgetStage(512**2, 4)]).plan(0)
    order = np.concatenate([plan.step(t).index for t in range(plan.steps)])
    owner = np.repeat(np.arange(len(counts)), counts)[order]
    spans = [np.ptp(np.flatnonzero(owner == shard)) for shard in range(len(counts))]
    assert np.median(spans) < 0.4 * len(order)


def test_the_same_for_everybody_and_resumable() -> None:
    first, again = planner(), planner()
    assert first.hash == again.hash
    assert all(np.array_equal(first.plan(2).step(t).index, again.plan(2).step(t).index) for t in range(20))
    assert not np.array_equal(first.plan(0).step(0).index, first.plan(1).step(0).index)
    position = Position.of(first.plan(2), 7)
    assert position.samples_seen_global == 56
    assert resume(again, position)[1] == 7
    with pytest.raises(DataError, match="bucket_step is not that of the checkpoint \\(32 now, 64 then\\)"):
        resume(planner(step=32), position)


def test_bad_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="step no larger"):
        AspectBuckets(32, 64)
    with pytest.raises(ValueError, match="at least 1"):
        AspectBuckets(64, 8, 0.5)


LADDER = BudgetStage(64, 16, ladder=(16, 64, 100), batch_multiple=2)


def test_a_ladder_keeps_the_tokens_of_a_step_and_uses_its_rungs_equally() -> None:
    made = Planner(Layout(COUNTS, 1, block_shards=4), "data", [LADDER])
    assert LADDER.batches == (64, 16, 10)
    lengths = set[int]()
    for k in range(3):
        plan = made.plan(k)
        seen = [plan.step(t) for t in range(plan.steps)]
        lengths.add(len(seen))
        index = np.concatenate([step.index for step in seen])
        assert len(np.unique(index)) == len(index) <= sum(COUNTS)
        rungs = [step.tokens for step in seen]
        assert max(rungs.count(n) for n in (16, 64, 100)) - min(rungs.count(n) for n in (16, 64, 100)) <= 1
        for step in seen:
            assert step.tokens * len(step.index) <= 64 * 16
            assert len(step.index) % 2 == 0
        starts = np.cumsum([0, *(len(step.index) for step in seen)])
        assert [plan.samples_before(t) for t in range(plan.steps + 1)] == starts.tolist()
        assert [plan.step_at(n) for n in range(int(starts[-1]))] == (
            np.searchsorted(starts, np.arange(starts[-1]), side="right") - 1
        ).tolist()
    assert len(lengths) == 1
    assert [made.plan(0).step(t).tokens for t in range(9)] != [made.plan(1).step(t).tokens for t in range(9)]


def test_bad_ladders_are_refused() -> None:
    with pytest.raises(ValueError, match="do not hold 8 images of 300 tokens"):
        check_stages([BudgetStage(64, 16, ladder=(16, 300), batch_multiple=8)])
    with pytest.raises(ValueError, match="at least 1"):
        check_stages([BudgetStage(64, 16, ladder=(0,))])


def test_small_pictures_are_left_out_per_stage() -> None:
    known = sizes(sum(COUNTS))
    stages = [BudgetStage(256, 8, 40), BudgetStage(1024, 8, min_size=450)]
    made = Planner(Layout(COUNTS, 1, block_shards=4, sizes=lambda: known), "data", stages)
    first, second = made.plan(0), made.plan(1)
    assert (first.stage, second.stage, first.steps) == (0, 1, 40)
    assert any((known[first.step(t).index].min(1) < 450).any() for t in range(first.steps))
    smallest = np.concatenate([known[second.step(t).index].min(1) for t in range(second.steps)])
    assert set(smallest.tolist()) == {0, 480, 512}  # 0 = unknown, judged when it is decoded
    with pytest.raises(ValueError, match="no sample is left"):
        Planner(Layout([4], 1, sizes=lambda: np.full((4, 2), 9)), "data", [BudgetStage(9, 2, min_size=10)])


def test_rare_shapes_are_not_left_out_for_ever() -> None:
    known = np.array([[512, 512]] * 100 + [[300, 600]] * 5 + [[600, 300]] * 5)
    layout = Layout([55, 55], 1, buckets=AspectBuckets(512, 64), sizes=lambda: known)
    made = Planner(layout, "data", [BudgetStage(512**2, 16)])
    seen = {int(n) for k in range(30) for t in range(made.plan(k).steps) for n in made.plan(k).step(t).index}
    assert seen == set(range(110))
    assert made.plan(0).steps == 110 // 16


def test_a_bucket_that_was_joined_by_another_takes_it_along() -> None:
    """The two tallest go to the tall, who are still too few and go with them to the square ones."""
    known = np.array([[512, 512]] * 90 + [[600, 300]] * 5 + [[560, 400]] * 6)
    layout = Layout([51, 50], 1, buckets=AspectBuckets(512, 64), sizes=lambda: known)
    made = Planner(layout, "data", [BudgetStage(512**2, 16)])
    assert len(set(AspectBuckets(512, 64).assign(known).tolist())) == 3
    steps = [made.plan(k).step(t) for k in range(30) for t in range(made.plan(k).steps)]
    assert {step.shape for step in steps} == {(512, 512)}
    assert {int(n) for step in steps for n in step.index} == set(range(101))


def test_another_batch_size_of_buckets_says_that_the_order_is_new(caplog: pytest.LogCaptureFixture) -> None:
    position = Position.of(planner().plan(0), 5)
    resume(planner(batch=16), position)
    assert "a new order, so some samples come twice and others not at all" in caplog.text
