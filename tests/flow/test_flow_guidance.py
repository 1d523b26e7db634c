"""Identities of classifier-free guidance. t = 0 is clean, t = 1 is noise."""

import pytest
import torch
from torch import Tensor

from lightning_gen.flow.guidance import (
    Guidance,
    ProjectedGuidance,
    combine,
    guided,
    projected,
    projected_guided,
    rescaled,
)
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


def _predictions(velocity: Velocity, states: list[Tensor], times: list[float]) -> list[Tensor]:
    return [x - t * velocity(x, t) for x, t in zip(states, times, strict=True)]


def test_projected_guidance_equals_diffusers_and_remembers_its_updates() -> None:
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    times, states = [0.9, 0.7, 0.4], [_draw(3, 4, 5, seed=seed) for seed in (5, 6, 7)]
    settings = ProjectedGuidance(3.0, parallel=0.2, momentum=-0.5, largest=2.0)
    buffer = MomentumBuffer(-0.5)
    theirs = [
        normalized_guidance(x - t * V_C, x - t * V_U, 2.0, buffer, 0.2, 2.0, use_original_formulation=True)
        for x, t in zip(states, times, strict=True)
    ]
    ours = _predictions(projected_guided(Counted(V_C), Counted(V_U), settings), states, times)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    again = _predictions(projected_guided(Counted(V_C), Counted(V_U), settings), states[2:], times[2:])
    assert not torch.allclose(again[0], ours[2])  # without the updates before it


def test_projected_guidance_that_keeps_everything_is_plain_guidance() -> None:
    settings = ProjectedGuidance(4.0, 0.1, 0.9, parallel=1.0, momentum=0.0, largest=None)
    plain = guided(Counted(V_C), Counted(V_U), Guidance(4.0, 0.1, 0.9))
    ours = projected_guided(Counted(V_C), Counted(V_U), settings)
    for t in (0.95, 0.9, 0.5, 0.05):
        torch.testing.assert_close(ours(V_U, t), plain(V_U, t))


def test_what_is_projected_is_orthogonal_per_image_and_spares_the_padding() -> None:
    image = torch.tensor([[0, 0, 1, -1], [2, 2, 2, -1], [3, 4, 4, 4]])
    out = projected(V_U, V_C, 0.0, image)
    for number in range(5):
        inside = image == number
        assert abs(float((out[inside] * V_C[inside]).sum())) < 1e-12
    assert torch.equal(out[image < 0], V_U[image < 0])
    torch.testing.assert_close(projected(V_U, V_C, 1.0, image), V_U)
    rows = projected(V_U, V_C, 0.0)
    torch.testing.assert_close((rows * V_C).sum((1, 2)), torch.zeros(3, dtype=F64))
    with pytest.raises(ValueError, match="positive"):
        ProjectedGuidance(largest=0.0)
