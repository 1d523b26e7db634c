"""GenEval's rules: what was detected in an image, held against what its prompt asks for.

Nothing here knows a detector or a colour model. One pass gives the verdict of the benchmark and the graded reward that
reinforcement learning uses. Shape letters: n objects of one class that are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from lightning_gen.interfaces import Detections
from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules, Objects, keep_objects, relative_position
from lightning_gen.metrics.compositional.geneval_prompts import Clause, GenEvalPrompt

__all__ = [
    "FAILURES",
    "Failure",
    "FailureKind",
    "NameColors",
    "RuleResult",
    "apply_rules",
]

FailureKind = Literal["missing", "too_many", "excluded", "color", "position", "no_target"]
FAILURES: Final[tuple[FailureKind, ...]] = get_args(FailureKind)
"""Why an image may fail: too few objects of a class; too many of a class that is asked for; a class that must not be
there; too few of the right colour; the wrong relation to the target; the target itself was not found as asked."""

NameColors = Callable[[Tensor, Tensor | None, str], Sequence[str]]
"""Boxes (n, 4), masks (n, H, W) or None, and a class name to n names of colours."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """One thing that is wrong with an image.

    Attributes:
        kind: one of ``FAILURES``.
        reason: the same with names and numbers.
    """

    kind: FailureKind
    reason: str


@dataclasses.dataclass(frozen=True)
class RuleResult:
    """What the rules say about one image.

    Attributes:
        tag: the prompt's task.
        correct: GenEval's verdict.
        failures: what is wrong; empty for a correct image.
        reward: mean score of the clauses, at most 1, negative where far too many objects were found.
        exact: every clause is met and every count is exact: the strict reward of flow_grpo. It knows no ``exclude``.
        boxes: kept boxes of each class as x0, y0, x1, y1, score.
    """

    tag: str
    correct: bool
    failures: tuple[Failure, ...]
    reward: float
    exact: bool
    boxes: Mapping[str, list[list[float]]]


def apply_rules(
    prompt: GenEvalPrompt,
    detections: Detections,
    colors: NameColors | None = None,
    rules: GenEvalRules | None = None,
) -> RuleResult:
    """Judge one image.

    The verdict asks every clause for its ``count`` most confident objects; more objects of the class do no harm unless
    ``exclude`` forbids them. Colour: all of these objects must have it. Position: the clause of the target must be
    met itself, and each object must stand in the relation to each object of the target.

    The reward is the mean of a list. Each clause adds 1 - |count - found| / count. If that is not 1, a clause with a
    colour or a position adds a 0; otherwise the colour adds 1 - |count - of that colour| / count and the position adds
    1 or 0. Here the target must be met with its exact count, too.

    Args:
        prompt: what was asked for.
        detections: what was found in the image, all classes.
        colors: names the colour of each box; needed for clauses with a colour only.
        rules: the numbers; None = those of the benchmark.

    Returns:
        The verdict with its reasons, and the rewards.

    Raises:
        ValueError: detections that do not fit together or are not finite; a colour is asked for and ``colors`` is None
            or gives another number of names than there are boxes.

    Source: arXiv:2310.11513 and repository djghosh13/geneval, evaluation/evaluate_images.py (verdict); repository
    yifan123/flow_grpo (reward). deviates: a clause with a colour and a position (the benchmark has none) whose colour
    is wrong adds 0 for its position, so that a list has the same length whatever the colour.
    """
    rules = rules or GenEvalRules()
    objects = keep_objects(detections, prompt.tag, rules)
    failures: list[Failure] = []
    scores: list[float] = []
    judged: list[_Judged] = []
    for clause in prompt.include:
        verdict = _judge(clause, objects.get(clause.name), judged, colors, rules)
        judged.append(verdict)
        failures += verdict.failures
        scores += verdict.scores
    failures += _excluded(prompt, objects)
    return RuleResult(
        tag=prompt.tag,
        correct=not failures,
        failures=tuple(failures),
        reward=sum(scores) / len(scores),
        exact=all(verdict.exact for verdict in judged),
        boxes={name: torch.cat([found.boxes, found.scores[:, None]], 1).tolist() for name, found in objects.items()},
    )


@dataclasses.dataclass(frozen=True)
class _Judged:
    """One clause: its objects, whether they are as asked, with at least (met) or exactly (exact) the count."""

    found: Objects | None
    met: bool
    exact: bool
    failures: list[Failure]
    scores: list[float]


def _judge(
    clause: Clause, found: Objects | None, before: Sequence[_Judged], colors: NameColors | None, rules: GenEvalRules
) -> _Judged:
    number = 0 if found is None else len(found)
    scores = [1 - abs(clause.count - number) / clause.count]
    demanding = clause.color is not None or clause.relation is not None
    if found is None or number < clause.count:
        missing = Failure("missing", f"{clause.count} {clause.name} wanted, {number} found")
        return _Judged(None, False, False, [missing], scores + [0.0] * demanding)
    top, counted = found.first(clause.count), number == clause.count
    failures: list[Failure] = []
    graded: list[float] = []
    if clause.color is not None:
        names = _name_colors(colors, top, clause)
        right = names.count(clause.color)
        graded.append(right / clause.count)
        if right < clause.count:
            failures.append(
                Failure("color", f"{clause.count} {clause.color} {clause.name} wanted, found: {', '.join(names)}")
            )
    in_place = not failures
    if clause.relation is not None:
        target = before[clause.target or 0]
        if in_place:
            wrong = _position_failure(clause, top, target, rules.position_margin)
            failures += wrong
            in_place = not wrong
        graded.append(float(in_place and target.exact))
    met = not failures
    exact = counted and met and (clause.relation is None or before[clause.target or 0].exact)
    if demanding and not counted:
        graded = [0.0]
    return _Judged(top, met, exact, failures, scores + graded)


def _name_colors(colors: NameColors | None, found: Objects, clause: Clause) -> list[str]:
    if colors is None:
        raise ValueError(f"a {clause.color} {clause.name} is asked for: give a model that names colours")
    names = list(colors(found.boxes, found.masks, clause.name))
    if len(names) != len(found):
        raise ValueError(f"the colour model gave {len(names)} names for {len(found)} boxes of {clause.name}")
    return names


def _position_failure(clause: Clause, found: Objects, target: _Judged, margin: float) -> list[Failure]:
    wanted = f"{clause.name} {clause.relation} its target wanted"
    if not target.met or target.found is None:
        return [Failure("no_target", f"{wanted}, the target was not found as asked")]
    for box in found.boxes:
        for other in target.found.boxes:
            relations = relative_position(box, other, margin)
            if clause.relation not in relations:
                seen = " and ".join(sorted(relations)) or "no relation"
                return [Failure("position", f"{wanted}, found: {seen}")]
    return []


def _excluded(prompt: GenEvalPrompt, objects: Mapping[str, Objects]) -> list[Failure]:
    wanted = {clause.name for clause in prompt.include}
    failures = []
    for exclusion in prompt.exclude:
        found = objects.get(exclusion.name)
        number = 0 if found is None else len(found)
        if number >= exclusion.count:
            kind: FailureKind = "too_many" if exclusion.name in wanted else "excluded"
            failures.append(Failure(kind, f"fewer than {exclusion.count} {exclusion.name} wanted, {number} found"))
    return failures
