"""Training times from given numbers, and sampling grids. t = 0 is clean, t = 1 is noise."""

import pytest
import torch

from lightning_gen.flow import schedules

F64 = torch.float64
U = (torch.arange(20000, dtype=F64) + 0.5) / 20000


def test_uniform_times_fill_their_interval() -> None:
    t = schedules.uniform_times(U, 0.2, 0.6)
    assert float(t.min()) > 0.2 and float(t.max()) < 0.6
    assert float(t.mean()) == pytest.approx(0.4) and float(t.var()) == pytest.approx(0.4**2 / 12, rel=1e-3)
    assert torch.equal(schedules.uniform_times(U), U)


def test_logit_normal_times_have_the_density_of_their_name() -> None:
    mean, std = -0.5, 0.7
    t = schedules.logit_normal_times(torch.special.ndtri(U), mean, std)
    for threshold in (0.1, 0.3, 0.5, 0.8):
        logit = torch.logit(torch.tensor(threshold, dtype=F64))
        share = float((t < threshold).double().mean())
        assert share == pytest.approx(float(torch.special.ndtr((logit - mean) / std)), abs=1e-4)
    assert float(schedules.logit_normal_times(torch.zeros(1))) == 0.5


def test_shift_composes_fixes_the_ends_and_moves_towards_noise() -> None:
    once = schedules.shifted(U, 3.0)
    torch.testing.assert_close(schedules.shifted(once, 2.0), schedules.shifted(U, 6.0))
    torch.testing.assert_close(schedules.shifted(once, 1 / 3), U)
    assert torch.equal(schedules.shifted(torch.tensor([0.0, 1.0]), 3.0), torch.tensor([0.0, 1.0]))
    assert bool((once > U).all()) and torch.equal(schedules.shifted(U, 1.0), U)
    # A shift multiplies the noise-to-signal ratio.
    torch.testing.assert_close(once / (1 - once), 3 * U / (1 - U))


def test_release_times_are_a_thousand_equal_shares() -> None:
    values, counts = schedules.release_times(U).unique(return_counts=True)
    assert len(values) == 1000 and set(counts.tolist()) == {20}
    assert float(values[0]) == pytest.approx(0.000999) and float(values[-1]) == pytest.approx(0.999)


def test_linear_grid() -> None:
    grid = schedules.linear_grid(50)
    assert grid.shape == (51,) and grid.dtype == F64
    assert float(grid[0]) == 0.999 and float(grid[-1]) == 0.0
    torch.testing.assert_close(grid.diff(), torch.full((50,), -0.999 / 50, dtype=F64))


def test_double_shift_of_sd3() -> None:
    grid = schedules.double_shift_grid(10)
    known = [
        1.0,
        0.96012932,
        0.91334897,
        0.8576923,
        0.79036826,
        0.70727849,
        0.60215056,
        0.46487603,
        0.27804878,
        0.00892857,
    ]
    known.append(0.0)
    torch.testing.assert_close(grid, torch.tensor(known, dtype=F64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("steps", [2, 10, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_doubly_shifted_grid_is_that_of_diffusers(steps: int, shift: float) -> None:
    from diffusers import schedulers

    scheduler = schedulers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(schedules.double_shift_grid(steps, shift).float(), scheduler.sigmas, atol=1e-6, rtol=0)


def test_levels_of_a_trajectory() -> None:
    for tokens, known in ((256, [0.3547, 0.6225, 0.8318, 1.0]), (1024, [0.3849, 0.6525, 0.8492, 1.0])):
        levels = schedules.trajectory_levels(4, tokens)
        torch.testing.assert_close(levels[1:], torch.tensor(known, dtype=F64), atol=5e-5, rtol=0)
        assert float(levels[0]) == 0.02


@pytest.mark.parametrize(
    "call",
    [
        lambda: schedules.uniform_times(U, 0.5, 0.5),
        lambda: schedules.logit_normal_times(U, std=0.0),
        lambda: schedules.shifted(U, 0.0),
        lambda: schedules.linear_grid(0),
        lambda: schedules.linear_grid(5, 0.2, 0.4),
        lambda: schedules.linear_grid(5, 1.2, 0.0),
        lambda: schedules.double_shift_grid(1),
        lambda: schedules.trajectory_levels(0, 256),
        lambda: schedules.trajectory_levels(4, 256, low=0.4),
    ],
)
def test_impossible_settings_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="got"):
        call()
