"""JSON over HTTP with patience and limits: what judges and reward servers behind a web address share."""

from __future__ import annotations

import base64
import http.client
import io
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from torch import Tensor

__all__ = ["HTTPClient", "ServerError", "TryAgain", "png_base64", "without_query"]

_PIECE: Final = 1 << 16
_LIMITED: Final = ("rate limit", "rate_limit", "ratelimit", "quota exceeded", "resource_exhausted", "overloaded")
_SETUP_CODES: Final = (401, 403, 404)

_Answer = TypeVar("_Answer")


class ServerError(RuntimeError):
    """A server gave no answer that can be used; the message says why."""


class TryAgain(Exception):
    """A failure that may pass."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another machine; it becomes an error instead."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class HTTPClient:
    """Posts JSON to one address.

    A request that times out, breaks off, or is answered with 429, 5xx or words about a rate limit is made again, up to
    ``attempts`` times; before attempt k + 1 the caller waits d_k + U(0, min(1, d_k / 4)) seconds,
    d_k = min(``longest_wait``, ``first_wait`` * 2^(k - 1)). Redirects are not followed.

    The key is read from an environment variable at every request and is kept nowhere, not in settings or messages.

    Args:
        url: http or https.
        server: what answers there, for messages: ``judge``.
        checks: what else to check where the server does not know address or key, for messages; may be empty.
        key_variable: name of the environment variable that holds the API key; None = send no key.
        timeout: seconds until one request is given up.
        attempts: requests in all, at least 1.
        first_wait: seconds, d_1.
        longest_wait: seconds.
        longest_answer: bytes.

    Raises:
        ValueError: an address that is not http or https, or ``attempts`` smaller than 1.

    Source: timeout, attempts and waits of nopnor/SCOPE, judge_backend.py.
    """

    def __init__(
        self,
        url: str,
        *,
        server: str,
        checks: str = "",
        key_variable: str | None = None,
        timeout: float = 180.0,
        attempts: int = 6,
        first_wait: float = 2.0,
        longest_wait: float = 30.0,
        longest_answer: int = 1 << 24,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"the address of a {server} starts with http:// or https://, got {without_query(url)!r}")
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {attempts}")
        self.url = url
        self.server = server
        self.checks = checks
        self.key_variable = key_variable
        self.timeout = timeout
        self.attempts = attempts
        self.first_wait = first_wait
        self.longest_wait = longest_wait
        self.longest_answer = longest_answer
        # As this process is asked to reach the network (proxies of the environment), but without redirects.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def post(self, data: bytes, read: Callable[[bytes], _Answer]) -> _Answer:
        """Ask, with patience.

        Args:
            data: JSON.
            read: makes something of the body of the answer; raises ``TryAgain`` where asking again may help.

        Returns:
            What ``read`` made.

        Raises:
            ServerError: every attempt failed, the server refuses this request, or its answer is too long.
            ValueError: the key's variable is not set, or the server does not know key or address: nothing can be asked.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return read(self._request(data))
            except TryAgain as error:
                problem = error
                if attempt < self.attempts:
                    time.sleep(self._wait(attempt))
        raise ServerError(f"{without_query(self.url)} failed {self.attempts} times; the last time: {problem}")

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
                return self._read(response, deadline)
        except urllib.error.HTTPError as error:
            text = _excerpt(error, key)
            problem = f"status {error.code}{': ' + text if text else ''}"
            if error.code == 429 or error.code >= 500 or any(word in text.lower() for word in _LIMITED):
                raise TryAgain(problem) from None
            if error.code in _SETUP_CODES:
                checks = f", {self.checks}" if self.checks else ""
                raise ValueError(
                    f"{without_query(self.url)} answers {problem}: check the address{checks} and the key (variable "
                    f"{self.key_variable})"
                ) from None
            raise ServerError(f"{without_query(self.url)} refuses the request: {problem}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise TryAgain(f"{type(error).__name__}: {reason}" if str(reason) else type(error).__name__) from None

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        """The body in pieces: the socket's timeout alone never ends an answer that drips."""
        data = bytearray()
        while piece := response.read1(_PIECE):
            data += piece
            if time.monotonic() > deadline:
                raise TimeoutError("the answer took too long")
            if len(data) > self.longest_answer:
                raise ServerError(f"the answer of {without_query(self.url)} is longer than {self.longest_answer} bytes")
        return bytes(data)

    def _key(self) -> str:
        if self.key_variable is None:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ValueError(
                f"the environment variable {self.key_variable}, which holds the {self.server}'s key, is not set"
            )
        return key


def png_base64(image: Tensor) -> str:
    """A picture as it travels inside JSON, without loss.

    Args:
        image: uint8, (3, H, W).

    Returns:
        A PNG file in base64.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def without_query(url: str) -> str:
    """The address without what may be secret: user, password and query.

    Args:
        url: any.

    Returns:
        Scheme, host, port and path.
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _excerpt(error: urllib.error.HTTPError, key: str) -> str:
    try:
        text = " ".join(error.read(2000).decode("utf-8", "replace").split())
    except (OSError, http.client.HTTPException):
        return ""
    return (text.replace(key, "***") if key else text)[:200]
