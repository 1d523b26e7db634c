"""Times, predictions and sampling settings of the generators. t = 0 is clean, t = 1 is noise."""

from __future__ import annotations

import pytest
import torch

from lightning_gen.flow import paths
from lightning_gen.generators.dit.training import Sampling, TimeSampling, as_velocity

F64 = torch.float64
INDEX = torch.arange(4000)


def test_both_predictions_stand_for_the_same_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 3, 5, 4, dtype=F64, generator=generator)
    time = torch.tensor([[0.05] * 5, [0.5] * 5, [1.0] * 5], dtype=F64)
    x_t, v = (1 - time[..., None]) * x_0 + time[..., None] * eps, paths.velocity(x_0, eps)
    torch.testing.assert_close(as_velocity(v, x_t, time, "velocity"), v)
    torch.testing.assert_close(as_velocity(x_0, x_t, time, "clean"), v)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_what_a_preconditioned_network_must_say_has_unit_variance_and_knows_nothing_of_its_input(t: float) -> None:
    """The output enters linearly: coefficients of x_0 and eps in the target, for data of variance 1/4, are exact."""
    time, one = torch.tensor([[t]], dtype=F64), torch.ones(1, 1, 1, dtype=F64)

    def needed(x_0: torch.Tensor, eps: torch.Tensor) -> float:
        x_t = (1 - t) * x_0 + t * eps
        guess = as_velocity(0 * one, x_t, time, "preconditioned")
        per_output = as_velocity(one, x_t, time, "preconditioned") - guess
        return float((paths.velocity(x_0, eps) - guess) / per_output)

    of_data, of_noise = needed(one, 0 * one), needed(0 * one, one)
    assert 0.25 * of_data**2 + of_noise**2 == pytest.approx(1, abs=1e-12)
    assert 0.25 * of_data * (1 - t) + of_noise * t == pytest.approx(0, abs=1e-12)
    assert of_data >= 0, "near noise it says what is clean"


def test_the_divisor_has_a_floor() -> None:
    x_t, guess = torch.full((1, 1, 1), 0.4), torch.zeros(1, 1, 1)
    assert float(as_velocity(guess, x_t, torch.tensor([[1e-6]]), "clean")) == pytest.approx(8.0)


def test_times_are_keyed_and_shifted_towards_noise() -> None:
    plain, noisy = TimeSampling(), TimeSampling(shift=3.0)
    first = plain.draw(0, "t", 2, INDEX)
    assert torch.equal(first[10:20], plain.draw(0, "t", 2, INDEX[10:20]))
    assert not torch.equal(first, plain.draw(0, "t", 3, INDEX)) and not torch.equal(first, plain.draw(1, "t", 2, INDEX))
    assert float(first.median()) == pytest.approx(0.5, abs=0.02)
    assert float(noisy.draw(0, "t", 2, INDEX).median()) == pytest.approx(0.75, abs=0.02)
    uniform = TimeSampling("uniform").draw(0, "t", 2, INDEX)
    assert float(uniform.std()) == pytest.approx(12**-0.5, abs=0.01)


def test_a_grid_falls_from_noise_to_clean() -> None:
    grid = Sampling(steps=10, shift=3.0).times()
    assert grid.shape == (11,) and float(grid[-1]) == 0 and bool((grid.diff() < 0).all())
    assert float(grid[5]) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeSampling("normal"), "logit_normal or uniform"),  # type: ignore[arg-type]
        (lambda: TimeSampling(shift=0.0), "must be positive"),
        (lambda: Sampling(steps=0), "at least one step"),
        (lambda: Sampling(solver="rk4"), "unknown solver 'rk4': choose one of euler"),
        (lambda: Sampling(guidance_low=0.9, guidance_high=0.1), "low <= high"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
