"""Asking judges: replies that parse, replies that do not, and that neither becomes a number by accident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from lightning_gen.metrics.judging.judges import (
    JudgeError,
    JudgeReplyError,
    Message,
    ask,
    image_sha256,
    judge_name,
    parse_judge_json,
    text_of,
)


class ScriptedJudge:
    """Gives prepared replies in turn; an exception is raised."""

    name = "scripted"
    settings: Mapping[str, Any] = {}

    def __init__(self, *replies: str | Exception) -> None:
        self.replies = list(replies)
        self.messages: list[Message] = []

    def __call__(self, message: Message) -> str:
        self.messages.append(list(message))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


@pytest.mark.parametrize(
    "reply",
    [
        '{"a": [1]}',
        ' \n{"a": [1]}\n ',
        '```json\n{"a": [1]}\n```',
        '```\n{"a": [1]}\n```',
        'I looked closely.\n```json\n{"a": [1]}\n```\nThat is all.',
        '```json {"a": [1]} ```',
        '```json\n{"a": [1]}',
        '\ufeff{"a": [1]}',
        ' \ufeff```json\n{"a": [1]}\n```',
        'Sure! {"a": [1]}',
        'Picture [1] first.\n```json\n{"a": [1]}\n```',
    ],
)
def test_json_is_found(reply: str) -> None:
    assert parse_judge_json(reply) == {"a": [1]}


def test_fences_inside_a_text_are_left_alone() -> None:
    reply = '{"reason": "it says ```json\\n[1]```"}'
    assert parse_judge_json(reply) == {"reason": "it says ```json\n[1]```"}
    assert parse_judge_json(f"Sure! {reply}") == {"reason": "it says ```json\n[1]```"}
    assert parse_judge_json(f"```json\n{reply}\n```") == {"reason": "it says ```json\n[1]```"}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "not valid JSON"),
        ("pass", "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        ('{"a": 1} and more', "not valid JSON"),
        ('Sure! {"a": 1} and more', "not valid JSON"),
        ('```json\n{"a": 1} or not\n```', "holds more than JSON"),
        ('{"a": [1, 2', "ends in the middle"),
        ('Sure! {"a": [1, 2', "ends in the middle"),
        ('```json\n{"a": [1, 2', "ends in the middle"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 32 levels"),
        ("[" * 33 + "]" * 33, "nested deeper than 32 levels"),
        ('Sure! {"a": ' + "[" * 100_000, "nested deeper than 32 levels"),
        (None, "NoneType, no text"),
        ("3", "no object"),
        ('"pass"', "no object"),
        ("```\n[1]\n```\n```\n[2]\n```", "not valid JSON"),
    ],
)
def test_what_is_not_json_is_an_error(reply: Any, message: str) -> None:
    with pytest.raises(JudgeReplyError, match=message):
        parse_judge_json(reply)


def test_32_levels_are_read() -> None:
    assert parse_judge_json("[" * 32 + "]" * 32)


def test_a_judge_without_words_is_asked_again() -> None:
    judge = ScriptedJudge(None, "SCORE: 1")  # type: ignore[arg-type]
    answer = ask(judge, ["look"], lambda reply: reply.upper())
    assert (answer.parsed, answer.attempts) == ("SCORE: 1", 2)
    assert "NoneType, no text" in str(judge.messages[1][1])
    with pytest.raises(JudgeReplyError, match="NoneType, no text"):
        ask(ScriptedJudge(None), ["look"], str, attempts=1)  # type: ignore[arg-type]


def test_a_long_reply_is_quoted_in_part() -> None:
    with pytest.raises(JudgeReplyError) as caught:
        parse_judge_json("no " * 500)
    assert len(str(caught.value)) < 300


def test_asking_again_says_what_was_wrong() -> None:
    judge = ScriptedJudge("pass", '{"a": 1}')
    answer = ask(judge, ["look", torch.zeros(3, 2, 2, dtype=torch.uint8)], parse_judge_json)
    assert (answer.parsed, answer.reply, answer.attempts) == ({"a": 1}, '{"a": 1}', 2)
    assert len(judge.messages[0]) == 2
    assert "not valid JSON" in str(judge.messages[1][2])


def test_complaints_do_not_pile_up() -> None:
    judge = ScriptedJudge("no", "nein", "{}")
    ask(judge, ["look"], parse_judge_json)
    assert [len(message) for message in judge.messages] == [1, 2, 2]
    assert "'nein'" in str(judge.messages[2][1])


def test_a_judge_that_never_answers_properly_is_an_error() -> None:
    judge = ScriptedJudge(*["no"] * 5)
    with pytest.raises(JudgeReplyError, match="scripted gave no usable answer in 3 attempts; the last one: .*'no'"):
        ask(judge, ["look"], parse_judge_json)
    assert len(judge.messages) == 3


def test_an_answer_that_was_cut_off_is_asked_for_again() -> None:
    judge = ScriptedJudge(JudgeReplyError("cut off at max_tokens"), "{}")
    assert ask(judge, ["look"], parse_judge_json).attempts == 2
    assert "cut off" in str(judge.messages[1][1])


def test_a_judge_that_cannot_be_reached_is_not_asked_again() -> None:
    judge = ScriptedJudge(JudgeError("down"), "{}")
    with pytest.raises(JudgeError, match="down"):
        ask(judge, ["look"], parse_judge_json)
    assert len(judge.messages) == 1


def test_at_least_one_attempt() -> None:
    with pytest.raises(ValueError, match="at least once"):
        ask(ScriptedJudge(), ["look"], parse_judge_json, attempts=0)


def test_small_things() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    assert text_of(["a", image, "b"]) == "a\n[picture]\nb"
    assert image_sha256(image) == image_sha256(image.clone())
    assert image_sha256(image) != image_sha256(image.reshape(3, 1, 4)), "the size belongs to the picture"
    assert image_sha256(image.transpose(1, 2)) == image_sha256(image.transpose(1, 2).contiguous())
    assert judge_name("Qwen/Qwen3-VL-8B-Instruct") == "qwen3-vl-8b-instruct"
    with pytest.raises(ValueError, match="no name"):
        judge_name("/")
