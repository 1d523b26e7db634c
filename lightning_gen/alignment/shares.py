"""Which rows of a rollout a rank learns from in an optimiser step, and means over such rows for the log.

Shape letters: n rows of a rank in an optimiser step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gen.nn.ranks import gather_over_ranks

__all__ = ["RunningMeans", "Share", "share_of"]


class Share(NamedTuple):
    """A rank's part of an optimiser step.

    Attributes:
        rows: numbers of its rows, int64, (n,); n is the same on every rank.
        weights: of the rows, float, (n,): the mean over the ranks of the weighted sums is the mean over the rows of all
            ranks. Rows that only make n the same have the weight 0.
    """

    rows: Tensor
    weights: Tensor


class RunningMeans:
    """Weighted means of numbers that come in parts, over all ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, values: Tensor, weights: Tensor) -> None:
        """Count some rows.

        Args:
            name: of the number; every rank adds the same names.
            values: of the rows, float, (rows,).
            weights: of the rows, see :class:`Share`.
        """
        total, weight = (weights * values.detach().float()).sum(), weights.sum()
        if name in self._sums:
            total, weight = total + self._sums[name][0], weight + self._sums[name][1]
        self._sums[name] = total, weight

    def take(self) -> dict[str, Tensor]:
        """The means so far, over all ranks; counting begins anew.

        Returns:
            name -> scalar, by name.
        """
        means = {}
        for name, sums in sorted(self._sums.items()):
            total, weight = gather_over_ranks(torch.stack(sums)[None])[0].sum(0)
            means[name] = total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        self._sums = {}
        return means


def share_of(chosen: Tensor, first: int, size: int, total: int) -> Share:
    """What of the chosen rows belongs to one rank.

    Args:
        chosen: places in the global batch, int64, rising or not.
        first: place of the rank's first row.
        size: rows of a rank.
        total: rows of all ranks.

    Returns:
        As many rows for every rank.
    """
    owner = chosen // size
    mine = chosen[owner == first // size] - first
    most = int(torch.bincount(owner, minlength=1).max())
    weights = mine.new_zeros(most, dtype=torch.float32)
    weights[: len(mine)] = total / size / max(1, len(chosen))
    return Share(torch.cat([mine, mine.new_zeros(most - len(mine))]), weights)
