"""What EGIP's judge is told, and how its answers are read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gen.data.quarantine import SampleError
from lightning_gen.metrics.egip import CaseError
from lightning_gen.metrics.judging.egip_judging import (
    egip_instruction,
    egip_message,
    judge_image,
    judgement_key,
    parse_verdicts,
    score_verdicts,
)
from lightning_gen.metrics.judging.egip_rules import CaseResult, SpecificationError, Verdicts
from lightning_gen.metrics.judging.judges import JudgeError, JudgeReplyError
from tests.harness.scripted_judge import ScriptedJudge, benchmark, image_of, verdict_json


def test_the_message_shows_the_image_then_references_then_the_task(tmp_path: Path) -> None:
    (case,) = benchmark(tmp_path, 1)
    label, image, reference_label, reference, instruction = egip_message(case, image_of(case))
    assert (label, reference_label) == ("Generated image:", "Reference image r1:")
    assert torch.equal(image, image_of(case))  # type: ignore[arg-type]
    assert torch.equal(reference, torch.tensor([200, 10, 30]).view(3, 1, 1).expand(3, 3, 4))  # type: ignore[arg-type]
    assert instruction == egip_instruction(case)


def test_the_instruction_holds_the_whole_row(tmp_path: Path) -> None:
    (case,) = benchmark(tmp_path, 1)
    told = json.loads(egip_instruction(case))
    assert (told["case_id"], told["prompt"]) == ("1-cartoon_000", "Hero 0 at a gate")
    assert told["entities"][0] == {"id": "e1", "name": "hero", "reference_ids": ["r1"]}
    assert told["constraints"][0]["depends_on"] == ["e1", "e2"]
    assert len(told["rules"]) == 9
    assert set(told["output_schema"]) == {"entities", "constraints"}


def test_the_official_judge_does_not_see_the_prompt(tmp_path: Path) -> None:
    (case,) = benchmark(tmp_path, 1)
    assert json.loads(egip_instruction(case, strict_official=True))["prompt"] == ""


@pytest.mark.parametrize(
    "reply",
    [
        {"entities": [{"id": "e1", "verdict": "pass"}], "constraints": [{"id": "c1", "verdict": "fail"}]},
        {"entities": {"e1": "pass"}, "constraints": {"c1": "fail"}},
        {"entities": {"e1": {"verdict": "pass"}}, "constraints": {"c1": {"verdict": "fail"}}},
    ],
)
def test_all_shapes_of_an_answer_mean_the_same(reply: dict[str, Any]) -> None:
    for text in (json.dumps(reply), f"```json\n{json.dumps(reply)}\n```"):
        verdicts = parse_verdicts(text)
        assert [(item.id, item.verdict) for item in verdicts.entities] == [("e1", "pass")]
        assert [(item.id, item.verdict) for item in verdicts.constraints] == [("c1", "fail")]


def test_a_bare_list_holds_constraints_and_fails_the_entities(tmp_path: Path) -> None:
    (case,) = benchmark(tmp_path, 1)
    names = ("e1", "e2", "c1", "c2")
    verdicts = parse_verdicts(json.dumps([{"id": name, "verdict": "pass"} for name in names]))
    result = score_verdicts(case, verdicts)
    assert result.direct == {"c1": True, "c2": True}
    assert result.gated == {"c1": False, "c2": True}
    assert not any(result.entities.values())
    assert result.completeness.omitted == ("entity:e1", "entity:e2")
    assert result.completeness.extra == ("constraint:e1", "constraint:e2")


def test_items_about_nothing_are_counted() -> None:
    verdicts = parse_verdicts('{"entities": [{"verdict": "pass"}, "e1", {"id": 7, "verdict": "pass"}]}')
    assert verdicts.num_unreadable == 2
    assert [item.id for item in verdicts.entities] == ["7"]
    assert verdicts.constraints == ()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("All good!", "not valid JSON"),
        ('{"entities": [{"id": "e1", "verdict": "pa', "ends in the middle|not valid JSON"),
        ('{"verdict": "pass"}', "neither 'entities' nor 'constraints', but verdict"),
        ("{}", "but nothing"),
        ('{"entities": "pass", "constraints": []}', "'entities' of the reply is str"),
    ],
)
def test_malformed_answers_are_errors(reply: str, message: str) -> None:
    with pytest.raises(JudgeReplyError, match=message):
        parse_verdicts(reply)


def test_one_image_is_judged(tmp_path: Path) -> None:
    (case,) = benchmark(tmp_path, 1)
    judged = judge_image(case, image_of(case), ScriptedJudge(lambda told: verdict_json(told, failing=("e2",))))
    assert isinstance(judged.outcome, CaseResult)
    assert judged.outcome.gated == {"c1": False, "c2": True}
    assert judged.attempts == 1
    assert judged.verdicts is not None
    assert judged.verdicts.entities[0].reason == "seen"


def test_malformed_answers_become_an_error_row_after_the_limit(tmp_path: Path) -> None:
    (case,) = benchmark(tmp_path, 1)
    judge = ScriptedJudge(lambda told: '{"entities": [')
    judged = judge_image(case, image_of(case), judge, attempts=2)
    assert isinstance(judged.outcome, CaseError)
    assert judged.outcome.kind == "judge"
    assert "no usable answer in 2 attempts" in judged.outcome.message
    assert (judged.attempts, len(judge.messages)) == (2, 2)


def test_an_unreachable_judge_makes_an_error_row(tmp_path: Path) -> None:
    (case,) = benchmark(tmp_path, 1)

    def fail(told: dict[str, Any]) -> str:
        raise JudgeError("no answer after 6 attempts")

    judged = judge_image(case, image_of(case), ScriptedJudge(fail))
    assert judged.outcome == CaseError("judge", "no answer after 6 attempts")


def test_a_row_without_meaning_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    (case,) = benchmark(tmp_path, 1)
    judge = ScriptedJudge(verdict_json)
    dangling = dataclasses.replace(case, entities=case.entities[:1])
    with pytest.raises(SpecificationError, match="depends on entity 'e2'"):
        judge_image(dangling, image_of(case), judge)
    empty = dataclasses.replace(case, entities=(), constraints=())
    with pytest.raises(SpecificationError, match="neither"):
        judge_image(empty, image_of(case), judge)
    assert judge.messages == []
    official = judge_image(dangling, image_of(case), judge, strict_official=True).outcome
    assert isinstance(official, CaseResult)
    assert official.gated == {"c1": False, "c2": True}
    assert score_verdicts(empty, Verdicts(), strict_official=True).passed


def test_images_and_references_must_be_pictures(tmp_path: Path) -> None:
    (case,) = benchmark(tmp_path, 1)
    with pytest.raises(ValueError, match="image of 1-cartoon_000.*float32"):
        egip_message(case, torch.zeros(3, 4, 5))
    case.references[0].path.write_bytes(b"no picture")
    with pytest.raises(SampleError, match="hero.png"):
        egip_message(case, image_of(case))
    case.references[0].path.unlink()
    with pytest.raises(FileNotFoundError, match="hero.png"):
        egip_message(case, image_of(case))


def test_the_key_follows_everything_a_verdict_depends_on(tmp_path: Path) -> None:
    first, second = benchmark(tmp_path, 2)
    judge = ScriptedJudge(verdict_json)
    image = image_of(first)
    key = judgement_key(first, image, judge)
    assert judgement_key(first, image.clone(), ScriptedJudge(verdict_json)) == key
    others = {
        judgement_key(second, image, judge),
        judgement_key(first, image + 1, judge),
        judgement_key(first, image, ScriptedJudge(verdict_json, name="other")),
        judgement_key(first, image, ScriptedJudge(verdict_json, temperature=0.7)),
        judgement_key(first, image, judge, strict_official=True),
    }
    first.references[0].path.write_bytes(b"another file")
    others.add(judgement_key(first, image, judge))
    assert len(others) == 6
    assert key not in others
