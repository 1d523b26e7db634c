"""Means and gatherings over all processes of a run, through which gradients flow back to every process."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["every_rank", "gather_over_ranks", "mean_over_ranks"]


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks.

    Args:
        value: any shape, the same on all ranks; a DTensor is returned as it is, its ranks agree already.

    Returns:
        The mean; ``value`` itself in a single process.
    """
    if _is_alone() or type(value).__name__ == "DTensor":
        return value
    return cast(Tensor, _Mean.apply(value))


def every_rank(fact: bool, device: torch.device) -> bool:
    """Whether something is so on all ranks, for what all must do together or not at all.

    Args:
        fact: on this rank.
        device: that the ranks talk by.

    Returns:
        The same on every rank.
    """
    return bool(mean_over_ranks(torch.tensor(float(fact), device=device)) == 1)


def gather_over_ranks(value: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks, in the order of the ranks.

    Args:
        value: (B, ...), the same shape on all ranks.

    Returns:
        (world * B, ...), and the number of this rank's first row in it.
    """
    if _is_alone():
        return value, 0
    return cast(Tensor, _Gather.apply(value)), dist.get_rank() * value.shape[0]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _sum(value) / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _sum(gradients[0]) / dist.get_world_size()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.contiguous()
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, value)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's rows.
        return _sum(gradients[0]).chunk(dist.get_world_size())[dist.get_rank()]


def _sum(value: Tensor) -> Tensor:
    total = value.contiguous().clone()
    dist.all_reduce(total)
    return total


def _is_alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
