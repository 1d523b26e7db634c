"""DiffusionNFT's loss: its gradient where it begins, its optimum, and how it depends on the reward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.alignment.diffusion_nft.objective import (
    OldPolicySchedule,
    implicit_velocities,
    nft_losses,
    old_policy_decay,
    reference_losses,
    reward_gradients,
)
from lightning_gen.flow import paths

BOUND = 5.0


def sample(count: int = 3, size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_0, eps, v_old = (torch.randn(count, size, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.rand(count, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    return {"x_0": x_0, "v_old": v_old, "t": t, "x_t": paths.noised(x_0, eps, t)}


def gradient(at: dict[str, Tensor], v: Tensor, optimality: Tensor, strength: float, **rest: Any) -> Tensor:
    v = v.clone().requires_grad_()
    loss = BOUND * nft_losses(v, optimality=optimality, strength=strength, **at, **rest).mean()
    [found] = torch.autograd.grad(loss, v)
    return found


@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0])
def test_the_gradient_where_the_old_policy_is_does_not_depend_on_the_strength(strength: float) -> None:
    at, r = sample(), torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    found = gradient(at, at["v_old"], r, strength)
    target = (at["x_t"] - at["x_0"]) / at["t"][:, None]
    weight = (paths.clean(at["x_t"], at["v_old"], at["t"]) - at["x_0"]).abs().mean(1)
    factor = 2 * BOUND * (2 * r - 1) * at["t"] ** 2 / (weight * target.numel())
    torch.testing.assert_close(found, factor[:, None] * (at["v_old"] - target))
    assert float(found[1].abs().max()) < 1e-15 and bool(found[0].any())


@pytest.mark.parametrize("strength", [0.1, 2.0])
def test_the_part_of_the_gradient_that_the_reward_makes(strength: float) -> None:
    """All of it where the old policy is; elsewhere nothing for a picture that is neither good nor bad."""
    at, r = sample(), torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    found = reward_gradients(at["v_old"], optimality=r, strength=strength, **at)
    everything = gradient(at, at["v_old"], r, strength) * len(r) / BOUND
    torch.testing.assert_close(found, everything.norm(dim=1), atol=1e-14, rtol=1e-10)
    away = reward_gradients(at["v_old"] + 0.3, optimality=r, strength=strength, **at)
    assert away[1] < 1e-15 < 1e-3 < min(away[0], away[2]) and not away.requires_grad
    double = reward_gradients(at["v_old"] + 0.3, optimality=2 * r - 0.5, strength=strength, **at)
    torch.testing.assert_close(double, 2 * away)


@pytest.mark.parametrize("optimality", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_optimum_is_that_of_the_theorem(optimality: float, strength: float) -> None:
    at, r = sample(), torch.full((3,), optimality, dtype=torch.float64)
    target = (at["x_t"] - at["x_0"]) / at["t"][:, None]
    v = at["v_old"].clone()
    for _ in range(400):
        step = gradient(at, v, r, strength, weighting="none")
        # Divided by the curvature, which differs from time to time.
        v = v - 0.2 * step * target.numel() / (2 * BOUND * strength * at["t"][:, None] ** 2)
    expected = at["v_old"] + (2 * optimality - 1) * (target - at["v_old"]) / strength
    torch.testing.assert_close(v, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_away_from_the_old_policy_a_term_that_knows_no_picture_pulls_back(strength: float) -> None:
    """t^2 / D (2 A (v_old - v_target) + 10 b (v - v_old)), which is why b and updates per rollout go together."""
    at, worth = sample(), torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    away = torch.full_like(at["v_old"], 0.3)
    found = 3 * gradient(at, at["v_old"] + away, 0.5 + worth / (2 * BOUND), strength, weighting="none")
    target = (at["x_t"] - at["x_0"]) / at["t"][:, None]
    pull = 2 * worth[:, None] * (at["v_old"] - target) + 10 * strength * away
    torch.testing.assert_close(found, at["t"][:, None] ** 2 / target.shape[1] * pull)


def test_the_gradient_is_affine_in_the_optimality() -> None:
    at, v = sample(), sample()["v_old"] + 0.3
    at["v_old"] = at["v_old"].detach()
    none, some, twice = (
        gradient(at, v, torch.full((3,), 0.5 + share, dtype=torch.float64), 0.7) for share in (0.0, 0.2, 0.4)
    )
    torch.testing.assert_close(twice - none, 2 * (some - none))


def test_an_uninformative_picture_only_pulls_to_the_old_policy() -> None:
    at, v, b = sample(), sample()["v_old"] + 0.3, 0.7
    half = torch.full((3,), 0.5, dtype=torch.float64)
    found = nft_losses(v, optimality=half, strength=b, weighting="none", **at)
    target = (at["x_t"] - at["x_0"]) / at["t"][:, None]
    expected = at["t"] ** 2 * ((b * (v - at["v_old"])) ** 2 + (at["v_old"] - target) ** 2).mean(1) / b
    torch.testing.assert_close(found, expected)


def test_no_gradient_reaches_the_old_policy_or_the_weights() -> None:
    at = sample()
    at["v_old"].requires_grad_()
    v = (sample()["v_old"] + 0.3).requires_grad_()
    loss = nft_losses(v, optimality=torch.full((3,), 0.8, dtype=torch.float64), strength=1.0, **at).sum()
    torch.autograd.backward(loss)
    assert at["v_old"].grad is None and v.grad is not None
    # With the strength 1 and optimality 1 it is plain flow matching on the picture, but for the weight.
    one = torch.ones(3, dtype=torch.float64)
    at["v_old"] = at["v_old"].detach()
    plain = ((paths.clean(at["x_t"], v, at["t"]) - at["x_0"]) ** 2).mean(1)
    found = nft_losses(v, optimality=one, strength=1.0, weighting="none", **at)
    torch.testing.assert_close(found, plain)


def test_the_implicit_policies_lie_on_either_side() -> None:
    v, v_old = torch.tensor([3.0]), torch.tensor([1.0])
    plus, minus = implicit_velocities(v, v_old, 0.25)
    assert float(plus) == 1.5 and float(minus) == 0.5


@pytest.mark.parametrize(
    ("schedule", "steps", "decays"),
    [
        ("copy", (0, 500), (0.0, 0.0)),
        ("ramp", (1, 499, 500, 600), (0.001, 0.499, 0.5, 0.5)),
        ("delayed_ramp", (0, 75, 76, 100, 209, 9999), (0.0, 0.0, 0.0075, 0.1875, 0.999, 0.999)),
    ],
)
def test_the_old_policy_follows(schedule: OldPolicySchedule, steps: tuple[int, ...], decays: tuple[float, ...]) -> None:
    assert [old_policy_decay(step, schedule) for step in steps] == pytest.approx(list(decays))


def test_ceiling_and_slope_are_switches_and_names_are_checked() -> None:
    assert old_policy_decay(2000, "ramp", ceiling=0.95) == 0.95
    assert [old_policy_decay(step, "ramp", slope=0.01) for step in (10, 100)] == [0.1, 0.5]
    assert old_policy_decay(85, "delayed_ramp", slope=0.02) == pytest.approx(0.2)
    for ceiling, slope in ((1.0, None), (-0.1, None), (None, 0.0)):
        with pytest.raises(ValueError, match=r"old_policy_slope is positive and old_policy_ceiling in \[0, 1\)"):
            old_policy_decay(1, "ramp", ceiling, slope)
    with pytest.raises(ValueError, match="a copy has neither ceiling nor slope"):
        old_policy_decay(1, "copy", slope=0.01)
    with pytest.raises(ValueError, match="copy, ramp, delayed_ramp"):
        old_policy_decay(1, "never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adaptive, none"):
        nft_losses(torch.zeros(1, 1), *[torch.zeros(1, 1)] * 3, *[torch.ones(1)] * 2, 1.0, "some")  # type: ignore[arg-type]


def test_the_reference_is_held_in_velocities() -> None:
    v, reference = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[0.0, 4.0]], requires_grad=True)
    loss = reference_losses(v, reference)
    assert loss.item() == 2.5
    torch.autograd.backward(loss)
    assert reference.grad is None and v.grad is not None
