"""Normalisation layers that compute in float32 whatever comes in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LayerScale", "RMSNorm", "layer_norm"]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned weight.

    y = x / sqrt(mean(x^2) + eps) * weight, in float32

    Args:
        dim: size D of the last axis.
        eps: added to the mean square.

    Source: arXiv:1910.07467 eq. 4.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis.

        Args:
            x: (..., D).

        Returns:
            (..., D) in the dtype of ``x``.
        """
        exact = x.dtype if x.dtype == torch.float64 else torch.float32
        return F.rms_norm(x.to(exact), self.weight.shape, self.weight.to(exact), self.eps).to(x.dtype)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch.

    y = gamma * x

    Args:
        dim: number of channels.
        initial: value of gamma at the start.

    Source: arXiv:2103.17239 section 3.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set gamma to its start value."""
        nn.init.constant_(self.gamma, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last axis.

        Args:
            x: (..., dim).

        Returns:
            (..., dim).
        """
        return self.gamma * x


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer normalisation of the last axis without learned parameters, in float32 or better.

    Args:
        x: (..., C).
        eps: added to the variance.

    Returns:
        (..., C), mean 0 and population variance var / (var + eps), float32 (float64 for float64).
    """
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.layer_norm(exact, exact.shape[-1:], eps=eps)
