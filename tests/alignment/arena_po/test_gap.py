"""The gap of a pair against closed forms, quadrature and 60 digits. Checks 1 to 4 of the requirement, and the rest."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.alignment.arena_po.gap import (
    LOGISTIC_SLOPE,
    expected_gap,
    expected_margin_loss,
    gap_quantile,
    gap_variance,
    hazard,
    normalise_gaps,
    pair_scale,
    win_probability,
)

ONE = torch.ones((), dtype=torch.float64)
TAILS = (-1e6, -3e4, -1e3, -50.0, -10.0, -6.0, -4.0, -3.001, -3.0, -2.9, -2.5, -1.6, -1.5, -1.4, -1.0, -0.3)
MIDDLE = (0.0, 0.3, 1.0, 2.0, 4.9, 5.0, 5.1, 8.0, 30.0, 1e3, 1e6)


def gap(delta: float, scale: float = 1.0) -> float:
    return float(expected_gap(torch.tensor(delta, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)))


def variance(delta: float, scale: float = 1.0) -> float:
    return float(gap_variance(torch.tensor(delta, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)))


def exact(t: float) -> tuple[float, float]:
    """E[D | D > 0] and its variance for s = 1, with so many digits that nothing cancels."""
    with mpmath.workdps(120):
        if t > -25:
            rate = mpmath.npdf(t) / mpmath.ncdf(t)
            ratio = rate + mpmath.mpf(t)
            return float(ratio), float(1 - rate * ratio)
        # Moments by their asymptotic series, which 120 digits of a normal's tail at -1e6 do not reach: r from Mills.
        x = mpmath.mpf(-t)
        f, slope = mpmath.mpf(0), mpmath.mpf(0)
        for level in range(300, 0, -1):
            below = x + f
            f, slope = level / below, -level * (1 + slope) / below**2
        return float(f), float(-slope)


def random_pairs(count: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    delta = 20 * torch.randn(count, generator=generator, dtype=torch.float64)
    return delta, torch.rand(count, generator=generator, dtype=torch.float64) * 9 + 0.5


def test_half_normal_and_its_neighbours() -> None:
    assert gap(0) == pytest.approx(0.797884560802865, abs=1e-12)
    assert variance(0) == pytest.approx(0.363380227632419, abs=1e-12)
    assert gap(1) == pytest.approx(1.28759997093918, abs=1e-12)
    assert gap(-1) == pytest.approx(0.525135276160981, abs=1e-12)


def test_against_scipy_and_draws() -> None:
    found = gap(3.5, 6)
    assert found == pytest.approx(6.30374557572191, rel=1e-12)
    assert found == pytest.approx(stats.truncnorm.mean(-3.5 / 6, np.inf, 3.5, 6), rel=1e-9)
    random = np.random.default_rng(0)
    winner, loser = (
        3.5 + math.sqrt(18) * random.standard_normal(2_000_000),
        math.sqrt(18) * random.standard_normal(2_000_000),
    )
    difference = winner - loser
    assert difference[difference > 0].mean() == pytest.approx(found, abs=0.01)
    assert difference[difference > 0].var() == pytest.approx(variance(3.5, 6), rel=0.01)


def test_tails() -> None:
    assert gap(-40, 6) == pytest.approx(0.863427761171061, rel=1e-12)
    assert gap(-300, 6) == pytest.approx(0.119904191433839, rel=1e-12)
    assert gap(-1000) == pytest.approx(9.9999800001e-4, rel=1e-10)
    assert gap(60, 6) == 60


@pytest.mark.parametrize("t", TAILS + MIDDLE)
def test_exact_everywhere(t: float) -> None:
    wanted, spread = exact(t)
    assert gap(t) == pytest.approx(wanted, rel=1e-12)
    assert variance(t) == pytest.approx(spread, rel=1e-11)
    single = torch.tensor(t)
    wanted, spread = exact(float(single))
    assert float(expected_gap(single, torch.ones(()))) == pytest.approx(wanted, rel=2e-6)
    assert float(gap_variance(single, torch.ones(()))) == pytest.approx(spread, rel=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positive_monotone_and_no_nan(dtype: torch.dtype) -> None:
    size = torch.logspace(-3, 6, 4000, dtype=dtype)
    t = torch.cat([-size.flip(0), torch.zeros(1, dtype=dtype), size])
    found = expected_gap(t, torch.ones((), dtype=dtype))
    assert found.dtype == dtype
    assert bool(torch.isfinite(found).all()) and bool((found > 0).all())
    assert bool((found.diff() >= 0).all())
    spread = gap_variance(t, torch.ones((), dtype=dtype))
    assert bool((spread > 0).all()) and bool((spread <= 1).all())
    if dtype == torch.float64:
        fine = expected_gap(torch.linspace(-8, 8, 20001, dtype=dtype), torch.ones((), dtype=dtype))
        assert bool((fine.diff() > 0).all())


def test_identities() -> None:
    delta, scale = random_pairs()
    g = expected_gap(delta, scale)
    assert bool((g > delta.clamp(min=0)).logical_or((g == delta) & (delta / scale > 8)).all())
    assert torch.allclose(expected_gap(7.5 * delta, 7.5 * scale), 7.5 * g, rtol=1e-13)
    p, back = win_probability(delta, scale), expected_gap(-delta, scale)
    # The law of total expectation kills every sign error.
    assert torch.allclose(p * g - (1 - p) * back, delta, rtol=1e-12, atol=1e-12)
    density = torch.exp(-0.5 * (delta / scale).square())
    size = scale * math.sqrt(2 / math.pi) * density + delta * torch.erf(delta / scale / math.sqrt(2))
    assert torch.allclose(p * g + (1 - p) * back, size, rtol=1e-12)


def test_slope_is_the_variance() -> None:
    delta, scale = random_pairs()
    delta = torch.cat([delta, torch.tensor([-1e5, -300.0, -1.5, 5.0, 60.0], dtype=torch.float64)]).requires_grad_()
    scale = torch.cat([scale, torch.ones(5, dtype=torch.float64)]).requires_grad_()
    by_delta, by_scale = torch.autograd.grad(expected_gap(delta, scale).sum(), (delta, scale))
    share = gap_variance(delta, scale).detach() / scale.detach().square()
    assert torch.allclose(by_delta, share, rtol=1e-11, atol=0)
    assert bool((by_delta > 0).all()) and bool((by_delta <= 1).all())
    # Homogeneity of degree one: delta dg/ddelta + s dg/ds = g.
    assert torch.allclose(delta * by_delta + scale * by_scale, expected_gap(delta, scale), rtol=1e-9, atol=1e-9)


def test_second_derivatives_pass_gradgradcheck() -> None:
    t = torch.tensor([-3.0, -1.7, -0.4, 2.0, 6.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: hazard(x)[1], t, atol=1e-7)
    assert torch.autograd.gradgradcheck(lambda x: hazard(x)[1], t, atol=1e-5)


@pytest.mark.parametrize("quantile", [0.01, 0.25, 0.5, 0.9, 0.999])
def test_a_quantile_is_what_the_gap_stays_below(quantile: float) -> None:
    t = torch.tensor([*TAILS, *MIDDLE], dtype=torch.float64)
    found = gap_quantile(t, ONE, quantile)
    for place, value in zip(t.tolist(), found.tolist(), strict=True):
        with mpmath.workdps(40):
            if place < -100:
                # An exponential with a little of the normal's own curve: v^2 / 2 - t v + log of the two tails' ratio.
                x = mpmath.mpf(-place)
                rest = [1 / far - 1 / far**3 + 3 / far**5 for far in (x, x + value)]
                below = 1 - mpmath.e ** (-value * x - mpmath.mpf(value) ** 2 / 2) * rest[1] / rest[0]
            else:
                below = 1 - mpmath.ncdf(place - mpmath.mpf(value)) / mpmath.ncdf(place)
        assert float(below) == pytest.approx(quantile, abs=1e-9), place
    single = gap_quantile(t.float(), ONE.float(), quantile)
    torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=0)
    near = torch.tensor([-40.0, -1.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda delta: gap_quantile(delta, 2 * ONE, quantile), (near,))


def test_the_mean_lies_between_two_quantiles_and_a_wrong_one_is_refused() -> None:
    delta, scale = random_pairs()
    gaps = [gap_quantile(delta, scale, quantile) for quantile in (0.25, 0.49, 0.64, 0.9)]
    mean = expected_gap(delta, scale)
    assert bool((gaps[0] < gaps[1]).all() and (gaps[1] < mean).all() and (mean < gaps[2]).all())
    assert bool((gaps[2] < gaps[3]).all())
    for quantile in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="a quantile lies between 0 and 1"):
            gap_quantile(delta, scale, quantile)


def test_both_readings_of_the_variance() -> None:
    one, two = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 0.0])
    assert pair_scale(one, two, 2.0, "capability").tolist() == [2.0, 2.0]
    assert pair_scale(one, two, 2.0, "performance").tolist() == pytest.approx([math.sqrt(12)] * 2)
    with pytest.raises(ValueError, match="gap_variance is one of performance, capability, got 'both'"):
        pair_scale(one, two, 2.0, "both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be positive, got 0"):
        pair_scale(one, two, 0.0, "performance")


def test_normalisations() -> None:
    gaps = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64, requires_grad=True)
    assert normalise_gaps(gaps, "none", 25 / 6).tolist() == [1, 2, 6]
    assert normalise_gaps(gaps, "mean", 25 / 6).tolist() == pytest.approx([1 / 3, 2 / 3, 2])
    assert not normalise_gaps(gaps, "mean", 25 / 6).requires_grad, "a margin is a constant"
    slope = LOGISTIC_SLOPE / (25 / 6)
    assert slope == pytest.approx(0.307811959, abs=1e-9)
    same_model = expected_gap(torch.zeros(1, dtype=torch.float64), math.sqrt(2) * 25 / 6 * ONE)
    assert float(normalise_gaps(same_model, "logit", 25 / 6)) == pytest.approx(1.447203, abs=1e-6)
    scores = normalise_gaps(torch.tensor([0.0] * 99 + [100.0], dtype=torch.float64), "zscore_clip", 1.0)
    assert float(scores[-1]) == 3 and float(scores[0]) == pytest.approx(-1 / math.sqrt(99))


def test_gaps_that_cannot_be_normalised_are_counted() -> None:
    with pytest.raises(ValueError, match="2 of 3 gaps are NaN or infinite"):
        normalise_gaps(torch.tensor([1.0, math.nan, math.inf]), "mean", 1.0)
    with pytest.raises(ValueError, match="no gaps"):
        normalise_gaps(torch.zeros(0), "mean", 1.0)
    with pytest.raises(ValueError, match="none is a unit"):
        normalise_gaps(torch.zeros(4), "mean", 1.0)
    with pytest.raises(ValueError, match="all 4 gaps are 2"):
        normalise_gaps(torch.full((4,), 2.0), "zscore_clip", 1.0)
    with pytest.raises(ValueError, match="gap_norm is one of"):
        normalise_gaps(torch.ones(4), "max", 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("delta", "scale"), [(3.5, 6.0), (-3.5, 6.0), (-40.0, 6.0), (60.0, 6.0), (0.0, 0.5)])
def test_expected_loss_is_the_integral(delta: float, scale: float) -> None:
    z, strength = 0.7, 0.3

    def integrand(d: float) -> float:
        loss = float(np.logaddexp(0, strength * d - z))
        return loss * math.exp(stats.norm.logpdf(d, delta, scale) - stats.norm.logsf(0, delta, scale))

    top = max(delta, 0) + 9 * scale
    points = [max(delta, 0), gap(delta, scale)]
    wanted = integrate.quad(integrand, 0, top, points=points, epsabs=1e-13, epsrel=1e-11, limit=200)[0]
    parts = (torch.tensor([value], dtype=torch.float64) for value in (z, delta, scale))
    assert float(expected_margin_loss(*parts, strength)) == pytest.approx(wanted, rel=1e-9)


def test_expected_loss_of_a_known_gap_is_the_loss_of_the_gap() -> None:
    z = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    delta = torch.tensor([2.0, 3.0], dtype=torch.float64)
    found = expected_margin_loss(z, delta, 1e-6 * torch.ones_like(delta), 0.8)
    assert torch.allclose(found, -F.logsigmoid(z - 0.8 * delta), atol=1e-5)
    (slope,) = torch.autograd.grad(found.sum(), z)
    assert torch.allclose(slope, -torch.sigmoid(0.8 * delta - z), atol=1e-5)
    # The loss is convex: not to know costs.
    unsure = expected_margin_loss(z, delta, torch.full_like(delta, 5.0), 0.8)
    mean = expected_gap(delta, torch.full_like(delta, 5.0))
    assert bool((unsure > -F.logsigmoid(z - 0.8 * mean)).all())


def test_expected_loss_far_away_in_single_precision() -> None:
    delta = torch.tensor([-1e6, -1e3, 0.0, 1e3, 1e6])
    found = expected_margin_loss(torch.zeros(5), delta, torch.ones(5), 0.001)
    assert bool(torch.isfinite(found).all()) and found.dtype == torch.float32
    assert float(found[0]) == pytest.approx(math.log(2), rel=1e-5)
    assert float(found[-1]) == pytest.approx(1000, rel=1e-5)
