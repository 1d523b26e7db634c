"""Averages of preference scores over pictures and ranks, and how often a score agrees with people.

Shape letters: B pictures or pairs of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.intervals import bootstrap_interval, ratio_bootstrap_interval
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol

__all__ = ["PairwiseAccuracy", "PreferenceScore", "duel"]

_LEVEL: Final = 0.95


def duel(first: Tensor, second: Tensor) -> Tensor:
    """Who scores higher: 1 where the first does, 0 where the second does, 1/2 where they are equal.

    Args:
        first: scores, (N,).
        second: scores, (N,).

    Returns:
        float64, (N,); NaN where a score is NaN.

    Raises:
        ValueError: shapes differ.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"scores that do not pair up: {tuple(first.shape)} and {tuple(second.shape)}")
    first, second = first.double(), second.double()
    # The difference of two equal infinities is NaN, so compare.
    outcome = (1 + (first > second).double() - (first < second).double()) / 2
    return outcome.masked_fill(first.isnan() | second.isnan(), math.nan)


class PreferenceScore(CountedOnce):
    """Mean and median of a score over pictures.

    A picture is known by the number of its prompt and its number among the pictures of that prompt, and counts once.
    Pictures without a score (NaN) are left out and counted.

    Args:
        protocol: how scores come about, for instance ``scorer.protocol``; its count is filled in.
        details: what else decides the numbers, for instance seed and guidance scale.
    """

    columns = ("score",)

    def __init__(self, protocol: Protocol, details: Mapping[str, Detail] | None = None) -> None:
        super().__init__()
        self.protocol = protocol
        self.details = dict(details or {})

    def update(self, scores: Tensor, prompts: Sequence[int] | Tensor, samples: Sequence[int] | Tensor) -> None:
        """Count scores.

        Args:
            scores: float, (B,).
            prompts: number of each picture's prompt in the list of prompts.
            samples: number of each picture among those of its prompt.

        Raises:
            ValueError: the three differ in number.
        """
        self.count(prompts, samples, scores.detach()[:, None])

    def compute(self) -> dict[str, Tensor]:
        """The scores of all ranks in short.

        Returns:
            ``mean``, ``median`` (of an even number the middle of the two) and ``error``, one standard error of the mean
            over pictures, s / sqrt(N) with N - 1 in s; float64 scalars, NaN where nothing was counted.
        """
        return _summary(_scored(self.table())[:, 2])

    def measurements(self) -> list[Measurement]:
        """Mean and median with their uncertainty and protocol.

        The mean carries the standard error over pictures and a 95 % bootstrap interval that draws whole prompts, since
        pictures of one prompt are alike; the median carries a bootstrap interval if there is one picture per prompt.

        Returns:
            ``NAME`` (the mean) and ``NAME:median``, over the pictures of all ranks.
        """
        with self.on_all_ranks():
            table, repeats = self.table(), self.num_repeats
        scored = _scored(table)
        values = _summary(scored[:, 2])
        prompts, group = torch.unique(scored[:, 0], return_inverse=True)
        details = {
            **self.protocol.details,
            **self.details,
            "prompts": len(prompts),
            "repeats": repeats,
            "unscored": len(table) - len(scored),
            "interval": "bootstrap over prompts",
            "level": _LEVEL,
        }
        mean_interval = median_interval = None
        if len(prompts) > 1:
            sums = scored.new_zeros(len(prompts)).index_add(0, group, scored[:, 2])
            mean_interval = ratio_bootstrap_interval(sums, torch.bincount(group), level=_LEVEL)
            if len(prompts) == len(scored):
                median_interval = bootstrap_interval(scored[:, 2], _median_of_rows, level=_LEVEL)
        protocol = self.protocol
        name, method, count, expected = protocol.metric, protocol.method, len(scored), protocol.expected
        return [
            Measurement(
                float(values["mean"]),
                Protocol(name, method, count, expected, details),
                error=None if values["error"].isnan() else float(values["error"]),
                interval=mean_interval,
            ),
            Measurement(
                float(values["median"]),
                Protocol(f"{name}:median", method, count, expected, details),
                interval=median_interval,
            ),
        ]


class PairwiseAccuracy(CountedOnce):
    """How often a score agrees with people who chose one of two pictures: share of pairs, equal scores count half.

    Pairs that people called equal should be left out. Pairs without a score (NaN) are left out and counted.

    Args:
        protocol: how scores come about, for instance ``scorer.protocol``.
        details: what else decides the number, for instance the set of pairs.
    """

    columns = ("outcome",)

    def __init__(self, protocol: Protocol, details: Mapping[str, Detail] | None = None) -> None:
        super().__init__()
        self.protocol = protocol
        self.details = dict(details or {})

    def update(self, preferred: Tensor, rejected: Tensor, pairs: Sequence[int] | Tensor) -> None:
        """Count pairs.

        Args:
            preferred: scores of the pictures that people chose, (B,).
            rejected: scores of the others, (B,).
            pairs: number of each pair; one that was counted is not counted again.

        Raises:
            ValueError: the three differ in number.
        """
        self.count(pairs, [0] * len(pairs), duel(preferred, rejected)[:, None])

    def compute(self) -> Tensor:
        """The share over the pairs of all ranks.

        Returns:
            float64 scalar; NaN where nothing was counted.
        """
        return _scored(self.table())[:, 2].mean()

    def measurements(self) -> list[Measurement]:
        """The share with its 95 % bootstrap interval over pairs.

        Returns:
            ``NAME:pairwise``, over the pairs of all ranks.
        """
        with self.on_all_ranks():
            table, repeats = self.table(), self.num_repeats
        outcomes = _scored(table)[:, 2]
        details = {
            **self.protocol.details,
            **self.details,
            "ties": int((outcomes == 0.5).sum()),
            "repeats": repeats,
            "unscored": len(table) - len(outcomes),
            "interval": "bootstrap",
            "level": _LEVEL,
        }
        protocol = Protocol(f"{self.protocol.metric}:pairwise", self.protocol.method, len(outcomes), None, details)
        interval = bootstrap_interval(outcomes, level=_LEVEL) if len(outcomes) > 1 else None
        return [Measurement(float(outcomes.mean()), protocol, interval=interval)]


def _summary(scores: Tensor) -> dict[str, Tensor]:
    nothing = scores.new_full((), math.nan)
    if len(scores) == 0:
        return {"mean": nothing, "median": nothing, "error": nothing}
    error = scores.std() / math.sqrt(len(scores)) if len(scores) > 1 else nothing
    return {"mean": scores.mean(), "median": scores.quantile(0.5), "error": error}


def _scored(table: Tensor) -> Tensor:
    return table[~table[:, 2].isnan()]


def _median_of_rows(sets: Tensor) -> Tensor:
    return sets.quantile(0.5, dim=1)
