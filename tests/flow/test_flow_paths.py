"""The path, its inverses and the bridges to other conventions. t = 0 is clean, t = 1 is noise."""

import math

import pytest
import torch

from lightning_gen.flow import paths

F64 = torch.float64


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


X_0, EPS = _draw(4, 3, 5), _draw(4, 3, 5, seed=1)
T = torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=F64)


def test_ends_of_the_path_are_data_and_noise() -> None:
    assert torch.equal(paths.noised(X_0, EPS, torch.zeros(4, dtype=F64)), X_0)
    assert torch.equal(paths.noised(X_0, EPS, torch.ones(4, dtype=F64)), EPS)
    assert torch.equal(paths.noised(X_0, EPS, 0.0), X_0)


def test_velocity_is_the_derivative_of_the_path() -> None:
    step = 1e-6
    slope = (paths.noised(X_0, EPS, T + step) - paths.noised(X_0, EPS, T - step)) / (2 * step)
    torch.testing.assert_close(slope, paths.velocity(X_0, EPS), atol=1e-9, rtol=0)


def test_round_trips_between_state_data_noise_and_velocity() -> None:
    x_t, v = paths.noised(X_0, EPS, T), paths.velocity(X_0, EPS)
    torch.testing.assert_close(paths.clean(x_t, v, T), X_0)
    torch.testing.assert_close(paths.noise(x_t, v, T), EPS)
    torch.testing.assert_close(paths.velocity_from_clean(x_t, X_0, T), v)
    torch.testing.assert_close(paths.velocity_from_noise(x_t, EPS, T), v)


def test_score_is_the_gradient_of_the_log_density() -> None:
    # x_0 ~ N(mu, s^2) gives x_t ~ N((1-t) mu, (1-t)^2 s^2 + t^2), whose score is known.
    mu, s, t = 0.7, 0.4, 0.35
    x = torch.linspace(-2, 2, 9, dtype=F64).requires_grad_()
    variance = (1 - t) ** 2 * s**2 + t**2
    (expected,) = torch.autograd.grad((-0.5 * (x - (1 - t) * mu) ** 2 / variance).sum(), x)
    v = (x - (1 - t) * mu) * (t - (1 - t) * s**2) / variance - mu
    torch.testing.assert_close(paths.score(x, v, t), expected)


def test_times_lie_over_the_leading_axes() -> None:
    square, other = _draw(3, 3), _draw(3, 3, seed=1)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    mixed = paths.noised(square, other, t)
    assert torch.equal(mixed[0], square[0]) and torch.equal(mixed[2], other[2])
    per_token = paths.noised(X_0, EPS, T[:, None].expand(4, 3))
    assert torch.equal(per_token, paths.noised(X_0, EPS, T))
    with pytest.raises(ValueError, match=r"\(5,\).*\(4, 3, 5\)"):
        paths.noised(X_0, EPS, torch.zeros(5))


def test_precision_of_times_neither_widens_states_nor_loses_bits() -> None:
    assert paths.noised(X_0.float(), EPS.float(), T).dtype == torch.float32
    fine = torch.tensor([1 - 2**-12] * 4)  # 1 in bfloat16
    assert float(paths.noised(torch.ones(4, 1).bfloat16(), torch.zeros(4, 1).bfloat16(), fine)[0]) > 0


def test_release_steps() -> None:
    steps = torch.arange(1000, dtype=F64)
    t = paths.time_from_release(steps)
    assert float(t[0]) == pytest.approx(0.000999) and float(t[-1]) == pytest.approx(0.999)
    torch.testing.assert_close(paths.release_timestep(t), steps)
    assert paths.timestep(0.25) == 250


def test_reversed_time_is_an_involution_on_the_same_states() -> None:
    # In the other convention x = t' x_0 + (1 - t') eps moves with x_0 - eps.
    t_rev = paths.reversed_time(T)
    state = t_rev[:, None, None] * X_0 + (1 - t_rev)[:, None, None] * EPS
    torch.testing.assert_close(state, paths.noised(X_0, EPS, T))
    assert torch.equal(paths.reversed_velocity(X_0 - EPS), paths.velocity(X_0, EPS))
    torch.testing.assert_close(paths.reversed_time(t_rev), T)


def test_variance_preserving_states_and_predictions() -> None:
    a = torch.tensor([0.999, 0.7, 0.3, 0.001], dtype=F64)
    signal, disorder = a.sqrt()[:, None, None], (1 - a).sqrt()[:, None, None]
    x_vp = signal * X_0 + disorder * EPS
    t = paths.time_from_alpha_bar(a)
    torch.testing.assert_close(paths.flow_from_vp(x_vp, a), paths.noised(X_0, EPS, t))
    torch.testing.assert_close(paths.vp_from_flow(paths.noised(X_0, EPS, t), t), x_vp)
    torch.testing.assert_close(paths.alpha_bar_from_time(t), a)
    torch.testing.assert_close(t / (1 - t), ((1 - a) / a).sqrt())
    v = paths.velocity(X_0, EPS)
    torch.testing.assert_close(paths.velocity_from_vp_noise(x_vp, EPS, a), v)
    torch.testing.assert_close(paths.velocity_from_vp_velocity(x_vp, signal * EPS - disorder * X_0, a), v)


def test_variance_preserving_limits() -> None:
    ends = torch.tensor([1.0, 0.5, 0.0], dtype=F64)
    torch.testing.assert_close(paths.time_from_alpha_bar(ends), torch.tensor([0.0, 0.5, 1.0], dtype=F64))
    assert float(paths.vp_from_flow(torch.ones(1, dtype=F64), torch.tensor([0.5], dtype=F64))) == pytest.approx(
        math.sqrt(2)
    )


def test_noise_levels_of_variance_exploding_states() -> None:
    sigma = torch.tensor([0.0, 0.5, 14.6146, math.inf], dtype=F64)
    t = paths.time_from_sigma(sigma)
    torch.testing.assert_close(t[:3] / (1 - t[:3]), sigma[:3])
    assert t.tolist()[::3] == [0.0, 1.0]
    # x_0 + sigma eps is a multiple of the straight path's state, and t is the time of the DDPM state it belongs to.
    torch.testing.assert_close(paths.noised(X_0, EPS, float(t[1])), (X_0 + 0.5 * EPS) / 1.5)
    torch.testing.assert_close(t, paths.time_from_alpha_bar(1 / (1 + sigma**2)))


def test_steps_of_a_ddpm_table() -> None:
    # sqrt(a) = cos(theta), theta rising evenly: t = tan(theta) / (1 + tan(theta)) in closed form.
    theta = torch.linspace(0.05, 1.5, 40, dtype=F64)
    alpha_bars = theta.cos() ** 2
    times = theta.tan() / (1 + theta.tan())
    steps = torch.arange(40, dtype=F64)
    torch.testing.assert_close(paths.discrete_step(times, alpha_bars), steps, atol=1e-9, rtol=0)
    between = 0.25 * times[6] + 0.75 * times[7]
    assert float(paths.discrete_step(between, alpha_bars)) == pytest.approx(6.75)
    outside = torch.tensor([[0.0, 1.0]], dtype=F64)
    assert paths.discrete_step(outside, alpha_bars).tolist() == [[0.0, 39.0]]
    # Single precision loses a little of a step, not a step.
    torch.testing.assert_close(paths.discrete_step(times.float(), alpha_bars), steps, atol=1e-3, rtol=0)


def test_steps_of_a_table_that_ends_in_pure_noise() -> None:
    alpha_bars = torch.tensor([0.9, 0.4, 0.0], dtype=F64)
    assert paths.discrete_step(torch.tensor([1.0], dtype=F64), alpha_bars).tolist() == [2.0]
