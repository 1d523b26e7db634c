"""Solvers on the Gaussian field, whose exact flow is known, and against diffusers' schedulers. t = 1 is noise."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_gen.flow import paths
from lightning_gen.flow.schedules import linear_grid, shifted
from lightning_gen.flow.solvers import SOLVERS, Solver, Step, dpm_solver, euler, heun, unipc

F64 = torch.float64
MU, S = 0.7, 0.4


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    """Best velocity for data N(mu, s^2): v = (x - (1-t) mu) (t - (1-t) s^2) / ((1-t)^2 s^2 + t^2) - mu."""
    return (x - (1 - t) * MU) * (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2) - MU


def exact(x: Tensor, start: float, end: float) -> Tensor:
    """Flow of that field: the standardised state stands still."""
    ratio = math.sqrt(((1 - end) ** 2 * S**2 + end**2) / ((1 - start) ** 2 * S**2 + start**2))
    return (1 - end) * MU + (x - (1 - start) * MU) * ratio


X = torch.linspace(-3, 3, 13, dtype=F64)


def test_the_field_is_the_regression_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    x_0 = MU + S * torch.randn(200_000, dtype=F64, generator=generator)
    eps = torch.randn(200_000, dtype=F64, generator=generator)
    for t in (0.2, 0.5, 0.9):
        x_t, v = paths.noised(x_0, eps, t), paths.velocity(x_0, eps)
        rest = v - gaussian_velocity(x_t, t)
        # The residual of a conditional mean is uncorrelated with everything that x_t determines.
        for feature in (torch.ones_like(x_t), x_t, x_t.sin()):
            assert abs(float((rest * feature).mean())) < 0.01


def test_the_exact_flow_follows_the_field() -> None:
    step = 1e-5
    for t in (0.1, 0.5, 0.9):
        slope = (exact(X, t, t + step) - exact(X, t, t - step)) / (2 * step)
        torch.testing.assert_close(slope, gaussian_velocity(X, t), atol=1e-8, rtol=0)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2), (unipc, 2)])
@pytest.mark.parametrize(("start", "end"), [(0.999, 0.0), (1.0, 0.0), (0.9, 0.1)])
def test_order_of_convergence(solver: Solver, order: int, start: float, end: float) -> None:
    errors = [
        float((solver(gaussian_velocity, X, linear_grid(n, start, end)) - exact(X, start, end)).abs().max())
        for n in (80, 160, 320)
    ]
    assert errors == sorted(errors, reverse=True)
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.12)


def test_order_of_convergence_of_dpm_solver() -> None:
    # Its first and last steps are of first order, and log((1 - t) / t) has no end at 0: full order comes later.
    def orders(start: float, end: float, steps: tuple[int, ...]) -> list[float]:
        ends = [dpm_solver(gaussian_velocity, X, linear_grid(n, start, end)) for n in steps]
        errors = [float((x - exact(X, start, end)).abs().max()) for x in ends]
        return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]

    assert orders(0.9, 0.1, (640, 1280, 2560)) == pytest.approx([2, 2], abs=0.12)
    towards_clean = orders(0.999, 0.0, (80, 320, 1280))
    assert towards_clean == sorted(towards_clean) and towards_clean[0] / 2 > 1.6 and towards_clean[-1] / 2 < 2.1


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_becomes_data(name: str) -> None:
    noise = torch.special.ndtri((torch.arange(2000, dtype=F64) + 0.5) / 2000)
    data = SOLVERS[name](gaussian_velocity, noise, linear_grid(100, 1.0))
    assert float(data.mean()) == pytest.approx(MU, abs=0.01)
    assert float(data.std()) == pytest.approx(S, abs=0.01)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_data_point_is_reached_exactly(name: str, steps: int) -> None:
    # If all data are the point a, then x - t v = a everywhere and every step lands on the line from noise to a.
    a = torch.tensor([2.0, -1.0], dtype=F64)
    noise = torch.tensor([0.3, 1.7], dtype=F64)
    seen: list[Step] = []
    end = SOLVERS[name](lambda x, t: (x - a) / t, noise, linear_grid(steps, 1.0), seen.append)
    torch.testing.assert_close(end, a)
    for step in seen:
        torch.testing.assert_close(step.clean, a)
        if name in ("euler", "heun") or step.number == 0:
            torch.testing.assert_close(step.x, paths.noised(a, noise, step.time))


def test_constant_velocity_is_integrated_exactly_and_one_step_of_unipc_is_euler() -> None:
    v = torch.tensor([0.5, -2.0], dtype=F64)
    for solver in (euler, heun):
        torch.testing.assert_close(solver(lambda x, t: v, 0 * v, linear_grid(7, 0.9, 0.2)), -0.7 * v)
    grid = linear_grid(1, 0.8, 0.3)
    torch.testing.assert_close(unipc(gaussian_velocity, X, grid), euler(gaussian_velocity, X, grid))


@pytest.mark.parametrize(
    ("solver", "end", "expected"),
    [
        (euler, 0.0, 9),
        (euler, 0.1, 9),
        (heun, 0.0, 17),
        (heun, 0.1, 18),
        (unipc, 0.0, 9),
        (unipc, 0.1, 9),
        (dpm_solver, 0.0, 9),
    ],
)
def test_evaluations_and_callbacks(solver: Solver, end: float, expected: int) -> None:
    times: list[float] = []
    steps: list[Step] = []

    def counted(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return gaussian_velocity(x, t)

    grid = linear_grid(9, 0.999, end)
    solver(counted, X, grid, steps.append)
    assert len(times) == expected
    assert 0.0 not in times
    assert [step.number for step in steps] == list(range(9))
    assert [step.time for step in steps] == grid[:-1].tolist()
    assert torch.equal(steps[0].x, X)


def _diffusers(scheduler: object, x: Tensor, sigmas: Tensor, evaluate: Callable[[Tensor, float], Tensor]) -> Tensor:
    scheduler.set_begin_index(0)  # type: ignore[attr-defined]
    for i in range(len(scheduler.timesteps)):  # type: ignore[attr-defined]
        out = evaluate(x, float(sigmas[i]))
        x = scheduler.step(out, scheduler.timesteps[i], x, return_dict=False)[0]  # type: ignore[attr-defined]
    return x


def curved(x: Tensor, t: float) -> Tensor:
    """A field that is linear in nothing."""
    return torch.sin(3 * x) * (1 + t) + x.roll(1, 1) * math.cos(5 * t) - 0.3


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("field", [gaussian_velocity, curved])
def test_unipc_equals_diffusers(steps: int, shift: float, field: Callable[[Tensor, float], Tensor]) -> None:
    from diffusers import schedulers

    scheduler = schedulers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2, solver_type="bh2"
    )
    scheduler.set_timesteps(sigmas=linear_grid(steps)[:-1].numpy())
    # Their grid is float32; in double precision the two can be compared to more than the asked 1e-5.
    scheduler.sigmas = scheduler.sigmas.double()
    x = torch.randn(2, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    theirs = _diffusers(scheduler, x, scheduler.sigmas, field)
    torch.testing.assert_close(unipc(field, x, scheduler.sigmas), theirs, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(unipc(field, x, shifted(linear_grid(steps), shift)), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [2, 3, 10, 50])
@pytest.mark.parametrize("field", [gaussian_velocity, curved])
def test_dpm_solver_equals_diffusers(steps: int, field: Callable[[Tensor, float], Tensor]) -> None:
    from diffusers import schedulers

    scheduler = schedulers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    x = torch.randn(2, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    theirs = _diffusers(scheduler, x, scheduler.sigmas, field)
    torch.testing.assert_close(dpm_solver(field, x, scheduler.sigmas), theirs, atol=2e-5, rtol=0)


def test_unipc_equals_diffusers_on_its_own_grid_from_pure_noise() -> None:
    from diffusers import schedulers

    scheduler = schedulers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(20)
    x = torch.randn(2, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    scheduler.sigmas = scheduler.sigmas.double()
    theirs = _diffusers(scheduler, x, scheduler.sigmas, curved)
    # They move a first time of 1 to 1 - 1e-6; ours is given the true 1.
    grid = scheduler.sigmas.clone()
    grid[0] = 1.0
    torch.testing.assert_close(unipc(curved, x, grid), theirs, atol=2e-5, rtol=0)


def test_euler_and_heun_equal_diffusers() -> None:
    from diffusers import schedulers

    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    first = schedulers.FlowMatchEulerDiscreteScheduler()
    first.set_timesteps(10)
    torch.testing.assert_close(
        euler(curved, x, first.sigmas), _diffusers(first, x, first.sigmas, curved), atol=1e-5, rtol=0
    )
    second = schedulers.FlowMatchHeunDiscreteScheduler()
    second.set_timesteps(10)
    grid = torch.cat([second.sigmas[:1], second.sigmas[1::2]])
    torch.testing.assert_close(heun(curved, x, grid), _diffusers(second, x, second.sigmas, curved), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_dtype_and_determinism(name: str) -> None:
    def sixteen_bit(x: Tensor, t: float) -> Tensor:
        return gaussian_velocity(x, t).bfloat16()

    grid = linear_grid(10)
    out = SOLVERS[name](sixteen_bit, X.float(), grid)
    assert out.dtype == torch.float32
    state = torch.get_rng_state()
    assert torch.equal(out, SOLVERS[name](sixteen_bit, X.float(), grid))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(out, SOLVERS[name](gaussian_velocity, X, grid).float(), atol=0.02, rtol=0)


@pytest.mark.parametrize("times", [[0.5], [0.5, 0.5, 0.0], [0.0, 0.999], [1.5, 0.0], [0.5, -0.1], [0.9, math.nan]])
def test_times_that_do_not_fall_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="fall strictly"):
        unipc(gaussian_velocity, X, torch.tensor(times))
