"""Intervals against closed forms, against SciPy, and against what resampling must not break apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_gen.metrics.intervals import (
    bootstrap_interval,
    paired_bootstrap_interval,
    ratio_bootstrap_interval,
    ratio_of_sums,
    wilson_interval,
)


def skewed(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).exponential(size=count))


def test_wilson_of_a_textbook_case() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-5)
    assert wilson_interval(181, 300, 0.9) == pytest.approx(
        stats.binomtest(181, 300).proportion_ci(0.9, method="wilson"), abs=1e-12
    )


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0.5, 0.999))
def test_the_ends_of_wilson_solve_the_score_equation(total: int, share: float, level: float) -> None:
    passed = round(share * total)
    lower, upper = wilson_interval(passed, total, level)
    assert 0 <= lower <= passed / total <= upper <= 1
    z = stats.norm.ppf((1 + level) / 2)
    for end in (lower, upper):
        deviation = (passed / total - end) ** 2 - z**2 * end * (1 - end) / total
        assert deviation == pytest.approx(0, abs=1e-12)


def test_wilson_has_a_width_where_all_or_nothing_passed() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    assert wilson_interval(0, 50) == (0.0, pytest.approx(z2 / (50 + z2)))
    assert wilson_interval(50, 50) == (pytest.approx(50 / (50 + z2)), 1.0)


@pytest.mark.parametrize("arguments", [(0, 0), (3, 2), (-1, 2), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_of_nonsense_is_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no interval|level"):
        wilson_interval(*arguments)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_of_a_mean_agrees_with_scipy(method: str) -> None:
    values = skewed(60)
    ours = bootstrap_interval(values, resamples=20000, method=method)  # type: ignore[arg-type]
    theirs = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=20000, method=method, rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), rel=0.01)


def test_bca_moves_the_ends_of_a_skewed_sample_to_the_right() -> None:
    values = skewed(40)
    plain, corrected = bootstrap_interval(values), bootstrap_interval(values, method="bca")
    assert corrected[0] > plain[0]
    assert corrected[1] > plain[1]


def test_bca_of_ties_is_finite() -> None:
    values = torch.tensor([1.0] * 19 + [0.0])
    lower, upper = bootstrap_interval(values, method="bca")
    assert 0 < lower < 0.95 <= upper <= 1


def test_the_seed_decides_and_nothing_else() -> None:
    values = skewed(30)
    torch.manual_seed(1)
    first = bootstrap_interval(values, seed=3)
    torch.manual_seed(2)
    assert bootstrap_interval(values, seed=3) == first
    assert bootstrap_interval(values, seed=4) != first


def test_a_higher_level_is_wider() -> None:
    values = skewed(30)
    narrow, wide = bootstrap_interval(values, level=0.8), bootstrap_interval(values, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_many_rows_are_drawn_piece_by_piece() -> None:
    values = skewed(60_000)
    lower, upper = bootstrap_interval(values, resamples=60)
    error = float(values.std()) / math.sqrt(len(values))
    assert lower == pytest.approx(float(values.mean()) - 1.96 * error, abs=error)
    assert upper == pytest.approx(float(values.mean()) + 1.96 * error, abs=error)


def test_a_micro_rate_is_computed_from_resampled_sums() -> None:
    # Of two rows only four resamples exist: 2/2, 1/10, 1/10 and 0/18.
    ends = ratio_bootstrap_interval(torch.tensor([1, 0]), torch.tensor([1, 9]), level=0.4)
    assert ends == pytest.approx((0.1, 0.1) if ends[0] else (0.0, 0.1))
    assert ratio_bootstrap_interval(torch.tensor([1, 0]), torch.tensor([1, 9]), level=0.9) == (0.0, 1.0)


def test_items_of_one_row_stay_together() -> None:
    passed = torch.tensor([10, 0] * 20)
    rows = ratio_bootstrap_interval(passed, torch.full((40,), 10))
    items = bootstrap_interval(torch.tensor([1.0, 0.0]).repeat(200))
    assert rows[1] - rows[0] > 2.5 * (items[1] - items[0])


def test_resamples_without_any_denominator_are_left_out() -> None:
    lower, upper = ratio_bootstrap_interval(torch.tensor([3, 0]), torch.tensor([4, 0]))
    assert (lower, upper) == (0.75, 0.75)
    with pytest.raises(ValueError, match="not a number on any"):
        ratio_bootstrap_interval(torch.zeros(3), torch.zeros(3))


def test_paired_rows_are_drawn_together() -> None:
    easy = skewed(50)
    better, worse = easy + 0.1, easy
    assert paired_bootstrap_interval(better, worse) == pytest.approx((0.1, 0.1))
    other = skewed(50, seed=1)
    assert paired_bootstrap_interval(easy, other) == pytest.approx(bootstrap_interval(easy - other))


def test_the_difference_of_micro_rates_is_paired_too() -> None:
    total = torch.tensor([4.0, 8, 6, 2])
    first, second = torch.tensor([4.0, 6, 3, 2]), torch.tensor([3.0, 6, 3, 1])
    ends = paired_bootstrap_interval(torch.stack((first, total), 1), torch.stack((second, total), 1), ratio_of_sums)
    assert ends == pytest.approx(ratio_bootstrap_interval(first - second, total))


@pytest.mark.parametrize(
    ("values", "message"),
    [(torch.tensor([1.0]), "at least 2 rows"), (torch.tensor([1.0, math.nan]), "NaN"), (torch.tensor(1.0), "2 rows")],
)
def test_rows_without_an_interval_are_refused(values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values)


def test_wrong_arguments_are_refused() -> None:
    values = skewed(5)
    with pytest.raises(ValueError, match="percentile"):
        bootstrap_interval(values, method="bcx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resample"):
        bootstrap_interval(values, resamples=0)
    with pytest.raises(ValueError, match="pair up"):
        paired_bootstrap_interval(values, values[1:])
    with pytest.raises(ValueError, match=r"\(N,\)"):
        ratio_bootstrap_interval(values, values[1:])
