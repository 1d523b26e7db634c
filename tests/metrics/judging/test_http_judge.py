"""The judge behind an address, asked over a real connection to a server that fails as it is told."""

from __future__ import annotations

import base64
import http.server
import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.metrics.judging.http_judge import HTTPJudge
from lightning_gen.metrics.judging.judges import JudgeError, JudgeReplyError

GOOD = json.dumps({"choices": [{"message": {"content": '{"entities": []}'}, "finish_reason": "stop"}]}).encode()
KEY = "sk-very-secret"


class Endpoint:
    """Answers every request with the next step of a script: (status, body), "silent" or "drip"."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.closing = threading.Event()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.requests.append((dict(self.headers), json.loads(body)))
                step = owner.script.pop(0) if owner.script else (200, GOOD)
                if step == "silent":
                    owner.closing.wait(10)
                    return
                status, data = (200, GOOD) if step == "drip" else step
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                for start in range(0, len(data), 8 if step == "drip" else len(data) or 1):
                    self.wfile.write(data[start : start + (8 if step == "drip" else len(data))])
                    if step == "drip" and owner.closing.wait(0.05):
                        return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/chat/completions"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
    server = Endpoint()
    threading.Thread(target=server.server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.closing.set()
    server.server.shutdown()
    server.server.server_close()


def judge(endpoint: Endpoint, **arguments: Any) -> HTTPJudge:
    return HTTPJudge(endpoint.url, "Some/Model-1", **{"first_wait": 0.01, "attempts": 3, "timeout": 5.0, **arguments})


def test_texts_and_pictures_arrive_in_order(endpoint: Endpoint) -> None:
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert judge(endpoint)(["Generated image:", picture, "Judge it."]) == '{"entities": []}'
    _, body = endpoint.requests[0]
    assert (body["model"], body["temperature"], body["response_format"]) == (
        "Some/Model-1",
        0.0,
        {"type": "json_object"},
    )
    first, second, third = body["messages"][0]["content"]
    assert (first["text"], third["text"]) == ("Generated image:", "Judge it.")
    head, _, data = second["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    arrived = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.array_equal(arrived, picture.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "failure",
    [
        (503, b""),
        (429, b"slow down"),
        (500, b"oops"),
        (400, b'{"error": "Rate limit reached"}'),
        (200, b"<html>gateway</html>"),
        (200, b'{"choices": []}'),
        (200, b"[" * 100_000),
    ],
)
def test_passing_failures_are_tried_again(endpoint: Endpoint, failure: tuple[int, bytes]) -> None:
    endpoint.script = [failure, failure]
    assert judge(endpoint)(["x"]) == '{"entities": []}'
    assert len(endpoint.requests) == 3


def test_a_silent_server_is_given_up_and_asked_again(endpoint: Endpoint) -> None:
    endpoint.script = ["silent"]
    start = time.monotonic()
    assert judge(endpoint, timeout=0.3)(["x"]) == '{"entities": []}'
    assert 0.3 <= time.monotonic() - start < 5


def test_a_dripping_answer_is_given_up(endpoint: Endpoint) -> None:
    endpoint.script = ["drip", "drip"]
    with pytest.raises(JudgeError, match="failed 2 times; the last time: TimeoutError: the answer took too long"):
        judge(endpoint, timeout=0.15, attempts=2)(["x"])


def test_attempts_end(endpoint: Endpoint) -> None:
    endpoint.script = [(503, b"busy")] * 9
    with pytest.raises(JudgeError, match="failed 3 times; the last time: status 503: busy"):
        judge(endpoint)(["x"])
    assert len(endpoint.requests) == 3


def test_nobody_there_is_an_error() -> None:
    os.environ["no_proxy"] = "127.0.0.1"
    with pytest.raises(JudgeError, match="failed 2 times.*refused"):
        HTTPJudge("http://127.0.0.1:9/x", "m", attempts=2, first_wait=0.01)(["x"])


def test_waits_double_up_to_a_longest_one(monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    endpoint.script = [(503, b"")] * 6
    with pytest.raises(JudgeError):
        HTTPJudge(endpoint.url, "m")(["x"])
    assert len(waits) == 5
    for wait, least in zip(waits, (2, 4, 8, 16, 30), strict=True):
        assert least <= wait <= least + min(1, least / 4)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_set_up_ends_the_run(endpoint: Endpoint, status: int) -> None:
    endpoint.script = [(status, b"no")]
    with pytest.raises(ValueError, match=f"status {status}: no: check the address, the model 'Some/Model-1'"):
        judge(endpoint)(["x"])
    assert len(endpoint.requests) == 1


def test_a_refused_request_is_an_error_of_this_row(endpoint: Endpoint) -> None:
    endpoint.script = [(400, b"content filter")]
    with pytest.raises(JudgeError, match="refuses the request: status 400: content filter"):
        judge(endpoint)(["x"])


def test_a_redirect_is_not_followed(endpoint: Endpoint) -> None:
    endpoint.script = [(302, b"")]
    with pytest.raises(JudgeError, match="status 302"):
        judge(endpoint)(["x"])
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"message": {"content": '{"a'}, "finish_reason": "length"}, "cut off at max_tokens"),
        ({"message": {"content": None}, "finish_reason": "content_filter"}, "without text.*content_filter"),
    ],
)
def test_an_answer_without_its_end_is_no_answer(endpoint: Endpoint, choice: dict[str, Any], message: str) -> None:
    endpoint.script = [(200, json.dumps({"choices": [choice]}).encode())]
    with pytest.raises(JudgeReplyError, match=message):
        judge(endpoint)(["x"])


def test_content_in_parts_is_joined(endpoint: Endpoint) -> None:
    parts = [{"type": "text", "text": "{"}, {"type": "text", "text": None}, {"type": "text", "text": "}"}]
    endpoint.script = [(200, json.dumps({"choices": [{"message": {"content": parts}}]}).encode())]
    assert judge(endpoint, json_mode=False)(["x"]) == "{}"
    assert "response_format" not in endpoint.requests[0][1]


def test_the_key_is_sent_and_shown_nowhere(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    asked = judge(endpoint, key_variable="JUDGE_KEY")
    asked.url = endpoint.url + f"?key={KEY}"
    endpoint.script = [(200, GOOD), (401, f"bad key {KEY}".encode())]
    asked(["x"])
    assert endpoint.requests[0][0]["Authorization"] == f"Bearer {KEY}"
    with pytest.raises(ValueError, match=r"bad key \*\*\*") as caught:
        asked(["x"])
    shown = "\n".join([str(caught.value), repr(asked), repr(asked.settings), caplog.text])
    assert KEY not in shown


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match="JUDGE_KEY_OF_NOBODY, which holds the judge's key, is not set"):
        HTTPJudge("http://127.0.0.1:9/x", "m", key_variable="JUDGE_KEY_OF_NOBODY")(["x"])


def test_settings_name_what_decides_and_no_secret() -> None:
    asked = HTTPJudge("https://user:word@host.example/v1?key=abc", "Owner/Model")
    assert asked.name == "model"
    assert asked.settings["judge_url"] == "https://host.example/v1"
    assert asked.settings["judge_temperature"] == 0.0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="http://"):
        HTTPJudge("file:///etc/passwd", "m")
    with pytest.raises(ValueError, match="attempts"):
        HTTPJudge("http://h/x", "m", attempts=0)
