"""Reading Gen-Arena: 300 prompts in six categories, each with entities, constraints and reference images.

Two layouts are read. That of the hub is one ``data/gen_arena.jsonl`` whose paths start at the root; that of the
official code is ``CATEGORY/eval.jsonl`` whose paths start at the category's folder, or ``CATEGORY/prompt.jsonl`` with
prompts alone. What a generator may know of a case is ``generator_packet`` and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from lightning_gen.metrics.judging.egip_rules import Constraint, Entity, SpecificationError, check_specification

__all__ = [
    "GEN_ARENA_CATEGORIES",
    "GenArenaCase",
    "ReferenceImage",
    "generator_packet",
    "read_gen_arena",
    "read_gen_arena_packets",
]

GEN_ARENA_CATEGORIES: Final = (
    "1-cartoon",
    "2-game",
    "3-sports",
    "4-entertainment",
    "5-competition",
    "6-ceremony",
)

_HUB_FILE: Final = "data/gen_arena.jsonl"
_CASE_KEYS: Final = ("id", "category", "prompt", "reference_images", "entities", "constraints")


@dataclasses.dataclass(frozen=True)
class ReferenceImage:
    """A picture that shows the judge what an entity looks like.

    Attributes:
        id: what ``Entity.reference_ids`` points to.
        path: the file.
    """

    id: str
    path: Path


@dataclasses.dataclass(frozen=True)
class GenArenaCase:
    """One row of the benchmark, for the judge's eyes.

    Attributes:
        case_id: unique over the benchmark, for instance ``"1-cartoon_004"``.
        category: one of ``GEN_ARENA_CATEGORIES``, or a user's own.
        prompt: what the generator is asked for.
        entities: what must be seen.
        constraints: what must hold.
        references: pictures for the judge.
        extra: keys of the row that mean nothing here.
    """

    case_id: str
    category: str
    prompt: str
    entities: tuple[Entity, ...]
    constraints: tuple[Constraint, ...]
    references: tuple[ReferenceImage, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def generator_packet(case: GenArenaCase) -> dict[str, Any]:
    """All that a generator, or a loop around one, may see of a case.

    Entities, constraints, category and reference images are evaluation labels: a model that sees them is not measured.

    Args:
        case: a row.

    Returns:
        ``case_id``, ``prompt`` and ``input_images``, an empty list.

    Source: arXiv:2605.08043, the benchmark's input packet.
    """
    return {"case_id": case.case_id, "prompt": case.prompt, "input_images": []}


def read_gen_arena(
    root: str | Path,
    dangling: Literal["error", "fail"] = "error",
    empty: Literal["error", "pass"] = "error",
) -> list[GenArenaCase]:
    """Read and check all rows of the benchmark.

    Args:
        root: the folder that holds ``data/gen_arena.jsonl`` or the categories' folders.
        dangling: see ``egip_rules.check_specification``.
        empty: see ``egip_rules.check_specification``.

    Returns:
        The cases in the order of the file; categories in the order of their names.

    Raises:
        FileNotFoundError: no rows in either layout, or reference images that are not there.
        SpecificationError: a line that is not a row, a repeated case id, an id that dangles, a count that is not that
            of the list it counts, or a path that leaves the benchmark; names file, line and id.
    """
    root = Path(root)
    cases = [
        _case(where, row, base, category, dangling, empty) for where, row, base, category in _rows(root, "eval.jsonl")
    ]
    _check_unique(case.case_id for case in cases)
    missing = [(case, image) for case in cases for image in case.references if not image.path.is_file()]
    if missing:
        case, image = missing[0]
        total = sum(len(case.references) for case in cases)
        raise FileNotFoundError(
            f"{len(missing)} of {total} reference images are missing, the first is {image.id!r} of row "
            f"{case.case_id!r}: {image.path}. Copy the whole benchmark; a judge without them gives other verdicts"
        )
    return cases


def read_gen_arena_packets(root: str | Path) -> list[dict[str, Any]]:
    """Read the prompts alone, for generation; reference images need not be there.

    Args:
        root: the folder of either layout; ``CATEGORY/prompt.jsonl`` is enough.

    Returns:
        One ``generator_packet`` per row.

    Raises:
        FileNotFoundError: no rows in either layout.
        SpecificationError: a line that is not a row, or a repeated case id.
    """
    packets = []
    for where, row, _, category in _rows(Path(root), "prompt.jsonl", "eval.jsonl"):
        case = GenArenaCase(_id(row, where), category, _text(row, "prompt", where), (), ())
        packets.append(generator_packet(case))
    _check_unique(packet["case_id"] for packet in packets)
    return packets


def _rows(root: Path, *names: str) -> Iterator[tuple[str, dict[str, Any], Path, str]]:
    """Where it stands, the row, the folder its paths start at, and its category; for every row of either layout."""
    hub = root / _HUB_FILE
    if hub.is_file():
        for where, row in _lines(hub):
            yield where, row, root, _text(row, "category", where)
        return
    found = False
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        for where, row in _lines(path) if path is not None else ():
            found = True
            if row.get("category", folder.name) != folder.name:
                raise SpecificationError(f"{where}: category {row['category']!r} in the folder of {folder.name!r}")
            yield where, row, folder, folder.name
    if not found:
        raise FileNotFoundError(
            f"{root} holds neither {_HUB_FILE} nor CATEGORY/{names[0]}: give the folder of Gen-Arena (hub id "
            "rentianfei122/Gen-Arena)"
        )


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines(), which also splits at line separators inside a text.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SpecificationError(f"{where} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise SpecificationError(f"{where} is not a JSON object")
        yield where, row


def _case(
    where: str,
    row: dict[str, Any],
    base: Path,
    category: str,
    dangling: Literal["error", "fail"],
    empty: Literal["error", "pass"],
) -> GenArenaCase:
    case_id = _id(row, where)
    where = f"{where} ({case_id})"
    references = tuple(
        ReferenceImage(_id(item, where), _inside(base, _text(item, "path", where), where))
        for item in _objects(row, "reference_images", where)
    )
    entities = tuple(
        Entity(
            _id(item, where),
            _text(item, "name", where),
            _names(item, "reference_ids", where),
            _rest(item, ("id", "name", "reference_ids")),
        )
        for item in _objects(row, "entities", where)
    )
    constraints = tuple(
        Constraint(
            _id(item, where),
            _text(item, "type", where).lower(),
            _text(item, "text", where),
            _names(item, "depends_on", where),
            _rest(item, ("id", "type", "text", "depends_on")),
        )
        for item in _objects(row, "constraints", where)
    )
    case = GenArenaCase(
        case_id, category, _text(row, "prompt", where), entities, constraints, references, _rest(row, _CASE_KEYS)
    )
    check_specification(where, entities, constraints, dangling, empty)
    _check_references(case, where)
    _check_counts(case, row, where)
    return case


def _check_references(case: GenArenaCase, where: str) -> None:
    known = Counter(image.id for image in case.references)
    for name, count in known.items():
        if count > 1:
            raise SpecificationError(f"{where}: reference image {name!r} is listed {count} times")
    for entity in case.entities:
        for name in entity.reference_ids:
            if name not in known:
                raise SpecificationError(
                    f"{where}: entity {entity.id!r} points to reference {name!r}, which is not there"
                )


def _check_counts(case: GenArenaCase, row: dict[str, Any], where: str) -> None:
    """What a row says about its own lists; a cut list would otherwise make the benchmark easier unseen."""
    found: dict[str, Any] = {
        "num_entities": len(case.entities),
        "num_constraints": len(case.constraints),
        "num_reference_images": len(case.references),
    }
    for key, count in found.items():
        if key in row and row[key] != count:
            raise SpecificationError(f"{where}: {key} is {row[key]!r}, but the list holds {count}")
    if "constraint_type_counts" in row:
        types = Counter(constraint.type for constraint in case.constraints)
        stated = row["constraint_type_counts"]
        if not isinstance(stated, dict) or {key: count for key, count in stated.items() if count} != dict(types):
            raise SpecificationError(f"{where}: constraint_type_counts is {stated!r}, but the list holds {dict(types)}")


def _inside(base: Path, path: str, where: str) -> Path:
    """A path below a folder; told by its text, because in a hub cache every file is a link to somewhere else."""
    parts = PurePosixPath(path.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise SpecificationError(f"{where}: path {path!r} leaves {base}; paths are relative to the benchmark's folder")
    return base / parts


def _text(item: Mapping[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise SpecificationError(f"{where}: {key!r} must be a text that is not empty, got {value!r}")
    return value


def _id(item: Mapping[str, Any], where: str) -> str:
    value = item.get("id")
    return str(value) if type(value) is int else _text(item, "id", where)


def _objects(row: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    items = row.get(key, []) if key == "reference_images" else row.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise SpecificationError(f"{where}: {key!r} must be a list of objects, got {type(items).__name__}")
    return items


def _names(item: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    names = item.get(key) or []
    if not isinstance(names, list) or not all(type(name) in (str, int) for name in names):
        raise SpecificationError(f"{where}: {key!r} of {item.get('id')!r} must be a list of ids, got {names!r}")
    return tuple(str(name) for name in names)


def _rest(item: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in known}


def _check_unique(names: Iterator[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise SpecificationError(f"case id {name!r} is used by {count} rows")
