"""Rows of a table become records: the table knows where rows lie, the reader knows what they mean."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lightning_gen.data.convert.columns import plain
from lightning_gen.data.convert.records import Part, Record, Skipped, Unusable
from lightning_gen.data.quarantine import DataError

__all__ = ["Row", "RowReader", "Table", "TableSource"]

Row = Mapping[str, Any]


class Table(Protocol):
    """Where rows lie: parquet files, a JSON list, lines of JSON, or CSV."""

    @property
    def root(self) -> Path:
        """The folder with the files."""
        ...

    def columns(self) -> Sequence[str]:
        """Names of the columns.

        Returns:
            Those that every file of the table has, in its order.
        """
        ...

    def parts(self) -> Sequence[Part]:
        """Cut the table into pieces.

        Returns:
            The pieces in order.
        """
        ...

    def rows(self, part: Part, columns: Sequence[str]) -> Iterator[Row]:
        """Read a piece, a bounded number of rows at a time.

        Args:
            part: one of :meth:`parts`.
            columns: which ones are wanted; a row may hold more.

        Yields:
            Its rows in order.
        """
        ...


@dataclasses.dataclass(frozen=True)
class RowReader(ABC):
    """What a row means. One subclass per schema, a dataclass of plain values.

    Attributes:
        columns: field -> column, for every column that is looked at.
    """

    columns: Mapping[str, str]

    kind: ClassVar[str]
    """Name of the schema."""

    @abstractmethod
    def record(self, row: Row, number: int, root: Path) -> Record:
        """Make a sample of a row.

        Args:
            row: column -> value.
            number: number of the row in the whole input.
            root: folder below which the files lie that rows name.

        Returns:
            The sample; its key is the row's number.

        Raises:
            Unusable: the row gives no sample.
            DataError: the row is hostile: it names a file outside ``root``.
        """

    def values(self, row: Row) -> dict[str, Any]:
        """The fields of a row.

        Args:
            row: column -> value.

        Returns:
            Field -> value, None where the row lacks the column.
        """
        return {field: row.get(column) for field, column in self.columns.items()}


@dataclasses.dataclass(frozen=True)
class TableSource:
    """A table and its meaning.

    Attributes:
        table: where rows lie.
        reader: what they mean.
        root: folder below which the files lie that rows name.
        title: where the data come from, for people.
        split: name of the split that is read, goes into every sample's metadata.
        keep: further columns that are copied into the metadata.
    """

    table: Table
    reader: RowReader
    root: Path
    title: str
    split: str
    keep: tuple[str, ...] = ()

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the records."""
        return {"rows": self.reader.kind, "split": self.split, "keep": list(self.keep), **vars(self.reader)}

    @property
    def place(self) -> str:
        """Where the files lie."""
        return f"{self.table.root.resolve()}, {self.root.resolve()}"

    def parts(self) -> Sequence[Part]:
        """Cut the table into pieces.

        Returns:
            The pieces in order.

        Raises:
            DataError: a column that is to be kept is not there.
        """
        found = self.table.columns()
        missing = [name for name in self.keep if name not in found]
        if missing:
            raise DataError(f"{self.title} has no column {missing[0]} to keep; it has: {', '.join(found)}")
        return self.table.parts()

    def read(self, part: Part) -> Iterator[Record | Skipped]:
        """Read a piece.

        Args:
            part: one of :meth:`parts`.

        Yields:
            One item per row.
        """
        wanted = list(dict.fromkeys([*self.reader.columns.values(), *self.keep]))
        for number, row in enumerate(self.table.rows(part, wanted), part.first):
            try:
                record = self.reader.record(row, number, self.root)
            except Unusable as why:
                yield Skipped(number, why.counter, why.reason)
                continue
            except DataError as error:
                raise DataError(f"row {number} ({part.label}): {error}") from None
            extra = {name: plain(row.get(name)) for name in self.keep}
            own = {"source": self.title, "split": self.split, "row": number}
            yield dataclasses.replace(record, meta={**extra, **(record.meta or {}), **own})
