"""Scores by rubric: only answers in the form that was asked for become numbers."""

from __future__ import annotations

import pytest
import torch

from lightning_gen.metrics.judging.judges import JudgeReplyError
from lightning_gen.metrics.judging.rubrics import (
    EditScores,
    RareScore,
    compliance_instruction,
    compositional_compliance,
    compositional_violation_rate,
    edit_instruction,
    mean_edit_scores,
    parse_compliance,
    parse_edit_scores,
    parse_rarebench,
    rarebench_instruction,
    rarebench_percentage,
)


def test_instructions_hold_what_is_asked() -> None:
    text = compliance_instruction("a snowy beach", "snow", "sand")
    assert all(part in text for part in ("'a snowy beach'", "'snow'", "'sand'", '"violation"'))
    assert "'a banana shaped pumpkin'" in rarebench_instruction("a banana shaped pumpkin")
    assert "SCORE:" in rarebench_instruction("x")
    assert '"consistency"' in edit_instruction()


def test_compliance_is_read() -> None:
    assert parse_compliance('```json\n{"score": 4, "violation": false, "reason": "snow"}\n```') == (4, False, "snow")
    assert parse_compliance('{"score": 2.0, "violation": true}') == (2, True, "")


@pytest.mark.parametrize(
    "reply",
    [
        '{"score": 0, "violation": false}',
        '{"score": 6, "violation": false}',
        '{"score": 3.5, "violation": false}',
        '{"score": "4", "violation": false}',
        '{"score": true, "violation": false}',
        '{"score": null, "violation": false}',
        '{"score": NaN, "violation": false}',
        '{"violation": false}',
        '{"score": 4, "violation": "no"}',
        '{"score": 4}',
        "[4, false]",
        "4",
    ],
)
def test_other_compliance_answers_are_errors(reply: str) -> None:
    with pytest.raises(JudgeReplyError):
        parse_compliance(reply)


def test_compliance_and_violations_are_means() -> None:
    assert compositional_compliance([5, 4, 3, 5]) == 4.25
    assert compositional_violation_rate([True, False, False, False]) == 0.25
    assert compositional_violation_rate(torch.tensor([True, True])) == 1.0


@pytest.mark.parametrize(
    "reply",
    [
        "SCORE: 4\nEXPLANATION: the shape is right",
        "**SCORE**: 4\n**EXPLANATION**: the shape is right",
        "### SCORE = 4\n\nEXPLANATION: the shape is right",
        "EXPLANATION: the shape is right\nScore: 4",
        "SCORE\n4\nEXPLANATION:\nthe shape is right",
    ],
)
def test_rarebench_lines_are_read(reply: str) -> None:
    answer = parse_rarebench(reply)
    assert answer.score == 4
    assert answer.explanation.startswith("the shape is right")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("it fits well, 4 of 5", "no line SCORE"),
        ("SCORE: 6\nEXPLANATION: x", "0 to 5, got 6"),
        ("SCORE: -1", "got -1"),
        ("SCORE: 3.5", "got 3.5"),
        ("SCORE: four", "no line SCORE"),
        ("SCORE: 4\nSCORE: 2", "different scores"),
        ("", "no line SCORE"),
    ],
)
def test_other_rarebench_answers_are_errors(reply: str, message: str) -> None:
    with pytest.raises(JudgeReplyError, match=message):
        parse_rarebench(reply)


def test_rarebench_is_the_mean_times_twenty() -> None:
    scores = [parse_rarebench(f"SCORE: {score}\nEXPLANATION: x") for score in (5, 4, 0)]
    assert scores[2] == RareScore(0, "x")
    assert rarebench_percentage([answer.score for answer in scores]) == 60.0


def test_edit_scores_are_read_and_averaged() -> None:
    answer = parse_edit_scores('{"accuracy": 4, "consistency": 5, "reason": "ok"}')
    assert answer == EditScores(4, 5, "ok")
    assert mean_edit_scores([answer, EditScores(3, 1, "")]) == (3.5, 3.0)
    for bad in ('{"accuracy": 4}', '{"accuracy": 4, "consistency": 0}', '{"accuracy": "5", "consistency": 5}'):
        with pytest.raises(JudgeReplyError):
            parse_edit_scores(bad)


def test_means_of_nothing_or_of_other_scales_are_refused() -> None:
    for call in (
        lambda: compositional_compliance([]),
        lambda: compositional_compliance([0, 4]),
        lambda: compositional_violation_rate([]),
        lambda: rarebench_percentage([6]),
        lambda: mean_edit_scores([]),
        lambda: mean_edit_scores([EditScores(9, 1, "")]),
        lambda: compositional_compliance(torch.tensor([float("nan")])),
    ):
        with pytest.raises(ValueError, match="no |lie in"):
            call()
