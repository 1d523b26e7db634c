"""Weighted mixtures: shares hold at every moment, sets go through whole passes, a restart lands on the same sample."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gen.data.buckets import AspectBuckets
from lightning_gen.data.images import TextImageDataModule
from lightning_gen.data.joining import WeightedShards, weighted
from lightning_gen.data.layout import Layout, MixedSet
from lightning_gen.data.mixture import BatchMixture, SampleMixture, shares
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.plan import Plan, Planner, rank_part
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.resume import Position, resume
from lightning_gen.data.writing import write_shards
from lightning_gen.training.curriculum import BudgetStage
from tests.data.kinds import captioned
from tests.data.samples import SIZES, sample, shards

COUNTS = [30, 41, 29, 7, 8]
SETS = [MixedSet(3, 3.0), MixedSet(2, 1.0)]  # 100 samples and 15 samples


def planner(batch: int = 8, weights: tuple[float, float] = (3.0, 1.0), **options: object) -> Planner:
    sets = [MixedSet(part.shards, weight) for part, weight in zip(SETS, weights, strict=True)]
    return Planner(Layout(COUNTS, 5, sets=sets), "data", [BudgetStage(9, batch)], **options)  # type: ignore[arg-type]


def taken(plans: list[Plan]) -> np.ndarray:
    return np.concatenate([plan.step(t).index for plan in plans for t in range(plan.steps)])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 10_000))
def test_shares_add_up_and_never_fall(weights: list[int], taken: int) -> None:
    exact = [Fraction(weight, 7) for weight in weights]
    now, later = shares(taken, exact), shares(taken + 1, exact)
    assert sum(now) == taken
    assert all(b >= a for a, b in zip(now, later, strict=True))
    for count, weight in zip(now, exact, strict=True):
        assert abs(count - taken * weight / sum(exact)) <= len(weights)


def test_every_batch_holds_the_sets_in_the_proportion_of_their_weights() -> None:
    plan = planner().plan(0)
    assert plan.steps == 115 // 8
    for t in range(plan.steps):
        assert (plan.step(t).index >= 100).sum() == 2
        # Interleaved: two ranks get one sample of the small set each.
        assert [(plan.step(t).index[rank_part(8, rank, 2)] >= 100).sum() for rank in (0, 1)] == [1, 1]


def test_a_set_is_gone_through_before_any_of_its_samples_comes_again() -> None:
    seen = taken([planner().plan(k) for k in range(12)])
    for first, last in ((0, 100), (100, 115)):
        own = seen[(seen >= first) & (seen < last)]
        length = last - first
        for turn in range(len(own) // length):
            assert sorted(own[turn * length : (turn + 1) * length]) == list(range(first, last))
        assert not np.array_equal(own[:length], own[length : 2 * length])


def test_a_set_smaller_than_its_share_of_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="set 1 of the mixture has 15 samples and would give 32 to every batch of 64"):
        planner(batch=64, weights=(1.0, 1.0))


def test_another_batch_size_or_accumulation_continues_the_sets_where_they_were() -> None:
    reference = taken([planner().plan(k) for k in range(4)])
    small = planner(batch=4)
    assert sorted(taken([small.plan(0)])[:96]) == sorted(reference[:96])
    first, origin = planner().plan(1), Position.of(planner().plan(1), 3)
    assert (first.first_sample, origin.samples_seen_global) == (14 * 8, 24)
    moved, step = resume(small, origin)
    rest = np.concatenate([moved.plan(1).step(t).index for t in range(step, moved.plan(1).steps)])
    whole = taken([planner().plan(1)])
    assert sorted(rest[:48]) == sorted(whole[24:72])


def test_a_changed_weight_is_not_the_same_data() -> None:
    position = Position.of(planner().plan(0), 3)
    with pytest.raises(DataError, match="train is not that of the checkpoint"):
        resume(planner(weights=(2.0, 1.0)), position)
    assert resume(planner(), position)[1] == 3


def test_with_buckets_whole_batches_take_turns() -> None:
    sizes = np.array([[8, 8], [8, 16]] * 60)[:115]
    layout = Layout(COUNTS, 5, sets=SETS, buckets=AspectBuckets(16, 4), sizes=lambda: sizes)
    made = Planner(layout, "data", [BudgetStage(9, 4)])
    owners = []
    for k in range(6):
        for t in range(made.plan(k).steps):
            step = made.plan(k).step(t)
            assert len(set((step.index >= 100).tolist())) == 1
            owners.append(bool(step.index[0] >= 100))
    assert abs(np.mean(owners) - 0.25) < 1 / len(owners) * 2


def test_with_buckets_sets_go_on_from_plan_to_plan_where_they_were() -> None:
    """Every set's batches come once in each of its passes, although plans end in the middle of them."""
    sizes = np.array([[8, 8], [8, 16]] * 60)[:115]
    layout = Layout(COUNTS, 5, sets=SETS, buckets=AspectBuckets(16, 4), sizes=lambda: sizes)
    made = Planner(layout, "data", [BudgetStage(9, 4)])
    plans = [made.plan(k) for k in range(9)]
    assert len({plan.first_sample for plan in plans}) == 9
    seen = taken(plans)
    schedule = made.schedule(0)
    assert isinstance(schedule, BatchMixture)
    for order, first, last in zip(schedule.orders, (0, 100), (100, 115), strict=True):
        own = seen[(seen >= first) & (seen < last)]
        length = order.steps * 4
        assert plans[0].steps % order.steps, "plans and passes end at different places"
        for turn in range(len(own) // length):
            assert len(set(own[turn * length : (turn + 1) * length].tolist())) == length
        expected = np.concatenate([order.step(*divmod(t, order.steps)).index for t in range(len(own) // 4)])
        assert np.array_equal(own, expected)


def test_the_sets_of_a_mixture_have_orders_of_their_own() -> None:
    """Two sets of one size would else come in step: picture n of one always beside picture n of the other."""
    sets = [MixedSet(3, 1.0), MixedSet(3, 1.0)]
    for buckets in (None, AspectBuckets(16, 4)):
        layout = Layout([20] * 6, 5, sets=sets, buckets=buckets, sizes=lambda: np.full((120, 2), 16))
        plan = Planner(layout, "data", [BudgetStage(9, 4)]).plan(0)
        seen = taken([plan])
        first, second = seen[seen < 60], seen[seen >= 60] - 60
        length = min(len(first), len(second))
        assert length >= 40 and (first[:length] == second[:length]).mean() < 0.2


def test_a_mixture_of_one_shape_spreads_its_sets_over_the_batch() -> None:
    layout = Layout(COUNTS, 5, sets=SETS, buckets=AspectBuckets(16, None))
    made = Planner(layout, "data", [BudgetStage(256, 8)])
    assert isinstance(made.schedule(0), SampleMixture)
    assert made.plan(0).step(0).shape == (16, 16)


def test_bad_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="do not make up the 5 shards"):
        Layout(COUNTS, 0, sets=[MixedSet(2, 1.0)])
    with pytest.raises(ValueError, match="must be positive"):
        Layout(COUNTS, 0, sets=[MixedSet(3, 1.0), MixedSet(2, 0.0)])
    with pytest.raises(ValueError, match="ladder"):
        Planner(Layout(COUNTS, 0, sets=SETS), "data", [BudgetStage(9, 8, ladder=(4, 9))])
    with pytest.raises(ValueError, match="empty list"):
        weighted([])
    with pytest.raises(ValueError, match="different names"):
        weighted([WeightedShards("a", name="x"), WeightedShards("b", name="x")])
    with pytest.raises(ValueError, match=r"must be positive, got set1: -1.0"):
        weighted([WeightedShards("a"), WeightedShards("b", -1.0)])


def test_a_module_reads_a_mixture_and_names_its_sets(tmp_path: Path) -> None:
    shards(tmp_path / "a", 18, 9)
    shards(tmp_path / "b", 6, 6)
    train = [WeightedShards(str(tmp_path / "a"), 1.0, "big"), WeightedShards(str(tmp_path / "b"), 1.0, "small")]
    made = ShardDataModule(train, patch_size=8, tokens=9, global_batch_size=4, num_workers=0)
    batches = [batch for k in range(3) for batch in made.train_loader(k)]
    index = np.concatenate([batch.index.numpy() for batch in batches])
    assert [(batch.index >= 18).sum().item() for batch in batches] == [2] * 18
    assert sorted(index[index >= 18][:6]) == list(range(18, 24))
    assert {shard.name for shard in made._set("train").source.shards.manifest.shards} == {
        "big/train-000000.tar",
        "big/train-000001.tar",
        "small/train-000000.tar",
    }


def test_a_bad_sample_is_replaced_by_one_of_its_own_set(tmp_path: Path) -> None:
    shards(tmp_path / "a", 40, 9)
    damaged = [sample(number) for number in range(6)]
    for number in (1, 3, 4):
        damaged[number][1]["png"] = b"nothing"
    write_shards(damaged, tmp_path / "b")
    train = [WeightedShards(str(tmp_path / "a")), WeightedShards(str(tmp_path / "b"))]
    made = ShardDataModule(train, patch_size=8, tokens=9, global_batch_size=4, max_bad_fraction=1.0)
    for k in range(2):
        for batch in made.train_loader(k):
            assert (batch.index >= 40).sum() == 2
            assert not set(batch.index.tolist()) & {41, 43, 44}


def test_a_bad_picture_is_replaced_by_one_of_its_own_bucket(tmp_path: Path) -> None:
    pictures = [captioned(number) for number in range(40)]
    wide = [number for number in range(40) if SIZES[number % len(SIZES)] == (24, 40)]
    for number in wide[:3]:
        # The header still says the size, the rest of the file is gone.
        pictures[number][1]["png"] = pictures[number][1]["png"][:60]
    write_shards(pictures, tmp_path)
    made = TextImageDataModule(
        str(tmp_path), resolution=32, global_batch_size=2, bucket_step=8, max_bad_fraction=1.0, max_bad_per_shard=9
    )
    pools, groups = made._pools(), made._layout.groups()
    assert pools is not None and groups is not None
    own = {pools.pick(wide[0], number) for number in range(200)}
    assert own == set(np.flatnonzero(groups == groups[wide[0]]).tolist()) and len(own) < 40
    used = [n for k in range(2) for batch in made.train_loader(k) for n in batch.index.tolist()]
    assert not set(used) & set(wide[:3])
    assert made.counters()["bad"] == 3
