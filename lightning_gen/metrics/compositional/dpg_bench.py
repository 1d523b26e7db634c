"""DPG-Bench: long prompts as questions that depend on each other, answered by a model for each of four images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from lightning_gen.metrics.compositional.dpg_questions import (
    AnswersQuestions,
    DPGPrompt,
    DPGQuestion,
    DPGResult,
    ask_questions,
    gate_answers,
    read_dpg_bench,
    score_answers,
    split_grid,
)
from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol

__all__ = [
    "OFFICIAL_PROMPTS",
    "AnswersQuestions",
    "DPGBench",
    "DPGPrompt",
    "DPGQuestion",
    "DPGResult",
    "ask_questions",
    "gate_answers",
    "read_dpg_bench",
    "score_answers",
    "split_grid",
]

OFFICIAL_PROMPTS: Final = 1065
"""Prompts behind a published number."""

Total = Literal["prompts", "categories"]
CategoryImages = Literal["last", "all"]
CategoryAnswers = Literal["raw", "gated"]


class DPGBench(CountedOnce):
    """DPG-Bench, x 100: the mean over prompts of the mean over images of the mean over gated answers.

    The scores of categories are those of the benchmark's script by default: raw answers about the last image only.

    Args:
        model_name: name of the model that answers; it names the protocol.
        prompts: all prompts; they name the categories.
        total: ``prompts`` = as above, ``categories`` = the unweighted mean of the level-1 categories, as some papers
            describe it.
        category_images: which images count for the categories.
        category_answers: whether categories see raw or gated answers.
        details: what else decides the numbers.

    Raises:
        ValueError: a choice that does not exist.

    Source: repository TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py.
    """

    def __init__(
        self,
        model_name: str,
        prompts: Sequence[DPGPrompt],
        total: Total = "prompts",
        category_images: CategoryImages = "last",
        category_answers: CategoryAnswers = "raw",
        details: Mapping[str, Detail] | None = None,
    ) -> None:
        for name, value, known in (
            ("total", total, ("prompts", "categories")),
            ("category_images", category_images, ("last", "all")),
            ("category_answers", category_answers, ("raw", "gated")),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, got {value!r}")
        questions = [question for prompt in prompts for question in prompt.questions]
        self.categories = tuple(sorted({question.category for question in questions}))
        self.level1 = tuple(sorted({question.level1 for question in questions}))
        self._level1_of = {question.category: question.level1 for question in questions}
        # Of each category how many answers were yes, and how many there were.
        self.columns = ("score", *(f"{kind} {name}" for kind in ("yes", "asked") for name in self.categories))
        super().__init__()
        self.model_name = Protocol("dpg-bench", model_name).method
        self.total, self.category_images, self.category_answers = total, category_images, category_answers
        self.details = dict(details or {})

    def update(self, results: Sequence[DPGResult], prompts: Sequence[int] | Tensor) -> None:
        """Count prompts.

        Args:
            results: of B prompts.
            prompts: number of each in the list of prompts. A prompt that was counted is not counted again.

        Raises:
            ValueError: the two differ in number, or a question has a category that no prompt of the metric has.
        """
        rows = torch.tensor([self._row(result) for result in results], dtype=torch.float64)
        self.count(prompts, [0] * len(prompts), rows.reshape(len(results), len(self.columns)))

    def compute(self) -> dict[str, Tensor]:
        """The scores, x 100.

        Returns:
            ``total``; ``level1/NAME`` and ``level2/NAME`` for the categories. float64 scalars, NaN where nothing was
            asked.
        """
        table = self.table()
        yes, asked = table[:, 3:].sum(0).reshape(2, len(self.categories))
        level2 = dict(zip(self.categories, 100 * yes / asked, strict=True))
        level1 = {}
        for name in self.level1:
            mine = [number for number, category in enumerate(self.categories) if self._level1_of[category] == name]
            level1[name] = 100 * yes[mine].sum() / asked[mine].sum()
        by_prompts = 100 * table[:, 2].mean()
        total = by_prompts if self.total == "prompts" else torch.stack(list(level1.values())).mean()
        return {
            "total": total,
            **{f"level1/{name}": value for name, value in level1.items()},
            **{f"level2/{name}": value for name, value in level2.items()},
        }

    def measurements(self) -> list[Measurement]:
        """The scores with their protocols.

        Returns:
            ``dpg-bench`` (the total; with a standard error over prompts where it is their mean), then one
            ``dpg-bench:LEVEL:NAME`` per category.
        """
        with self.on_all_ranks():
            table, repeats = self.table(), self.num_repeats
        values = {name: float(value) for name, value in self.compute().items()}
        prompts, error = len(table), None
        if self.total == "prompts" and prompts > 1:
            error = 100 * float(table[:, 2].std()) / prompts**0.5
        details: dict[str, Detail] = {
            **self.details,
            "total": self.total,
            "category_images": self.category_images,
            "category_answers": self.category_answers,
            "repeats": repeats,
        }
        return [
            Measurement(value, self._protocol(name, prompts, details), error if name == "total" else None)
            for name, value in values.items()
        ]

    def _protocol(self, name: str, prompts: int, details: Mapping[str, Detail]) -> Protocol:
        if name != "total":
            return Protocol(f"dpg-bench:{name.replace('/', ':')}", self.model_name, prompts, None, details)
        expected = None if prompts == OFFICIAL_PROMPTS else OFFICIAL_PROMPTS
        return Protocol("dpg-bench", self.model_name, prompts, expected, details)

    def _row(self, result: DPGResult) -> list[float]:
        answers = result.raw if self.category_answers == "raw" else result.gated
        if self.category_images == "last":
            answers = answers[-1:]
        yes, asked = dict.fromkeys(self.categories, 0), dict.fromkeys(self.categories, 0)
        for row in answers:
            for question, answer in zip(result.questions, row, strict=True):
                if question.category not in yes:
                    raise ValueError(f"the category {question.category!r} is not one of {', '.join(self.categories)}")
                yes[question.category] += answer
                asked[question.category] += 1
        return [result.score, *yes.values(), *asked.values()]
