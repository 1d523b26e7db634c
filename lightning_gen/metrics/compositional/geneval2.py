"""GenEval 2: how probable does a vision-language model find the wanted answers to questions about an image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_gen.metrics.compositional.geneval2_questions import (
    SKILLS,
    GenEval2Prompt,
    GenEval2Question,
    VQAModel,
    answer_spellings,
    first_token_probability,
    judge_questions,
    read_geneval2,
    soft_tifa,
)
from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol

__all__ = [
    "OFFICIAL_PROMPTS",
    "SKILLS",
    "GenEval2Prompt",
    "GenEval2Question",
    "GenEval2Score",
    "VQAModel",
    "answer_spellings",
    "first_token_probability",
    "judge_questions",
    "read_geneval2",
    "soft_tifa",
]

OFFICIAL_PROMPTS: Final = 800
"""Prompts behind a published number."""


class GenEval2Score(CountedOnce):
    """Soft-TIFA, x 100: means over prompts of the arithmetic and the geometric mean over questions.

    Args:
        model_name: name of the model that answers; it names the protocol.
        details: what else decides the numbers, for instance whether tokens are counted once.
        expected_prompts: N of published numbers; with another N the id is ``geneval2-am@N/MODEL``.

    Source: arXiv:2512.16853 and repository facebookresearch/GenEval2.
    """

    columns = ("atom_count", "am", "gm", *(f"{kind} {skill}" for kind in ("sum", "asked") for skill in SKILLS))

    def __init__(
        self,
        model_name: str,
        details: Mapping[str, Detail] | None = None,
        expected_prompts: int = OFFICIAL_PROMPTS,
    ) -> None:
        super().__init__()
        self.model_name = Protocol("geneval2", model_name).method
        self.details = dict(details or {})
        self.expected_prompts = expected_prompts

    def update(
        self,
        prompts: Sequence[GenEval2Prompt],
        scores: Sequence[Sequence[float]],
        prompt_ids: Sequence[int] | Tensor,
        sample_ids: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Count images.

        Args:
            prompts: the prompts of B images.
            scores: per image the score of each question.
            prompt_ids: number of each prompt in the list of prompts.
            sample_ids: number of each image among those of its prompt; None = 0, one image per prompt. An image that
                was counted is not counted again.

        Raises:
            ValueError: the numbers differ, or a score is not one.
        """
        rows = [self._row(prompt, mine) for prompt, mine in zip(prompts, scores, strict=True)]
        samples = [0] * len(rows) if sample_ids is None else sample_ids
        self.count(prompt_ids, samples, torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(self.columns)))

    def compute(self) -> dict[str, Tensor]:
        """The scores, x 100.

        Returns:
            ``am`` and ``gm``; both per number of atoms as ``am/atoms/N``; ``skill/NAME``, the mean over all questions
            of a skill. float64 scalars; numbers of atoms and skills that did not occur are left out.
        """
        return self._scores(self.table())

    def measurements(self) -> list[Measurement]:
        """The scores with their protocols; ``am`` and ``gm`` with a standard error over images.

        Returns:
            ``geneval2-am``, ``geneval2-gm``, then the parts.
        """
        with self.on_all_ranks():
            table, repeats = self.table(), self.num_repeats
        count = len(table)
        expected = None if count == self.expected_prompts else self.expected_prompts
        details = {**self.details, "repeats": repeats}
        result = []
        for name, value in self._scores(table).items():
            column = {"am": 3, "gm": 4}.get(name)
            error = None
            if column is not None and count > 1:
                error = 100 * float(table[:, column].std()) / count**0.5
            metric = f"geneval2-{name.replace('/', ':')}"
            protocol = Protocol(metric, self.model_name, count, expected if column is not None else None, details)
            result.append(Measurement(float(value), protocol, error))
        return result

    @staticmethod
    def _row(prompt: GenEval2Prompt, scores: Sequence[float]) -> list[float]:
        if len(scores) != len(prompt.questions):
            raise ValueError(f"{len(prompt.questions)} questions, {len(scores)} scores of: {prompt.prompt}")
        totals, asked = dict.fromkeys(SKILLS, 0.0), dict.fromkeys(SKILLS, 0)
        for question, score in zip(prompt.questions, scores, strict=True):
            totals[question.skill] += score
            asked[question.skill] += 1
        return [prompt.atom_count, *soft_tifa(scores), *totals.values(), *asked.values()]

    @staticmethod
    def _scores(table: Tensor) -> dict[str, Tensor]:
        values = {"am": 100 * table[:, 3].mean(), "gm": 100 * table[:, 4].mean()}
        for atoms in torch.unique(table[:, 2]).tolist():
            mine = table[table[:, 2] == atoms]
            values[f"am/atoms/{int(atoms)}"] = 100 * mine[:, 3].mean()
            values[f"gm/atoms/{int(atoms)}"] = 100 * mine[:, 4].mean()
        totals, asked = table[:, 5:].sum(0).reshape(2, len(SKILLS))
        for skill, total, number in zip(SKILLS, totals, asked, strict=True):
            if number:
                values[f"skill/{skill}"] = 100 * total / number
        return values
