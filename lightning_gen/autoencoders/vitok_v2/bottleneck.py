"""What stands between encoder and decoder: the last step from a code to the latent.

Shape letters: B rows, L tokens, c latent channels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_gen.nn.norms import layer_norm

__all__ = [
    "Bottleneck",
    "BottleneckName",
    "Code",
    "GaussianBottleneck",
    "LayerNormBottleneck",
    "TanhBottleneck",
    "build_bottleneck",
]

BottleneckName = Literal["layernorm", "tanh", "kl"]


class Code(NamedTuple):
    """A latent and what it costs.

    Attributes:
        latent: (B, L, c), float32.
        penalty: loss per token, (B, L), already weighted; 0 where the bottleneck has no loss.
    """

    latent: Tensor
    penalty: Tensor


class Bottleneck(nn.Module):
    """Turns the encoder's output into the latent.

    Attributes:
        expansion: numbers that the encoder must give per latent channel.
        noisy: whether training wants standard normal numbers.
        has_penalty: whether the latent costs something.
    """

    expansion = 1
    noisy = False
    has_penalty = False

    def forward(self, code: Tensor, noise: Tensor | None) -> Code:
        """Make the latent.

        Args:
            code: encoder output, (B, L, expansion * c).
            noise: standard normal, (B, L, c), while training; None at inference.

        Returns:
            Latent and penalty.
        """
        raise TypeError(f"{type(self).__name__} must override forward")


class LayerNormBottleneck(Bottleneck):
    """LayerNorm over the channels, without parameters: every token has mean 0 and variance 1.

    z = (code - mean(code)) / sqrt(var(code) + 1e-6)

    Source: arXiv:2605.05331 (latent normalisation; kept by the paper because it has no hyper-parameter).
    """

    def forward(self, code: Tensor, noise: Tensor | None) -> Code:
        """Normalise; the noise is not used."""
        latent = layer_norm(code)
        return Code(latent, latent.new_zeros(latent.shape[:2]))


class TanhBottleneck(Bottleneck):
    """Bounded latent with a little noise while training.

    z = tanh(code) + sigma * eps

    Args:
        sigma: standard deviation of the noise.

    Source: arXiv:2605.05331 (alternative latents, sigma 0.01).
    """

    noisy = True

    def __init__(self, sigma: float = 0.01) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, code: Tensor, noise: Tensor | None) -> Code:
        """Squash, then add noise if there is any."""
        latent = code.float().tanh()
        latent = latent if noise is None else latent + self.sigma * noise
        return Code(latent, latent.new_zeros(latent.shape[:2]))


class GaussianBottleneck(Bottleneck):
    """Variational latent.

    z = mu + exp(logvar / 2) * eps;  penalty = beta * mean_c (mu^2 + exp(logvar) - 1 - logvar) / 2

    Args:
        beta: weight of the divergence from the standard normal distribution.

    Source: arXiv:2605.05331 (alternative latents, beta 0.01); arXiv:1312.6114 appendix B. The mean over channels (not
    their sum) is inferred.
    """

    expansion = 2
    noisy = True
    has_penalty = True

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, code: Tensor, noise: Tensor | None) -> Code:
        """Sample if there is noise, else take the mean."""
        mean, log_variance = code.float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean(-1) / 2
        latent = mean if noise is None else mean + torch.exp(log_variance / 2) * noise
        return Code(latent, self.beta * divergence)


def build_bottleneck(name: BottleneckName) -> Bottleneck:
    """Bottleneck by name, with the paper's constants.

    Args:
        name: ``layernorm`` (the paper's choice), ``tanh`` or ``kl``.

    Returns:
        The module.
    """
    known: dict[str, type[Bottleneck]] = {
        "layernorm": LayerNormBottleneck,
        "tanh": TanhBottleneck,
        "kl": GaussianBottleneck,
    }
    if name not in known:
        raise ValueError(f"unknown bottleneck {name!r}: choose one of {', '.join(known)}")
    return known[name]()
