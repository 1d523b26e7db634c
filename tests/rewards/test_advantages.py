"""Advantages against closed forms, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.rewards.advantages import (
    AdvantageSettings,
    combine_rewards,
    epoch_advantages,
    group_advantages,
    limit_advantages,
    optimality,
    training_mask,
    whiten,
)

NAN = float("nan")
GROUPS = torch.tensor([7, 3, 7, 3, 7, 3, 3, -1, -1])


def numbers(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def drawn(seed: int = 0) -> Tensor:
    return torch.randn(len(GROUPS), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-13, atol=1e-13, equal_nan=True)


# ------------------------------------------------------------------ one reward


def test_group_mean_and_epoch_deviation_by_hand() -> None:
    """Groups (1, 3) and (0, 0, 6): means 2 and 2; the epoch's variance about its mean 2 is (1 + 1 + 4 + 4 + 16) / 5."""
    reward, groups = numbers(1, 0, 3, 0, 6), torch.tensor([5, 9, 5, 9, 9])
    scale = math.sqrt(26 / 5) + 1e-4
    assert close(group_advantages(reward, groups), numbers(-1, -2, 1, -2, 4) / scale)
    by_group = group_advantages(reward, groups, "group")
    first, second = 1 + 1e-4, math.sqrt(8) + 1e-4
    assert close(by_group, numbers(-1 / first, -2 / second, 1 / first, -2 / second, 4 / second))
    assert close(group_advantages(reward, groups, "none"), numbers(-1, -2, 1, -2, 4))


@pytest.mark.parametrize("deviation", ["global", "group", "none"])
def test_advantages_of_a_group_sum_to_zero(deviation: Any) -> None:
    found = group_advantages(drawn(), GROUPS, deviation)
    for group in GROUPS.unique():
        assert abs(found[group == GROUPS].sum()) < 1e-12
    assert found.abs().max() > 0.1


def test_a_shift_of_one_prompt_moves_the_denominator_alone() -> None:
    reward = drawn()
    shifted = reward + 3.0 * (GROUPS == 7)
    scales = [values.std(correction=0) + 1e-4 for values in (reward, shifted)]
    before, after = group_advantages(reward, GROUPS), group_advantages(shifted, GROUPS)
    assert close(before * scales[0], after * scales[1]) and not close(before, after)
    assert close(group_advantages(reward, GROUPS, "group"), group_advantages(shifted, GROUPS, "group"))


def test_numbers_and_order_of_the_groups_do_not_matter() -> None:
    order = torch.randperm(len(GROUPS), generator=torch.Generator().manual_seed(3))
    found = group_advantages(drawn()[order], (GROUPS * 1000 + 1)[order])
    assert close(found, group_advantages(drawn(), GROUPS)[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_of_a_prompt_are_worth_exactly_nothing(dtype: torch.dtype) -> None:
    """0.1 three times has the mean 0.10000000000000002 in float64."""
    reward = numbers(0.1, 0.1, 0.1, 0.3, 0.9, dtype=dtype)
    for deviation in ("global", "group", "none"):
        found = group_advantages(reward, torch.tensor([0, 0, 0, 1, 1]), deviation)  # type: ignore[arg-type]
        assert (found[:3] == 0).all() and (found[3:] != 0).all() and found.dtype == dtype


def test_a_reward_that_does_not_apply_counts_nowhere() -> None:
    reward, groups = numbers(1, NAN, 3, 8, 10, NAN), torch.tensor([0, 0, 0, 1, 1, 2])
    there = ~reward.isnan()
    for deviation in ("global", "group"):
        found = group_advantages(reward, groups, deviation)  # type: ignore[arg-type]
        assert close(found[there], group_advantages(reward[there], groups[there], deviation))  # type: ignore[arg-type]
        assert torch.equal(found.isnan(), ~there)


def test_statistics_are_computed_in_float64() -> None:
    """In float32 the mean of these would be off by more than they differ."""
    reward = 1e6 + torch.arange(8.0) / 8
    found = group_advantages(reward, torch.zeros(8, dtype=torch.int64), "none")
    assert torch.equal(found, torch.arange(8.0) / 8 - 3.5 / 8)


@pytest.mark.parametrize(
    ("reward", "groups", "message"),
    [
        (numbers(1, 2), torch.tensor([0, 1]), "each of the 2 pictures has a prompt of its own"),
        (numbers(1, math.inf), torch.tensor([0, 0]), "reward 1 is infinite"),
        (numbers(1, 2), torch.tensor([0.0, 0.0]), "int64 number"),
        (numbers(1, 2), torch.tensor([0]), "int64 number"),
    ],
)
def test_rewards_that_teach_nothing_are_refused(reward: Tensor, groups: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_advantages(reward, groups)


# ------------------------------------------------------------------ several rewards


def test_sum_and_mean_leave_out_what_is_missing() -> None:
    rewards = {"a": numbers(1, NAN, 3, NAN), "b": numbers(10, 20, NAN, NAN), "seen": numbers(NAN, 5, 5, 5)}
    weights = {"a": 2.0, "b": 0.5, "seen": 0.0}
    assert close(combine_rewards(rewards, weights), numbers(7, 10, 6, NAN))
    assert close(combine_rewards(rewards, weights, "mean"), numbers(7 / 2.5, 20, 3, NAN))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0}, "b is only in one of them"),
        ({"a": 0.0, "b": 0.0}, "not all 0"),
        ({"a": 2.0, "b": -1.0}, "not negative"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine_rewards({"a": drawn(0), "b": drawn(1)}, weights)


def test_rewards_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        combine_rewards({"a": drawn(), "b": numbers(1)}, {"a": 1.0, "b": 1.0})


def test_combined_first_is_the_advantage_of_the_weighted_sum() -> None:
    first, second = drawn(0), 100 * drawn(1)
    found = epoch_advantages({"a": first, "b": second}, {"a": 1.0, "b": 2.0}, GROUPS)
    assert close(found.total, group_advantages(first + 2 * second, GROUPS))
    assert close(found.by_reward["b"], group_advantages(second, GROUPS))


def test_normalised_first_no_scale_wins() -> None:
    first, second = drawn(0), drawn(1)
    settings = AdvantageSettings("normalise_first", deviation="group", epsilon=1e-12)
    small = epoch_advantages({"a": first, "b": second}, {"a": 1.0, "b": 2.0}, GROUPS, settings).total
    large = epoch_advantages({"a": first, "b": 1000 * second}, {"a": 1.0, "b": 2.0}, GROUPS, settings).total
    assert torch.allclose(small, large, atol=1e-9)
    parts = [group_advantages(reward, GROUPS, "group", 1e-12) for reward in (first, second)]
    assert close(small, parts[0] + 2 * parts[1])
    averaged = epoch_advantages({"a": first, "b": second}, {"a": 1.0, "b": 2.0}, GROUPS, settings, "mean").total
    assert close(averaged, (parts[0] + 2 * parts[1]) / 3)


def test_normalised_first_tells_apart_what_a_sum_confuses() -> None:
    """Rewards (0, 1) and (1, 0) sum to the same as (1, 0) and (0, 1); with unequal spreads they are not worth the same.

    A point of the second reward, which is rarer, is worth more.
    """
    rewards = {"a": numbers(0, 1, 1, 0), "b": numbers(1, 0, 0, 0)}
    groups, weights = torch.zeros(4, dtype=torch.int64), {"a": 1.0, "b": 1.0}
    summed = epoch_advantages(rewards, weights, groups).total
    apart = epoch_advantages(rewards, weights, groups, AdvantageSettings("normalise_first")).total
    assert summed[0] == summed[1] and apart[0] > apart[1]


def test_whitened_advantages_have_deviation_one_whatever_the_number_of_rewards() -> None:
    rewards = {name: drawn(seed) for seed, name in enumerate("abc")}
    settings = AdvantageSettings("normalise_first", deviation="group", epsilon=1e-9, whiten=True)
    for names in ("a", "ab", "abc"):
        chosen = {name: rewards[name] for name in names}
        total = epoch_advantages(chosen, dict.fromkeys(names, 1.0), GROUPS, settings).total
        assert abs(total.mean()) < 1e-12 and total.std(correction=0).item() == pytest.approx(1.0, abs=1e-8)


def test_whitening_by_hand_and_nothing_stays_nothing() -> None:
    assert close(whiten(numbers(1, NAN, 3, 5), 0.5), numbers(-2, NAN, 0, 2) / (math.sqrt(8 / 3) + 0.5))
    values = numbers(0.1, 0.2, -0.3, 0.0)  # they sum to 2.8e-17 in float64
    assert values.sum() != 0 and whiten(values)[3] == 0.0


def test_a_picture_without_any_reward_is_worth_nothing() -> None:
    found = epoch_advantages({"a": numbers(1, 2, NAN)}, {"a": 1.0}, torch.zeros(3, dtype=torch.int64))
    assert found.total[2] == 0 and found.by_reward["a"][2].isnan() and found.total[0] < 0 < found.total[1]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"epsilon": 0.0}, "is positive"), ({"whiten": True}, "normalise_first")]
)
def test_settings_explain_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdvantageSettings(**arguments)


# ------------------------------------------------------------------ clipping and optimality

VALUES = numbers(-9, -5, -1, 0, 1, 5, 9, NAN)


@pytest.mark.parametrize(
    ("mode", "limited", "probability"),
    [
        ("all", (-5, -5, -1, 0, 1, 5, 5, NAN), (0, 0, 0.4, 0.5, 0.6, 1, 1, NAN)),
        ("positive_only", (0, 0, 0, 0, 1, 5, 5, NAN), (0.5, 0.5, 0.5, 0.5, 0.6, 1, 1, NAN)),
        ("negative_only", (-5, -5, -1, 0, 0, 0, 0, NAN), (0, 0, 0.4, 0.5, 0.5, 0.5, 0.5, NAN)),
        ("one_only", (0, 0, 0, 0, 1, 1, 1, NAN), (0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, NAN)),
        ("binary", (-1, -1, -1, 0, 1, 1, 1, NAN), (0.4, 0.4, 0.4, 0.5, 0.6, 0.6, 0.6, NAN)),
    ],
)
def test_modes(mode: Any, limited: tuple[float, ...], probability: tuple[float, ...]) -> None:
    assert close(limit_advantages(VALUES, mode), numbers(*limited))
    assert close(optimality(VALUES, mode), numbers(*probability))


def test_optimality_is_the_formula_of_the_paper() -> None:
    reward = 30 * drawn()
    scale = 2.0 * (reward.std(correction=0) + 1e-4)
    mean = torch.stack([reward[group == GROUPS].mean() for group in GROUPS])
    expected = 0.5 + 0.5 * ((reward - mean) / scale).clamp(-1, 1)
    assert close(optimality(group_advantages(reward, GROUPS), limit=2.0), expected)


def test_another_limit_and_unknown_modes() -> None:
    assert limit_advantages(VALUES, "all", 2.0).nan_to_num().abs().max() == 2.0
    with pytest.raises(ValueError, match="unknown mode 'some'"):
        limit_advantages(VALUES, "some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive limit"):
        optimality(VALUES, limit=0.0)


# ------------------------------------------------------------------ what is trained on


def masked(advantages: Tensor, divisor: int, parts: int = 1, epoch: int = 0, index: Tensor | None = None) -> Tensor:
    index = torch.arange(len(advantages)) if index is None else index
    return training_mask(advantages, divisor, seed=1, epoch=epoch, index=index, parts=parts)


def test_everything_of_worth_is_kept_and_filled_up_to_whole_batches() -> None:
    advantages = torch.zeros(24, 3)
    advantages[[1, 5, 6, 11, 20], [0, 1, 2, 0, 1]] = -1.0
    mask = masked(advantages, 4)
    assert mask[[1, 5, 6, 11, 20]].all() and int(mask.sum()) == 8
    assert torch.equal(masked(advantages, 4), mask)
    others = torch.stack([masked(advantages, 4, epoch=epoch) for epoch in range(40)])
    assert (others.sum(1) == 8).all() and others.any(0).all(), "the same pictures fill up in every epoch"


@pytest.mark.parametrize(("worth", "kept"), [(0, 0), (1, 4), (4, 4), (5, 8), (12, 12)])
def test_count_is_the_next_multiple(worth: int, kept: int) -> None:
    assert int(masked(torch.arange(12) < worth, 4).sum()) == kept  # type: ignore[arg-type]


def test_draw_follows_the_picture_not_its_place() -> None:
    advantages, index = (torch.arange(16) % 5 == 0).double(), torch.arange(100, 116)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    mask = masked(advantages, 8, index=index)
    assert torch.equal(masked(advantages[order], 8, index=index[order]), mask[order])


def test_every_rank_fills_up_to_the_same_number() -> None:
    advantages = torch.cat([torch.ones(5), torch.zeros(7), torch.ones(1), torch.zeros(11)])
    mask = masked(advantages, 3, parts=2).view(2, 12)
    assert mask.sum(1).tolist() == [6, 6] and mask[0, :5].all() and mask[1, 0]


def test_masks_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="10 pictures cannot be cut into 2 shares of 4"):
        masked(torch.ones(10), 4, parts=2)
    with pytest.raises(ValueError, match="without NaN"):
        masked(numbers(1, NAN), 1)
