"""Rewards behind a web address: ImageReward, HPSv3, DeQA or any other model that a small server of yours runs.

The exchange is JSON, a POST per few pictures:

    request   {"model": NAME, "images": [PNG in base64, ...], "prompts": [TEXT, ...], "metadata": [{...}, ...]}
    answer    {"scores": [NUMBER, ...]}, one per picture, finite

(``metadata`` only where ``send_metadata`` is on.) For a text reader the request has ``images`` alone and the answer is
``{"lines": [[[TEXT, CONFIDENCE], ...], ...]}``, one list per picture. Pickles, which some reward servers speak, are not
read: to load one is to run the server's code. Requests are limited in time, size and number; an answer that is not
exactly this is refused.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from torch import Tensor

from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.metrics.judging.http_client import HTTPClient, ServerError, TryAgain, png_base64, without_query
from lightning_gen.rewards.applicability import AppliesEverywhere, check_batch

__all__ = ["RemoteReward", "RemoteTextReader", "ServerScale"]

_LONGEST: Final = 1 << 20
"""Bytes of an answer: numbers, or the text of one picture."""


@dataclasses.dataclass(frozen=True)
class ServerScale:
    """What a server's numbers mean: written down, because it cannot be seen in them.

    reward = number / divisor

    DeQA's tables, for instance, are on a scale of 1 to 5, and servers may have divided by 5 already: ``(1, 5, 5)`` and
    ``(0.2, 1, 1)`` give the same rewards, and numbers of the other server are refused.

    Attributes:
        least: smallest number that the server may give.
        most: largest one.
        divisor: above 0.

    Raises:
        ValueError: ``least`` is not below ``most``, or the divisor is not a finite number above 0.
    """

    least: float
    most: float
    divisor: float

    def __post_init__(self) -> None:
        if not self.least < self.most:
            raise ValueError(f"a scale runs from least to a larger most, got {self.least} and {self.most}")
        if not (math.isfinite(self.divisor) and self.divisor > 0):
            raise ValueError(f"the divisor of a scale is a finite number above 0, got {self.divisor}")


class RemoteReward(AppliesEverywhere):
    """A reward that a server computes.

    Args:
        url: http or https.
        model: the server's name of the reward, for instance ``imagereward``, ``hpsv3`` or ``deqa``.
        scale: of the server's numbers. ImageReward and HPSv3 are used as they are (divisor 1; about -3 to 3, and
            about -5 to 20).
        revision: any text that changes with the server's weights or code: cached scores belong to it.
        key_variable: name of the environment variable that holds the API key; None = send no key.
        send_metadata: whether the server needs them.
        batch_size: pictures of a request.
        threads: requests at a time.
        timeout: seconds until one request is given up.
        attempts: requests per batch, at least 1; between them are waits that double, see ``HTTPClient``.
        first_wait: seconds.
        longest_wait: seconds.

    Raises:
        ValueError: an address that is not http or https, or a number below 1.
    """

    background = True
    """It waits for another process."""

    def __init__(
        self,
        url: str,
        model: str,
        scale: ServerScale,
        revision: str = "",
        key_variable: str | None = None,
        send_metadata: bool = False,
        batch_size: int = 8,
        threads: int = 4,
        timeout: float = 120.0,
        attempts: int = 4,
        first_wait: float = 1.0,
        longest_wait: float = 30.0,
    ) -> None:
        if batch_size < 1 or threads < 1:
            raise ValueError(f"batch_size and threads must be at least 1, got {batch_size} and {threads}")
        self.model = model
        self.scale = scale
        self.revision = revision
        self.send_metadata = send_metadata
        self.batch_size = batch_size
        self.threads = threads
        self.client = HTTPClient(
            url,
            server="reward server",
            checks=f"the model {model!r}",
            key_variable=key_variable,
            timeout=timeout,
            attempts=attempts,
            first_wait=first_wait,
            longest_wait=longest_wait,
            longest_answer=_LONGEST,
        )

    @property
    def fingerprint(self) -> str:
        """sha256 of address (without what may be secret), model, revision and scale."""
        parts = [without_query(self.client.url), self.model, self.revision, *dataclasses.astuple(self.scale)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1]; sent as 8-bit PNG.
            prompts: B texts.
            metadata: B records.

        Returns:
            float32, (B,).

        Raises:
            ServerError: every attempt failed; or the answer is no JSON, too long, or holds another number of scores,
                something that is no finite number, or a number outside the scale.
            ValueError: images, prompts and metadata that do not belong together; metadata that are no JSON; or the
                server does not know address or key.
        """
        check_batch(images, prompts, metadata)
        levels = unit_to_uint8(images).cpu()
        starts = range(0, len(levels), self.batch_size)
        parts = [slice(start, start + self.batch_size) for start in starts]
        texts, records = [prompts[part] for part in parts], [metadata[part] for part in parts]
        with ThreadPoolExecutor(self.threads) as pool:
            answers = pool.map(self._ask, [levels[part] for part in parts], texts, records)
            scores = [score for answer in answers for score in answer]
        return torch.tensor(scores, dtype=torch.float32)

    def _ask(self, levels: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        body: dict[str, Any] = {"model": self.model, "images": [png_base64(picture) for picture in levels]}
        body["prompts"] = list(prompts)
        if self.send_metadata:
            body["metadata"] = [dict(record) for record in metadata]
        return self.client.post(_encoded(body), lambda answer: self._scores(answer, len(prompts)))

    def _scores(self, body: bytes, count: int) -> list[float]:
        where, scale = without_query(self.client.url), self.scale
        scores = _list_of(body, "scores", count, where)
        for number, score in enumerate(scores):
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise ServerError(f"{where}: score {number} of {count} is {score!r:.60}, no finite number")
            if not scale.least <= score <= scale.most:
                raise ServerError(
                    f"{where}: score {number} of {count} is {score}, outside [{scale.least}, {scale.most}]: is the "
                    f"server's scale another one than the configuration says?"
                )
        return [score / scale.divisor for score in scores]


class RemoteTextReader:
    """Reads text on a server, for the OCR reward.

    Args:
        url: http or https.
        revision: any text that changes with the server's weights or code.
        key_variable: name of the environment variable that holds the API key; None = send no key.
        timeout: seconds until one request is given up.
        attempts: requests per picture, at least 1.
        first_wait: seconds, see ``HTTPClient``.
        longest_wait: seconds.

    Raises:
        ValueError: an address that is not http or https, or ``attempts`` smaller than 1.
    """

    background = True
    """It waits for another process."""
    name = "remote"
    """What it is called in protocol ids."""

    def __init__(
        self,
        url: str,
        revision: str = "",
        key_variable: str | None = None,
        timeout: float = 60.0,
        attempts: int = 4,
        first_wait: float = 1.0,
        longest_wait: float = 30.0,
    ) -> None:
        self.revision = revision
        self.client = HTTPClient(
            url,
            server="text reader",
            key_variable=key_variable,
            timeout=timeout,
            attempts=attempts,
            first_wait=first_wait,
            longest_wait=longest_wait,
            longest_answer=_LONGEST,
        )

    @property
    def fingerprint(self) -> str:
        """Address (without what may be secret) and revision."""
        return f"{without_query(self.client.url)} {self.revision}"

    def __call__(self, image: Tensor) -> list[tuple[str, float]]:
        """Read.

        Args:
            image: uint8, (3, H, W).

        Returns:
            Lines in reading order, each with its confidence in [0, 1].

        Raises:
            ServerError: every attempt failed, or the answer does not have the form of this file's head.
            ValueError: the server does not know address or key.
        """
        return self.client.post(_encoded({"images": [png_base64(image)]}), self._lines)

    def _lines(self, body: bytes) -> list[tuple[str, float]]:
        where = without_query(self.client.url)
        (lines,) = _list_of(body, "lines", 1, where)
        if not isinstance(lines, list) or not all(_is_line(line) for line in lines):
            raise ServerError(f"{where}: lines are [text, confidence in [0, 1]], got {lines!r:.80}")
        return [(text, float(confidence)) for text, confidence in lines]


def _is_line(line: Any) -> bool:
    if not isinstance(line, list) or len(line) != 2:
        return False
    text, confidence = line
    return isinstance(text, str) and isinstance(confidence, int | float) and 0 <= confidence <= 1


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata of these prompts are no JSON: {error}") from None


def _list_of(body: bytes, key: str, count: int, where: str) -> list[Any]:
    """The list of an answer, of the right length."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        # Proxies answer with a page of their own while a server restarts.
        raise TryAgain(f"the answer is no JSON: {body[:100]!r}") from None
    values = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(values, list):
        raise ServerError(f'{where}: the answer must be an object with a list "{key}", got {body[:100]!r}')
    if len(values) != count:
        raise ServerError(f"{where}: {len(values)} {key} for {count} pictures")
    return values
