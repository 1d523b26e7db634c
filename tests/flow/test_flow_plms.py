"""Stable Diffusion's own solver, on a field whose exact flow is known and against diffusers. t = 1 is noise."""

import math

import pytest
import torch
from torch import Tensor

from lightning_gen.flow import paths
from lightning_gen.flow.plms import plms
from lightning_gen.flow.schedules import linear_grid
from lightning_gen.flow.solvers import Step

F64 = torch.float64
MU, S = 0.7, 0.4
X = torch.linspace(-3, 3, 13, dtype=F64)


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    """Best velocity for data N(mu, s^2)."""
    return (x - (1 - t) * MU) * (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2) - MU


def exact(x: Tensor, start: float, end: float) -> Tensor:
    ratio = math.sqrt(((1 - end) ** 2 * S**2 + end**2) / ((1 - start) ** 2 * S**2 + start**2))
    return (1 - end) * MU + (x - (1 - start) * MU) * ratio


def curved(x: Tensor, t: float) -> Tensor:
    """A field that is linear in nothing."""
    return torch.sin(3 * x) * (1 + t) + x.roll(1, 1) * math.cos(5 * t) - 0.3


def test_it_is_of_second_order_because_of_its_start() -> None:
    errors = [
        float((plms(gaussian_velocity, X, linear_grid(n, 0.9, 0.1)) - exact(X, 0.9, 0.1)).abs().max())
        for n in (80, 160, 320)
    ]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 1.85 < math.log2(coarse / fine) < 3.1


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_data_point_is_reached_exactly_and_steps_are_reported(steps: int) -> None:
    a, noise, seen = torch.tensor([2.0, -1.0], dtype=F64), torch.tensor([0.3, 1.7], dtype=F64), list[Step]()
    asked: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return (x - a) / t

    grid = linear_grid(steps, 0.9)
    torch.testing.assert_close(plms(velocity, paths.noised(a, noise, 0.9), grid, seen.append), a)
    assert len(asked) == (1 if steps == 1 else steps + 1) and 0.0 not in asked
    assert [step.time for step in seen] == grid[:-1].tolist()
    for step in seen:
        torch.testing.assert_close(step.x, paths.noised(a, noise, step.time))


@pytest.mark.parametrize("steps", [2, 3, 4, 20])
def test_it_equals_pndm_of_diffusers(steps: int) -> None:
    from diffusers import PNDMScheduler

    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                              skip_prk_steps=True, set_alpha_to_one=True)  # fmt: skip
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=F64)
    scheduler.set_timesteps(steps)
    noise = torch.randn(2, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    theirs = noise
    for number in scheduler.timesteps:
        a = scheduler.alphas_cumprod[number]
        x_t, t = paths.flow_from_vp(theirs, a), float(paths.time_from_alpha_bar(a))
        eps = paths.noise(x_t, curved(x_t, t), t)
        theirs = scheduler.step(eps, number, theirs, return_dict=False)[0]
    a = scheduler.alphas_cumprod[torch.unique_consecutive(scheduler.timesteps)]
    times = torch.cat([paths.time_from_alpha_bar(a), torch.zeros(1, dtype=F64)])
    ours = plms(curved, paths.flow_from_vp(noise, a[0]), times)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_pure_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"says nothing about the data at t = 1: begin below 1"):
        plms(gaussian_velocity, X, linear_grid(4, 1.0))
