"""GenEval's prompts: what an image must show and must not show, one JSON record per prompt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from lightning_gen.data.quarantine import DataError

__all__ = [
    "COLORS",
    "RELATIONS",
    "TAGS",
    "Clause",
    "Exclusion",
    "GenEvalPrompt",
    "parse_prompt",
    "read_object_names",
    "read_prompts",
]

TAGS: Final = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six tasks."""

COLORS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""The ten colours that a clause may ask for."""

RELATIONS: Final = ("left of", "right of", "above", "below")
"""Where an object may be asked to stand, seen from its target."""


@dataclasses.dataclass(frozen=True)
class Clause:
    """Objects that must be there.

    Attributes:
        name: class.
        count: how many, at least 1.
        color: their colour, or None.
        relation: where they stand seen from the target, or None.
        target: number of the clause that describes the target, counted from 0; None without a relation.
    """

    name: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int | None = None


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """Objects that must be fewer.

    Attributes:
        name: class.
        count: this many are too many.
    """

    name: str
    count: int


@dataclasses.dataclass(frozen=True)
class GenEvalPrompt:
    """One prompt.

    Attributes:
        tag: its task, one of ``TAGS``.
        prompt: the text.
        include: what must be there; all of it.
        exclude: what must not be there; none of it.
        record: the record as it was read.
    """

    tag: str
    prompt: str
    include: tuple[Clause, ...]
    exclude: tuple[Exclusion, ...] = ()
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)


def parse_prompt(record: Any, where: str = "", names: Collection[str] | None = None) -> GenEvalPrompt:
    """Check a record and make a prompt of it.

    Args:
        record: ``{tag, prompt, include: [{class, count, color?, position?: [relation, number of the target]}],
            exclude?: [{class, count}]}``.
        where: file and line, for messages.
        names: classes that the detector knows; None = not checked. A class that it does not know could never be found.

    Returns:
        The prompt.

    Raises:
        ValueError: a key is missing or of the wrong kind; a tag, relation, colour or class is unknown; a target is not
            one of the clauses before. The message begins with ``where``.

    Source: repository djghosh13/geneval, prompts/ (format of the records).
    """
    try:
        return _parse(record, names)
    except _Problem as problem:
        raise ValueError(f"{where + ': ' if where else ''}{problem}") from None


def read_prompts(path: str | Path, names: Collection[str] | None = None) -> list[GenEvalPrompt]:
    """Read prompts, one JSON record per line.

    Args:
        path: ``evaluation_metadata.jsonl``, or the ``metadata.jsonl`` of one prompt.
        names: classes that the detector knows; None = not checked.

    Returns:
        The prompts; a prompt's id is its place in the list. Empty lines at the end are skipped.

    Raises:
        DataError: the file cannot be read, holds no prompt, or a line is wrong; the message names file and line.
    """
    path = Path(path)
    try:
        # Not splitlines: it also cuts at characters that may stand inside a prompt.
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the GenEval prompts {path} cannot be read: {error}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        where = f"{path} line {number}"
        try:
            prompts.append(parse_prompt(json.loads(line), where, names))
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON ({error})") from None
        except ValueError as error:
            raise DataError(str(error)) from None
    return prompts


def read_object_names(path: str | Path) -> list[str]:
    """Read the classes, one per line.

    Args:
        path: ``object_names.txt``; its order is that of COCO's classes.

    Returns:
        The names.

    Raises:
        DataError: the file cannot be read, is empty, or names a class twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the object names {path} cannot be read: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path} must name every class once, one per line; it has {len(names)} lines")
    return names


class _Problem(Exception):
    """What is wrong with a record."""


def _parse(record: Any, names: Collection[str] | None) -> GenEvalPrompt:
    for key, kind in (("tag", str), ("prompt", str), ("include", list)):
        _get(record, key, kind, "the record")
    if record["tag"] not in TAGS:
        raise _Problem(f"unknown tag {record['tag']!r}; known: {', '.join(TAGS)}")
    if not record["include"]:
        raise _Problem('"include" is empty: the prompt asks for nothing')
    include = tuple(_clause(entry, number, names) for number, entry in enumerate(record["include"]))
    exclude = tuple(
        Exclusion(*_class_and_count(entry, f"exclude[{number}]", names))
        for number, entry in enumerate(_get(record, "exclude", list, "the record", []))
    )
    return GenEvalPrompt(record["tag"], record["prompt"], include, exclude, record)


def _clause(entry: Any, number: int, names: Collection[str] | None) -> Clause:
    where = f"include[{number}]"
    name, count = _class_and_count(entry, where, names)
    color = entry.get("color")
    if color is not None and color not in COLORS:
        raise _Problem(f"{where} has the unknown color {color!r}; known: {', '.join(COLORS)}")
    position = entry.get("position")
    if position is None:
        return Clause(name, count, color)
    if not isinstance(position, list) or len(position) != 2:
        raise _Problem(f"{where}: position is [relation, number of the target clause], got {position!r}")
    relation, target = position
    if relation not in RELATIONS:
        raise _Problem(f"{where} has the unknown relation {relation!r}; known: {', '.join(RELATIONS)}")
    if not _is_number(target) or not 0 <= target < number:
        raise _Problem(
            f"{where} stands {relation} clause {target!r}, which is not one of the {number} clauses before it"
        )
    return Clause(name, count, color, relation, target)


def _class_and_count(entry: Any, where: str, names: Collection[str] | None) -> tuple[str, int]:
    name: str = _get(entry, "class", str, where)
    count = _get(entry, "count", int, where)
    if not _is_number(count) or count < 1:
        raise _Problem(f"{where}: count must be at least 1, got {count!r}")
    if names is not None and name not in names:
        raise _Problem(f"{where} has the class {name!r}, which the detector does not know")
    return name, count


def _get(record: Any, key: str, kind: type, where: str, default: Any = None) -> Any:
    if not isinstance(record, dict):
        raise _Problem(f"{where} must be an object, got {type(record).__name__}")
    value = record.get(key, default)
    if value is None:
        raise _Problem(f'{where} lacks "{key}", it has: {", ".join(record)}')
    if not isinstance(value, kind):
        raise _Problem(f'{where}: "{key}" must be {kind.__name__}, got {value!r}')
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
