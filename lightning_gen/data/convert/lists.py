"""Lists of records as text: a JSON array, JSON lines, CSV and TSV. Read in steps, since such lists reach gigabytes."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from lightning_gen.data.convert.records import Part
from lightning_gen.data.convert.tables import Row
from lightning_gen.data.quarantine import DataError

__all__ = ["LIST_ENDINGS", "ListTable"]

_CHUNK = 1 << 20
_PART_ROWS = 1024
_LARGEST_RECORD = 16 << 20
_OPENING = re.compile(r"\ufeff?[ \t\r\n]*\[")
_CONTENT = re.compile(r"[^ \t\r\n,]")


@dataclasses.dataclass(frozen=True)
class ListTable:
    """A list of records in one file.

    Attributes:
        root: the folder.
        file: path below it; its ending (json, jsonl, ndjson, csv, tsv, txt) tells the format. A txt file is a table
            with the one column ``prompt``, a line is a row.
    """

    root: Path
    file: str

    def columns(self) -> Sequence[str]:
        """Names of the columns.

        Returns:
            Those of the first 1024 rows: rows may lack some.

        Raises:
            DataError: the list is empty or no list of records.
        """
        names = dict.fromkeys(name for _, row in islice(self._rows(0), _PART_ROWS) for name in row)
        if not names:
            raise DataError(f"{self.root / self.file} holds no record")
        return list(names)

    def parts(self) -> Sequence[Part]:
        """Cut the list; it is read once for this, a piece at a time.

        Returns:
            Pieces of 1024 rows.
        """
        stat = (self.root / self.file).stat()
        starts, count = list[int](), 0
        for place, _ in self._rows(0):
            if count % _PART_ROWS == 0:
                starts.append(place)
            count += 1
        return [self._part(start, number * _PART_ROWS, count, stat) for number, start in enumerate(starts)]

    def _part(self, start: int, first: int, total: int, stat: Any) -> Part:
        count = min(_PART_ROWS, total - first)
        label = f"{self.file}, rows {first} to {first + count - 1}"
        return Part(label, first, count, f"{stat.st_size}:{stat.st_mtime_ns}", (start,))

    def rows(self, part: Part, columns: Sequence[str]) -> Iterator[Row]:
        """Read a piece.

        Args:
            part: one of :meth:`parts`.
            columns: not used: a line is read as a whole.

        Yields:
            Its rows.
        """
        del columns
        return (row for _, row in islice(self._rows(part.where[0]), part.count))

    def _rows(self, start: int) -> Iterator[tuple[int, Row]]:
        """Byte offset and content of every record from an offset on; 0 = from the beginning."""
        path = self.root / self.file
        reader = LIST_ENDINGS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path}: a list ends with {', '.join(LIST_ENDINGS)}")
        try:
            with path.open("rb") as file:
                yield from reader(file, start)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, csv.Error) as error:
            raise DataError(f"{path} is damaged: {error}") from None


def _json(file: BinaryIO, start: int) -> Iterator[tuple[int, Row]]:
    file.seek(start)
    decoder, unicode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    buffer, here, place = unicode.decode(file.read(_CHUNK)), 0, start
    if start == 0:
        head = _OPENING.match(buffer)
        if head is None:
            raise ValueError("it does not start with [, so it is no list of records")
        here, place = head.end(), len(head.group().encode())
    while True:
        content = _CONTENT.search(buffer, here)
        end = content.start() if content else len(buffer)
        here, place = end, place + end - here
        if buffer.startswith("]", here):
            return
        try:
            row, end = decoder.raw_decode(buffer, here)
        except json.JSONDecodeError as error:
            chunk = file.read(_CHUNK)
            if not chunk or len(buffer) - here > _LARGEST_RECORD:
                raise ValueError(f"the record at byte {place}: {error.msg}") from None
            buffer, here = buffer[here:] + unicode.decode(chunk), 0
            continue
        yield place, _record(row, place)
        here, place = end, place + len(buffer[here:end].encode())


def _json_lines(file: BinaryIO, start: int) -> Iterator[tuple[int, Row]]:
    for place, _, line in _lines(file, start):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"the line at byte {place}: {error}") from None
            yield place, _record(row, place)


def _record(row: Any, place: int) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"at byte {place} stands {str(row)[:40]!r}, not a record")
    return row


def _text_lines(file: BinaryIO, start: int) -> Iterator[tuple[int, Row]]:
    return ((place, {"prompt": line.strip()}) for place, _, line in _lines(file, start) if line.strip())


def _lines(file: BinaryIO, start: int) -> Iterator[tuple[int, int, str]]:
    """First byte, byte behind the end, and text of every line."""
    file.seek(start)
    place = start
    for line in file:
        end = place + len(line)
        yield place, end, line.decode("utf-8-sig" if place == 0 else "utf-8")
        place = end


def _delimited(delimiter: str) -> Callable[[BinaryIO, int], Iterator[tuple[int, Row]]]:
    def read(file: BinaryIO, start: int) -> Iterator[tuple[int, Row]]:
        # A record may span lines: it ends where the lines end that the csv reader has taken.
        taken = 0

        def lines(start: int) -> Iterator[str]:
            nonlocal taken
            for _, taken, line in _lines(file, start):  # noqa: B007
                yield line

        header = next(csv.reader(lines(0), delimiter=delimiter), [])
        place = taken = max(taken, start)
        for values in csv.reader(lines(place), delimiter=delimiter):
            if values and len(values) != len(header):
                raise ValueError(f"the row at byte {place} has {len(values)} values, the header has {len(header)}")
            if values:
                yield place, dict(zip(header, values, strict=True))
            place = taken

    return read


_Reader = Callable[[BinaryIO, int], Iterator[tuple[int, Row]]]
LIST_ENDINGS: dict[str, _Reader] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".txt": _text_lines,
}
"""Ending of a list -> how it is read."""
