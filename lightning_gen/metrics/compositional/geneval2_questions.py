"""GenEval 2's questions: read, asked, and scored by the probability of the wanted answer."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from torch import Tensor

from lightning_gen.data.quarantine import DataError
from lightning_gen.metrics.images import check_uint8
from lightning_gen.metrics.protocol import Detail

__all__ = [
    "SKILLS",
    "GenEval2Prompt",
    "GenEval2Question",
    "VQAModel",
    "answer_spellings",
    "first_token_probability",
    "judge_questions",
    "read_geneval2",
    "soft_tifa",
]

SKILLS: Final = ("object", "count", "attribute", "position", "verb")
"""What a question is about."""

_INSTRUCTION: Final = " Answer in one word."
_YES: Final = ("Yes", "yes", " yes", " Yes")
_NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


class VQAModel(Protocol):
    """A vision-language model that says how probable an answer is.

    Attributes:
        name: goes into the protocol id.
        settings: what else decides its answers, for the protocol's details.
    """

    name: str
    settings: Mapping[str, Detail]

    def answer_probabilities(
        self, images: Sequence[Tensor], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> Tensor:
        """How probable the wanted answers are.

        Args:
            images: B pictures, uint8, each (3, H, W).
            questions: one per picture, complete with the instruction how to answer.
            answers: per question the spellings of the wanted answer.

        Returns:
            float, (B,).
        """
        ...


@dataclasses.dataclass(frozen=True)
class GenEval2Question:
    """One question about an image.

    Attributes:
        text: the question.
        answer: the wanted answer: ``Yes``, or a number in words where the question begins with "How many".
        skill: one of ``SKILLS``.
    """

    text: str
    answer: str
    skill: str


@dataclasses.dataclass(frozen=True)
class GenEval2Prompt:
    """A prompt with its questions.

    Attributes:
        prompt: the text.
        atom_count: number of things that it asks for, 3 to 10 in the benchmark.
        questions: at least one.
    """

    prompt: str
    atom_count: int
    questions: tuple[GenEval2Question, ...]


def read_geneval2(path: str | Path) -> list[GenEval2Prompt]:
    """Read the benchmark.

    Args:
        path: JSON lines ``{prompt, atom_count, vqa_list: [[question, answer]], skills: [one per question]}``.

    Returns:
        The prompts; a prompt's id is its place in the list.

    Raises:
        DataError: the file cannot be read, or a line is wrong; the message names file and line.

    Source: arXiv:2512.16853 and repository facebookresearch/GenEval2.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the GenEval 2 prompts {path} cannot be read: {error}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(_prompt(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            said = f"lacks {error}" if isinstance(error, KeyError) else f"is wrong: {error}"
            raise DataError(f"{path} line {number} {said}") from None
    return prompts


def answer_spellings(question: str, answer: str) -> tuple[str, ...]:
    """How the wanted answer may be written.

    Args:
        question: one that begins with "How many" wants a number, all others a yes.
        answer: a number in words or digits, or ``Yes``.

    Returns:
        ``Yes``, ``yes``, `` yes``, `` Yes``; or the word in lower and upper case, each also behind a space, and the
        digits with and without a space.

    Raises:
        ValueError: a number beyond twenty, or an answer that is not yes.

    Source: repository facebookresearch/GenEval2. deviates: a leading space is tried with both cases of
    the word, as for yes.
    """
    plain = answer.strip().lower()
    if not question.strip().lower().startswith("how many"):
        if plain != "yes":
            raise ValueError(f"the wanted answer of {question!r} must be Yes, got {answer!r}")
        return _YES
    if plain.isdigit() and int(plain) < len(_NUMBERS):
        plain = _NUMBERS[int(plain)]
    if plain not in _NUMBERS:
        raise ValueError(f"{question!r} wants a number from zero to twenty, got {answer!r}")
    digits = str(_NUMBERS.index(plain))
    return plain, plain.capitalize(), f" {plain}", f" {plain.capitalize()}", digits, f" {digits}"


def first_token_probability(
    probabilities: Tensor,
    spellings: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    deduplicate: bool = False,
) -> float:
    """Probability that an answer begins like one of its spellings.

    sum over spellings of p(first token of the spelling)

    Args:
        probabilities: float, (V,), of the first token of the answer, over the vocabulary.
        spellings: see ``answer_spellings``.
        encode: text to ids of tokens, without special tokens.
        deduplicate: count a token once that several spellings begin with. The benchmark counts it for each of them, so
            that the sum may exceed 1.

    Returns:
        At least 0.

    Raises:
        ValueError: a spelling has no token, or the probabilities are not finite.
    """
    if not bool(probabilities.isfinite().all()):
        raise ValueError("the model's first token has probabilities that are not finite: are its weights sound?")
    first = []
    for spelling in spellings:
        tokens = encode(spelling)
        if not tokens:
            raise ValueError(f"the tokenizer makes no token of {spelling!r}")
        first.append(int(tokens[0]))
    if deduplicate:
        first = list(dict.fromkeys(first))
    return float(probabilities[first].double().sum())


def soft_tifa(scores: Sequence[float]) -> tuple[float, float]:
    """Means of the scores of one prompt's questions.

    AM = mean s,  GM = exp(mean log s), 0 where any s is 0

    Args:
        scores: at least one, each at least 0.

    Returns:
        Arithmetic and geometric mean.

    Raises:
        ValueError: no score, or one that is negative or not finite.

    Source: arXiv:2512.16853.
    """
    if not scores or not all(math.isfinite(score) and score >= 0 for score in scores):
        raise ValueError(f"scores of questions must be finite and at least 0, and at least one; got {list(scores)}")
    arithmetic = math.fsum(scores) / len(scores)
    if min(scores) == 0:
        return arithmetic, 0.0
    return arithmetic, math.exp(math.fsum(math.log(score) for score in scores) / len(scores))


def judge_questions(model: VQAModel, images: Sequence[Tensor], prompts: Sequence[GenEval2Prompt]) -> list[list[float]]:
    """Ask all questions about images.

    Args:
        model: says how probable the wanted answers are.
        images: B pictures, uint8, each (3, H, W).
        prompts: the prompt of each.

    Returns:
        Per image the score of each question.

    Raises:
        ValueError: the numbers of images and prompts differ, or an image is not uint8.
    """
    check_uint8(images)
    results = []
    for image, prompt in zip(images, prompts, strict=True):
        texts = [question.text + _INSTRUCTION for question in prompt.questions]
        wanted = [answer_spellings(question.text, question.answer) for question in prompt.questions]
        found = model.answer_probabilities([image] * len(texts), texts, wanted)
        results.append([float(score) for score in found])
    return results


def _prompt(record: Any) -> GenEval2Prompt:
    if not isinstance(record, dict):
        raise ValueError(f"an object is needed, got {type(record).__name__}")
    pairs, skills = record["vqa_list"], record["skills"]
    if not isinstance(pairs, list) or not isinstance(skills, list) or not pairs or len(pairs) != len(skills):
        raise ValueError("vqa_list and skills must be lists of one length, at least 1")
    questions = []
    for (text, answer), skill in zip(pairs, skills, strict=True):
        if skill not in SKILLS:
            raise ValueError(f"unknown skill {skill!r}; known: {', '.join(SKILLS)}")
        answer_spellings(text, answer)
        questions.append(GenEval2Question(text, answer, skill))
    return GenEval2Prompt(str(record["prompt"]), int(record["atom_count"]), tuple(questions))
