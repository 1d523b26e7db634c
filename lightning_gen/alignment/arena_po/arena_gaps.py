"""From capabilities to the gap of every pair, and to the file that training joins.

Shape letters: N rows of a table, P decided pairs, K kinds of pairs (same winner, loser and certainty).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt
import torch

from lightning_gen.alignment.arena_po.arena import Arena
from lightning_gen.alignment.arena_po.arena_solvers import Games, cavity
from lightning_gen.alignment.arena_po.arena_table import Comparisons
from lightning_gen.alignment.arena_po.gap import (
    LOGISTIC_SLOPE,
    GapNormalisation,
    GapVariance,
    expected_gap,
    gap_quantile,
    normalise_gaps,
    pair_scale,
    win_probability,
)
from lightning_gen.data.gap_table import GapRows, write_gap_table
from lightning_gen.data.quarantine import DataError

__all__ = ["GapOptions", "PairGapTable", "pair_gaps", "write_gaps"]

_BATCH: Final = 1 << 16
# Below this share of the performance's deviation, upsets and pairs of one model have no gap worth the name.
_DEGENERATE: Final = 0.2

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class GapOptions:
    """How gaps are computed.

    Attributes:
        variance: what a picture is, see ``gap.pair_scale``.
        normalisation: in what unit gaps enter a loss, see ``gap.normalise_gaps``.
        min_games: pairs of a model with fewer games have s^2 = 2 beta^2: a rare model's deviation is the prior's, and
            would make its gaps larger for no reason. 0 = no such rule.
        leave_one_out: every pair's gap without its own game: the pair that is judged helped to judge. Negligible for a
            million pairs. For ``batch_ep`` and ``laplace``; what is left of a single game after one pass of TrueSkill
            cannot be told.
        transfer: the pairs are not those that the arena was fitted to, for instance of a validation split.
        quantile: of what the gap may be, taken as the gap: below one half is careful. None = the mean, as the paper.

    Raises:
        ValueError: a word that is none of these, a negative number, ``leave_one_out`` of pairs the arena never saw, or
            a quantile outside (0, 1).
    """

    variance: GapVariance = "performance"
    normalisation: GapNormalisation = "mean"
    min_games: int = 0
    leave_one_out: bool = False
    transfer: bool = False
    quantile: float | None = None

    def __post_init__(self) -> None:
        for name, known in (("variance", GapVariance), ("normalisation", GapNormalisation)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} is one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.min_games < 0:
            raise ValueError(f"min_games cannot be {self.min_games}")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ValueError(f"quantile lies between 0 and 1, got {self.quantile}")
        if self.leave_one_out and self.transfer:
            raise ValueError("leave_one_out takes a pair out of the arena that was fitted to it: not with transfer")


@dataclasses.dataclass(frozen=True)
class PairGapTable:
    """Gaps of the decided pairs of a table.

    Attributes:
        rows: numbers of the pairs' rows among the kept rows of the table, int64, (P,).
        delta: difference of the capabilities, winner minus loser, float64, (P,).
        scale: s, (P,).
        gap: g, (P,).
        probability: p, of this outcome before it was seen, (P,); where the arena draws ties, that of a win.
        margin: gap in the unit of a loss, (P,).
        unit: what gaps were divided by, margin = g / unit; None for ``zscore_clip``, where no number divides.
        counts: ``pairs``, ``ties`` (no gap), ``doubtful`` (likewise: as likely wrong as right, or more),
            ``same_model``, ``few_games``, ``unknown_to_arena``, ``dropped``.
        remarks: what somebody should know, with numbers.
    """

    rows: _Ints
    delta: _Floats
    scale: _Floats
    gap: _Floats
    probability: _Floats
    margin: _Floats
    unit: float | None
    counts: Mapping[str, int]
    remarks: tuple[str, ...]


def pair_gaps(arena: Arena, table: Comparisons, options: GapOptions | None = None) -> PairGapTable:
    """Compute the gap of every pair that has a winner; pairs of one model are among them.

    Args:
        arena: fitted to the table, or with ``transfer`` to another one.
        table: annotations.
        options: how.

    Returns:
        Gaps.

    Raises:
        DataError: the arena was fitted to other annotations, or no pair has a winner.
        ValueError: ``leave_one_out`` of an arena of one pass.
    """
    options = options or GapOptions()
    _require_same(arena, table, options)
    if options.leave_one_out and arena.options.solver == "ep_sequential":
        raise ValueError(
            "leave_one_out: one pass of TrueSkill keeps no trace of a single game that could be taken out; fit it "
            "with solver batch_ep or laplace"
        )
    is_tie = table.outcome == 0.5
    is_doubtful = ~is_tie & (table.certainty <= 0.5)
    kept = ~is_tie & ~is_doubtful
    unknown = np.array([arena.options.is_unknown(name) for name in table.names], np.bool_)
    if arena.options.unknown_models == "drop":
        kept &= ~unknown[table.first] & ~unknown[table.second]
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise DataError(
            f"{table.source}: none of {len(table):,} pairs has a winner and known models ({is_tie.sum():,} ties, "
            f"{is_doubtful.sum():,} winners that are as likely wrong as right, or more): there are no gaps"
        )
    number = arena.numbers(table.names)
    won = table.outcome[rows] == 1.0
    first, second = number[table.first[rows]], number[table.second[rows]]
    winner, loser = np.where(won, first, second), np.where(won, second, first)
    # The same model by name, also where the arena does not know it.
    same = table.first[rows] == table.second[rows]
    levels, level = np.unique(table.certainty[rows], return_inverse=True)
    size = len(arena) + 1
    kinds, place = np.unique((((winner + 1) * size + loser + 1) * len(levels) + level) * 2 + same, return_inverse=True)
    same_kind, rest = kinds % 2 == 1, kinds // 2
    pair = rest // len(levels)
    w, o = pair // size - 1, pair % size - 1
    delta, variance, fallback = _beliefs(arena, w, o, same_kind, levels[rest % len(levels)], options)
    numbers = _numbers(arena, delta, variance, fallback, options)
    delta, scale, gap, probability = (part[place] for part in numbers)
    margin = normalise_gaps(torch.from_numpy(gap), options.normalisation, arena.options.performance).numpy()
    counts = {
        "pairs": len(rows),
        "ties": int(is_tie.sum()),
        "doubtful": int(is_doubtful.sum()),
        "dropped": int((~kept & ~is_tie & ~is_doubtful).sum()),
        "same_model": int(same.sum()),
        "few_games": int(fallback[place].sum()),
        "unknown_to_arena": int(((winner < 0) | (loser < 0)).sum()),
    }
    units = {"none": 1.0, "mean": float(gap.mean()), "logit": arena.options.performance / LOGISTIC_SLOPE}
    return PairGapTable(
        rows, delta, scale, gap, probability, margin, units.get(options.normalisation), counts,
        tuple(_remarks(arena, scale, counts, options)),
    )  # fmt: skip


def write_gaps(path: str | Path, arena: Arena, table: Comparisons, found: PairGapTable, options: GapOptions) -> int:
    """Write the table that ``data.gaps`` reads.

    Args:
        path: a Parquet file.
        arena: as in :func:`pair_gaps`.
        table: likewise.
        found: what that returned.
        options: likewise.

    Returns:
        The number of rows.
    """
    card: dict[str, Any] = {
        "fingerprint": table.fingerprint,
        "source": table.source,
        "arena": arena.dataset["fingerprint"],
        "arena_options": dataclasses.asdict(arena.options),
        "options": dataclasses.asdict(options),
        "unit": found.unit,
        "counts": dict(found.counts),
    }
    return write_gap_table(path, _parts(table, found), card)


def _parts(table: Comparisons, found: PairGapTable) -> Iterator[GapRows]:
    columns = {"delta": found.delta, "s": found.scale, "g": found.gap, "p": found.probability, "margin": found.margin}
    for start in range(0, len(found.rows), _BATCH):
        part = slice(start, start + _BATCH)
        rows = found.rows[part]
        won = table.outcome[rows] == 1.0
        winner = np.where(won, table.raw_first[rows], table.raw_second[rows])
        loser = np.where(won, table.raw_second[rows], table.raw_first[rows])
        winners, losers = ([table.raw_names[number] for number in side.tolist()] for side in (winner, loser))
        yield GapRows(table.pair_ids(rows), winners, losers, {name: values[part] for name, values in columns.items()})


def _require_same(arena: Arena, table: Comparisons, options: GapOptions) -> None:
    fitted = arena.dataset["fingerprint"]
    if options.transfer or table.fingerprint == fitted:
        return
    raise DataError(
        f"the arena was fitted to other annotations: {arena.dataset.get('source')} with {arena.dataset.get('games'):,} "
        f"games, fingerprint {fitted[:12]}, and {table.source} has {len(table):,} pairs, fingerprint "
        f"{table.fingerprint[:12]}. Fit one to this table, or say --transfer if it is meant for pairs it has not seen"
    )


def _beliefs(
    arena: Arena, winner: _Ints, loser: _Ints, same: npt.NDArray[np.bool_], certainty: _Floats, options: GapOptions
) -> tuple[_Floats, _Floats, npt.NDArray[np.bool_]]:
    """Mean and variance of the difference of the capabilities, and which kinds of pairs have too few games."""
    belief = arena.options
    here = np.maximum(winner, 0), np.maximum(loser, 0)
    delta, variance = arena.differences(*here)
    # What the arena has never met is what it was before the first game.
    strange = (winner < 0) | (loser < 0)
    mean = [
        np.where(side < 0, belief.prior_mean, arena.mean[at]) for side, at in zip((winner, loser), here, strict=True)
    ]
    own = [
        np.where(side < 0, belief.prior_deviation**2, arena.variance[at])
        for side, at in zip((winner, loser), here, strict=True)
    ]
    delta = np.where(same, 0.0, np.where(strange, mean[0] - mean[1], delta))
    variance = np.where(strange, own[0] + own[1], variance)
    few = np.zeros(len(winner), np.bool_)
    if options.min_games:
        games = [np.where(side < 0, 0, arena.games[at]) for side, at in zip((winner, loser), here, strict=True)]
        few = np.minimum(*games) < options.min_games
    if options.leave_one_out:
        # A game of a fixed model taught its opponent alone, with the prior's deviation as noise; of two, nobody.
        is_fixed = np.array([belief.is_fixed(name) for name in arena.names], np.bool_)
        doubt = is_fixed[here[0]].astype(np.int64) + is_fixed[here[1]]
        played = np.flatnonzero(~same & ~strange & (certainty != 0.5) & (doubt < 2))
        wrong = certainty[played] < 0.5
        ones = np.ones(len(played))
        games_left = Games(winner[played], loser[played], np.maximum(certainty[played], 1 - certainty[played]), ones)
        sign = np.where(wrong, -1.0, 1.0)
        noise = (doubt[played] * belief.prior_deviation**2).astype(np.float64)
        centre, rest = cavity(sign * delta[played], variance[played] - noise, games_left, belief.belief, noise)
        delta[played], variance[played] = sign * centre, rest + noise
    return delta, variance, few


def _numbers(
    arena: Arena, delta: _Floats, variance: _Floats, few: npt.NDArray[np.bool_], options: GapOptions
) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """delta, s, g and p."""
    performance = arena.options.performance
    centre, spread = torch.from_numpy(delta), torch.from_numpy(variance)
    scale = pair_scale(spread, torch.zeros_like(spread), performance, options.variance)
    alone = pair_scale(torch.zeros_like(spread), torch.zeros_like(spread), performance, "performance")
    scale = torch.where(torch.from_numpy(few), alone, scale)
    at = options.quantile
    gap = expected_gap(centre, scale) if at is None else gap_quantile(centre, scale, at)
    chance = win_probability(centre - arena.options.belief.margin, scale)
    return delta, scale.numpy(), gap.numpy(), chance.numpy()


def _remarks(arena: Arena, scale: _Floats, counts: Mapping[str, int], options: GapOptions) -> Iterator[str]:
    pairs = counts["pairs"]
    share = float(np.median(scale)) / arena.options.performance
    if share < _DEGENERATE:
        yield (
            f"the median s is {share:.3f} of the performance's deviation: with variance {options.variance!r} gaps of "
            f"expected winners are |delta|, and those of upsets and of {counts['same_model']:,} pairs of one model "
            "nearly nothing; --variance performance is the other reading"
        )
    if counts["unknown_to_arena"]:
        yield f"{counts['unknown_to_arena']:,} of {pairs:,} pairs have a model that the arena never met, with the prior"
    if counts["few_games"]:
        few = f"a model with fewer than {options.min_games} games, their s^2 is 2 beta^2"
        yield f"{counts['few_games']:,} of {pairs:,} pairs have {few}"
    if counts["doubtful"]:
        yield f"{counts['doubtful']:,} winners are as likely wrong as right, or more, and have no gap"
    if counts["dropped"]:
        yield f"{counts['dropped']:,} decided pairs of unknown models have no gap (unknown_models: drop)"
