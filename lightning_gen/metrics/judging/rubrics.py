"""Scores that a judge gives by a rubric: compositional compliance (DCR), RareBench, and edits (Delta-Adapter).

Each rubric is an instruction, a rule that reads the answer, and the mean that papers quote. An answer outside its rule
raises JudgeReplyError; ``judges.ask`` then asks again, and the caller counts what stays without an answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from lightning_gen.metrics.judging.judges import JudgeReplyError, parse_judge_json

__all__ = [
    "Compliance",
    "EditScores",
    "RareScore",
    "compliance_instruction",
    "compositional_compliance",
    "compositional_violation_rate",
    "edit_instruction",
    "mean_edit_scores",
    "parse_compliance",
    "parse_edit_scores",
    "parse_rarebench",
    "rarebench_instruction",
    "rarebench_percentage",
]

# The sign is no decoration: -1 must not be read as 1.
_SCORE: Final = re.compile(r"^\W*SCORE[\s*_:=]*(-?\d+(?:\.\d+)?)\b", re.IGNORECASE | re.MULTILINE)
_EXPLANATION: Final = re.compile(r"^\W*EXPLANATION\W*[:=]\s*(.*)", re.IGNORECASE | re.MULTILINE | re.DOTALL)
_RARE_TOP: Final = 5


class Compliance(NamedTuple):
    """A judge's view of one rare composition.

    Attributes:
        score: 1 (the prompt is ignored) to 5 (all of it is shown).
        violation: the usual thing appears in place of the rare one.
        reason: why.
    """

    score: int
    violation: bool
    reason: str


class RareScore(NamedTuple):
    """A judge's answer of RareBench.

    Attributes:
        score: 0 to 5.
        explanation: why.
    """

    score: int
    explanation: str


class EditScores(NamedTuple):
    """A judge's view of one edit that follows an example.

    Attributes:
        accuracy: GPT-A, 1 to 5: is the edit of the example done here?
        consistency: GPT-C, 1 to 5: is everything else as it was?
        reason: why.
    """

    accuracy: int
    consistency: int
    reason: str


def compliance_instruction(prompt: str, rare_factor: str, default_factor: str) -> str:
    """Ask whether an image shows a rare composition.

    Args:
        prompt: the target prompt.
        rare_factor: what is unusual about it, for instance "snow on a beach".
        default_factor: what usually stands in its place, for instance "sand".

    Returns:
        The instruction; it goes behind the image.

    Source: the quantities are those of arXiv:2605.06512, section "Evaluation"; our words.
    """
    return (
        f"The image above was made for the prompt: {prompt!r}. Unusual about it is: {rare_factor!r}. What one usually "
        f"sees instead is: {default_factor!r}.\n"
        "Judge the composition, not the beauty. Give a whole number from 1 to 5: 5 = everything that the prompt asks "
        "for is shown, the unusual part included; 4 = the unusual part is shown with a small flaw; 3 = it is shown in "
        "part; 2 = it is hardly recognisable; 1 = it is not shown. Say also whether the usual thing appears in place "
        "of the unusual one.\n"
        'Answer with one JSON object: {"score": 1-5, "violation": true or false, "reason": "short"}'
    )


def parse_compliance(reply: str) -> Compliance:
    """Read an answer to ``compliance_instruction``.

    Args:
        reply: the judge's words.

    Returns:
        Score, violation and reason.

    Raises:
        JudgeReplyError: no such JSON object, a score that is no whole number of 1 to 5, a violation that is not a
            boolean.
    """
    answer = _object(reply)
    violation = answer.get("violation")
    if not isinstance(violation, bool):
        raise JudgeReplyError(f"'violation' must be true or false, got {violation!r}")
    return Compliance(_whole(answer, "score", 1, 5), violation, str(answer.get("reason") or ""))


def compositional_compliance(scores: Sequence[int] | Tensor) -> float:
    """CCS, the compositional compliance score: the mean of the judge's scores.

    Args:
        scores: 1 to 5 each.

    Returns:
        1 to 5.

    Raises:
        ValueError: no scores, or one outside 1..5.

    Source: arXiv:2605.06512, section "Evaluation" (DCR: 4.13).
    """
    return _mean(scores, 1, 5, "compliance scores")


def compositional_violation_rate(violations: Sequence[bool] | Tensor) -> float:
    """CVR, the compositional violation rate: the share of images with the usual thing in place of the rare one.

    Args:
        violations: one boolean per image.

    Returns:
        0 to 1, smaller = better.

    Raises:
        ValueError: no images.

    Source: arXiv:2605.06512, section "Evaluation" (DCR: 0.31).
    """
    return _mean(violations, 0, 1, "violations")


def rarebench_instruction(prompt: str) -> str:
    """Ask how well an image fits a rare prompt, answered in lines instead of JSON.

    Args:
        prompt: the prompt.

    Returns:
        The instruction; it goes behind the image.

    Source: the 0 to 5 scale and the SCORE / EXPLANATION lines are those of krafton-ai/Rare-to-Frequent; our words, so
        values are comparable with each other, not with published ones.
    """
    return (
        f"How well does the image above fit the text {prompt!r}? Look at objects, their attributes, numbers and "
        "relations, not at beauty. Give a whole number: 5 = fits in everything; 4 = all important things, a small "
        "detail differs; 3 = most things, an important one is missing or wrong; 2 = some things; 1 = hardly anything; "
        "0 = nothing.\nAnswer in two lines:\nSCORE: the number\nEXPLANATION: why, in one or two sentences"
    )


def parse_rarebench(reply: str) -> RareScore:
    """Read the lines SCORE and EXPLANATION.

    Args:
        reply: the judge's words.

    Returns:
        Score and explanation.

    Raises:
        JudgeReplyError: no score, several different ones, or none of 0, 1, 2, 3, 4, 5.
    """
    found = set(_SCORE.findall(reply))
    if len(found) != 1:
        what = "no line SCORE" if not found else f"different scores ({', '.join(sorted(found))})"
        raise JudgeReplyError(f"the reply has {what}; exactly one 'SCORE: number' is needed")
    score = float(found.pop())
    if not score.is_integer() or not 0 <= score <= _RARE_TOP:
        raise JudgeReplyError(f"the score must be a whole number of 0 to {_RARE_TOP}, got {score:g}")
    explanation = _EXPLANATION.search(reply)
    return RareScore(int(score), explanation.group(1).strip() if explanation else "")


def rarebench_percentage(scores: Sequence[int] | Tensor) -> float:
    """RareBench's value: the mean score times 20.

    Args:
        scores: 0 to 5, one per prompt.

    Returns:
        0 to 100.

    Raises:
        ValueError: no scores, or one outside 0..5.

    Source: krafton-ai/Rare-to-Frequent, evaluation.
    """
    return 100 * _mean(scores, 0, _RARE_TOP, "RareBench scores") / _RARE_TOP


def edit_instruction() -> str:
    """Ask how well an edit follows an example.

    Returns:
        The instruction; it goes behind four images: example before, example after, query, result.

    Source: the two scores are those of Delta-Adapter and RelationAdapter; our words.
    """
    return (
        "Four images are shown above in this order: an example before an edit, the same example after the edit, "
        "another image, and the result of doing the same edit to that other image.\n"
        "accuracy, a whole number from 1 to 5: is the edit of the example done in the result? 5 = the same change, "
        "complete; 3 = in part; 1 = not at all, or another change.\n"
        "consistency, a whole number from 1 to 5: apart from this edit, is the result still the other image? 5 = "
        "nothing else changed; 3 = some things changed; 1 = it is another picture.\n"
        'Answer with one JSON object: {"accuracy": 1-5, "consistency": 1-5, "reason": "short"}'
    )


def parse_edit_scores(reply: str) -> EditScores:
    """Read an answer to ``edit_instruction``.

    Args:
        reply: the judge's words.

    Returns:
        Both scores and the reason.

    Raises:
        JudgeReplyError: no such JSON object, or a score that is no whole number of 1 to 5.
    """
    answer = _object(reply)
    accuracy, consistency = _whole(answer, "accuracy", 1, 5), _whole(answer, "consistency", 1, 5)
    return EditScores(accuracy, consistency, str(answer.get("reason") or ""))


def mean_edit_scores(scores: Sequence[EditScores]) -> tuple[float, float]:
    """GPT-A and GPT-C: the means of both scores.

    Args:
        scores: one per edit.

    Returns:
        Accuracy and consistency, 1 to 5.

    Raises:
        ValueError: no scores, or one outside 1..5.

    Source: Delta-Adapter, section "Evaluation" (GPT-A on unseen tasks: 4.008).
    """
    return (
        _mean([score.accuracy for score in scores], 1, 5, "accuracy scores"),
        _mean([score.consistency for score in scores], 1, 5, "consistency scores"),
    )


def _object(reply: str) -> dict[str, Any]:
    answer = parse_judge_json(reply)
    if not isinstance(answer, dict):
        raise JudgeReplyError("the reply is a JSON list, not an object")
    return answer


def _whole(answer: dict[str, Any], key: str, lowest: int, highest: int) -> int:
    value: Any = answer.get(key)
    # JSON's true is 1 in Python.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and lowest <= value <= highest and float(value).is_integer():
        return int(value)
    raise JudgeReplyError(f"{key!r} must be a whole number of {lowest} to {highest}, got {value!r}")


def _mean(values: Sequence[int] | Sequence[bool] | Tensor, lowest: int, highest: int, what: str) -> float:
    numbers = torch.as_tensor(values).double()
    if numbers.numel() == 0:
        raise ValueError(f"no {what}: there is no mean")
    worst = float(numbers.min()), float(numbers.max())
    if not (worst[0] >= lowest and worst[1] <= highest) or math.isnan(worst[0]):
        raise ValueError(f"{what} lie in {lowest}..{highest}, got {worst[0]:g}..{worst[1]:g}")
    return float(numbers.mean())
