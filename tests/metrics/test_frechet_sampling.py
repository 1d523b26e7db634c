"""Standard error and extrapolation of a Frechet distance against what repeated draws really do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.frechet import FrechetReference, Gaussian, Moments
from lightning_gen.metrics.frechet_sampling import frechet_infinity, frechet_standard_error

SIZE = 8


def draws(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / SIZE**0.5
    return torch.randn(count, SIZE, generator=generator, dtype=torch.float64) @ mix


def gaussian(rows: Tensor) -> Gaussian:
    moments = Moments(rows.shape[1])
    moments.add(rows)
    return moments.gaussian()


def reference() -> FrechetReference:
    return FrechetReference(Gaussian(torch.full((SIZE,), 0.3).double(), torch.eye(SIZE).double(), None))


@pytest.mark.parametrize("count", [200, 1600])
def test_the_standard_error_is_the_spread_of_repeated_draws(count: int) -> None:
    """Within 12 %: 250 draws know their own spread to 4.5 %. Quadruple samples halve it, so the rate is right too."""
    side = reference()
    distances = [side.distance(gaussian(draws(count, seed))) for seed in range(250)]
    errors = [frechet_standard_error(draws(count, seed), side) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.12)


def test_the_standard_error_is_the_jackknife() -> None:
    rows, side = draws(120, 3), reference()
    left_out = [side.distance(gaussian(torch.cat((rows[:i], rows[i + 1 :])))) for i in range(120)]
    jackknife = (119 / 120 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2)) ** 0.5
    assert frechet_standard_error(rows, side) == pytest.approx(jackknife, rel=0.05)


def test_the_standard_error_of_a_set_against_itself_vanishes_and_few_samples_leave_it_finite() -> None:
    rows = draws(300, 0)
    assert frechet_standard_error(rows, FrechetReference(gaussian(rows))) < 1e-8
    assert 0 < frechet_standard_error(rows[:5], reference()) < 10


def test_extrapolation_takes_the_bias_away() -> None:
    """The distance of 400 draws is too large by about 0.06; of the extrapolated one less than a quarter is left."""
    side = reference()
    exact = side.distance_of_any(Gaussian(torch.zeros(SIZE).double(), torch.cov(draws(200_000, 1234).T), None))
    plain = np.array([side.distance(gaussian(draws(400, seed))) for seed in range(60)])
    lines = [frechet_infinity(draws(400, seed), side, points=6) for seed in range(60)]
    bias = plain.mean() - exact
    assert bias > 3 * plain.std() / 60**0.5
    assert abs(np.mean([line.value for line in lines]) - exact) < bias / 4
    assert np.mean([line.slope for line in lines]) == pytest.approx(400 * bias, rel=0.3)


def test_extrapolation_is_a_line_through_fifteen_subsets() -> None:
    rows, side = draws(2000, 0), reference()
    line = frechet_infinity(rows, side)
    assert len(line.sizes) == len(line.distances) == 15 and line.sizes[0] == 200 and line.sizes[-1] == 2000
    assert line.distances[-1] == pytest.approx(side.distance(gaussian(rows)), rel=1e-10)
    slope, intercept = np.polyfit(1 / np.array(line.sizes), line.distances, 1)
    assert (line.value, line.slope) == pytest.approx((intercept, slope), rel=1e-8)
    assert 0 < line.error < 1
    assert frechet_infinity(rows, side) == line and frechet_infinity(rows, side, seed=1) != line
    assert frechet_infinity(draws(60_000, 1), side, points=2).sizes == (5000, 60_000)


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 samples"):
        frechet_infinity(draws(2, 0), reference())
    with pytest.raises(ValueError, match="another extractor"):
        frechet_standard_error(torch.zeros(9, 3), reference())
