"""Identities of classifier-free guidance. t = 0 is clean, t = 1 is noise."""

import pytest
import torch
from torch import Tensor

from lightning_gen.flow.guidance import Guidance, combine, guided, rescaled
from lightning_gen.flow.schedules import linear_grid
from lightning_gen.flow.solvers import Velocity, euler

F64 = torch.float64


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


V_C, V_U = _draw(3, 4, 5), _draw(3, 4, 5, seed=1)


class Counted:
    """A velocity that remembers the times at which it was asked."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.times = value, list[float]()

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self.times.append(t)
        return self.value


def test_scale_is_linear_between_and_beyond_the_two_velocities() -> None:
    torch.testing.assert_close(combine(V_C, V_U, 0.0), V_U)
    torch.testing.assert_close(combine(V_C, V_U, 1.0), V_C)
    torch.testing.assert_close(combine(V_C, V_U, 4.0), 4 * V_C - 3 * V_U)
    torch.testing.assert_close(combine(V_C, V_C, 4.0), V_C)


def test_scale_one_is_the_conditional_velocity_for_one_evaluation() -> None:
    conditional, unconditional = Counted(V_C), Counted(V_U)
    out = guided(conditional, unconditional, Guidance(scale=1.0, rescale=1.0))(V_U, 0.5)
    assert torch.equal(out, V_C)
    assert len(conditional.times) == 1 and not unconditional.times


def test_guidance_acts_inside_the_interval_only_ends_included() -> None:
    conditional, unconditional = Counted(V_C), Counted(V_U)
    velocity = guided(conditional, unconditional, Guidance(4.0, low=0.1, high=0.9))
    for t in (0.95, 0.901, 0.05, 0.0):
        assert torch.equal(velocity(V_U, t), V_C)
    assert not unconditional.times
    for t in (0.9, 0.5, 0.1):
        torch.testing.assert_close(velocity(V_U, t), 4 * V_C - 3 * V_U)
    assert unconditional.times == [0.9, 0.5, 0.1]


def test_evaluations_of_a_whole_trajectory() -> None:
    conditional, unconditional = Counted(V_C), Counted(V_U)
    velocity: Velocity = guided(conditional, unconditional, Guidance(2.0, low=0.25, high=0.75))
    out = euler(velocity, torch.zeros_like(V_C), linear_grid(10, 1.0))
    assert len(conditional.times) == 10
    assert unconditional.times == pytest.approx([0.7, 0.6, 0.5, 0.4, 0.3])
    torch.testing.assert_close(out, -(0.5 * V_C + 0.5 * (2 * V_C - V_U)))


def test_full_rescaling_restores_the_spread_of_every_image() -> None:
    v = combine(V_C, V_U, 5.0)
    back = rescaled(v, V_C, 1.0)
    torch.testing.assert_close(back.flatten(1).std(1), V_C.flatten(1).std(1))
    # Direction is kept, strength 0 changes nothing, strength 1/2 lies in the middle.
    torch.testing.assert_close(
        back / back.flatten(1).norm(dim=1)[:, None, None], v / v.flatten(1).norm(dim=1)[:, None, None]
    )
    torch.testing.assert_close(rescaled(v, V_C, 0.0), v)
    torch.testing.assert_close(rescaled(v, V_C, 0.5), (v + back) / 2)


def test_rescaling_of_packed_tokens_is_per_image_and_blind_to_padding() -> None:
    # Row 0 holds images 0 (3 tokens) and 1 (2 tokens), row 1 holds image 2 (4 tokens) and padding.
    image = torch.tensor([[0, 0, 0, 1, 1], [2, 2, 2, 2, -1]])
    v_c, v = _draw(2, 5, 6), 3 * _draw(2, 5, 6, seed=1)
    v[1, 4] = 1e6
    out = rescaled(v, v_c, 1.0, image)
    for i in range(3):
        member = image == i
        single = rescaled(v[member][None], v_c[member][None], 1.0)[0]
        torch.testing.assert_close(out[member], single)
    assert torch.equal(out[1, 4], v[1, 4])


def test_rescaling_survives_a_velocity_without_spread() -> None:
    assert bool(rescaled(torch.zeros(2, 3), torch.ones(2, 3), 1.0).isfinite().all())


@pytest.mark.parametrize("settings", [{"low": 0.9, "high": 0.1}, {"low": -0.1}, {"high": 1.1}, {"rescale": 1.5}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="guidance"):
        Guidance(**settings)
