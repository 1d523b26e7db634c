"""What a request asks for as entities and constraints of EGIP, and the verdict of an exact judge about a picture.

Rows are plain dictionaries in Gen-Arena's schema. Every entity and constraint carries a ``check``, which the judge
reads instead of the words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from lightning_gen.shapes.detector import FoundObject, find_objects, name_backgrounds
from lightning_gen.shapes.grammar import Phrase, Request
from lightning_gen.shapes.layout import stands
from lightning_gen.shapes.reader import GlyphReader
from lightning_gen.shapes.vocabulary import NUMBERS, PLURALS

__all__ = ["Reading", "read_picture", "specification", "verdicts"]

_SEEN: Final = 0.3
"""Objects of a lower score are not there; GenEval's threshold."""


class Reading(NamedTuple):
    """All that was read in a picture.

    Attributes:
        objects: the surest first.
        background: its name.
        word: the word, or empty.
    """

    objects: tuple[FoundObject, ...]
    background: str
    word: str = ""


def read_picture(image: Tensor) -> Reading:
    """Read a picture.

    Args:
        image: uint8, (3, H, W), or float in [0, 1].

    Returns:
        Objects of a score of at least 0.3, background and word.
    """
    unit = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    objects = [one for one in find_objects(unit[None])[0] if one.score >= _SEEN]
    words = GlyphReader()(unit)
    return Reading(tuple(objects), name_backgrounds(unit[None])[0], words[0][0] if words else "")


def specification(request: Request, case_id: str) -> dict[str, Any]:
    """The row of a request.

    Every kind that is asked for is an entity. A number, a colour, a relation, a background and the letters of a word
    are constraints that depend on the entities they speak of. As in GenEval, one object may be more than one where no
    number was asked for.

    Args:
        request: what a picture shall show.
        case_id: name of the row.

    Returns:
        ``id``, ``category``, ``prompt``, ``reference_images``, ``entities``, ``constraints`` and their numbers.
    """
    entities: list[dict[str, Any]] = []
    constraints: list[dict[str, Any]] = []
    if request.word:
        entities.append(_entity(0, "a word", {"word": True}))
        text = f'the word reads "{request.word}"'
        constraints.append(_constraint("text", text, ["e1"], {"word": request.word}))
    for number, phrase in enumerate(request.phrases):
        # Of two phrases of one kind the second needs objects of its own.
        needed = sum(other.count for other in request.phrases[: number + 1] if other.kind == phrase.kind)
        entities.append(_entity(number, phrase.kind, {"class": phrase.kind, "at_least": needed}))
        constraints += _of_phrase(request, phrase, f"e{number + 1}")
    if request.relation is not None:
        first, second = request.phrases
        text = f"{first.text()} is {request.relation} {second.text()}"
        check = {"relation": request.relation, "first": _object(first), "second": _object(second)}
        constraints.append(_constraint("relation", text, ["e1", "e2"], check))
    if request.background:
        text = f"the background is {request.background}"
        constraints.append(_constraint("attribute", text, [], {"background": request.background}))
    for number, constraint in enumerate(constraints, 1):
        constraint["id"] = f"c{number}"
    return {
        "id": case_id,
        "category": "shapes",
        "prompt": request.prompt(),
        "reference_images": [],
        "entities": entities,
        "constraints": constraints,
        "num_entities": len(entities),
        "num_constraints": len(constraints),
    }


def verdicts(row: Mapping[str, Any], reading: Reading) -> dict[str, list[dict[str, str]]]:
    """The exact judge: each entity and constraint by itself, without gating.

    Args:
        row: from :func:`specification`.
        reading: of the picture.

    Returns:
        ``entities`` and ``constraints``, items with ``id``, ``verdict`` ("pass" or "fail"), ``reason`` and
        ``evidence``: what a judge of EGIP answers.

    Raises:
        ValueError: an item without a ``check`` that this judge knows.
    """
    seen = ", ".join(f"{one.color} {one.kind} at ({one.x:.0f}, {one.y:.0f})" for one in reading.objects)
    word = f'the word "{reading.word}"' if reading.word else ""
    evidence = "; ".join(part for part in (seen, word, f"on {reading.background}") if part)
    return {
        part: [
            {
                "id": item["id"],
                "verdict": "pass" if (holds := _holds(item.get("check", {}), reading)) else "fail",
                "reason": "as asked" if holds else "not as asked",
                "evidence": evidence,
            }
            for item in row[part]
        ]
        for part in ("entities", "constraints")
    }


def _of_phrase(request: Request, phrase: Phrase, entity: str) -> list[dict[str, Any]]:
    found = []
    if phrase.count > 1:
        text = f"there are exactly {NUMBERS[phrase.count]} {PLURALS[phrase.kind]}"
        total = sum(other.count for other in request.phrases if other.kind == phrase.kind)
        found.append(_constraint("count", text, [entity], {"class": phrase.kind, "count": total}))
    if phrase.color:
        noun = f"the {phrase.kind} is" if phrase.count == 1 else f"the {PLURALS[phrase.kind]} are"
        alike = [one for one in request.phrases if (one.kind, one.color) == (phrase.kind, phrase.color)]
        check = {**_object(phrase), "at_least": sum(one.count for one in alike)}
        found.append(_constraint("attribute", f"{noun} {phrase.color}", [entity], check))
    return found


def _object(phrase: Phrase) -> dict[str, Any]:
    return {"class": phrase.kind} | ({"color": phrase.color} if phrase.color else {})


def _entity(number: int, name: str, check: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"e{number + 1}", "name": name, "reference_ids": [], "check": check}


def _constraint(kind: str, text: str, depends_on: list[str], check: dict[str, Any]) -> dict[str, Any]:
    return {"id": "", "type": kind, "text": text, "depends_on": depends_on, "check": check}


def _holds(check: Mapping[str, Any], reading: Reading) -> bool:
    match dict(check):
        case {"word": True}:
            return bool(reading.word)
        case {"word": str(word)}:
            return reading.word == word
        case {"background": str(background)}:
            return reading.background == background
        case {"relation": relation, "first": first, "second": second}:
            return any(
                stands(one, other, relation)
                for one in _matching(first, reading)
                for other in _matching(second, reading)
            )
        case {"class": _, "count": int(count)}:
            return len(_matching(check, reading)) == count
        case {"class": _, "at_least": int(count)}:
            return len(_matching(check, reading)) >= count
    raise ValueError(f"the exact judge does not know the check {dict(check)}: make rows with specification()")


def _matching(wanted: Mapping[str, Any], reading: Reading) -> list[FoundObject]:
    color = wanted.get("color")
    return [one for one in reading.objects if one.kind == wanted["class"] and color in (None, one.color)]
