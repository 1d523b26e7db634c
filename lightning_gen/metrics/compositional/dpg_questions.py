"""DPG-Bench's questions: read, asked about each image of a prompt, and taken back where a parent is answered no."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from torch import Tensor

from lightning_gen.data.quarantine import DataError
from lightning_gen.metrics.images import check_uint8

__all__ = [
    "AnswersQuestions",
    "DPGPrompt",
    "DPGQuestion",
    "DPGResult",
    "ask_questions",
    "gate_answers",
    "read_dpg_bench",
    "score_answers",
    "split_grid",
]

_COLUMNS: Final = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


class AnswersQuestions(Protocol):
    """A model that answers questions about pictures."""

    def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        """Answer.

        Args:
            images: B pictures, uint8, each (3, H, W).
            questions: one per picture.

        Returns:
            B answers, for instance ``"yes"``.
        """
        ...


@dataclasses.dataclass(frozen=True)
class DPGQuestion:
    """One proposition of a prompt.

    Attributes:
        number: its id within the prompt.
        parents: ids of the propositions that must hold for it to make sense; 0 = none.
        text: the question.
        category: for instance ``entity - whole``; what stands before the dash is its level 1.
    """

    number: int
    parents: tuple[int, ...]
    text: str
    category: str

    @property
    def level1(self) -> str:
        """``global``, ``entity``, ``attribute``, ``relation`` or ``other``."""
        return self.category.split("-")[0].strip()


@dataclasses.dataclass(frozen=True)
class DPGPrompt:
    """A prompt with its questions.

    Attributes:
        item_id: name of its pictures.
        text: the prompt.
        questions: in the order of the file.
    """

    item_id: str
    text: str
    questions: tuple[DPGQuestion, ...]


@dataclasses.dataclass(frozen=True)
class DPGResult:
    """The answers about the images of one prompt, 1 = yes, 0 = no.

    Attributes:
        questions: what was asked.
        raw: the answers, one row per image.
        gated: the same, 0 where a parent is 0.
    """

    questions: tuple[DPGQuestion, ...]
    raw: tuple[tuple[int, ...], ...]
    gated: tuple[tuple[int, ...], ...]

    @property
    def score(self) -> float:
        """Mean over images of the mean over questions of the gated answers, in [0, 1]."""
        return sum(sum(row) / len(row) for row in self.gated) / len(self.gated)


def read_dpg_bench(path: str | Path, skip_first_row: bool = True) -> list[DPGPrompt]:
    """Read the benchmark's table.

    Args:
        path: ``dpg_bench.csv``: item_id, text, proposition_id, dependency, tuple, question_natural_language, one row
            per question, the rows of a prompt together.
        skip_first_row: leave out the first question of the file, as the benchmark's script does by mistake.
            Published numbers are computed without it. Where another question depends on it, that dependency goes too.

    Returns:
        The prompts in the order of the file.

    Raises:
        DataError: the file cannot be read, lacks a column, has a number that is none, an id twice, a dependency on a
            question that the prompt does not have, or rows of a prompt in two places; the message names the line.

    Source: repository TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} lacks the columns {', '.join(missing)}; it has {reader.fieldnames}")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the DPG-Bench table {path} cannot be read: {error}") from None
    if len(rows) <= skip_first_row:
        raise DataError(f"{path} holds no question")
    texts: dict[str, str] = {}
    found: dict[str, dict[int, DPGQuestion]] = {}
    left_out = (rows[0][1]["item_id"], rows[0][1]["proposition_id"].strip()) if skip_first_row else None
    last = ""
    for line, row in rows[int(skip_first_row) :]:
        item, where = row["item_id"], f"{path} line {line}"
        if item in found and item != last:
            raise DataError(f"{where}: the rows of {item} do not stand together")
        last = item
        question = _question(row, where)
        mine = found.setdefault(item, {})
        if question.number in mine:
            raise DataError(f"{where}: {item} has proposition {question.number} twice")
        if left_out is not None and left_out[0] == item:
            kept = tuple(parent for parent in question.parents if str(parent) != left_out[1])
            question = dataclasses.replace(question, parents=kept)
        mine[question.number] = question
        texts.setdefault(item, row["text"])
    for item, mine in found.items():
        unknown = {parent for question in mine.values() for parent in question.parents} - {0, *mine}
        if unknown:
            raise DataError(f"{path}: {item} depends on the propositions {sorted(unknown)}, which it does not have")
    return [DPGPrompt(item, texts[item], tuple(mine.values())) for item, mine in found.items()]


def gate_answers(questions: Sequence[DPGQuestion], answers: Sequence[bool]) -> tuple[int, ...]:
    """Take back a yes whose parents are not all yes.

    In the order of the questions, s_q = 0 where any parent p != 0 has s_p = 0; a parent that was taken back itself
    before counts as 0.

    Args:
        questions: of one prompt.
        answers: one per question, True = yes.

    Returns:
        0 or 1 per question.

    Raises:
        ValueError: another number of answers.
    """
    if len(questions) != len(answers):
        raise ValueError(f"{len(questions)} questions, {len(answers)} answers")
    scores = {question.number: int(answer) for question, answer in zip(questions, answers, strict=True)}
    for question in questions:
        if any(parent != 0 and scores[parent] == 0 for parent in question.parents):
            scores[question.number] = 0
    return tuple(scores.values())


def score_answers(questions: Sequence[DPGQuestion], answers: Sequence[Sequence[bool]]) -> DPGResult:
    """The result of one prompt.

    Args:
        questions: of the prompt.
        answers: one row per image, True = yes.

    Returns:
        Raw and gated answers.

    Raises:
        ValueError: no images, no questions, or another number of answers.
    """
    if not answers or not questions:
        raise ValueError(f"{len(answers)} images and {len(questions)} questions: there is nothing to score")
    gated = tuple(gate_answers(questions, row) for row in answers)
    return DPGResult(tuple(questions), tuple(tuple(int(one) for one in row) for row in answers), gated)


def ask_questions(model: AnswersQuestions, prompt: DPGPrompt, images: Sequence[Tensor]) -> DPGResult:
    """Ask every question about every image of a prompt.

    Args:
        model: answers; an answer counts as yes if it is that word, whatever its case and a full stop behind it.
        prompt: the prompt.
        images: its pictures, uint8, each (3, H, W): four in the benchmark, see ``split_grid``.

    Returns:
        The answers.

    Raises:
        ValueError: an image is not uint8, or the model gives another number of answers, or one that is no text.
    """
    check_uint8(images)
    texts = [question.text for question in prompt.questions]
    rows = []
    for image in images:
        answers = model.answer([image] * len(texts), texts)
        if len(answers) != len(texts):
            raise ValueError(f"{len(texts)} questions about {prompt.item_id}, {len(answers)} answers")
        if wrong := [answer for answer in answers if not isinstance(answer, str)]:
            raise ValueError(f"an answer about {prompt.item_id} is {type(wrong[0]).__name__}, no text")
        rows.append([answer.strip().rstrip(".").lower() == "yes" for answer in answers])
    return score_answers(prompt.questions, rows)


def split_grid(image: Tensor, rows: int = 2, columns: int = 2) -> list[Tensor]:
    """Cut a picture that holds several.

    Args:
        image: (3, H, W).
        rows: number of pictures from top to bottom.
        columns: number of pictures from left to right.

    Returns:
        (3, H / rows, W / columns) each, row by row.

    Raises:
        ValueError: H or W cannot be divided so.
    """
    height, width = image.shape[-2:]
    if height % rows or width % columns:
        raise ValueError(f"a picture of {height} x {width} is no grid of {rows} x {columns} equal pictures")
    return [cell for row in image.chunk(rows, -2) for cell in row.chunk(columns, -1)]


def _question(row: Mapping[str, str], where: str) -> DPGQuestion:
    try:
        number = int(row["proposition_id"])
        parents = tuple(int(parent) for parent in row["dependency"].split(","))
    except (AttributeError, TypeError, ValueError):
        raise DataError(
            f"{where}: proposition_id {row['proposition_id']!r} and dependency {row['dependency']!r} must be a number "
            "and numbers with commas between them"
        ) from None
    # The script takes the category from the head of the tuple: "attribute - color (cup, red)".
    category = (row["tuple"] or "").split("(")[0].strip()
    text = (row["question_natural_language"] or "").strip()
    if not category or not text:
        raise DataError(f"{where} lacks a tuple or a question")
    return DPGQuestion(number, parents, text, category)
