"""The stochastic solver on Gaussian data, whose marginals are known, and against the published rule. t = 1 is noise."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_gen.flow import paths
from lightning_gen.flow.schedules import shifted
from lightning_gen.flow.sde import euler_maruyama, sbdm_diffusion, sde_grid
from lightning_gen.flow.solvers import Step

F64 = torch.float64
MU, S = 0.7, 0.4


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    """Best velocity for data N(mu, s^2)."""
    return (x - (1 - t) * MU) * (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2) - MU


def end_of(grid: Tensor, last_clock: float | None = None) -> tuple[float, float]:
    """Mean and variance where the solver ends, exactly: it is affine in the start and in every step's noise.

    Entry 0 starts at 0 without noise, entry 1 at 1; entry 2 + n gets 1 as the noise of step n. No number is drawn.
    """
    count = len(grid) + 1
    x = torch.zeros(count, dtype=F64)
    x[1] = 1.0

    def noise(step: int) -> Tensor:
        unit = torch.zeros(count, dtype=F64)
        unit[2 + step] = 1.0
        return unit

    end = euler_maruyama(gaussian_velocity, x, grid, noise=noise, last_clock=last_clock)
    return float(end[0]), float((end[1:] - end[0]).square().sum())


def test_weak_convergence_of_first_order() -> None:
    errors = []
    for steps in (100, 200, 400, 800):
        mean, variance = end_of(sde_grid(steps, 2.5, last_step=1 / steps))
        errors.append((abs(mean - MU), abs(variance - S**2)))
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse[1] / fine[1]) == pytest.approx(1, abs=0.25)
        assert fine[0] <= coarse[0] + 1e-12
    assert errors[-1][0] < 2e-3 and errors[-1][1] < 2e-3


@pytest.mark.parametrize("stop", [0.7, 0.4, 0.1])
def test_marginals_on_the_way(stop: float) -> None:
    """A last step of the mean alone loses its noise, so it is made short."""
    grid = torch.cat([torch.linspace(1, stop, 1000, dtype=F64), torch.tensor([stop - 1e-6], dtype=F64)])
    mean, variance = end_of(grid)
    assert mean == pytest.approx((1 - stop) * MU, abs=4e-3)
    assert variance == pytest.approx((1 - stop) ** 2 * S**2 + stop**2, abs=4e-3)


def test_the_end_owes_its_spread_to_the_noise_on_the_way() -> None:
    """Where a picture ends has next to nothing to do with where it started: the solver is no Euler in disguise."""
    x = torch.tensor([0.0, 1.0], dtype=F64)
    ends = euler_maruyama(gaussian_velocity, x, sde_grid(400, 2.5), noise=lambda step: torch.zeros(2, dtype=F64))
    assert float((ends[1] - ends[0]).square()) < 0.05 * S**2


def published(x: Tensor, velocity: Callable[[Tensor, float], Tensor], shift: float, first: float, gap: bool) -> Tensor:
    """The rule of the published sampler in its own time, 0 = noise: 250 points, then a mean step of 0.004."""
    last = 0.004
    end = 1 - last
    if not gap:  # the point that the shift moves to 1 - last
        end = end / (shift + (1 - shift) * end)
    t = torch.linspace(first, end, 250, dtype=F64)
    t = shift * t / (1 + (shift - 1) * t)

    def drift(x: Tensor, t: float) -> Tensor:
        v = -velocity(x, 1 - t)  # data minus noise
        return v + (1 - t) / t * (t * v - x) / (1 - t)

    for step in range(249):
        now, length = float(t[step]), float(t[step + 1] - t[step])
        x = x + drift(x, now) * length + math.sqrt(2 * (1 - now) / now * length) * draw(step, x)
    return x + drift(x, 1 - last) * last


def draw(step: int, like: Tensor) -> Tensor:
    return torch.randn(like.shape, dtype=F64, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("endpoint", ["exact", "official"])
def test_it_is_the_published_rule_in_the_other_time(endpoint: str) -> None:
    x = torch.linspace(-2, 2, 7, dtype=F64)
    grid = sde_grid(250, paths.reversed_shift(0.4), 0.999, 0.004, endpoint)  # type: ignore[arg-type]
    clock = 0.004 if endpoint == "official" else None
    ours = euler_maruyama(gaussian_velocity, x, grid, noise=lambda step: draw(step, x), last_clock=clock)
    theirs = published(x, gaussian_velocity, 0.4, 0.001, endpoint == "official")
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def test_the_two_end_points() -> None:
    exact, official = (sde_grid(250, 2.5, endpoint=endpoint) for endpoint in ("exact", "official"))  # type: ignore[arg-type]
    assert len(exact) == len(official) == 251 and float(exact[0]) == float(official[0]) == 1
    assert float(exact[-2]) == pytest.approx(0.004, abs=1e-15) and float(exact[-1]) == 0
    assert 1 - float(official[-2]) == pytest.approx(0.990, abs=1e-3)
    assert 1 - float(official[-2]) == pytest.approx(0.4 * 0.996 / (1 - 0.6 * 0.996), abs=1e-12)
    # The gap leaves noise in: its variance is further off.
    errors = [abs(end_of(exact)[1] - S**2), abs(end_of(official, 0.004)[1] - S**2)]
    assert errors[0] < errors[1]


def test_the_last_step_is_the_mean_alone() -> None:
    a, x = torch.tensor([2.0, -1.0], dtype=F64), torch.tensor([0.3, 1.7], dtype=F64)
    seen: list[Step] = []
    grid = sde_grid(40, 2.5)
    times: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return (x - a) / t

    end = euler_maruyama(velocity, x, grid, seen.append, noise=lambda step: draw(step, x))
    # Drift -2 v - x / (1 - t) with v = (x - a) / t over a length of t.
    last, t = seen[-1].x, seen[-1].time
    torch.testing.assert_close(end, 2 * a - last - t / (1 - t) * last)
    assert times == [step.time for step in seen] == grid[:-1].tolist()
    for step in seen:
        torch.testing.assert_close(step.clean, a)


def test_noise_is_asked_for_by_number_and_never_for_the_last_step() -> None:
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(3)

    state = torch.get_rng_state()
    out = euler_maruyama(lambda x, t: x.bfloat16(), torch.ones(3), sde_grid(6), noise=noise)
    assert asked == [0, 1, 2, 3, 4] and out.dtype == torch.float32
    assert torch.equal(state, torch.get_rng_state())


def test_diffusion_and_shift() -> None:
    assert sbdm_diffusion(0.25) == pytest.approx(1 / 3) and sbdm_diffusion(0.0) == 0
    t = torch.linspace(0, 1, 11, dtype=F64)
    for shift in (0.4, 0.7, 1.0, 3.0):
        there = paths.reversed_time(shifted(paths.reversed_time(t), shift))
        torch.testing.assert_close(there, shifted(t, paths.reversed_shift(shift)))
        assert paths.reversed_shift(paths.reversed_shift(shift)) == pytest.approx(shift)
    assert float(shifted(torch.tensor(0.5, dtype=F64), 0.4)) == pytest.approx(0.4 / 1.4)
    with pytest.raises(ValueError, match="must be positive"):
        paths.reversed_shift(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "at least 2 steps"),
        ({"steps": 9, "endpoint": "near"}, "exact or official"),
        ({"steps": 9, "last_step": 1.0}, "between 0 and the first time"),
        ({"steps": 9, "last_step": 0.0}, "between 0 and the first time"),
    ],
)
def test_grids_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sde_grid(**options)
