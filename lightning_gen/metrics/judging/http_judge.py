"""A judge behind a web address that speaks the chat-completions protocol: a hosted model, or vLLM or llama.cpp here."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from torch import Tensor

from lightning_gen.metrics.judging.judges import JudgeError, JudgeReplyError, Message, judge_name
from lightning_gen.metrics.protocol import Detail

__all__ = ["HTTPJudge"]

_PIECE: Final = 1 << 16
_LARGEST_REPLY: Final = 1 << 24
_LIMITED: Final = ("rate limit", "rate_limit", "ratelimit", "quota exceeded", "resource_exhausted", "overloaded")
_SETUP_CODES: Final = (401, 403, 404)


class _TryAgain(Exception):
    """A failure that may pass."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another machine; it becomes an error instead."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class HTTPJudge:
    """A vision-language model asked over HTTP.

    A request that times out, breaks off, or is answered with 429, 5xx or words about a rate limit is made again, up to
    ``attempts`` times; before attempt k + 1 the caller waits d_k + U(0, min(1, d_k / 4)) seconds,
    d_k = min(``longest_wait``, ``first_wait`` * 2^(k - 1)).

    The key is read from an environment variable at every request and is kept nowhere, not in settings or messages.

    Args:
        url: address of the endpoint, for instance ``http://localhost:8000/v1/chat/completions``.
        model: name of the model there.
        key_variable: name of the environment variable that holds the API key; None = send no key.
        temperature: of sampling; 0 = the likeliest answer.
        max_tokens: longest answer.
        json_mode: ask the endpoint for a JSON object; off for answers in lines and for endpoints without this mode.
        timeout: seconds until one request is given up.
        attempts: requests per question, at least 1.
        first_wait: seconds, d_1.
        longest_wait: seconds.
        name: short name for protocol ids; default: the model's.

    Raises:
        ValueError: an address that is not http or https, or ``attempts`` smaller than 1.

    Source: timeout, attempts and waits of nopnor/SCOPE, judge_backend.py.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str | None = None,
        temperature: float = 0.0,
        max_tokens: int = 16384,
        json_mode: bool = True,
        timeout: float = 180.0,
        attempts: int = 6,
        first_wait: float = 2.0,
        longest_wait: float = 30.0,
        name: str | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"the address of a judge starts with http:// or https://, got {url!r}")
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {attempts}")
        self.url = url
        self.model = model
        self.key_variable = key_variable
        self.timeout = timeout
        self.attempts = attempts
        self.first_wait = first_wait
        self.longest_wait = longest_wait
        self.name = judge_name(name or model)
        self._body = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        if json_mode:
            self._body["response_format"] = {"type": "json_object"}
        self.settings: Mapping[str, Detail] = {
            "judge_model": model,
            "judge_url": _without_query(url),
            "judge_temperature": temperature,
            "judge_max_tokens": max_tokens,
            "judge_json_mode": json_mode,
        }
        # As this process is asked to reach the network (proxies of the environment), but without redirects.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, message: Message) -> str:
        """Ask, with patience.

        Args:
            message: texts and pictures.

        Returns:
            The answer.

        Raises:
            JudgeReplyError: the answer was cut off at ``max_tokens``, refused, or is no text.
            JudgeError: every attempt failed, or the endpoint refuses this request.
            ValueError: the key's variable is not set, or the endpoint does not know key, model or address: no question
                of this run can be answered.
        """
        content = [_part(part) for part in message]
        data = json.dumps({**self._body, "messages": [{"role": "user", "content": content}]}).encode()
        for attempt in range(1, self.attempts + 1):
            try:
                return _answer(self._request(data), self.name)
            except _TryAgain as error:
                problem = error
                if attempt < self.attempts:
                    time.sleep(self._wait(attempt))
        raise JudgeError(f"{_without_query(self.url)} failed {self.attempts} times; the last time: {problem}")

    def _wait(self, attempt: int) -> float:
        delay = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 1))
        # Only spreads clients in time; no result depends on it.
        return delay + random.SystemRandom().uniform(0, min(1.0, delay / 4))

    def _request(self, data: bytes) -> bytes:
        key = self._key()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        deadline = time.monotonic() + self.timeout
        try:
            request = urllib.request.Request(self.url, data, headers)
            with self._opener.open(request, timeout=self.timeout) as response:
                return _read(response, deadline)
        except urllib.error.HTTPError as error:
            text = _excerpt(error, key)
            problem = f"status {error.code}{': ' + text if text else ''}"
            if error.code == 429 or error.code >= 500 or any(word in text.lower() for word in _LIMITED):
                raise _TryAgain(problem) from None
            if error.code in _SETUP_CODES:
                raise ValueError(
                    f"{_without_query(self.url)} answers {problem}: check the address, the model {self.model!r} and "
                    f"the key (variable {self.key_variable})"
                ) from None
            raise JudgeError(f"{_without_query(self.url)} refuses the request: {problem}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _TryAgain(f"{type(error).__name__}: {reason}" if str(reason) else type(error).__name__) from None

    def _key(self) -> str:
        if self.key_variable is None:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ValueError(f"the environment variable {self.key_variable}, which holds the judge's key, is not set")
        return key


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body in pieces: the socket's timeout alone never ends an answer that drips."""
    data = bytearray()
    while piece := response.read1(_PIECE):
        data += piece
        if time.monotonic() > deadline:
            raise TimeoutError("the answer took too long")
        if len(data) > _LARGEST_REPLY:
            raise JudgeError(f"the answer is longer than {_LARGEST_REPLY} bytes")
    return bytes(data)


def _excerpt(error: urllib.error.HTTPError, key: str) -> str:
    try:
        text = " ".join(error.read(2000).decode("utf-8", "replace").split())
    except (OSError, http.client.HTTPException):
        return ""
    return (text.replace(key, "***") if key else text)[:200]


def _answer(body: bytes, name: str) -> str:
    try:
        choice = json.loads(body)["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _TryAgain(f"the body is no chat completion: {body[:100]!r}") from None
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    reason = choice.get("finish_reason")
    if reason == "length":
        raise JudgeReplyError(f"{name} was cut off at max_tokens")
    if not isinstance(content, str) or not content.strip():
        raise JudgeReplyError(f"{name} answered without text (finish_reason {reason!r})")
    return content


def _part(part: str | Tensor) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(_png(part)).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _png(image: Tensor) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(file, "PNG")
    return file.getvalue()


def _without_query(url: str) -> str:
    """The address without what may be secret: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
