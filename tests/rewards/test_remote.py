"""Rewards, text readers and judges behind an address, over real connections to a server that fails as it is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.metrics.judging.http_client import ServerError
from lightning_gen.metrics.judging.http_judge import HTTPJudge
from lightning_gen.metrics.judging.judges import JudgeReplyError, Message
from lightning_gen.rewards.judged import UnifiedReward, parse_final_score
from lightning_gen.rewards.remote import RemoteReward, RemoteTextReader, ServerScale
from lightning_gen.rewards.text import OCRReward
from tests.harness.reward_server import RewardServer, brightness, picture_of

KEY = "sk-very-secret"
UNIT = ServerScale(0, 1, 1)
IMAGES = torch.rand(5, 3, 6, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c", "d", "e"]
RECORDS: list[dict[str, Any]] = [{"n": number} for number in range(5)]
MEANS = unit_to_uint8(IMAGES).float().mean((1, 2, 3)) / 255


@pytest.fixture
def server() -> Iterator[RewardServer]:
    with RewardServer() as started:
        yield started


def remote(server: RewardServer, scale: ServerScale = UNIT, **arguments: Any) -> RemoteReward:
    options = {"first_wait": 0.01, "attempts": 2, "timeout": 5.0, "batch_size": 2, **arguments}
    return RemoteReward(server.url, "bright", scale, **options)


def answering(*scores: Any) -> tuple[int, bytes]:
    return 200, json.dumps({"scores": scores}).encode()


def test_scores_come_in_order_whatever_the_order_of_the_answers(server: RewardServer) -> None:
    scores = remote(server, send_metadata=True)(IMAGES, PROMPTS, RECORDS)
    torch.testing.assert_close(scores, MEANS)
    asked = {tuple(request["prompts"]): request for request in server.requests}
    assert sorted(asked) == [("a", "b"), ("c", "d"), ("e",)]
    assert asked["c", "d"]["metadata"] == RECORDS[2:4]
    assert asked["e",]["model"] == "bright"
    assert torch.equal(picture_of(asked["e",]["images"][0]), unit_to_uint8(IMAGES[4]))


def test_metadata_stay_here_unless_wanted(server: RewardServer) -> None:
    remote(server)(IMAGES[:1], PROMPTS[:1], RECORDS[:1])
    assert "metadata" not in server.requests[0]


def test_numbers_are_divided_and_those_of_another_scale_refused(server: RewardServer) -> None:
    server.script = [answering(5, 1)]
    deqa = remote(server, ServerScale(1, 5, 5))
    assert deqa(IMAGES[:2], PROMPTS[:2], RECORDS[:2]).tolist() == pytest.approx([1.0, 0.2])
    server.script = [answering(5, 0.4)]
    with pytest.raises(ServerError, match=r"score 1 of 2 is 0.4, outside \[1, 5\]: is the server's scale another"):
        deqa(IMAGES[:2], PROMPTS[:2], RECORDS[:2])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"scores": [0.5]}', "1 scores for 2 pictures"),
        (b'{"scores": [0.5, 0.5, 0.5]}', "3 scores for 2 pictures"),
        (b'{"scores": [0.5, NaN]}', "score 1 of 2 is nan, no finite number"),
        (b'{"scores": [Infinity, 0]}', "score 0 of 2 is inf"),
        (b'{"scores": [0.5, null]}', "score 1 of 2 is None"),
        (b'{"scores": [true, 0.5]}', "score 0 of 2 is True"),
        (b'{"scores": ["0.5", 0.5]}', "score 0 of 2 is '0.5'"),
        (b'{"score": [0.5, 0.5]}', 'must be an object with a list "scores"'),
        (b"[0.5, 0.5]", 'must be an object with a list "scores"'),
    ],
)
def test_answers_of_another_form_are_refused_at_once(server: RewardServer, body: bytes, message: str) -> None:
    server.script = [(200, body)]
    with pytest.raises(ServerError, match=message):
        remote(server)(IMAGES[:2], PROMPTS[:2], RECORDS[:2])
    assert len(server.requests) == 1


@pytest.mark.parametrize("failure", [(503, b"busy"), (200, b"<html>starting</html>"), (200, b"[" * 9999), "silent"])
def test_what_may_pass_is_tried_again_and_ends(server: RewardServer, failure: Any) -> None:
    server.script = [failure]
    reward = remote(server, timeout=0.5 if failure == "silent" else 5.0)
    torch.testing.assert_close(reward(IMAGES[:2], PROMPTS[:2], RECORDS[:2]), MEANS[:2])
    server.script = [failure] * 2
    with pytest.raises(ServerError, match="failed 2 times; the last time"):
        reward(IMAGES[:2], PROMPTS[:2], RECORDS[:2])


def test_an_answer_without_end_is_cut_off(server: RewardServer) -> None:
    server.script = ["endless"]
    with pytest.raises(ServerError, match="is longer than 1048576 bytes"):
        remote(server)(IMAGES[:2], PROMPTS[:2], RECORDS[:2])


def test_a_redirect_is_not_followed(server: RewardServer) -> None:
    with RewardServer() as other:
        server.script = [f"redirect {other.url}"]
        with pytest.raises(ServerError, match="refuses the request: status 302"):
            remote(server)(IMAGES[:2], PROMPTS[:2], RECORDS[:2])
        assert other.requests == []


def test_the_key_is_sent_and_shown_nowhere(
    server: RewardServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("REWARD_KEY", KEY)
    reward = remote(server, key_variable="REWARD_KEY")
    reward(IMAGES[:1], PROMPTS[:1], RECORDS[:1])
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    server.script = [(401, f"bad key {KEY}".encode())]
    with pytest.raises(ValueError, match=r"bad key \*\*\*: check the address, the model 'bright' and the key") as error:
        reward(IMAGES[:1], PROMPTS[:1], RECORDS[:1])
    assert KEY not in "\n".join([str(error.value), repr(reward), reward.fingerprint, caplog.text])
    with pytest.raises(ValueError, match="NOBODYS_KEY, which holds the reward server's key, is not set"):
        remote(server, key_variable="NOBODYS_KEY")(IMAGES[:1], PROMPTS[:1], RECORDS[:1])


def test_fingerprints_tell_what_decides_and_no_secret() -> None:
    def mark(url: str = "http://h/x", model: str = "m", scale: ServerScale = UNIT, revision: str = "") -> str:
        return RemoteReward(url, model, scale, revision).fingerprint

    assert mark("http://me:word@h/x?key=1") == mark()
    others = [mark("http://h/y"), mark(model="n"), mark(scale=ServerScale(0, 1, 2)), mark(revision="2")]
    assert len({mark(), *others}) == 5


def test_metadata_that_are_no_json_are_refused(server: RewardServer) -> None:
    with pytest.raises(ValueError, match="no JSON"):
        remote(server, send_metadata=True)(IMAGES[:1], PROMPTS[:1], [{"x": float("nan")}])


@pytest.mark.parametrize(("scale", "word"), [((5, 1, 5), "least"), ((0, 1, 0), "divisor"), ((0, 1, -1), "divisor")])
def test_scales_make_sense(scale: tuple[float, float, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ServerScale(*scale)


# ------------------------------------------------------------------ text


def lines(request: dict[str, Any]) -> Any:
    return {"lines": [[["OP", 0.9], ["EN", 0.8], ["noise", 0.0]] for _ in request["images"]]}


def test_a_remote_reader_reads_for_the_ocr_reward() -> None:
    with RewardServer(lines) as server:
        reward = OCRReward(RemoteTextReader(server.url, first_wait=0.01, attempts=1), threads=2)
        scores = reward(IMAGES[:3], ['a sign "open"', 'a sign "often"', "a sign"], RECORDS[:3])
        assert scores[:2].tolist() == pytest.approx([1.0, 1 - 2 / 5])
        assert scores[2].isnan()
        assert len(server.requests) == 2
        assert reward.background
        server.script = [(400, b"no")]
        with pytest.raises(ServerError, match="refuses"):
            reward(IMAGES[:2], ['a sign "open"'] * 2, RECORDS[:2])


@pytest.mark.parametrize("answer", [[["A"]], [["A", 2]], [[1, 0.5]], "text", [["A", None]]])
def test_lines_of_another_form_are_refused(answer: Any) -> None:
    with RewardServer(lambda _: {"lines": [answer]}) as server, pytest.raises(ServerError, match="lines are"):
        RemoteTextReader(server.url, attempts=1)(unit_to_uint8(IMAGES[0]))


# ------------------------------------------------------------------ a judge


def test_a_judge_behind_an_address_gives_a_fifth_of_its_score() -> None:
    def answer(request: dict[str, Any]) -> Any:
        picture, question = request["messages"][0]["content"]
        assert picture["type"] == "image_url"
        number = {"a": "4", "b": "2.5"}[question["text"].rpartition(" ")[2]]
        return {"choices": [{"message": {"content": f"It is 5 of 7. Final Score: **{number}**"}}]}

    with RewardServer(answer) as server:
        judge = HTTPJudge(server.url, "UnifiedReward", json_mode=False, attempts=1)
        reward = UnifiedReward(judge, question="Caption: {prompt}")
        assert reward(IMAGES[:2], PROMPTS[:2], RECORDS[:2]).tolist() == pytest.approx([0.8, 0.5])


class Wordy:
    name, settings = "wordy", {"judge_temperature": 0.0}

    def __init__(self, *replies: str) -> None:
        self.replies = list(replies)

    def __call__(self, message: Message) -> str:
        return self.replies.pop(0)


def test_an_answer_without_a_score_is_asked_for_again_and_never_a_number() -> None:
    assert float(UnifiedReward(Wordy("nice", "Final Score: 5"))(IMAGES[:1], ["a"], [{}])) == 1
    with pytest.raises(JudgeReplyError, match="wordy gave no usable answer in 2 attempts"):
        UnifiedReward(Wordy("nice", "good"), attempts=2)(IMAGES[:1], ["a"], [{}])


@pytest.mark.parametrize("reply", ["Final Score: 6", "Final Score: 0", "Final Score: -3", "Score: 3", "Final Score:"])
def test_numbers_outside_the_scale_are_no_scores(reply: str) -> None:
    with pytest.raises(JudgeReplyError):
        parse_final_score(reply)


def test_the_last_score_counts() -> None:
    assert parse_final_score("I would say Final Score: 2, no: Final Score: 3.5") == 3.5


def test_brightness_is_what_the_harness_says() -> None:
    assert brightness({"images": []}) == {"scores": []}
