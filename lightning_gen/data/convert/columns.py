"""From the columns of a table to values: which column is which, pictures in their many forms, plain JSON values."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_gen.data.convert.records import Unusable
from lightning_gen.data.quarantine import DataError

__all__ = ["choose_columns", "confidence", "inside", "parse_fields", "path_key", "picture_bytes", "plain", "text"]


def parse_fields(pairs: Iterable[str]) -> dict[str, str]:
    """Read ``FIELD=COLUMN`` pairs.

    Args:
        pairs: for instance ``["caption=prompt", "image=img"]``.

    Returns:
        Field -> column.

    Raises:
        ValueError: a word without ``=``, or a field that comes twice.
    """
    found = dict[str, str]()
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise ValueError(f"--fields {pair}: write FIELD=COLUMN, for instance caption=prompt")
        if field in found:
            raise ValueError(f"--fields {pair}: {field} was given before, as {found[field]}")
        found[field] = column
    return found


def choose_columns(
    found: Iterable[str],
    needed: Mapping[str, tuple[str, ...]],
    optional: Mapping[str, tuple[str, ...]],
    given: Mapping[str, str],
    where: str,
) -> dict[str, str]:
    """Decide which column holds which field.

    Args:
        found: names of the columns that are there.
        needed: field -> names it usually has, best first.
        optional: likewise, for fields that may be absent.
        given: field -> column, the user's word.
        where: the table's name, for messages.

    Returns:
        Field -> column.

    Raises:
        DataError: a needed column, or one that the user named, is not there; the message says which and what is.
        ValueError: the user named a field that this kind of rows does not have.
    """
    there = list(found)
    known = {**needed, **optional}
    unknown = [field for field in given if field not in known]
    if unknown:
        raise ValueError(f"--fields {unknown[0]}={given[unknown[0]]}: the fields here are {', '.join(known)}")
    chosen = {}
    for field, names in known.items():
        names = (given[field],) if field in given else names
        column = next((name for name in names if name in there), None)
        if column is not None:
            chosen[field] = column
        elif field in needed or field in given:
            raise DataError(
                f"{where} has no column {' or '.join(names)} for {field}; it has: {', '.join(there) or 'none'}. "
                f"Name the right one with --fields {field}=COLUMN"
            )
    return chosen


def inside(root: Path, name: str) -> Path:
    """A file that a row names, as long as it lies below the folder of the data set.

    Args:
        root: the folder.
        name: what the row says.

    Returns:
        The path; whether there is such a file was not looked at.

    Raises:
        DataError: the name climbs out of the folder.
    """
    parts = name.replace("\\", "/").split("/")
    if not name or name[0] in "/\\" or ".." in parts or re.match("[A-Za-z]:$", parts[0]):
        raise DataError(f"a row names the file {name!r}, which does not lie below {root}: do not use this table")
    return root.joinpath(*parts)


def picture_bytes(value: Any, root: Path, field: str) -> bytes:
    """The bytes of a picture, whatever form the column has.

    Args:
        value: bytes; a path below ``root``; or the pair ``{bytes, path}`` that the datasets library writes.
        root: where paths start.
        field: name of the field, for messages.

    Returns:
        The file's bytes.

    Raises:
        Unusable: null or no bytes (``dead``), no such file (``missing``), or something else (``undecodable``).
        DataError: a path climbs out of ``root``.
    """
    if isinstance(value, Mapping):
        # A path beside bytes only says where they came from.
        value = value.get("bytes") or value.get("path")
    if value is None or value == b"" or value == "":
        raise Unusable("dead", f"{field} is {'null' if value is None else 'empty'}")
    if isinstance(value, str):
        if "://" in value:
            raise Unusable("missing", f"{field} is the address {value[:80]!r}: fetch the pictures first")
        try:
            return inside(root, value).read_bytes()
        except OSError as error:
            raise Unusable("missing", f"{field}: {root / value}: {error.strerror or error}") from None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise Unusable("undecodable", f"{field} is a {type(value).__name__}, not the bytes or the path of a picture")


def text(value: Any, field: str) -> str:
    """A text that must be there.

    Args:
        value: of the column.
        field: its name, for messages.

    Returns:
        The text.

    Raises:
        Unusable: it is null or no text (``no_value``).
    """
    if not isinstance(value, str):
        raise Unusable("no_value", f"{field} is {value!r}, not a text")
    return value


def plain(value: Any) -> Any:
    """Any value of a table as plain JSON.

    Args:
        value: of a column.

    Returns:
        The same with times as ISO text, and null for what JSON lacks (bytes, not-a-number, infinity).
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    return None


def path_key(stem: str) -> str:
    """A key made of a file's path.

    Args:
        stem: path below the data set's folder, without the ending.

    Returns:
        The path with one _ for every run of what no key may hold.
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem)


def confidence(value: Any) -> float:
    """How sure a preference is.

    Args:
        value: a number, or its text.

    Returns:
        A share in [0, 1].

    Raises:
        Unusable: it is neither (``bad_label``).
    """
    try:
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise Unusable("bad_label", f"confidence is {value!r}, not a number in 0 .. 1")
    return number
