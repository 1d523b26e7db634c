"""The adversarial part of a step of PAE: what the auto-encoder hears, and what the discriminator learns.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gen.autoencoders.pae.discriminator import FeatureDiscriminator
from lightning_gen.autoencoders.pae.settings import Adversary
from lightning_gen.nn.adversarial import generator_loss, hinge_discriminator_loss

__all__ = ["Draws", "Heard", "build_discriminator", "critic_loss", "hear", "stay_silent"]


class Draws(NamedTuple):
    """What keys the augmentation of a batch.

    Attributes:
        seed: the run's seed.
        epoch: number of the pass.
        samples: global sample indices, int64, (B,).
    """

    seed: int
    epoch: int
    samples: Tensor


class Heard(NamedTuple):
    """The adversarial loss as the auto-encoder hears it.

    Attributes:
        value: L = -mean D(x^), without gradient.
        slope: dL / dx^, (B, 3, H, W), numbers.
    """

    value: Tensor
    slope: Tensor

    def loss(self, images: Tensor) -> Tensor:
        """The loss of the pictures that it was heard of.

        L = <x^, dL / dx^> + constant

        Args:
            images: x^, with their graph.

        Returns:
            A scalar of the value L, whose gradient reaches the pictures and not the discriminator.
        """
        product = (images * self.slope).sum()
        return product - product.detach() + self.value


def build_discriminator(adversary: Adversary) -> FeatureDiscriminator:
    """The discriminator of some settings.

    Args:
        adversary: the settings.

    Returns:
        Its heads, not filled when built on the meta device.
    """
    return FeatureDiscriminator(
        adversary.encoder,
        list(adversary.width),
        list(adversary.layers),
        adversary.grid,
        adversary.kernel,
        adversary.group,
    )


def hear(discriminator: nn.Module, adversary: Adversary, images: Tensor, draws: Draws) -> Heard:
    """What the discriminator says about reconstructions.

    L = -mean D(T(x^))

    The gradient stops at the pictures and goes on from there as a number, so that not a trace of it reaches the
    discriminator's own gradients, whatever shards or reduces them.

    Args:
        discriminator: takes pictures in [-1, 1].
        adversary: its settings.
        images: reconstructions, (B, 3, H, W) in [-1, 1] but for what the decoder leaves.
        draws: keys of the augmentation.

    Returns:
        Value and slope.

    Source: arXiv:1705.02894 eq. 6; augmentation arXiv:2006.10738 eq. 5.
    """
    leaf = images.detach().requires_grad_()
    value = generator_loss(discriminator(adversary.augment(leaf, draws.seed, "generator", draws.epoch, draws.samples)))
    (slope,) = torch.autograd.grad(value, leaf)
    return Heard(value.detach(), slope)


def critic_loss(discriminator: nn.Module, adversary: Adversary, real: Tensor, made: Tensor, draws: Draws) -> Tensor:
    """What the discriminator learns from, on originals and on reconstructions of the undisturbed latents only.

    L = 1/2 (mean relu(1 - D(T(x))) + mean relu(1 + D(T(sg x^))))

    Args:
        discriminator: takes pictures in [-1, 1].
        adversary: its settings.
        real: (B, 3, H, W) in [-1, 1].
        made: reconstructions of the same shape; constants here.
        draws: keys of the augmentation.

    Returns:
        Scalar.

    Source: arXiv:1705.02894 eq. 5; augmentation arXiv:2006.10738 eq. 4.
    """
    shown = [
        adversary.augment(images.detach(), draws.seed, name, draws.epoch, draws.samples)
        for name, images in (("real", real), ("made", made))
    ]
    return hinge_discriminator_loss(discriminator(shown[0]), discriminator(shown[1]))


def stay_silent(discriminator: nn.Module, images: Tensor) -> Tensor:
    """A zero that depends on every weight of the discriminator, for steps in which it does not learn yet.

    Data-parallel training waits in each backward pass for a gradient of every trainable weight.

    Args:
        discriminator: takes pictures in [-1, 1].
        images: (B, 3, H, W); one is looked at.

    Returns:
        Scalar 0.
    """
    zero: Tensor = 0 * discriminator(images[:1].detach()).sum()
    return zero
