"""Discriminator and augmentation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lightning_gen.autoencoders.pae.adversary import Draws, build_discriminator, critic_loss, hear, stay_silent
from lightning_gen.autoencoders.pae.discriminator import (
    DiffAugment,
    FeatureDiscriminator,
    GroupedBatchNorm,
    SpectralConv1d,
)
from lightning_gen.autoencoders.pae.settings import Adversary
from lightning_gen.training.initialisation import initialise
from tests.autoencoders.pae.tiny import ADVERSARY

DRAWS = Draws(0, 0, torch.arange(2))


def pictures(seed: int = 0, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def discriminator(settings: Adversary = ADVERSARY) -> FeatureDiscriminator:
    found = build_discriminator(settings)
    initialise(found, 0)
    return found


def test_power_iteration_finds_the_largest_singular_value() -> None:
    layer = SpectralConv1d(6, 5, 3)
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        layer(x)
    matrix = layer.weight.detach().flatten(1)
    sigma = torch.linalg.matrix_norm(matrix, 2)
    padded = torch.nn.functional.pad(x, (1, 1), mode="circular")
    torch.testing.assert_close(
        layer(x), torch.nn.functional.conv1d(padded, layer.weight / sigma, layer.bias), rtol=1e-4, atol=1e-5
    )
    before = layer.u.clone()
    layer.eval()(x)
    assert torch.equal(layer.u, before)


def test_pictures_are_normalised_in_groups() -> None:
    x = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0)) * 3 + 1
    found = GroupedBatchNorm(3, group=2)(x)
    for part in found.split(2):
        torch.testing.assert_close(part.mean((0, 2)), torch.zeros(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(part.var((0, 2), unbiased=False), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(GroupedBatchNorm(3, group=2)(x[:2]), found[:2])


def test_augmentation_is_keyed_by_sample_and_lets_gradients_through() -> None:
    images, augment = pictures(count=3), DiffAugment(cutout=0.3)
    index = torch.tensor([4, 9, 2])
    whole = augment(images, 0, "real", 1, index)
    assert torch.equal(augment(images[1:2], 0, "real", 1, index[1:2]), whole[1:2])
    assert not torch.equal(augment(images, 0, "made", 1, index), whole)
    leaf = images.clone().requires_grad_()
    augment(leaf, 0, "real", 1, index).square().sum().backward()
    assert leaf.grad is not None and leaf.grad.any()


def test_shifts_move_pixels_and_holes_are_square() -> None:
    images = torch.ones(4, 3, 16, 16) + torch.arange(256.0).view(16, 16)
    index = torch.arange(4)
    moved = DiffAugment(color=False, translation=0.25)(images, 0, "x", 0, index)
    from lightning_gen.training.randomness import uniform

    u = uniform(0, "diffaug x", 0, index, (7,))[:, 3:5]
    for number, (down, right) in enumerate((u * 9).long().sub(4).tolist()):
        for row in range(16):
            for col in range(16):
                inside = 0 <= row - down < 16 and 0 <= col - right < 16
                wanted = images[number, 0, row - down, col - right] if inside else 0
                assert moved[number, 0, row, col] == wanted
    holes = DiffAugment(color=False, translation=0.0, cutout=0.5)(images, 0, "x", 0, index) == 0
    assert (holes.sum((1, 2, 3)) <= 3 * 81).all() and (holes.sum((1, 2, 3)) > 0).all()
    assert torch.equal(DiffAugment(False, 0.0, 0.0)(images, 0, "x", 0, index), images)


def test_the_auto_encoder_hears_the_gradient_and_the_discriminator_gets_none() -> None:
    critic = discriminator().eval()
    images = pictures().requires_grad_()
    heard = hear(critic, ADVERSARY, images, DRAWS)
    loss = heard.loss(images)
    loss.backward()
    found = images.grad.clone()  # type: ignore[union-attr]
    assert all(p.grad is None for p in critic.parameters())
    images.grad = None
    plain = -critic(ADVERSARY.augment(images, 0, "generator", 0, DRAWS.samples)).mean()
    plain.backward()
    torch.testing.assert_close(found, images.grad)
    assert heard.value.item() == pytest.approx(plain.item()) == pytest.approx(loss.item(), rel=1e-4)


def test_the_critic_learns_from_constants() -> None:
    critic, real, made = discriminator(), pictures().requires_grad_(), pictures(1).requires_grad_()
    critic_loss(critic, ADVERSARY, real, made, DRAWS).backward()
    assert real.grad is None and made.grad is None
    assert all(p.grad is not None and p.grad.any() for name, p in critic.named_parameters() if "logit.bias" not in name)


def test_power_iteration_goes_back_to_where_it_was() -> None:
    critic = discriminator()
    before = critic.singular_vectors()
    first = critic(pictures())
    moved = critic.singular_vectors()
    assert len(before) == 6 and not any(torch.equal(a, b) for a, b in zip(before, moved, strict=True) if len(a) > 1)
    critic.rewind(before)
    assert torch.equal(critic(pictures()), first)
    critic.rewind(moved)
    assert not torch.equal(critic(pictures()), first)


def test_silence_touches_every_weight_and_changes_none() -> None:
    critic = discriminator()
    zero = stay_silent(critic, pictures())
    zero.backward()
    assert zero.item() == 0 and all(p.grad is not None and not p.grad.any() for p in critic.parameters())


def test_features_that_do_not_fit_are_refused() -> None:
    for changes, words in (({"width": [5]}, "set adversary.width"), ({"layers": [1, 7]}, "layer 7 is looked at")):
        with pytest.raises(ValueError, match=words):
            discriminator(dataclasses.replace(ADVERSARY, **changes))(pictures())  # type: ignore[arg-type]
    for changes in ({"kernel": 4}, {"width": [8, 8, 8]}):
        with pytest.raises(ValueError, match="a discriminator needs"):
            build_discriminator(dataclasses.replace(ADVERSARY, **changes))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not learn yet"):
        dataclasses.replace(ADVERSARY, discriminator_start=5, generator_start=4)
