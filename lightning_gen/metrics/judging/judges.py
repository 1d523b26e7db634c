"""Judges: vision-language models that read a message of texts and pictures and answer in words.

What they answer becomes a number only after it was parsed by a rule; an answer that does not parse is an error that is
counted, never a number. Behind a web address: ``metrics/http_judge.py``; in this process: ``metrics/local_judge.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from torch import Tensor

from lightning_gen.metrics.protocol import Detail

__all__ = [
    "Answer",
    "Judge",
    "JudgeError",
    "JudgeReplyError",
    "Message",
    "ask",
    "image_sha256",
    "judge_name",
    "parse_judge_json",
    "text_of",
]

Message = Sequence[str | Tensor]
"""Texts and pictures in the order in which the judge reads them; a picture is uint8, (3, H, W)."""

_FENCE: Final = "```"
_LANGUAGE: Final = re.compile(r"[A-Za-z0-9]*\s*")
_OPENING: Final = re.compile(r"[{\[]")
_DEPTH: Final = 32
_EXCERPT: Final = 120

_Parsed = TypeVar("_Parsed")


class JudgeError(RuntimeError):
    """A judge gave no answer that can be used; the message says why."""


class JudgeReplyError(JudgeError):
    """A judge answered, but not in the form that was asked for; asking again may help."""


class Judge(Protocol):
    """A model that answers a message about pictures.

    Attributes:
        name: short name without a slash; it becomes part of the protocol id.
        settings: what else decides its answers: model, revision, temperature, dtype. Holds no secret.
    """

    name: str
    settings: Mapping[str, Detail]

    def __call__(self, message: Message) -> str:
        """Answer.

        Args:
            message: texts and pictures.

        Returns:
            The answer as it was written.

        Raises:
            JudgeError: there is none.
        """
        ...


class Answer(NamedTuple):
    """What ``ask`` gives: the parsed answer and how it came about.

    Attributes:
        parsed: what the parser made of the reply.
        reply: the judge's words.
        attempts: how often it was asked.
    """

    parsed: Any
    reply: str
    attempts: int


def ask(judge: Judge, message: Message, parse: Callable[[str], _Parsed], attempts: int = 3) -> Answer:
    """Ask until the answer parses.

    From the second time on the message ends with a sentence that says what was wrong: a judge that decodes greedily
    would answer the same words to the same message.

    Args:
        judge: whom to ask.
        message: texts and pictures.
        parse: reads the reply; raises JudgeReplyError where it does not have the form that was asked for.
        attempts: how often to ask in all, at least 1.

    Returns:
        The first answer that parsed.

    Raises:
        JudgeReplyError: no answer parsed; holds the last complaint.
        JudgeError: the judge could not be asked.
        ValueError: ``attempts`` is smaller than 1.
    """
    if attempts < 1:
        raise ValueError(f"a judge is asked at least once, got attempts={attempts}")
    asked = list(message)
    for attempt in range(1, attempts + 1):
        try:
            reply: object = judge(asked)
            # Judges of users and endpoints may give None where they have no words.
            if not isinstance(reply, str):
                raise JudgeReplyError(f"the reply is {type(reply).__name__}, no text")
            return Answer(parse(reply), reply, attempt)
        except JudgeReplyError as error:
            complaint = error
            asked = [*message, f"Your previous answer could not be used: {error}. Answer again in the required form."]
    raise JudgeReplyError(f"{judge.name} gave no usable answer in {attempts} attempts; the last one: {complaint}")


def parse_judge_json(reply: str) -> Any:
    """Read a reply that must be JSON: alone, after words that lead to it, or in one fenced block with words around it.

    A byte order mark and a fence that is not closed do no harm. Words after JSON that stands in no fence do: they may
    take back what it says.

    Args:
        reply: the judge's words.

    Returns:
        The JSON object or list.

    Raises:
        JudgeReplyError: no text, not JSON, cut off, nested deeper than 32 levels, or a bare number or text.
    """
    if not isinstance(reply, str):
        raise JudgeReplyError(f"the reply is {type(reply).__name__}, no text")
    text = reply.strip()
    try:
        value = _json_in(text)
        too_deep = isinstance(value, dict | list) and _is_deeper(value, _DEPTH)
    except RecursionError:
        too_deep = True
    except ValueError as error:
        position = getattr(error, "pos", 0)
        cut = position > 0 and position >= len(getattr(error, "doc", "").rstrip()) - 1
        hint = "; it ends in the middle, so let the judge write more tokens" if cut else ""
        raise JudgeReplyError(f"the reply is not valid JSON ({error}){hint}: {_excerpt(reply)}") from None
    if too_deep:
        raise JudgeReplyError(f"the reply is nested deeper than {_DEPTH} levels: {_excerpt(reply)}")
    if not isinstance(value, dict | list):
        raise JudgeReplyError(f"the reply is JSON, but no object: {_excerpt(reply)}")
    return value


def _json_in(text: str) -> Any:
    """The JSON of a reply; ValueError where there is none, or more than one."""
    opening = _OPENING.search(text)
    if opening is None or opening.start() == 0:
        return json.loads(text)
    try:
        return json.loads(text[opening.start() :])
    except ValueError:
        if _FENCE not in text:
            raise
    block = text.partition(_FENCE)[2]
    block = block[_LANGUAGE.match(block).end() :]  # type: ignore[union-attr]  # it matches nothing at all, too
    value, end = json.JSONDecoder().raw_decode(block)
    rest = block[end:].strip()
    if rest.removeprefix(_FENCE).count(_FENCE) or not (rest.startswith(_FENCE) or not rest):
        raise ValueError("its fenced block holds more than JSON, or there are several blocks")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether JSON is nested deeper; what walks through it later recurses once per level."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True


def text_of(message: Message) -> str:
    """The texts of a message with ``[picture]`` for each picture, for logs and hashes.

    Args:
        message: texts and pictures.

    Returns:
        One text.
    """
    return "\n".join(part if isinstance(part, str) else "[picture]" for part in message)


def image_sha256(image: Tensor) -> str:
    """sha256 of a picture's size and pixels.

    Args:
        image: uint8, (3, H, W).

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(str(tuple(image.shape)).encode())
    digest.update(image.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def judge_name(model: str) -> str:
    """The name of a model as part of a protocol id.

    Args:
        model: hub id, folder or name, for instance ``"Qwen/Qwen3-VL-8B-Instruct"``.

    Returns:
        Its last part in lower case, for instance ``"qwen3-vl-8b-instruct"``.

    Raises:
        ValueError: nothing is left.
    """
    name = model.rstrip("/").rpartition("/")[2].strip().lower()
    if not name:
        raise ValueError(f"{model!r} is no name of a model")
    return name


def _excerpt(reply: str) -> str:
    text = " ".join(reply.split())
    return repr(text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}...")
