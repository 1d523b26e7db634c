"""How often one model beats another: win rate per prompt with intervals.

Shape letters: P prompts, K pictures of a prompt, B pictures of a batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.intervals import bootstrap_interval, wilson_interval
from lightning_gen.metrics.preference_score import duel
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol

__all__ = ["Duel", "WinRate", "sign_test", "win_rate"]

_RESAMPLES: Final = 2000
_LEVEL: Final = 0.95


@dataclasses.dataclass(frozen=True)
class Duel:
    """Two models compared on the same prompts.

    Attributes:
        wins: prompts on which the first scores higher.
        ties: prompts with equal scores.
        losses: prompts on which the second scores higher.
        interval: bootstrap interval of ``rate``; None with fewer than two prompts.
        decisive_interval: Wilson's interval of wins / (wins + losses); None without a decision.
        p_value: see ``sign_test``.
    """

    wins: int
    ties: int
    losses: int
    interval: tuple[float, float] | None
    decisive_interval: tuple[float, float] | None
    p_value: float

    @property
    def prompts(self) -> int:
        """Prompts that were compared."""
        return self.wins + self.ties + self.losses

    @property
    def rate(self) -> float:
        """(wins + ties / 2) / prompts; NaN without prompts."""
        return (self.wins + self.ties / 2) / self.prompts if self.prompts else math.nan

    @property
    def decisive_rate(self) -> float:
        """wins / (wins + losses); NaN where every prompt ends in a tie."""
        return self.wins / (self.wins + self.losses) if self.wins + self.losses else math.nan


def win_rate(first: Tensor, second: Tensor, level: float = _LEVEL, resamples: int = _RESAMPLES, seed: int = 0) -> Duel:
    """Compare two models prompt by prompt.

    rate = (1/P) sum over prompts of [a > b] + [a = b] / 2,  a and b the mean scores of a prompt's pictures

    Averaging comes first, so a prompt has one voice, however many pictures it has. NaN is a picture without a score;
    prompts without any score on one side are left out.

    Args:
        first: scores of the first model, (P,) or (P, K).
        second: scores of the second model on the same prompts, (P,) or (P, K'); same seeds make a narrower comparison
            but are not needed.
        level: coverage of both intervals.
        resamples: of the bootstrap over prompts.
        seed: of the bootstrap.

    Returns:
        Counts and intervals.

    Raises:
        ValueError: numbers of prompts differ.

    Source: evaluation of arXiv:2311.12908 and its successors.
    """
    if not 1 <= first.ndim <= 2 or not 1 <= second.ndim <= 2 or len(first) != len(second):
        raise ValueError(f"prompts that do not pair up: {tuple(first.shape)} and {tuple(second.shape)}")
    means = [scores.detach().double().reshape(len(scores), -1).nanmean(1) for scores in (first, second)]
    outcomes = duel(*means)
    outcomes = outcomes[~outcomes.isnan()]
    wins, losses = int((outcomes == 1).sum()), int((outcomes == 0).sum())
    return Duel(
        wins,
        len(outcomes) - wins - losses,
        losses,
        bootstrap_interval(outcomes, resamples=resamples, level=level, seed=seed) if len(outcomes) > 1 else None,
        wilson_interval(wins, wins + losses, level) if wins + losses else None,
        sign_test(wins, losses),
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test: how likely is a result at least this uneven if both models are equally good?

    p = min(1, 2 P(X <= min(wins, losses))),  X binomial with wins + losses trials and probability 1/2

    Args:
        wins: decisions for the first, >= 0.
        losses: decisions for the second, >= 0; ties are left out.

    Returns:
        p in (0, 1]; 1 without decisions.
    """
    trials = wins + losses
    tail = term = 1
    for k in range(1, min(wins, losses) + 1):
        term = term * (trials - k + 1) // k
        tail += term
    # Whole numbers of thousands of digits; dividing one by the other is exact, and no float on the way overflows.
    share: float = 2 * tail / 2**trials
    return min(1.0, share)


class WinRate(CountedOnce):
    """Share of prompts on which one model scores higher than another; equal scores count half.

    Both models' pictures of a sample are counted together. A sample is known by the number of its prompt and its number
    among the samples of that prompt, and counts once.

    Args:
        protocol: how scores come about, for instance ``scorer.protocol``.
        details: what else decides the number, for instance the names of both models.
    """

    columns = ("first", "second")

    def __init__(self, protocol: Protocol, details: Mapping[str, Detail] | None = None) -> None:
        super().__init__()
        self.protocol = protocol
        self.details = dict(details or {})

    def update(
        self, first: Tensor, second: Tensor, prompts: Sequence[int] | Tensor, samples: Sequence[int] | Tensor
    ) -> None:
        """Count scores.

        Args:
            first: scores of the first model, (B,).
            second: scores of the second model, (B,).
            prompts: number of each sample's prompt in the list of prompts.
            samples: number of each sample among those of its prompt.

        Raises:
            ValueError: the four differ in number.
        """
        if first.shape != second.shape:
            raise ValueError(f"scores that do not pair up: {tuple(first.shape)} and {tuple(second.shape)}")
        self.count(prompts, samples, torch.stack((first, second), 1))

    def compute(self) -> Tensor:
        """The win rate over the prompts of all ranks.

        Returns:
            float64 scalar; NaN where nothing was counted.
        """
        outcomes = duel(*_prompt_means(self.table()))
        return outcomes[~outcomes.isnan()].mean()

    def duel(self, level: float = _LEVEL, resamples: int = _RESAMPLES, seed: int = 0) -> Duel:
        """Counts and intervals over the prompts of all ranks.

        Args:
            level: coverage of both intervals.
            resamples: of the bootstrap over prompts.
            seed: of the bootstrap.

        Returns:
            See ``win_rate``.
        """
        with self.on_all_ranks():
            table = self.table()
        return win_rate(*_prompt_means(table), level, resamples, seed)

    def measurements(self) -> list[Measurement]:
        """The win rate with a bootstrap interval, and the share among decided prompts with Wilson's.

        Returns:
            ``NAME:winrate`` and ``NAME:winrate-decided``, over the prompts of all ranks.
        """
        result = self.duel()
        details = {
            **self.protocol.details,
            **self.details,
            "wins": result.wins,
            "ties": result.ties,
            "losses": result.losses,
            "sign_test_p": result.p_value,
            "level": _LEVEL,
        }
        name, method = f"{self.protocol.metric}:winrate", self.protocol.method
        whole = Protocol(name, method, result.prompts, None, {**details, "interval": "bootstrap over prompts"})
        decided = Protocol(
            f"{name}-decided", method, result.wins + result.losses, None, {**details, "interval": "wilson"}
        )
        return [
            Measurement(result.rate, whole, interval=result.interval),
            Measurement(result.decisive_rate, decided, interval=result.decisive_interval),
        ]


def _prompt_means(table: Tensor) -> tuple[Tensor, Tensor]:
    """Mean scores of both models per prompt, over the samples that both have a score for; NaN without any."""
    prompts, group = torch.unique(table[:, 0], return_inverse=True)
    scored = ~table[:, 2:].isnan().any(1)
    sums = table.new_zeros(len(prompts), 2).index_add(0, group[scored], table[scored, 2:])
    counts = table.new_zeros(len(prompts)).index_add(0, group[scored], scored[scored].double())
    first, second = (sums / counts[:, None]).unbind(1)
    return first, second
