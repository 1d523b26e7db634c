"""Gaps of preference pairs in a Parquet file, and how they find the pairs of a data set again.

A row per pair: ``pair_id`` (the sample's key in the shards), ``winner`` and ``loser`` (names of the models as the
annotations have them), ``delta``, ``s``, ``g``, ``p`` and ``margin``. What the file says of itself stands in its
metadata as JSON. `lightning arena gaps` writes such files.

Shape letters: P pairs of the table, S samples of a data set.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gen.data.quarantine import DataError

__all__ = ["GAP_COLUMNS", "GapRows", "GapTable", "JoinedGaps", "write_gap_table"]

GAP_COLUMNS: Final = ("delta", "s", "g", "p", "margin")
"""Columns of numbers: difference of the capabilities (winner minus loser), deviation of the difference of two pictures,
expected gap, probability of this outcome, and the gap in the unit of a loss."""

_CARD: Final = b"lightning_gen.gaps"
_VERSION: Final = 1
_BATCH: Final = 1 << 16
_SHOWN: Final = 3


class GapRows(NamedTuple):
    """Some rows of a table on their way into its file.

    Attributes:
        pair_id: keys of the pairs.
        winner: names of the winners' models, as annotated.
        loser: names of the losers' models.
        numbers: column of :data:`GAP_COLUMNS` -> float64, as many.
    """

    pair_id: Sequence[str]
    winner: Sequence[str]
    loser: Sequence[str]
    numbers: Mapping[str, npt.NDArray[np.float64]]


class JoinedGaps(NamedTuple):
    """The gaps of a data set's samples, NaN where there is none.

    Attributes:
        margin: float32, (S,), the gap in the unit of a loss.
        delta: float32, (S,), difference of the capabilities in the same unit; NaN where no number divides.
        scale: float32, (S,), deviation of the difference of two pictures likewise; g(delta, scale) = margin.
    """

    margin: npt.NDArray[np.float32]
    delta: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class GapTable:
    """A table in memory.

    Attributes:
        path: its file, for messages.
        card: what the file says of itself: ``fingerprint`` of the annotations, ``arena`` (fingerprint of theirs that
            the arena was fitted to), ``unit`` (what gaps were divided by, None = no number divides), and the options.
        pair_id: keys.
        winner: numbers into ``names``, (P,).
        loser: likewise.
        names: of the models.
        numbers: column -> float64, (P,).
    """

    path: Path
    card: Mapping[str, Any]
    pair_id: Sequence[str]
    winner: npt.NDArray[np.int64]
    loser: npt.NDArray[np.int64]
    names: tuple[str, ...]
    numbers: Mapping[str, npt.NDArray[np.float64]]

    def __len__(self) -> int:
        """P."""
        return len(self.pair_id)

    @classmethod
    def load(cls, path: str | Path) -> GapTable:
        """Read a table.

        Args:
            path: a file of :func:`write_gap_table`.

        Returns:
            The table.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is no table of gaps, gaps are NaN or infinite, or a pair comes twice; with their numbers.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no table of gaps {path}: make one with `lightning arena gaps`")
        card, table = _read(path)
        columns = {name: table.column(name).combine_chunks() for name in ("winner", "loser")}
        names = dict[str, int]()
        coded = {}
        for name, column in columns.items():
            encoded = column.dictionary_encode()
            places = [names.setdefault(value, len(names)) for value in encoded.dictionary.to_pylist()]
            coded[name] = np.array(places or [0], np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]
        numbers = {name: table.column(name).to_numpy() for name in GAP_COLUMNS}
        bad = ~np.isfinite(np.stack(list(numbers.values()))).all(0)
        if bad.any():
            raise DataError(
                f"{path}: {bad.sum():,} of {len(bad):,} pairs have a NaN or infinite number, the first is "
                f"{table.column('pair_id')[int(bad.argmax())].as_py()}: make it again with `lightning arena gaps`"
            )
        ids = table.column("pair_id").to_pylist()
        if repeated := len(ids) - len(set(ids)):
            raise DataError(f"{path}: {repeated:,} of {len(ids):,} rows have the pair_id of another row")
        return cls(path, card, ids, coded["winner"], coded["loser"], tuple(names), numbers)

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return dict(zip(self.pair_id, range(len(self)), strict=True))

    def joined(
        self,
        keys: Sequence[str],
        winners: Sequence[str | None],
        losers: Sequence[str | None],
        where: str,
        whole: bool = True,
    ) -> JoinedGaps:
        """Find the gap of every sample, and insist that it is that sample's.

        A table of another data set is told by its models: where a sample has the key of a row, both must name the same
        winner and loser.

        Args:
            keys: of the samples, (S,).
            winners: models of the winners as annotated, None = the sample has no winner (a tie), or no model.
            losers: models of the losers.
            where: the data set's name, for messages.
            whole: the samples are all of a data set; False = some of them, none of which need have a row.

        Returns:
            The numbers of every sample; NaN where the table has no row for it, or it has no winner.

        Raises:
            DataError: no sample of a whole data set has a row, or samples name other models than their rows; with
                their numbers.
        """
        rows = np.array([self._row_of.get(key, -1) for key in keys], np.int64)
        decided = np.array([name is not None for name in winners], np.bool_)
        rows[~decided] = -1
        found = np.flatnonzero(rows >= 0)
        if whole and not len(found):
            first = self.pair_id[0] if len(self) else "missing"
            raise DataError(
                f"{self.path} has no row for any of the {decided.sum():,} decided pairs of {where} ({len(self):,} "
                f"rows, the first is {first}, the first pair {keys[0] if keys else 'missing'}): it belongs to another "
                f"data set ({self.card.get('source', 'unknown')})"
            )
        there = [(self.names[self.winner[row]], self.names[self.loser[row]]) for row in rows[found]]
        here = [(winners[sample] or "", losers[sample] or "") for sample in found.tolist()]
        other = [place for place, (mine, theirs) in enumerate(zip(here, there, strict=True)) if mine != theirs]
        if other:
            examples = "; ".join(f"{keys[found[n]]}: {here[n]} here, {there[n]} there" for n in other[:_SHOWN])
            raise DataError(
                f"{self.path} is of another data set: {len(other):,} of {len(found):,} pairs of {where} name other "
                f"models (winner, loser) than its rows ({examples}). It was made of {self.card.get('source')}, "
                f"fingerprint {str(self.card.get('fingerprint'))[:12]}"
            )
        # A unit that does not divide (zscore_clip) leaves difference and deviation unknown.
        unit = math.nan if self.card["unit"] is None else float(self.card["unit"])
        parts = (self.numbers["margin"], self.numbers["delta"] / unit, self.numbers["s"] / unit)
        return JoinedGaps(*(np.where(rows >= 0, part[rows], math.nan).astype(np.float32) for part in parts))


def write_gap_table(path: str | Path, parts: Iterable[GapRows], card: Mapping[str, Any]) -> int:
    """Write a table, a part at a time; a file that was there stays until the new one is whole.

    Args:
        path: the file.
        parts: its rows in order.
        card: what it says of itself, plain JSON values; ``unit`` must be among them, None = no number divides.

    Returns:
        The number of rows.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    schema = pyarrow.schema(
        [("pair_id", pyarrow.string()), ("winner", names), ("loser", names)]
        + [(name, pyarrow.float64()) for name in GAP_COLUMNS],
        {_CARD: json.dumps({"version": _VERSION, **card}, sort_keys=True, allow_nan=False).encode()},
    )
    unfinished = path.with_name(f".{path.name}.unfinished")
    rows = 0
    try:
        with parquet.ParquetWriter(unfinished, schema) as writer:
            for part in parts:
                columns = [pyarrow.array(part.pair_id, pyarrow.string())]
                columns += [pyarrow.array(side, pyarrow.string()).cast(names) for side in (part.winner, part.loser)]
                columns += [pyarrow.array(part.numbers[name], pyarrow.float64()) for name in GAP_COLUMNS]
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
                rows += len(part.pair_id)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


def _read(path: Path) -> tuple[dict[str, Any], Any]:
    pyarrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from None
    card = json.loads((table.schema.metadata or {}).get(_CARD, b"{}"))
    needed = ("pair_id", "winner", "loser", *GAP_COLUMNS)
    missing = [name for name in needed if name not in table.column_names]
    if card.get("version") != _VERSION or missing:
        lacks = f"it lacks {', '.join(missing)}" if missing else f"its version is {card.get('version')}"
        raise DataError(f"{path} is no table of gaps ({lacks}): make one with `lightning arena gaps`")
    return card, table


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "tables of gaps need pyarrow: pip install 'lightning-gen[data]' (or pip install pyarrow)"
        ) from None
    return pyarrow, parquet
