"""Does an arena say what happens? Predicted and counted shares of wins.

Shape letters: K kinds of games (same two models), B bins.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lightning_gen.alignment.arena_po.arena import Arena, Meetings, count_meetings
from lightning_gen.alignment.arena_po.arena_table import Comparisons
from lightning_gen.alignment.arena_po.gap import pair_scale, win_probability
from lightning_gen.data.quarantine import DataError
from lightning_gen.metrics.intervals import wilson_interval

__all__ = ["Calibration", "CalibrationBin", "calibration", "meetings_of", "predicted_wins"]

_BINS: Final = 10

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


class CalibrationBin(NamedTuple):
    """Games whose favourite was about equally sure to be noted as their winner.

    Attributes:
        predicted: mean probability that the favourite is, in [0.5, 1].
        observed: share of them in which it was.
        interval: Wilson's of that share, 95 %.
        games: their number.
    """

    predicted: float
    observed: float
    interval: tuple[float, float]
    games: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How far predictions can be trusted.

    Attributes:
        bins: without empty ones.
        games: all that somebody won.
        error: expected calibration error, mean |observed - predicted| over games.
        accuracy: share of them that the favourite won; where neither is, a half.
        log_loss: nats per game.
        coin_log_loss: ln 2, what knowing nothing costs.
        brier: mean squared error of the probability.
        unknown: games with a model that the arena does not know, left out.
    """

    bins: tuple[CalibrationBin, ...]
    games: int
    error: float
    accuracy: float
    log_loss: float
    coin_log_loss: float
    brier: float
    unknown: int


def predicted_wins(arena: Arena, first: _Ints, second: _Ints, certainty: _Floats | float = 1.0) -> _Floats:
    """Probability that the first model's picture is noted as preferred, of a game that is no tie.

    p = Phi((d - eps) / s) / (Phi((d - eps) / s) + Phi((-d - eps) / s)),  d = mu_1 - mu_2,
    s^2 = Var[theta_1 - theta_2] + 2 beta^2;  q p + (1 - q) (1 - p)

    Args:
        arena: fitted; without a draw margin eps = 0, and p = Phi(d / s).
        first: numbers of models, (K,).
        second: likewise.
        certainty: q, probability that an outcome is noted the right way round, (K,).

    Returns:
        float64, (K,).
    """
    delta, variance = (torch.from_numpy(part) for part in arena.differences(first, second))
    scale = pair_scale(variance, torch.zeros_like(variance), arena.options.performance, "performance")
    margin = arena.options.belief.margin
    won, lost = (win_probability(side - margin, scale) for side in (delta, -delta))
    p = (won / (won + lost)).numpy()
    return np.asarray(certainty * p + (1 - certainty) * (1 - p))


def meetings_of(arena: Arena, table: Comparisons) -> tuple[Meetings, int]:
    """Results of a table, counted for the models of an arena.

    Args:
        arena: fitted, to this table or to another one.
        table: annotations.

    Returns:
        Results of pairs of two known models, and the number of pairs with an unknown one.
    """
    number = arena.numbers(table.names)
    first, second = number[table.first], number[table.second]
    two = table.first != table.second
    known = two & (first >= 0) & (second >= 0)
    met = count_meetings(first[known], second[known], table.outcome[known], table.certainty[known], len(arena))
    return met, int((two & ~known).sum())


def calibration(arena: Arena, met: Meetings | None = None, unknown: int = 0, bins: int = _BINS) -> Calibration:
    """Compare predictions with results as they are noted, of the games that somebody won.

    Args:
        arena: fitted.
        met: results of other games, see :func:`meetings_of`; None = those that it was fitted to, which flatters it.
        unknown: games left out because a model is not known, for the record.
        bins: B, of equal width on [0.5, 1].

    Returns:
        The comparison.

    Raises:
        DataError: there are no games.
    """
    met = arena.meetings if met is None else met
    p = predicted_wins(arena, met.first, met.second, met.certainty)
    games = met.wins + met.losses
    total = int(games.sum())
    if not total:
        ties = int(met.ties.sum())
        raise DataError(f"there is no decided game to compare predictions with ({ties:,} ties, {unknown:,} unknown)")
    favourite = np.maximum(p, 1 - p)
    won = np.where(p >= 0.5, met.wins, met.losses)
    place = np.minimum(((favourite - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    found = []
    for number in range(bins):
        here = place == number
        count = int(games[here].sum())
        if count:
            wins = int(won[here].sum())
            mean = float((favourite[here] * games[here]).sum()) / count
            found.append(CalibrationBin(mean, wins / count, wilson_interval(wins, count), count))
    # A probability of exactly 1 would make a single upset infinitely bad.
    safe = p.clip(1e-12, 1 - 1e-12)
    log_loss = -float((met.wins * np.log(safe) + met.losses * np.log1p(-safe)).sum()) / total
    brier = float((met.wins * (1 - p) ** 2 + met.losses * p**2).sum()) / total
    right = np.where(p > 0.5, met.wins, np.where(p < 0.5, met.losses, games / 2))
    error = sum(one.games * abs(one.observed - one.predicted) for one in found) / total
    accuracy = float(right.sum()) / total
    return Calibration(tuple(found), total, error, accuracy, log_loss, math.log(2), brier, unknown)
