"""Adversarial losses against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_gen.nn.adversarial import (
    LeCam,
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
    lecam_penalty,
)
from tests.harness import two_processes


def test_hinge_and_generator() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx((2.5 / 3 + 3 / 3) / 2)
    assert generator_loss(fake).item() == pytest.approx(2 / 3)


def test_lecam_takes_squares_of_means() -> None:
    real, fake = torch.tensor([3.0, -1.0]), torch.tensor([-2.0, 0.0])
    penalty = lecam_penalty(real, fake, torch.tensor(0.5), torch.tensor(-1.0))
    assert penalty.item() == pytest.approx((1 + 1) ** 2 + (0.5 + 1) ** 2)
    assert lecam_penalty(real - 3, fake + 3, torch.tensor(0.5), torch.tensor(-1.0)).item() == 0


def test_lecam_uses_the_averages_of_before_the_step() -> None:
    lecam = LeCam(0.9)
    real, fake = torch.full((4,), 2.0, requires_grad=True), torch.full((4,), -1.0)
    first = lecam(real, fake)
    assert first.item() == pytest.approx(4 + 1)
    first.backward()
    assert real.grad is not None and real.grad.sum().item() == pytest.approx(4)
    assert lecam.average_real.item() == pytest.approx(0.2) and lecam.average_fake.item() == pytest.approx(-0.1)
    assert lecam(real, fake).item() == pytest.approx(2.1**2 + 1.2**2)
    assert set(lecam.state_dict()) == {"average_real", "average_fake"}
    with pytest.raises(ValueError, match=r"lies in \[0, 1\)"):
        LeCam(1.0)


def lecam_job() -> tuple[float, float, Tensor]:
    rank = torch.distributed.get_rank()
    lecam, real = LeCam(0.5), torch.tensor([1.0 + rank, 3.0 + rank], requires_grad=True)
    penalty = lecam(real, torch.tensor([-1.0]))
    penalty.backward()
    assert real.grad is not None
    return penalty.item(), lecam.average_real.item(), real.grad


def test_lecam_sees_the_batch_of_all_ranks() -> None:
    found = two_processes(lecam_job)
    assert found[0][:2] == found[1][:2] == (pytest.approx(2.5**2 + 1), pytest.approx(1.25))
    # d (mean)^2 / d x_i = 2 * 2.5 / 4, twice on each rank because DDP halves it.
    assert torch.allclose(found[0][2], torch.full((2,), 2.5))


def test_adaptive_weight_balances_the_gradients_of_the_last_layer() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = weight.square().sum() / 2, 0.1 * weight.sum()
    found = adaptive_weight(reconstruction, adversarial, weight)
    assert found.item() == pytest.approx(5 / (0.1 * 2**0.5 + 1e-4), rel=1e-5) and not found.requires_grad
    assert adaptive_weight(reconstruction, 0 * adversarial, weight).item() == 1e4
    (reconstruction + found * adversarial).backward()
