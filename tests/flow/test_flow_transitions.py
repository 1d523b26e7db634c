"""Stochastic steps and their densities against closed forms, in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_gen.flow.schedules import double_shift_grid, linear_grid
from lightning_gen.flow.solvers import euler
from lightning_gen.flow.transitions import (
    Kind,
    Stochasticity,
    Transition,
    cps_log_prob,
    cps_transition,
    gaussian_divergence,
    gaussian_log_prob,
    sde_transition,
)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise_a_step_is_the_step_of_euler_bit_for_bit(dtype: torch.dtype) -> None:
    x, v = numbers(2, 5, dtype=dtype), numbers(2, 5, seed=1, dtype=dtype)
    grid = double_shift_grid(10)
    for t, after in pairwise(grid.tolist()):
        step = sde_transition(x, v, t, after, 0.0, float(grid[1]))
        assert torch.equal(step.mean, euler(lambda *_: v, x, torch.tensor([t, after], dtype=torch.float64)))
        assert step.deviation == 0 and torch.equal(step.sample(numbers(2, 5)), step.mean)
        assert gaussian_log_prob(x, step).isnan().all()
        torch.testing.assert_close(cps_transition(x, v, t, after, 0.0).mean, step.mean)


def test_a_step_is_its_formula() -> None:
    x, v, a = numbers(3, 4), numbers(3, 4, seed=1), 0.7
    t, after = 0.8, 0.65
    s = a * math.sqrt(t / (1 - t))
    drift = v + s**2 / (2 * t) * (x + (1 - t) * v)
    step = sde_transition(x, v, t, after, a, 0.9)
    torch.testing.assert_close(step.mean, x + drift * (after - t), rtol=1e-12, atol=1e-12)
    assert step.rate == pytest.approx(s) and step.deviation == pytest.approx(s * math.sqrt(t - after))
    noise = numbers(3, 4, seed=2)
    torch.testing.assert_close(step.sample(noise), step.mean + step.deviation * noise)
    # At t = 1 only the denominator is another.
    assert sde_transition(x, v, 1.0, 0.9, a, 0.9).rate == pytest.approx(a * math.sqrt(1 / (1 - 0.9)))


def test_cps_is_its_formula_and_ends_without_noise() -> None:
    x, v, t, after = numbers(3, 4), numbers(3, 4, seed=1), 0.8, 0.65
    step = cps_transition(x, v, t, after, 0.5)
    deviation = after * math.sin(math.pi / 4)
    expected = (1 - after) * (x - t * v) + math.sqrt(after**2 - deviation**2) * (x + (1 - t) * v)
    torch.testing.assert_close(step.mean, expected)
    assert step.deviation == pytest.approx(deviation) == step.rate
    assert cps_transition(x, v, t, 0.0, 0.5).deviation == 0
    # All noise is new: what is left of the old state is the picture.
    torch.testing.assert_close(cps_transition(x, v, t, after, 1.0).mean, (1 - after) * (x - t * v))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_density_at_the_mean_knows_nothing_of_the_size(size: int) -> None:
    step = Transition(numbers(2, size), 0.3, 0.9)
    expected = -math.log(0.3) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_log_prob(step.mean, step), torch.full((2,), expected, dtype=torch.float64))


def test_the_mean_log_probability_is_half_below_the_highest() -> None:
    step = Transition(torch.zeros(1, 100_000, dtype=torch.float64), 0.3, 0.9)
    found = float(gaussian_log_prob(step.sample(numbers(1, 100_000)), step))
    expected = -math.log(0.3) - 0.5 * math.log(2 * math.pi) - 0.5
    assert abs(found - expected) < 4 * math.sqrt(0.5 / 100_000)


def test_the_density_is_that_of_torch_and_its_gradient_flows_into_the_mean_alone() -> None:
    mean = numbers(2, 6).requires_grad_()
    action = numbers(2, 6, seed=1).requires_grad_()
    found = gaussian_log_prob(action, Transition(mean, 0.4, 1.0))
    expected = torch.distributions.Normal(mean, 0.4).log_prob(action).mean(1)
    torch.testing.assert_close(found, expected)
    torch.autograd.backward(found.sum())
    assert action.grad is None and mean.grad is not None and bool(mean.grad.any())
    torch.testing.assert_close(cps_log_prob(action, Transition(mean, 0.4, 1.0)), -((action - mean) ** 2).mean(1))


M, S = 1.5, 0.6
"""x_0 ~ N(M, S^2): the exact velocity is affine, and every noise level must end in the same Gaussian."""


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    variance = (1 - t) ** 2 * S**2 + t**2
    return -M + (t - (1 - t) * S**2) / variance * (x - (1 - t) * M)


@pytest.mark.parametrize("noise_level", [0.3, 0.7, 1.0])
def test_a_gaussian_keeps_its_marginals(noise_level: float) -> None:
    """Without draws: an affine step turns mean and variance into others; what is left is the error of 1,000 steps."""
    grid = linear_grid(1000, 0.999, 0.001)
    t0 = float(grid[0])
    mean, variance = (1 - t0) * M, (1 - t0) ** 2 * S**2 + t0**2
    wrong, ends = variance, torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for t, after in pairwise(grid.tolist()):
        v = gaussian_velocity(ends, t)
        step = sde_transition(ends, v, t, after, noise_level, float(grid[1]))
        shift, factor = float(step.mean[0]), float(step.mean[1] - step.mean[0])
        mean, variance = factor * mean + shift, factor**2 * variance + step.deviation**2
        wrong = float(1 + (after - t) * (v[1] - v[0])) ** 2 * wrong + step.deviation**2
    assert mean == pytest.approx(M, rel=0.002) and variance == pytest.approx(S**2, rel=0.003)
    # Without the correction of the drift the spread is another one.
    assert abs(wrong / S**2 - 1) > 0.1


def test_drawn_states_have_these_marginals() -> None:
    """400,000 draws know the variance to 0.22 % (one standard error), and 1,000 steps leave 0.11 %."""
    count, grid = 400_000, linear_grid(1000, 0.999, 0.001)
    t0 = float(grid[0])
    generator = torch.Generator().manual_seed(0)
    x = (1 - t0) * M + math.sqrt((1 - t0) ** 2 * S**2 + t0**2) * torch.randn(count, 1, generator=generator)
    for t, after in pairwise(grid.tolist()):
        step = sde_transition(x, gaussian_velocity(x, t), t, after, 0.7, float(grid[1]))
        x = step.sample(torch.randn(count, 1, generator=generator))
    assert float(x.double().mean()) == pytest.approx(M, rel=0.01)
    assert float(x.double().var()) == pytest.approx(S**2, rel=0.01)


def test_the_divergence_is_that_of_the_velocities() -> None:
    x, v, other, a = numbers(3, 8), numbers(3, 8, seed=1), numbers(3, 8, seed=2), 0.7
    t, after = 0.6, 0.5
    one, two = (sde_transition(x, field, t, after, a, 0.9) for field in (v, other))
    length, s = t - after, one.rate
    weight = (length / 2) * (s * (1 - t) / (2 * t) + 1 / s) ** 2
    difference = (v - other).square().mean(1)
    torch.testing.assert_close(gaussian_divergence(one, two), length * weight * difference)
    torch.testing.assert_close(gaussian_divergence(one, two, "exact"), weight * difference)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(one.mean, one.deviation), normal(two.mean, two.deviation))
    torch.testing.assert_close(gaussian_divergence(one, two, "exact"), expected.mean(1))
    with pytest.raises(ValueError, match="not of the same step"):
        gaussian_divergence(one, sde_transition(x, v, t, 0.4, a, 0.9))
    with pytest.raises(ValueError, match="a deterministic step has no divergence"):
        gaussian_divergence(*(sde_transition(x, v, t, after, 0.0, 0.9) for _ in range(2)))


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_steps_on_a_grid(kind: Kind) -> None:
    x, v, grid = numbers(2, 3), numbers(2, 3, seed=1), double_shift_grid(10)
    how = Stochasticity(kind, 0.7)
    direct = (
        sde_transition(x, v, 1.0, float(grid[1]), 0.7, float(grid[1]))
        if kind == "sde"
        else cps_transition(x, v, 1.0, float(grid[1]), 0.7)
    )
    found = how.transition(x, v, grid, 0)
    assert torch.equal(found.mean, direct.mean) and found.deviation == direct.deviation
    assert how.transition(x, v, grid, 3, stochastic=False).deviation == 0
    density = gaussian_log_prob if kind == "sde" else cps_log_prob
    assert torch.equal(how.log_prob(x, found), density(x, found))


def test_noise_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="one of sde, cps"):
        Stochasticity("ode")  # type: ignore[arg-type]
    for kind, level in (("sde", -0.1), ("cps", 1.5)):
        with pytest.raises(ValueError, match="noise_level must be at least 0"):
            Stochasticity(kind, level)  # type: ignore[arg-type]


def test_half_precision_is_computed_in_float32() -> None:
    x, v = numbers(1, 3).bfloat16(), numbers(1, 3, seed=1).bfloat16()
    assert sde_transition(x, v, 0.5, 0.4, 0.7, 0.9).mean.dtype == torch.float32
