"""Where gaps come from when batches do not bring them: an arena fitted on the spot, or a table with its spread.

The third way needs nothing here: ``data.gaps`` joins the margins of a table of `lightning arena gaps` to the pairs.

Shape letters: N pairs of a data set, B pairs of a batch.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lightning_gen.alignment.arena_po.arena import Arena, ArenaOptions, fit_arena
from lightning_gen.alignment.arena_po.arena_gaps import GapOptions, PairGapTable, pair_gaps
from lightning_gen.alignment.arena_po.arena_table import (
    Comparisons,
    TableOptions,
    canonical_name,
    numbered_names,
    read_comparisons,
)
from lightning_gen.alignment.arena_po.pairs import PairGaps
from lightning_gen.data.batches import PreferenceBatch
from lightning_gen.data.gap_table import GapTable

__all__ = ["FittedGaps", "JudgedPair", "TableGaps", "drawn_comparisons", "training_comparisons"]

_log = logging.getLogger(__name__)


class JudgedPair(Protocol):
    """Two models, and who won."""

    @property
    def models(self) -> tuple[str, str]:
        """Names of both."""
        ...

    @property
    def label(self) -> float:
        """1 = the first won, 0 = the second, 0.5 = a tie."""
        ...


class FittedGaps:
    """An arena of the training pairs themselves, fitted when training starts: one command in place of three.

    The annotations are read once, of shards one JSON per pair, but for those below ``data.min_confidence``. Pairs of
    models that never met there have no gap.

    Args:
        arena: file of `lightning arena fit` made of the same pairs, which are read with its aliases and softness; None
            = fitted here.
        options: how it is fitted.
        gaps: how gaps follow from it.

    Raises:
        ValueError: ``leave_one_out``, which two pairs of the same models do not share, or ``unknown_models: drop``,
            which leaves pairs without a gap: use a table.
    """

    def __init__(
        self,
        arena: str | None = None,
        options: ArenaOptions = ArenaOptions(),  # noqa: B008 (frozen)
        gaps: GapOptions = GapOptions(),  # noqa: B008 (frozen)
    ) -> None:
        if gaps.leave_one_out:
            raise ValueError(
                "FittedGaps has one gap for all pairs of two models, leave_one_out one for every pair: write a table "
                "with `lightning arena gaps` and give it to TableGaps"
            )
        _require_every_model(options, "FittedGaps")
        self.path, self.options, self.how = arena, options, gaps
        self.arena: Arena | None = None
        self._aliases: Mapping[str, str] = {}
        self._known: dict[tuple[str, str], tuple[float, float, float]] = {}

    def open(self, data: Any) -> None:
        """Fit the arena to the training pairs of a DataModule, or check that the given one was.

        Args:
            data: the DataModule.

        Raises:
            DataError: the arena is of another data set, or the pairs have too little to say.
            ValueError: the DataModule names no pairs to read, or the arena's were others by their confidence, or it
                drops unknown models.
        """
        given = None if self.path is None else Arena.load(self.path)
        reading = _reading(data, TableOptions() if given is None else given.reading)
        if given is not None:
            _require_every_model(given.options, f"the arena {self.path}")
            if given.reading.min_confidence != reading.min_confidence and not self.how.transfer:
                raise ValueError(
                    f"the arena {self.path} was fitted to pairs with a confidence of {given.reading.min_confidence} at "
                    f"least, and data.min_confidence is {reading.min_confidence}: fit it with --min-confidence "
                    f"{reading.min_confidence}, or set transfer"
                )
        table = training_comparisons(data, reading)
        self.arena = fit_arena(table, self.options, dataclasses.asdict(reading)) if given is None else given
        self._aliases = reading.aliases
        found = pair_gaps(self.arena, table, self.how)
        self._known = _by_models(table, found)
        standings = "; ".join(f"{one.rank}. {one.name} {one.mean:.2f}" for one in self.arena.leaderboard())
        _log.info("arena of %d pairs: %s", len(table), standings)
        for remark in (*table.remarks(), *self.arena.remarks(), *found.remarks):
            _log.warning("%s", remark)

    def __call__(self, batch: PreferenceBatch, training: bool) -> PairGaps:
        """Gaps of a batch, in the unit of the loss.

        Args:
            batch: pairs, on the CPU.
            training: not used: validation pairs of models that met have gaps too.

        Returns:
            Gaps of B pairs; NaN for models that never met.

        Raises:
            RuntimeError: training has not started.
        """
        del training
        if self.arena is None:
            raise RuntimeError("the arena is fitted when training starts: call open with the DataModule first")
        called = [
            (canonical_name(winner, self._aliases), canonical_name(loser, self._aliases))
            for winner, loser in batch.models
        ]
        unknown = (math.nan,) * 3
        rows = torch.tensor([self._known.get(names, unknown) for names in called], dtype=torch.float32)
        return PairGaps(*rows.unbind(1))


class TableGaps:
    """A table of `lightning arena gaps`, with the spread that ``expected_margin`` needs and ``data.gaps`` leaves out.

    It knows the training pairs alone: those of validation have gaps where ``data.val`` is ``data.train``. A loss that
    needs gaps stops at a training pair without a row; ``data.gaps`` of the same table leaves such pairs out.

    Args:
        path: the Parquet file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._table: GapTable | None = None
        self._knows_validation = False

    def open(self, data: Any) -> None:
        """Read the table.

        Args:
            data: the DataModule; whose pairs its validation has.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is no table of gaps, or damaged.
        """
        self._table = GapTable.load(self.path)
        train, validation = getattr(data, "train", None), getattr(data, "val", None)
        self._knows_validation = validation is not None and validation == train

    def __call__(self, batch: PreferenceBatch, training: bool) -> PairGaps:
        """Gaps of a batch, in the unit of the loss.

        Args:
            batch: pairs, on the CPU.
            training: keys are numbers of rows, which every set has: pairs of another set are not looked up.

        Returns:
            Gaps of B pairs; NaN for pairs without a row, and of another set.

        Raises:
            DataError: the table is of another data set.
            RuntimeError: training has not started.
        """
        if self._table is None:
            raise RuntimeError("the table is read when training starts: call open first")
        if not (training or self._knows_validation):
            return PairGaps.unknown(len(batch))
        winners, losers = zip(*batch.models, strict=True)
        found = self._table.joined(batch.winner.key, winners, losers, "a batch", whole=False)
        return PairGaps(*(torch.from_numpy(part) for part in found))


def training_comparisons(data: Any, reading: TableOptions | None = None) -> Comparisons:
    """The annotations of a DataModule's training pairs.

    Args:
        data: draws its pairs (it has ``comparisons``), or reads them from one place.
        reading: aliases, and how sure outcomes are; columns are those of shards, and the least confidence is the
            DataModule's.

    Returns:
        All pairs of enough confidence, ties among them.

    Raises:
        DataError: they cannot be read.
        ValueError: there is no such place.
    """
    reading = _reading(data, reading or TableOptions())
    drawn: Callable[[], Sequence[JudgedPair]] | None = getattr(data, "comparisons", None)
    if drawn is not None:
        return drawn_comparisons(drawn(), reading.aliases)
    where = getattr(data, "train", None)
    if not isinstance(where, str):
        raise ValueError(
            f"an arena is fitted to the pairs of one place, and data.train is {where!r}: fit one with `lightning arena "
            "fit` and join its gaps (data.gaps)"
        )
    return read_comparisons(where, reading)


def drawn_comparisons(pairs: Sequence[JudgedPair], aliases: Mapping[str, str] | None = None) -> Comparisons:
    """Pairs that a DataModule draws, as a table of annotations.

    Args:
        pairs: at least one.
        aliases: canonical name -> the name that counts.

    Returns:
        The table.
    """
    raw = tuple(sorted({name for pair in pairs for name in pair.models}))
    place = {name: number for number, name in enumerate(raw)}
    called = [canonical_name(name, aliases) for name in raw]
    names, canonical = numbered_names(called)
    first, second = (np.array([place[pair.models[side]] for pair in pairs], np.int64) for side in (0, 1))
    outcome = np.array([pair.label for pair in pairs], np.float64)
    counts = {"rows": len(pairs), "ties": int((outcome == 0.5).sum()), "same_model": int((first == second).sum())}
    counts |= dict.fromkeys(("unlabelled", "blank_model_a", "blank_model_b", "low_confidence"), 0)
    return Comparisons(
        names, raw, canonical[first], canonical[second], first, second, outcome, np.ones(len(pairs)),
        np.arange(len(pairs), dtype=np.int64), None, counts, "drawn pairs",
    )  # fmt: skip


def _by_models(table: Comparisons, found: PairGapTable) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Canonical names of winner and loser -> gap, difference and deviation in the unit of the loss."""
    won = table.outcome[found.rows] == 1.0
    first, second = table.first[found.rows], table.second[found.rows]
    winner, loser = np.where(won, first, second), np.where(won, second, first)
    _, rows = np.unique(winner * len(table.names) + loser, return_index=True)
    unit = math.nan if found.unit is None else found.unit
    return {
        (table.names[winner[row]], table.names[loser[row]]): (
            float(found.margin[row]),
            float(found.delta[row]) / unit,
            float(found.scale[row]) / unit,
        )
        for row in rows.tolist()
    }


def _reading(data: Any, own: TableOptions) -> TableOptions:
    """How training pairs are read: names and softness as given, columns and the least confidence as the data have."""
    least = float(getattr(data, "min_confidence", 0.0))
    return dataclasses.replace(own, fields={}, split=None, min_confidence=least)


def _require_every_model(options: ArenaOptions, what: str) -> None:
    if options.unknown_models == "drop":
        raise ValueError(
            f"{what} has unknown_models: drop, which leaves pairs of unknown models without a gap, and training would "
            "stop at the first: take own_player or prior, or write a table with `lightning arena gaps` and set "
            "data.gaps to it, which leaves such pairs out"
        )
