"""A judge behind a web address that speaks the chat-completions protocol: a hosted model, or vLLM or llama.cpp here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_gen.metrics.judging.http_client import HTTPClient, ServerError, TryAgain, png_base64, without_query
from lightning_gen.metrics.judging.judges import JudgeError, JudgeReplyError, Message, judge_name
from lightning_gen.metrics.protocol import Detail

__all__ = ["HTTPJudge"]


class HTTPJudge(HTTPClient):
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
        super().__init__(
            url,
            server="judge",
            checks=f"the model {model!r}",
            key_variable=key_variable,
            timeout=timeout,
            attempts=attempts,
            first_wait=first_wait,
            longest_wait=longest_wait,
        )
        self.model = model
        self.name = judge_name(name or model)
        self._body = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        if json_mode:
            self._body["response_format"] = {"type": "json_object"}
        self.settings: Mapping[str, Detail] = {
            "judge_model": model,
            "judge_url": without_query(url),
            "judge_temperature": temperature,
            "judge_max_tokens": max_tokens,
            "judge_json_mode": json_mode,
        }

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
        try:
            return self.post(data, lambda body: _answer(body, self.name))
        except ServerError as error:
            raise JudgeError(str(error)) from None


def _answer(body: bytes, name: str) -> str:
    try:
        choice = json.loads(body)["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise TryAgain(f"the body is no chat completion: {body[:100]!r}") from None
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
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png_base64(part)}"}}
