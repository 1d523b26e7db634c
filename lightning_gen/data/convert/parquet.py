"""Parquet files, read a few rows at a time.

What must be in memory at once is a page per column, the least that can be decompressed, and 64 rows. Pages are about a
megabyte, but some writers of pictures put up to 1024 rows into one; never more than a row group.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_gen.data.convert.records import Part
from lightning_gen.data.convert.tables import Row
from lightning_gen.data.quarantine import DataError

__all__ = ["BATCH_ROWS", "ParquetTable"]

BATCH_ROWS = 64
"""Rows that are in memory at a time."""

_BUFFER = 1 << 20
# A part is what is lost by a crash, and what a worker does at a time: small, but not thousands of tiny files.
_PART_BYTES = 128 << 20
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclasses.dataclass(frozen=True)
class ParquetTable:
    """Parquet files as one table.

    Attributes:
        root: the folder.
        files: paths below it, in the order of the table.
    """

    root: Path
    files: tuple[str, ...]

    def columns(self) -> Sequence[str]:
        """Names of the columns.

        Returns:
            Those that all files have, in the order of the first.
        """
        schemas = [self._open(name).schema_arrow.names for name in self.files]
        return [name for name in schemas[0] if all(name in schema for schema in schemas)]

    def parts(self) -> Sequence[Part]:
        """Cut the files at their row groups.

        Returns:
            Runs of row groups of 128 MB at most, or single larger ones.
        """
        parts, first = list[Part](), 0
        for number, name in enumerate(self.files):
            stat = (self.root / name).stat()
            file = self._open(name).metadata
            start = rows = size = 0
            for group in range(file.num_row_groups):
                one = file.row_group(group)
                if rows and size + one.total_byte_size > _PART_BYTES:
                    parts.append(self._part(number, start, group, first, rows, stat))
                    first, start, rows, size = first + rows, group, 0, 0
                rows, size = rows + one.num_rows, size + one.total_byte_size
            if rows:
                parts.append(self._part(number, start, file.num_row_groups, first, rows, stat))
                first += rows
        return parts

    def _part(self, file: int, start: int, stop: int, first: int, rows: int, stat: Any) -> Part:
        label = f"{self.files[file]}, row groups {start} to {stop - 1}"
        return Part(label, first, rows, f"{stat.st_size}:{stat.st_mtime_ns}", (file, start, stop))

    def rows(self, part: Part, columns: Sequence[str]) -> Iterator[Row]:
        """Read a run of row groups.

        Args:
            part: one of :meth:`parts`.
            columns: which ones are wanted.

        Yields:
            Its rows; times become ISO text.
        """
        number, start, stop = part.where
        name = self.files[number]
        groups = list(range(start, stop))
        with _named(self.root / name), contextlib.closing(self._open(name)) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(columns), use_threads=False):
                yield from _rows(batch)

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Any]:
        """Read some columns of the whole table as arrays, for columns without pictures.

        Args:
            columns: which ones are wanted.
            rows: at a time.

        Yields:
            Record batches of pyarrow, in order.
        """
        for name in self.files:
            with _named(self.root / name), contextlib.closing(self._open(name)) as file:
                yield from file.iter_batches(rows, columns=list(columns), use_threads=False)

    def _open(self, name: str) -> Any:
        try:
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "parquet files need pyarrow: pip install 'lightning-gen[data]' (or pip install pyarrow)"
            ) from None
        with _named(self.root / name):
            # With a buffer a column is read in small steps, without one it is read as a whole.
            return pyarrow.parquet.ParquetFile(self.root / name, buffer_size=_BUFFER, pre_buffer=False)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What pyarrow says about a damaged file, with the file's name."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({error}): {_remedy(path)}") from None


def _remedy(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            return "it is a pointer of git-lfs, run `git lfs pull` in its folder"
    return "fetch it again"


def _rows(batch: Any) -> Iterator[Row]:
    import pyarrow

    columns: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pyarrow.types.is_timestamp(column.type):
            unit = _UNITS[column.type.unit]
            columns[name] = [_iso(value, unit) for value in column.cast(pyarrow.int64()).to_pylist()]
        elif pyarrow.types.is_dictionary(column.type):
            columns[name] = column.dictionary_decode().to_pylist()
        else:
            columns[name] = column.to_pylist()
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _iso(value: int | None, unit: int) -> str | None:
    """Python's times end at microseconds, and pyarrow refuses finer ones without pandas."""
    if value is None:
        return None
    whole, rest = divmod(value, unit)
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=whole)
    return moment.isoformat() + (f".{rest * 10**9 // unit:09d}".rstrip("0") if rest else "")
