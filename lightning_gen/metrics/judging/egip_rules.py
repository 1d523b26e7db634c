"""The rules of EGIP for one image: what an intent asks for, what a judge said, and what follows from both.

Nothing here knows a model or a benchmark; ``metrics/egip.py`` counts the results.

Notation: v_e = 1 if entity e passed, d_c = 1 if constraint c passed by itself, dep(c) = entities that c rests on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

__all__ = [
    "CONSTRAINT_TYPES",
    "CaseResult",
    "Completeness",
    "Constraint",
    "Entity",
    "Judgement",
    "SpecificationError",
    "Verdicts",
    "check_specification",
    "judge_case",
    "normalised_verdict",
]

CONSTRAINT_TYPES: Final = ("attribute", "count", "relation", "layout", "style", "text")
"""All types a constraint may have; the rows of Gen-Arena use attribute, layout and relation."""

_PASS: Final = "pass"
_FAIL: Final = "fail"


class SpecificationError(ValueError):
    """The entities and constraints of a row contradict themselves; the message names the row and the id."""


@dataclasses.dataclass(frozen=True)
class Entity:
    """Something that must be seen in the image.

    Attributes:
        id: unique among the entities of its row.
        name: what it is.
        reference_ids: reference images that show what it looks like.
        extra: keys of the file that mean nothing here.
    """

    id: str
    name: str
    reference_ids: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Something that must hold in the image.

    Attributes:
        id: unique among the constraints of its row.
        type: one of ``CONSTRAINT_TYPES``.
        text: the requirement in words.
        depends_on: ids of the entities it rests on.
        extra: keys of the file that mean nothing here.
    """

    id: str
    type: str
    text: str
    depends_on: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a judge said about one entity or constraint.

    Attributes:
        id: of the entity or constraint.
        verdict: as it was written; only text that reads "pass" passes.
        reason: why.
        evidence: what in the image shows it.
    """

    id: str
    verdict: object
    reason: str = ""
    evidence: str = ""


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """All that a judge said about one image, in its order.

    Attributes:
        entities: about entities; where an id is repeated the last one counts.
        constraints: about constraints, each judged by itself; the same.
        num_unreadable: items without an id, which cannot be about anything.
    """

    entities: tuple[Judgement, ...] = ()
    constraints: tuple[Judgement, ...] = ()
    num_unreadable: int = 0


@dataclasses.dataclass(frozen=True)
class Completeness:
    """How a judge's items fit the ids it was asked about.

    Attributes:
        omitted: ids without a verdict, as ``entity:ID`` or ``constraint:ID``; they fail.
        extra: verdicts about ids that do not exist; they are ignored.
        repeated: ids that were judged more than once; the last verdict counts.
        undecided: ids whose verdict is neither pass nor fail, for instance "uncertain"; they fail.
        num_unreadable: items without an id.
    """

    omitted: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    num_unreadable: int = 0

    @property
    def complete(self) -> bool:
        """Exactly one pass or fail for every id, and nothing else."""
        return not (self.omitted or self.extra or self.repeated or self.undecided or self.num_unreadable)


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """One image under EGIP.

    Attributes:
        entities: v_e of every entity by id, in the order of the specification.
        direct: d_c of every constraint by id.
        gated: g_c of every constraint by id.
        types: type of every constraint by id.
        passed: EGIP_i.
        completeness: how the judge's items fitted.
    """

    entities: Mapping[str, bool]
    direct: Mapping[str, bool]
    gated: Mapping[str, bool]
    types: Mapping[str, str]
    passed: bool
    completeness: Completeness = Completeness()


def normalised_verdict(verdict: object) -> str:
    """A verdict in the form that is compared: trimmed and in lower case.

    Args:
        verdict: as the judge wrote it.

    Returns:
        The text; empty for what is not text, so that ``true`` and ``1`` do not pass.
    """
    return verdict.strip().lower() if isinstance(verdict, str) else ""


def check_specification(
    row: str,
    entities: Sequence[Entity],
    constraints: Sequence[Constraint],
    dangling: Literal["error", "fail"] = "error",
    empty: Literal["error", "pass"] = "error",
) -> None:
    """Refuse a specification that would make a number without a meaning.

    Args:
        row: name of the row for messages.
        entities: E_i.
        constraints: C_i.
        dangling: a dependency on an entity that does not exist is an ``error``, or makes the constraint ``fail``.
        empty: a row that asks for nothing is an ``error``, or may ``pass``.

    Raises:
        SpecificationError: an id that is empty, repeated or dangling, an unknown type, or nothing to judge.
    """
    if not (entities or constraints) and empty == "error":
        raise SpecificationError(
            f"row {row!r} has neither entities nor constraints: nothing can fail, nothing is shown"
        )
    for kind, ids in (("entity", [item.id for item in entities]), ("constraint", [item.id for item in constraints])):
        for name, count in Counter(ids).items():
            if not name or count > 1:
                problem = f"is used {count} times" if name else "is empty"
                raise SpecificationError(f"row {row!r}: {kind} id {name!r} {problem}; ids must be unique")
    known = {entity.id for entity in entities}
    for constraint in constraints:
        if constraint.type not in CONSTRAINT_TYPES:
            raise SpecificationError(
                f"row {row!r}: constraint {constraint.id!r} has type {constraint.type!r}, not one of "
                f"{', '.join(CONSTRAINT_TYPES)}"
            )
        missing = [name for name in constraint.depends_on if name not in known]
        if missing and dangling == "error":
            raise SpecificationError(
                f"row {row!r}: constraint {constraint.id!r} depends on entity {missing[0]!r}, which the row does not "
                f"have; correct the row, or ask for dangling='fail' to count the constraint as failed"
            )


def judge_case(
    entities: Sequence[Entity],
    constraints: Sequence[Constraint],
    verdicts: Verdicts,
    *,
    row: str = "",
    dangling: Literal["error", "fail"] = "error",
    empty: Literal["error", "pass"] = "error",
) -> CaseResult:
    """Gate the constraints of one image by its entities.

    g_c    = d_c prod_{e in dep(c)} v_e                 (v_e = 0 for an id that is no entity; 1 where dep(c) is empty)
    EGIP_i = [sum_e v_e = |E_i|] [sum_c g_c = |C_i|]

    v_e and d_c are 1 only where the judge's verdict reads "pass" after trimming and lower-casing. Everything else
    fails: uncertain, another word, a boolean, no verdict at all. Verdicts about unknown ids change nothing.

    Args:
        entities: E_i, ids unique.
        constraints: C_i, ids unique.
        verdicts: what the judge said.
        row: name of the row for messages.
        dangling: see ``check_specification``; ``fail`` is what the official program does.
        empty: see ``check_specification``; ``pass`` is what the official program does.

    Returns:
        All verdicts after gating.

    Raises:
        SpecificationError: see ``check_specification``.

    Source: arXiv:2605.08043, section "EGIP", as executed by its code (nopnor/SCOPE, cli/gen_arena_eval.py).
    deviates: a dangling dependency and an empty specification are errors unless asked otherwise; the official program
        fails the one and passes the other without a word.
    """
    check_specification(row, entities, constraints, dangling, empty)
    seen = {judgement.id: normalised_verdict(judgement.verdict) for judgement in verdicts.entities}
    held = {judgement.id: normalised_verdict(judgement.verdict) for judgement in verdicts.constraints}
    passed = {entity.id: seen.get(entity.id) == _PASS for entity in entities}
    direct = {constraint.id: held.get(constraint.id) == _PASS for constraint in constraints}
    gated = {
        constraint.id: direct[constraint.id] and all(passed.get(name, False) for name in constraint.depends_on)
        for constraint in constraints
    }
    return CaseResult(
        entities=passed,
        direct=direct,
        gated=gated,
        types={constraint.id: constraint.type for constraint in constraints},
        passed=all(passed.values()) and all(gated.values()),
        completeness=_completeness(passed, direct, seen, held, verdicts),
    )


def _completeness(
    entities: Iterable[str],
    constraints: Iterable[str],
    seen: Mapping[str, str],
    held: Mapping[str, str],
    verdicts: Verdicts,
) -> Completeness:
    omitted: list[str] = []
    extra: list[str] = []
    repeated: list[str] = []
    undecided: list[str] = []
    for kind, asked, answers, items in (
        ("entity", list(entities), seen, verdicts.entities),
        ("constraint", list(constraints), held, verdicts.constraints),
    ):
        counts = Counter(item.id for item in items)
        omitted += [f"{kind}:{name}" for name in asked if name not in answers]
        extra += [f"{kind}:{name}" for name in answers if name not in set(asked)]
        repeated += [f"{kind}:{name}" for name in asked if counts[name] > 1]
        undecided += [f"{kind}:{name}" for name in asked if answers.get(name, _PASS) not in (_PASS, _FAIL)]
    return Completeness(tuple(omitted), tuple(extra), tuple(repeated), tuple(undecided), verdicts.num_unreadable)
