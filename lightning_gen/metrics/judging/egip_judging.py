"""Asking a judge about one image of EGIP: the message, the rules it is told, and how its answer is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightning_gen.data.decode import decode_pixels
from lightning_gen.data.quarantine import SampleError
from lightning_gen.metrics.egip import CaseError
from lightning_gen.metrics.images import check_uint8
from lightning_gen.metrics.judging.egip_rules import CaseResult, Judgement, Verdicts, check_specification, judge_case
from lightning_gen.metrics.judging.gen_arena import GenArenaCase
from lightning_gen.metrics.judging.judges import Judge, JudgeError, JudgeReplyError, ask, image_sha256, parse_judge_json
from lightning_gen.metrics.protocol import file_sha256

__all__ = [
    "EGIP_INSTRUCTION_VERSION",
    "JudgedCase",
    "check_case",
    "egip_instruction",
    "egip_message",
    "judge_image",
    "judgement_key",
    "parse_verdicts",
    "score_verdicts",
]

EGIP_INSTRUCTION_VERSION: Final = 1
"""Goes into protocol details; another wording is another number."""

_RULES: Final = (
    "Judge whether the picture shows what was intended. Beauty, style and technical quality do not count, except where "
    "a constraint asks for them.",
    "Decide about all entities first, then about the constraints.",
    "An entity passes only if it is visible and is the right one: the named identity, kind or object.",
    "An entity with reference_ids must look like the reference images of these ids. A generic stand-in of the same "
    "kind fails.",
    "Judge each constraint directly by what the picture shows, whatever you decided about other items.",
    "Fail what the picture contradicts.",
    "Fail what is absent, hidden or too small to be recognised.",
    "Fail what you are not sure about. There is no third verdict.",
    "Give no credit for a substitute: another identity, wrong or illegible text, another result, relation or layout "
    "than the one that is asked for.",
)

_OUTPUT: Final = {
    "entities": [{"id": "entity id", "verdict": "pass | fail", "reason": "short", "evidence": "what is seen where"}],
    "constraints": [{"id": "constraint id", "verdict": "pass | fail", "reason": "short", "evidence": "what is seen"}],
}

_COMPLETENESS: Final = (
    "Answer with one valid JSON object in the form of output_schema and nothing else.",
    "Give exactly one item for every entity id and every constraint id.",
    "Add no ids that were not asked about.",
)


@dataclasses.dataclass(frozen=True)
class JudgedCase:
    """One row after its judge was asked.

    Attributes:
        outcome: the result, or the error that stands in its place.
        verdicts: what the judge said; None where there is no usable answer.
        reply: the judge's words; empty where there are none.
        attempts: how often the judge was asked; 0 where it was not.
    """

    outcome: CaseResult | CaseError
    verdicts: Verdicts | None = None
    reply: str = ""
    attempts: int = 0


def egip_instruction(case: GenArenaCase, strict_official: bool = False) -> str:
    """What the judge is asked to do, as JSON.

    Args:
        case: the row.
        strict_official: leave the prompt empty. The official program writes its evaluation file without the prompt, so
            its judge never sees it.

    Returns:
        Task, case, prompt, entities, constraints, nine rules, the form of the answer and when it is complete.

    Source: arXiv:2605.08043, the parts of the judge's message in nopnor/SCOPE, cli/gen_arena_eval.py; our words.
    deviates: the prompt is included unless ``strict_official``.
    """
    instruction = {
        "task": "Check one generated image against the entities and constraints of its prompt.",
        "case_id": case.case_id,
        "prompt": "" if strict_official else case.prompt,
        "entities": [
            {"id": entity.id, "name": entity.name, "reference_ids": list(entity.reference_ids)}
            for entity in case.entities
        ],
        "constraints": [
            {"id": item.id, "type": item.type, "text": item.text, "depends_on": list(item.depends_on)}
            for item in case.constraints
        ],
        "rules": list(_RULES),
        "output_schema": _OUTPUT,
        "completeness": list(_COMPLETENESS),
    }
    return json.dumps(instruction, ensure_ascii=False, indent=1)


def egip_message(case: GenArenaCase, image: Tensor, strict_official: bool = False) -> list[str | Tensor]:
    """The judge's message: the generated image, every reference image under its id, then the instruction.

    Args:
        case: the row.
        image: the generated image, uint8, (3, H, W).
        strict_official: see ``egip_instruction``.

    Returns:
        Texts and pictures in order.

    Raises:
        ValueError: not a uint8 picture.
        FileNotFoundError: a reference image is not there.
        SampleError: a reference image is damaged.
    """
    check_uint8([image], f"image of {case.case_id}")
    message: list[str | Tensor] = ["Generated image:", image]
    for reference in case.references:
        message += [f"Reference image {reference.id}:", _read_picture(reference.path)]
    return [*message, egip_instruction(case, strict_official)]


def parse_verdicts(reply: str) -> Verdicts:
    """Read a judge's answer.

    Entities and constraints are lists of objects with ``id`` and ``verdict``, or objects {id: verdict} or
    {id: {"verdict": ...}}. A list at the top holds constraints, so that all entities fail. A key that is missing means
    that nothing was said. Fenced JSON is unwrapped.

    Args:
        reply: the judge's words.

    Returns:
        Verdicts as they were written.

    Raises:
        JudgeReplyError: no JSON, or JSON without entities and constraints.
    """
    answer = parse_judge_json(reply)
    if isinstance(answer, list):
        answer = {"constraints": answer}
    if "entities" not in answer and "constraints" not in answer:
        keys = ", ".join(sorted(answer)[:5]) or "nothing"
        raise JudgeReplyError(f"the reply has neither 'entities' nor 'constraints', but {keys}")
    entities, lost = _judgements(answer.get("entities"), "entities")
    constraints, also_lost = _judgements(answer.get("constraints"), "constraints")
    return Verdicts(entities, constraints, lost + also_lost)


def check_case(case: GenArenaCase, strict_official: bool = False) -> None:
    """Refuse a row whose result would mean nothing; see ``egip_rules.check_specification``.

    Args:
        case: the row.
        strict_official: let a dangling dependency fail and an empty row pass, as the official program does.

    Raises:
        SpecificationError: names row and id.
    """
    check_specification(
        case.case_id,
        case.entities,
        case.constraints,
        dangling="fail" if strict_official else "error",
        empty="pass" if strict_official else "error",
    )


def score_verdicts(case: GenArenaCase, verdicts: Verdicts, strict_official: bool = False) -> CaseResult:
    """``judge_case`` for a row of the benchmark.

    Args:
        case: the row.
        verdicts: what the judge said.
        strict_official: see ``check_case``.

    Returns:
        The result.

    Raises:
        SpecificationError: see ``check_case``.
    """
    return judge_case(
        case.entities,
        case.constraints,
        verdicts,
        row=case.case_id,
        dangling="fail" if strict_official else "error",
        empty="pass" if strict_official else "error",
    )


def judge_image(
    case: GenArenaCase, image: Tensor, judge: Judge, attempts: int = 3, strict_official: bool = False
) -> JudgedCase:
    """Have one image judged; for a loop of one's own, as a ``test_step`` that feeds ``EGIP.update`` with the outcome.

    Args:
        case: the row.
        image: the generated image, uint8, (3, H, W).
        judge: whom to ask.
        attempts: how often to ask for an answer that parses.
        strict_official: see ``egip_instruction`` and ``check_case``.

    Returns:
        The result; or an error row where the judge gives no usable answer.

    Raises:
        SpecificationError: see ``check_case``.
        ValueError, FileNotFoundError, SampleError: see ``egip_message``.
    """
    check_case(case, strict_official)
    message = egip_message(case, image, strict_official)
    try:
        answer = ask(judge, message, parse_verdicts, attempts)
    except JudgeReplyError as error:
        return JudgedCase(CaseError("judge", str(error)), attempts=attempts)
    except JudgeError as error:
        return JudgedCase(CaseError("judge", str(error)), attempts=1)
    outcome = score_verdicts(case, answer.parsed, strict_official)
    return JudgedCase(outcome, answer.parsed, answer.reply, answer.attempts)


def judgement_key(case: GenArenaCase, image: Tensor, judge: Judge, strict_official: bool = False) -> str:
    """What a verdict depends on, as one hash: judge and settings, instruction, image and reference images.

    Args:
        case: the row.
        image: the generated image, uint8, (3, H, W).
        judge: whom to ask.
        strict_official: see ``egip_instruction``.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileNotFoundError: a reference image is not there.
    """
    parts = {
        "judge": judge.name,
        "settings": dict(judge.settings),
        "instruction": egip_instruction(case, strict_official),
        "image": image_sha256(image),
        "references": [[reference.id, file_sha256(reference.path)] for reference in case.references],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_picture(path: Path) -> Tensor:
    try:
        pixels = decode_pixels(path.read_bytes()).pixels
    except SampleError as error:
        raise SampleError(f"reference image {path}: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _judgements(items: Any, key: str) -> tuple[tuple[Judgement, ...], int]:
    """The items of one list and how many of them are about nothing."""
    if items is None:
        return (), 0
    if isinstance(items, Mapping):
        items = [
            {**value, "id": name} if isinstance(value, Mapping) else {"id": name, "verdict": value}
            for name, value in items.items()
        ]
    if not isinstance(items, list):
        raise JudgeReplyError(f"{key!r} of the reply is {type(items).__name__}, neither a list nor an object")
    judged = [item for item in items if isinstance(item, Mapping) and isinstance(item.get("id"), str | int)]
    found = tuple(
        Judgement(str(item["id"]), item.get("verdict"), str(item.get("reason") or ""), str(item.get("evidence") or ""))
        for item in judged
    )
    return found, len(items) - len(judged)
