"""The arena: how good every model is, from comparisons of pictures, with how sure that is.

Shape letters: M models, N games, P pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from lightning_gen.alignment.arena_po.arena_options import ArenaOptions
from lightning_gen.alignment.arena_po.arena_solvers import (
    DRAW,
    Capabilities,
    Games,
    solve_batch_ep,
    solve_laplace,
    solve_sequential,
)
from lightning_gen.alignment.arena_po.arena_table import Comparisons, TableOptions
from lightning_gen.data.index import replace_file
from lightning_gen.data.quarantine import DataError
from lightning_gen.training.randomness import numpy_generator

__all__ = ["Arena", "ArenaOptions", "Meetings", "Standing", "count_meetings", "fit_arena", "games_of"]

_KIND: Final = "lightning_gen.arena"
_VERSION: Final = 1
_FEW: Final = 10
_MOST: Final = 4096
"""Models, of which a matrix is held of all pairs."""

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


class Meetings(NamedTuple):
    """Who met whom, and how it ended; a row per pair of models that met, the smaller number first.

    Attributes:
        first: numbers of the models, int64.
        second: larger ones.
        wins: games that the first won.
        losses: games that the second won.
        ties: of them.
        certainty: mean probability that the outcomes of those with a winner are right, float64; 1 without softness.
    """

    first: _Ints
    second: _Ints
    wins: _Ints
    losses: _Ints
    ties: _Ints
    certainty: _Floats


class Standing(NamedTuple):
    """A line of the leaderboard.

    Attributes:
        rank: 1 = the best mean.
        name: of the model.
        mean: mu.
        interval: of the capability, at the level that was asked for.
        ranks: best and worst rank that the differences to all others leave open at that level.
        conservative: mu - 3 sigma, the score of K-Sort Eval.
        games: that it played and that counted, as everywhere: with a winner, and ties where the arena draws them.
        win_rate: of those; a tie is half a win, NaN without games.
    """

    rank: int
    name: str
    mean: float
    interval: tuple[float, float]
    ranks: tuple[int, int]
    conservative: float
    games: int
    win_rate: float


@dataclasses.dataclass(frozen=True)
class Arena:
    """A fitted arena.

    Attributes:
        names: canonical names of the models, sorted, M of them.
        mean: mu, float64, (M,).
        covariance: float64, (M, M), diagonal after ``ep_sequential``; otherwise of capabilities counted from the mean
            of all models, since where that lies is not known and does not matter.
        raw_names: for every model its names as annotated -> pictures.
        meetings: results of the games that counted, ties among them also where they were dropped.
        options: how it was fitted.
        dataset: what it was fitted to: ``fingerprint``, ``source``, ``counts`` and how the table was read.
    """

    names: tuple[str, ...]
    mean: _Floats
    covariance: _Floats
    raw_names: tuple[Mapping[str, int], ...]
    meetings: Meetings
    options: ArenaOptions
    dataset: Mapping[str, Any]

    def __len__(self) -> int:
        """M."""
        return len(self.names)

    @property
    def reading(self) -> TableOptions:
        """How its table was read."""
        own = self.dataset.get("reading", {})
        return TableOptions(**{name: own[name] for name in own if name in TableOptions.__dataclass_fields__})

    @property
    def variance(self) -> _Floats:
        """sigma^2, (M,)."""
        return self.covariance.diagonal()

    @functools.cached_property
    def counted(self) -> Meetings:
        """Results of the games that counted: those with a winner, and ties where the arena draws them."""
        met = self.meetings
        return met if self.options.ties == "draw" else met._replace(ties=np.zeros_like(met.ties))

    @functools.cached_property
    def record(self) -> _Ints:
        """Wins, losses and ties of every model in the games that counted, (3, M)."""
        met = self.counted
        found = np.zeros((3, len(self)), np.int64)
        for row, (mine, theirs) in enumerate(((met.wins, met.losses), (met.losses, met.wins), (met.ties, met.ties))):
            np.add.at(found[row], met.first, mine)
            np.add.at(found[row], met.second, theirs)
        return found

    @property
    def games(self) -> _Ints:
        """Games of every model that counted, (M,)."""
        total: _Ints = self.record.sum(0)
        return total

    def numbers(self, names: Sequence[str]) -> _Ints:
        """Numbers of models.

        Args:
            names: canonical names.

        Returns:
            int64, -1 = the arena does not know it.
        """
        place = {name: number for number, name in enumerate(self.names)}
        return np.array([place.get(name, -1) for name in names], np.int64)

    def differences(self, first: _Ints, second: _Ints) -> tuple[_Floats, _Floats]:
        """Difference of the capabilities of two models, and its variance.

        Var = sigma_1^2 + sigma_2^2 - 2 cov; of a model and itself 2 sigma^2, as of two draws from its capability

        Args:
            first: numbers of models, (P,).
            second: likewise.

        Returns:
            mu_1 - mu_2 and the variance, float64, (P,) each.
        """
        own = self.variance
        shared = np.where(first == second, 0.0, self.covariance[first, second])
        # Rounding may leave a difference of two equal numbers just below 0.
        return self.mean[first] - self.mean[second], np.maximum(own[first] + own[second] - 2 * shared, 0.0)

    def leaderboard(self, level: float = 0.95) -> list[Standing]:
        """Models by their means.

        Args:
            level: coverage of the intervals, in (0, 1).

        Returns:
            The best first.
        """
        if not 0 < level < 1:
            raise ValueError(f"the level of an interval lies in (0, 1), got {level}")
        z = NormalDist().inv_cdf((1 + level) / 2)
        every = np.arange(len(self))
        gap, variance = self.differences(every[:, None].repeat(len(self), 1), every[None].repeat(len(self), 0))
        surely_below = (gap > z * np.sqrt(variance)) & ~np.eye(len(self), dtype=np.bool_)
        wins, _, ties = self.record
        lines = []
        for rank, model in enumerate(np.argsort(-self.mean, kind="stable").tolist(), 1):
            mu, sigma = float(self.mean[model]), math.sqrt(float(self.variance[model]))
            ranks = (1 + int(surely_below[:, model].sum()), len(self) - int(surely_below[model].sum()))
            games = int(self.games[model])
            rate = float(wins[model] + ties[model] / 2) / games if games else math.nan
            interval = (mu - z * sigma, mu + z * sigma)
            lines.append(Standing(rank, self.names[model], mu, interval, ranks, mu - 3 * sigma, games, rate))
        return lines

    def remarks(self) -> list[str]:
        """What somebody should know about the arena, with numbers.

        Returns:
            Sentences.
        """
        few = [self.names[model] for model in np.flatnonzero(self.games < _FEW)]
        if not few:
            return []
        shown = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
        return [
            f"{len(few)} of {len(self)} models have fewer than {_FEW} games ({shown}): their deviations are mostly the "
            f"prior's, and make gaps larger for no reason; see --min-games of `lightning arena gaps`"
        ]

    def save(self, path: str | Path) -> None:
        """Write ``arena.json``.

        Args:
            path: the file; its folder is made.
        """
        full = self.options.solver != "ep_sequential"
        players = [
            {
                "name": name,
                "mean": float(self.mean[number]),
                "deviation": math.sqrt(float(self.variance[number])),
                "games": int(self.games[number]),
                **dict(zip(("wins", "losses", "ties"), self.record[:, number].tolist(), strict=True)),
                "raw_names": dict(self.raw_names[number]),
            }
            for number, name in enumerate(self.names)
        ]
        content = {
            "kind": _KIND,
            "version": _VERSION,
            "options": dataclasses.asdict(self.options),
            "dataset": dict(self.dataset),
            "players": players,
            "covariance": self.covariance.tolist() if full else None,
            "meetings": {name: part.tolist() for name, part in self.meetings._asdict().items()},
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read ``arena.json``.

        Args:
            path: the file.

        Returns:
            The arena.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is no arena, of another version, or holds numbers that cannot be.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no arena {path}: make one with `lightning arena fit`")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("kind") != _KIND or content.get("version") != _VERSION:
                raise ValueError(f"its kind is {content.get('kind')!r}, version {content.get('version')!r}")
            players = content["players"]
            options = content["options"]
            arena = cls(
                tuple(str(player["name"]) for player in players),
                np.array([float(player["mean"]) for player in players]),
                np.diag([float(player["deviation"]) ** 2 for player in players])
                if content["covariance"] is None
                else np.array(content["covariance"], np.float64),
                tuple(player["raw_names"] for player in players),
                _stored_meetings(content["meetings"], content["dataset"]),
                ArenaOptions(**{**options, "unknown_names": tuple(options["unknown_names"])}),
                content["dataset"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no arena ({error}): make one with `lightning arena fit`") from None
        sound = np.isfinite(arena.mean).all() and np.isfinite(arena.covariance).all() and (arena.variance > 0).all()
        if arena.covariance.shape != (len(arena), len(arena)) or not sound:
            raise DataError(f"{path}: means must be finite and deviations positive, one per model; fit the arena again")
        return arena


def games_of(table: Comparisons, options: ArenaOptions) -> tuple[Games, _Ints]:
    """The rows of a table that an arena learns from: two models, a winner or a draw that counts.

    Args:
        table: annotations.
        options: of the arena.

    Returns:
        Games in the order of the table, and the numbers of their rows. A statement that is more likely wrong than right
        is turned round; one that says nothing (certainty 1/2) is left out.
    """
    unknown = np.array([options.is_unknown(name) for name in table.names], np.bool_)
    is_tie = table.outcome == 0.5
    kept = (table.first != table.second) & (is_tie | (table.certainty != 0.5))
    if options.ties == "drop":
        kept &= ~is_tie
    meets = unknown[table.first].astype(np.int64) + unknown[table.second]
    if options.unknown_models == "drop":
        kept &= meets == 0
    elif options.unknown_models == "prior":
        kept &= meets < 2
    rows = np.flatnonzero(kept)
    first_won = (table.outcome >= 0.5) == ((table.certainty > 0.5) | is_tie)
    winner = np.where(first_won, table.first, table.second)[rows]
    loser = np.where(first_won, table.second, table.first)[rows]
    certainty = np.where(is_tie, DRAW, np.maximum(table.certainty, 1 - table.certainty))[rows]
    return Games(winner, loser, certainty, np.ones(len(rows))), rows


def fit_arena(
    table: Comparisons, options: ArenaOptions | None = None, reading: Mapping[str, Any] | None = None
) -> Arena:
    """Infer how good every model is.

    Args:
        table: annotations, of the training split only.
        options: how.
        reading: how the table was read, kept beside the result.

    Returns:
        The arena.

    Raises:
        DataError: no game is left, or there is one model only; with numbers.
        ValueError: the solver does not settle.
    """
    options = options or ArenaOptions()
    games, rows = games_of(table, options)
    _require_games(table, options, len(rows))
    fixed = [number for number, name in enumerate(table.names) if options.is_fixed(name)]
    met = _meetings(table, options)
    found = _solved(games, len(table.names), options, fixed)
    if options.solver != "ep_sequential":
        found = _centred(found, fixed)
    raw = table.raw_counts
    # Models without a row that counts (all their rows dropped) would have the prior: they are not in the arena.
    known = np.union1d(np.unique(np.concatenate((games.winner, games.loser))), np.union1d(met.first, met.second))
    place = np.full(len(table.names), -1)
    place[known] = np.arange(len(known))
    dataset = {
        "fingerprint": table.fingerprint,
        "source": table.source,
        "counts": dict(table.counts),
        "games": len(rows),
        "reading": dict(reading or {}),
    }
    return Arena(
        tuple(table.names[model] for model in known),
        found.mean[known],
        found.covariance[np.ix_(known, known)],
        tuple(dict(raw[table.names[model]].most_common()) for model in known),
        met._replace(first=place[met.first], second=place[met.second]),
        options,
        dataset,
    )


def _require_games(table: Comparisons, options: ArenaOptions, games: int) -> None:
    if len(table.names) < 2:
        raise DataError(
            f"all {len(table):,} pairs of {table.source} are by one model, {table.names[0]!r}: an arena compares two "
            f"at least. Is the right column named (--fields model_a=COLUMN)?"
        )
    if len(table.names) > _MOST:
        raise DataError(
            f"{table.source} has {len(table.names):,} models in {len(table):,} pairs, for instance {table.names[0]!r}; "
            f"an arena holds a matrix of all pairs of models, {_MOST:,} at most. Is the right column named (--fields "
            f"model_a=COLUMN)?"
        )
    if games:
        return
    ties, same = table.counts["ties"], table.counts["same_model"]
    even = int(((table.certainty == 0.5) & (table.outcome != 0.5)).sum())
    said = [f"{ties:,} of {len(table):,} pairs are ties"] if ties else []
    said += [f"{same:,} are of one model"] if same else []
    said += [f"{even:,} outcomes are as likely wrong as right (--soft)"] if even else []
    hint = "; ties: draw with a draw_probability learns from ties" if options.ties == "drop" and ties else ""
    hint += "; unknown_models: own_player keeps those" if options.unknown_models == "drop" else ""
    raise DataError(f"{table.source}: no game is left: {', '.join(said) or 'no model is known'}{hint}")


def _solved(games: Games, models: int, options: ArenaOptions, fixed: Sequence[int]) -> Capabilities:
    if options.solver == "batch_ep":
        return solve_batch_ep(games, models, options.belief, fixed)
    if options.solver == "laplace":
        return solve_laplace(games, models, options.belief, fixed)
    if options.order_seed is None:
        return solve_sequential(games, models, options.belief, fixed)
    found = []
    for number in range(options.orders):
        order = numpy_generator(options.order_seed, "arena order", number).permutation(len(games.winner))
        drawn = Games(games.winner[order], games.loser[order], games.certainty[order], games.times[order])
        found.append(solve_sequential(drawn, models, options.belief, fixed))
    means = np.stack([one.mean for one in found])
    free = np.setdiff1d(np.arange(models), fixed)
    # The moments of the mixture: what the order alone decides is not known either. The level of all models drifts with
    # the order too, but means nothing.
    drift = means[:, free] - means[:, free].mean(1, keepdims=True)
    covariance = np.mean([one.covariance for one in found], 0)
    covariance[free, free] += drift.var(0)
    return Capabilities(means.mean(0), covariance)


def _centred(found: Capabilities, fixed: Sequence[int]) -> Capabilities:
    """Covariance of capabilities counted from the mean of all; that of every difference stays as it is."""
    weight = np.ones(len(found.mean))
    weight[list(fixed)] = 0
    centring = np.eye(len(weight)) - weight / weight.sum()
    covariance = centring @ found.covariance @ centring.T
    return Capabilities(found.mean, (covariance + covariance.T) / 2)


def _meetings(table: Comparisons, options: ArenaOptions) -> Meetings:
    """Results of the games that an arena learns from, and of its ties."""
    _, rows = games_of(table, dataclasses.replace(options, ties="draw", draw_probability=0.1))
    outcome, certainty = table.outcome[rows], table.certainty[rows]
    return count_meetings(table.first[rows], table.second[rows], outcome, certainty, len(table.names))


def count_meetings(first: _Ints, second: _Ints, outcome: _Floats, certainty: _Floats, models: int) -> Meetings:
    """Count results: the annotations' own words, whatever their certainty.

    Args:
        first: numbers of the first pictures' models, (N,).
        second: likewise, of others.
        outcome: 1 = the first won, 0 = the second, 0.5 = a tie, (N,).
        certainty: probability that the outcome is right, (N,).
        models: M.

    Returns:
        A row per pair of models that met.
    """
    low, high = np.minimum(first, second), np.maximum(first, second)
    won = np.where(first == low, outcome, 1 - outcome)
    pair, place = np.unique(low * models + high, return_inverse=True)
    wins, losses, ties = (np.bincount(place[won == kind], minlength=len(pair)) for kind in (1.0, 0.0, 0.5))
    sure = np.bincount(place, np.where(won == 0.5, 0.0, certainty), len(pair))
    decided = wins + losses
    mean = np.where(decided > 0, sure / np.maximum(decided, 1), 1.0)
    return Meetings(pair // models, pair % models, wins, losses, ties, mean)


def _stored_meetings(stored: Mapping[str, Any], dataset: Mapping[str, Any]) -> Meetings:
    """From JSON; older files do not say how sure outcomes were."""
    if "certainty" not in stored and dataset.get("reading", {}).get("soft", "none") != "none":
        raise ValueError("it does not say how sure its soft outcomes were, as files of earlier versions")
    counts: dict[str, Any] = {name: np.array(stored[name], np.int64) for name in Meetings._fields[:-1]}
    certainty = stored.get("certainty", [1.0] * len(counts["first"]))
    return Meetings(**counts, certainty=np.array(certainty, np.float64))
