"""The clipped policy gradient against its gradient by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_gen.alignment.flow_grpo.objective import is_clipped, policy_losses, probability_ratio
from lightning_gen.flow.transitions import Transition, gaussian_log_prob

ADVANTAGE = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)


def test_where_nothing_has_changed_the_ratio_is_one_and_the_gradient_that_of_the_log_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 7, generator=generator, dtype=torch.float64).requires_grad_()
    action = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    found = gaussian_log_prob(action, Transition(mean, 0.3, 0.9))
    ratio = probability_ratio(found, found.detach())
    assert torch.equal(ratio, torch.ones(3, dtype=torch.float64))
    [gradient] = torch.autograd.grad(policy_losses(ratio, ADVANTAGE, 1e-4).mean(), mean, retain_graph=True)
    [expected] = torch.autograd.grad(-(ADVANTAGE * found).mean(), mean)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.2, 1.0, -1.1, False),  # good, and already likelier than the range allows
        (0.8, 1.0, -0.8, True),  # good, but less likely: pulled back
        (1.2, -1.0, 1.2, True),  # bad, but likelier: pushed back
        (0.8, -1.0, 0.9, False),  # bad, and already less likely than the range allows
        (1.05, 9.0, -5.25, True),  # the advantage is bounded
    ],
)
def test_the_pessimistic_side_counts(ratio: float, advantage: float, loss: float, moves: bool) -> None:
    at = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    found = policy_losses(at, torch.tensor([advantage], dtype=torch.float64), 0.1)
    assert found.item() == pytest.approx(loss)
    torch.autograd.backward(found.sum())
    assert at.grad is not None and bool(at.grad.any()) is moves


def test_who_has_left_the_range() -> None:
    assert is_clipped(torch.tensor([1.0, 1.2, 0.7, 1.05]), 0.1).tolist() == [0, 1, 1, 0]
