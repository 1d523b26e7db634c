"""Rows of annotations wherever they lie: columns of Parquet files, of lists and of shards, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gen.data.convert.columns import choose_columns
from lightning_gen.data.convert.formats import Request, open_table
from lightning_gen.data.convert.parquet import ParquetTable
from lightning_gen.data.quarantine import DataError

__all__ = ["Chunk", "Column", "read_chunks"]

_NEEDED: Final = {"model_a": ("model_a", "model_0", "model1"), "model_b": ("model_b", "model_1", "model2")}
_OUTCOME: Final = ("outcome", "label_0", "winner")
_OPTIONAL: Final = {
    "outcome": _OUTCOME,
    "path1": ("path1",),
    "label_1": ("label_1",),
    "best": ("best_image_uid",),
    "uid_a": ("image_0_uid", "uid_0"),
    "uid_b": ("image_1_uid", "uid_1"),
    "has_label": ("has_label",),
    "are_different": ("are_different",),
    "confidence": ("confidence",),
    "votes": ("choice_dist", "votes"),
    "pair_id": ("pair_id",),
}
_ROWS: Final = 1 << 16

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


class Chunk(NamedTuple):
    """Some rows of a table.

    Attributes:
        columns: field -> its values.
        size: number of rows.
        keys: of the samples, in shards; None = the table has none.
        names: field -> name of its column.
    """

    columns: Mapping[str, Column]
    size: int
    keys: Sequence[str] | None
    names: Mapping[str, str]


class Column(NamedTuple):
    """Values by number: most columns hold few different ones.

    Attributes:
        codes: int64, a number into ``values`` per row.
        values: different values; some may be unused.
    """

    codes: _Ints
    values: list[Any]

    @classmethod
    def of(cls, values: Sequence[Any]) -> Column:
        """Number the values of a list.

        Args:
            values: one per row.

        Returns:
            The column.
        """
        numbers = dict[Any, int]()
        plain = [_hashable(one) for one in values]
        # 1 and True are equal keys: the kind of a value belongs to it.
        codes = [numbers.setdefault((type(one), one), len(numbers)) for one in plain]
        return cls(np.array(codes, np.int64), [value for _, value in numbers])

    @classmethod
    def of_arrow(cls, array: Any) -> Column:
        """Number the values of an array of pyarrow.

        Args:
            array: one value per row, null = None.

        Returns:
            The column.
        """
        import pyarrow

        if pyarrow.types.is_nested(array.type):
            return cls.of(array.to_pylist())
        if not pyarrow.types.is_dictionary(array.type):
            array = array.dictionary_encode()
        codes = array.indices.fill_null(len(array.dictionary)).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(codes, [*array.dictionary.to_pylist(), None])

    def mapped(self, function: Callable[[Any], float]) -> _Floats:
        """A number for every row.

        Args:
            function: of a value; called once for every different one.

        Returns:
            float64.
        """
        used = np.unique(self.codes)
        table = np.zeros(len(self.values))
        table[used] = [function(self.values[code]) for code in used.tolist()]
        return table[self.codes]

    def objects(self) -> npt.NDArray[np.object_]:
        """The values of all rows.

        Returns:
            An array of objects.
        """
        table = np.empty(len(self.values), object)
        table[:] = self.values
        return table[self.codes]


def read_chunks(where: str, fields: Mapping[str, str], split: str | None, wanted: Sequence[str]) -> Iterator[Chunk]:
    """Read a table of annotations, only the columns that mean something.

    Args:
        where: a Parquet file, folder or pattern; a list; or shards of preference pairs.
        fields: field -> column, where columns have unusual names.
        split: of a folder with several.
        wanted: optional fields that must be there, ``confidence`` or ``votes``.

    Yields:
        Its rows in order.

    Raises:
        FileNotFoundError: nothing is there.
        DataError: a column is missing; names those that are there.
    """
    if _is_shards(where):
        yield from _shard_chunks(where, fields, wanted)
        return
    table, _ = open_table(Request(where, split=split))
    columns = _chosen(table.columns(), fields, where, wanted)
    if isinstance(table, ParquetTable):
        for batch in table.batches(list(dict.fromkeys(columns.values())), _ROWS):
            found = {field: Column.of_arrow(batch.column(name)) for field, name in columns.items()}
            yield Chunk(found, batch.num_rows, None, columns)
        return
    for part in table.parts():
        rows = list(table.rows(part, list(columns.values())))
        found = {field: Column.of([row.get(name) for row in rows]) for field, name in columns.items()}
        yield Chunk(found, len(rows), None, columns)


def _is_shards(where: str) -> bool:
    path = Path(where.partition("#")[0])
    if path.is_dir():
        return (path / "manifest.json").is_file() or any(path.glob("*.tar"))
    return path.name == "manifest.json" or ".tar" in path.suffixes or where.rpartition("|")[0].endswith(".tar")


def _shard_chunks(where: str, fields: Mapping[str, str], wanted: Sequence[str]) -> Iterator[Chunk]:
    from lightning_gen.data.columns import read_columns
    from lightning_gen.data.finding import find_manifest
    from lightning_gen.data.shards import IndexedShards

    shards = IndexedShards(find_manifest(where))
    names = list(dict.fromkeys(name for usual in (*_NEEDED.values(), *_OPTIONAL.values()) for name in usual))
    read = read_columns(shards, [*names, *fields.values()])
    there = [name for name, values in read.items() if any(value is not None for value in values)]
    columns = _chosen(there, fields, where, wanted)
    found = {field: Column.of(read[name]) for field, name in columns.items()}
    yield Chunk(found, len(shards), [shards.key(index) for index in range(len(shards))], columns)


def _hashable(value: Any) -> Any:
    """A value by which rows can be numbered: lists and mappings as tuples."""
    if isinstance(value, Mapping):
        return tuple((name, _hashable(part)) for name, part in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _chosen(found: Sequence[str], fields: Mapping[str, str], where: str, wanted: Sequence[str]) -> dict[str, str]:
    columns = choose_columns(found, _NEEDED, _OPTIONAL, fields, where)
    if "outcome" not in columns and "path1" not in columns:
        raise DataError(
            f"{where} has no column {' or '.join(_OUTCOME)} that says who won, and no path1 as HPDv3 has; it has: "
            f"{', '.join(found)}. Name the right one with --fields outcome=COLUMN"
        )
    for field in wanted:
        if field not in columns:
            raise DataError(f"{where} has no column {' or '.join(_OPTIONAL[field])}, which was asked for as {field}")
    return columns
