from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.intervals import bootstrap_interval, wilson_interval
from lightning_gen.metrics.preference_score import duel
from lightning_gen.metrics.protocol import Protocol
from lightning_gen.metrics.win_rate import WinRate, sign_test, win_rate

PROTOCOL = Protocol("pickscore", "vit-h14-224", details={"weights": "abc"})


def scores(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_duel_is_won_lost_or_halved() -> None:
    first = torch.tensor([1.0, 2.0, 3.0, math.nan, math.inf, -math.inf])
    second = torch.tensor([2.0, 2.0, 2.0, 1.0, math.inf, 0.0])
    assert str(duel(first, second).tolist()) == "[0.0, 0.5, 1.0, nan, 0.5, 0.0]"
    with pytest.raises(ValueError, match="do not pair up"):
        duel(first, second[:2])


def test_the_rate_counts_wins_and_half_of_the_ties() -> None:
    result = win_rate(torch.tensor([1.0, 5.0, 2.0, 9.0]), torch.tensor([0.0, 5.0, 3.0, 8.0]))
    assert (result.wins, result.ties, result.losses, result.prompts) == (2, 1, 1, 4)
    assert result.rate == 0.625 and result.decisive_rate == pytest.approx(2 / 3)


def test_it_is_fair() -> None:
    first, second = scores(200, seed=0), scores(200, seed=1)
    forth, back = win_rate(first, second), win_rate(second, first)
    assert forth.rate + back.rate == pytest.approx(1, abs=1e-12)
    assert (forth.wins, forth.losses) == (back.losses, back.wins) and forth.p_value == back.p_value
    same = win_rate(first, first)
    assert same.rate == 0.5 and same.ties == 200 and same.p_value == 1 and math.isnan(same.decisive_rate)
    assert same.interval == (0.5, 0.5) and same.decisive_interval is None
    assert win_rate(first + 1e-9, first).rate == 1


def test_pictures_of_a_prompt_are_averaged_before_the_comparison() -> None:
    # The first wins three of four pictures, but by less than it loses the other one.
    first, second = torch.tensor([[1.0, 1.0, 1.0, 0.0]]), torch.tensor([[0.9, 0.9, 0.9, 5.0]])
    assert win_rate(first, second).rate == 0
    assert win_rate(first.T[:, 0], second.T[:, 0]).rate == 0.75
    # numbers of pictures may differ, and some may lack a score
    assert win_rate(torch.tensor([[2.0, math.nan]]), torch.tensor([1.0])).rate == 1


def test_prompts_without_a_score_are_left_out() -> None:
    result = win_rate(torch.tensor([1.0, math.nan, 0.0]), torch.tensor([0.0, 0.0, math.nan]))
    assert result.prompts == 1 and result.rate == 1 and result.interval is None
    nothing = win_rate(torch.tensor([math.nan]), torch.tensor([0.0]))
    assert nothing.prompts == 0 and math.isnan(nothing.rate) and nothing.p_value == 1


def test_intervals_are_those_over_prompts() -> None:
    first, second = scores(80, 3, seed=0), scores(80, 3, seed=1) - 0.4
    result = win_rate(first, second, level=0.9, resamples=500, seed=7)
    outcomes = duel(first.mean(1), second.mean(1))
    assert result.interval == bootstrap_interval(outcomes, resamples=500, level=0.9, seed=7)
    assert result.decisive_interval == wilson_interval(result.wins, result.wins + result.losses, 0.9)
    assert result.interval is not None and result.interval[0] < result.rate < result.interval[1]
    # Two copies of every picture are no more prompts: the interval stays.
    doubled = win_rate(first.repeat(1, 2), second.repeat(1, 2), level=0.9, resamples=500, seed=7)
    assert doubled.interval == result.interval


def test_the_bootstrap_covers_the_true_rate() -> None:
    inside = 0
    for seed in range(60):
        draws = (scores(100, seed=seed) > -0.2533).double()  # wins with probability 0.6
        interval = win_rate(draws, torch.full((100,), 0.5), resamples=400).interval
        assert interval is not None
        inside += interval[0] <= 0.6 <= interval[1]
    assert inside >= 51  # 57 expected


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 7), (7, 3), (5, 5), (12, 30), (400, 350)])
def test_the_sign_test_is_the_exact_one(wins: int, losses: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_the_sign_test_of_many_prompts_does_not_overflow() -> None:
    assert sign_test(5000, 5000) == 1
    assert 0 < sign_test(4800, 5200) < 1e-3
    assert sign_test(0, 2000) == 2.0**-1999 if 2.0**-1999 else sign_test(0, 2000) == 0


def test_unequal_prompts_are_refused() -> None:
    for first, second in ((torch.zeros(2), torch.zeros(3)), (torch.zeros(()), torch.zeros(()))):
        with pytest.raises(ValueError, match="do not pair up"):
            win_rate(first, second)


# ------------------------------------------------------------------ metric


def test_the_metric_is_the_function() -> None:
    first, second = scores(20, 3, seed=0), scores(20, 3, seed=1)
    metric = WinRate(PROTOCOL, {"first": "tuned", "second": "base"})
    for sample in (2, 0, 1):
        metric.update(first[:, sample], second[:, sample], range(20), [sample] * 20)
    expected = win_rate(first, second)
    assert float(metric.compute()) == expected.rate
    assert metric.duel() == expected
    whole, decided = metric.measurements()
    assert whole.protocol.id == "pickscore:winrate/vit-h14-224" and whole.protocol.count == 20
    assert (whole.value, whole.interval) == (expected.rate, expected.interval)
    assert (decided.value, decided.interval) == (expected.decisive_rate, expected.decisive_interval)
    details = whole.protocol.details
    assert details["weights"] == "abc" and details["first"] == "tuned" and details["wins"] == expected.wins
    assert details["sign_test_p"] == expected.p_value


def test_a_sample_that_is_shown_twice_counts_once() -> None:
    metric = WinRate(PROTOCOL)
    metric.update(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), [0, 0], [0, 1])
    assert float(metric.compute()) == 0  # means 0.5 and 1.5
    for _ in range(5):
        metric.update(torch.tensor([1.0]), torch.tensor([0.0]), [0], [0])
    assert float(metric.compute()) == 0
    metric.update(torch.tensor([2.0]), torch.tensor([2.0]), [1], [0])
    assert float(metric.compute()) == 0.25
    metric.reset()
    metric.update(torch.tensor([2.0]), torch.tensor([1.0]), [1], [0])
    assert float(metric.compute()) == 1


def test_a_sample_that_one_side_has_no_score_for_is_left_out_on_both() -> None:
    metric = WinRate(PROTOCOL)
    metric.update(torch.tensor([9.0, 1.0]), torch.tensor([math.nan, 2.0]), [0, 0], [0, 1])
    assert float(metric.compute()) == 0
    metric.update(torch.tensor([math.nan]), torch.tensor([1.0]), [1], [0])
    assert float(metric.compute()) == 0 and metric.duel().prompts == 1


def test_scores_must_pair_up() -> None:
    with pytest.raises(ValueError, match="do not pair up"):
        WinRate(PROTOCOL).update(torch.zeros(2), torch.zeros(1), [0, 1], [0, 0])
    with pytest.raises(ValueError, match="1 prompt ids"):
        WinRate(PROTOCOL).update(torch.zeros(2), torch.zeros(2), [0], [0, 0])
