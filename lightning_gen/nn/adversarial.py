"""Losses of adversarial training that several tokenizers share: hinge, LeCam, and the weight of the VQGAN recipe.

Discriminator outputs ("logits") are positive for real pictures. Under torch.distributed, means and gradient norms are
those of all ranks, so that one process and several compute the same.

Shape letters: B images, ... the patches of a discriminator's output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .ranks import mean_over_ranks

__all__ = [
    "LeCam",
    "adaptive_weight",
    "balancing_weight",
    "gradient_at",
    "generator_loss",
    "hinge_discriminator_loss",
    "lecam_penalty",
]


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator.

    L = (mean relu(1 - D(x)) + mean relu(1 + D(y))) / 2

    Args:
        real: D(x), logits of real pictures, any shape.
        fake: D(y), logits of made pictures, any shape.

    Returns:
        Scalar, >= 0.

    Source: arXiv:1705.02894 eq. 5, halved as in the VQGAN recipe (arXiv:2012.09841).
    """
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """Loss of the generator against a hinge discriminator.

    L = -mean D(y)

    Args:
        fake: D(y), logits of made pictures, any shape.

    Returns:
        Scalar.

    Source: arXiv:1705.02894 eq. 6.
    """
    return -fake.mean()


def lecam_penalty(real: Tensor, fake: Tensor, average_real: Tensor, average_fake: Tensor) -> Tensor:
    """LeCam regulariser on batch means.

    R = relu(mean D(x) - a_fake)^2 + relu(a_real - mean D(y))^2

    Args:
        real: D(x), logits, any shape.
        fake: D(y), logits, any shape.
        average_real: a_real, scalar, moving average of mean D(x).
        average_fake: a_fake, scalar, moving average of mean D(y).

    Returns:
        Scalar, >= 0.

    Source: arXiv:2104.03310 eq. 4; deviates: squares of batch means, not means of squares, as the trainers of
    arXiv:2406.07550 and arXiv:2605.05646 do.
    """
    return F.relu(real.mean() - average_fake).square() + F.relu(average_real - fake.mean()).square()


class LeCam(nn.Module):
    """LeCam regulariser with the moving averages that it needs.

    R as in ``lecam_penalty``, with the averages before this step; then a <- decay a + (1 - decay) mean D.

    Args:
        decay: of the averages, in [0, 1).

    Raises:
        ValueError: a decay outside [0, 1).

    Source: arXiv:2104.03310 section 3.2.
    """

    average_real: Tensor
    average_fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of LeCam's averages lies in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("average_real", torch.zeros(()))
        self.register_buffer("average_fake", torch.zeros(()))

    def reset_parameters(self) -> None:
        """Start both averages at 0."""
        nn.init.zeros_(self.average_real)
        nn.init.zeros_(self.average_fake)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Penalty of this step; the averages move on.

        Args:
            real: D(x), logits of this rank, any shape.
            fake: D(y), logits of this rank, any shape.

        Returns:
            Scalar, the same on all ranks.
        """
        mean_real, mean_fake = mean_over_ranks(real.float().mean()), mean_over_ranks(fake.float().mean())
        # Copies: autograd would find the buffers changed.
        penalty = lecam_penalty(mean_real, mean_fake, self.average_real.clone(), self.average_fake.clone())
        self.average_real.lerp_(mean_real.detach(), 1 - self.decay)
        self.average_fake.lerp_(mean_fake.detach(), 1 - self.decay)
        return penalty


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, maximum: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    """Weight that makes the adversarial gradient as long as that of the reconstruction.

    w = min(|dL_rec / dW| / (|dL_adv / dW| + epsilon), maximum)

    Args:
        reconstruction: L_rec, a scalar that depends on W.
        adversarial: L_adv, a scalar that depends on W.
        last_layer: W, weight of the decoder's last layer.
        maximum: largest weight.
        epsilon: keeps the quotient finite.

    Returns:
        Scalar without gradient, in [0, maximum]. Both graphs stay for the backward pass.

    Source: arXiv:2012.09841 eq. 7.
    """
    first, second = (gradient_at(loss, last_layer) for loss in (reconstruction, adversarial))
    return balancing_weight(first, second, maximum, epsilon)


def gradient_at(loss: Tensor, layer: Tensor) -> Tensor:
    """The gradient of a loss at one weight; the graph stays for the backward pass.

    Args:
        loss: a scalar that depends on the weight.
        layer: the weight, any shape.

    Returns:
        Its shape, without gradient, of this rank.
    """
    (gradient,) = torch.autograd.grad(loss, layer, retain_graph=True)
    return gradient.detach()


def balancing_weight(
    reconstruction: Tensor, adversarial: Tensor, maximum: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    """The weight of ``adaptive_weight``, of gradients that are known, for instance sums over the parts of a step.

    w = min(|mean over ranks of g_rec| / (|mean over ranks of g_adv| + epsilon), maximum)

    Args:
        reconstruction: g_rec, any shape.
        adversarial: g_adv, the same shape.
        maximum: largest weight.
        epsilon: keeps the quotient finite.

    Returns:
        Scalar in [0, maximum].

    Source: arXiv:2012.09841 eq. 7.
    """
    norms = [torch.linalg.vector_norm(mean_over_ranks(gradient)) for gradient in (reconstruction, adversarial)]
    weight: Tensor = (norms[0] / (norms[1] + epsilon)).clamp(0, maximum)
    return weight
