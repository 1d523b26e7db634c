"""GenEval's score of a text-to-image model while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.metrics.compositional.geneval_prompts import GenEvalPrompt, parse_prompt, read_prompts
from lightning_gen.metrics.detectors import NamedDetector, geneval_metric
from lightning_gen.metrics.geneval import GenEvalJudge, GenEvalScore, NamesColors

__all__ = ["GenEvalFile", "GenEvalValidation", "PromptRecords"]

Make = Callable[[Sequence[str], Tensor], Tensor]
"""B prompts and the numbers of the pictures, int64 (B,), which decide their noise, to (B, 3, H, W) in [-1, 1]."""


class PromptRecords(Protocol):
    """Where the prompts come from."""

    def records(self) -> Sequence[Mapping[str, Any]]:
        """Records in GenEval's schema."""
        ...


class GenEvalFile:
    """The prompts of a file, as the benchmark publishes them (evaluation_metadata.jsonl).

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def records(self) -> Sequence[Mapping[str, Any]]:
        """See :class:`PromptRecords`."""
        return [prompt.record for prompt in read_prompts(Path(self.path))]


class GenEvalValidation:
    """Makes pictures for fixed prompts with fixed noise and judges them; prompts are dealt to the ranks.

    Args:
        prompts: where they come from.
        detector: finds objects and has a name; where it also names colours (a method ``colors``), nothing else does.
        classes: all classes of the detector.
        colors: names colours where the detector does not.
        pictures: per prompt.
        every: use every so-manieth prompt only, for a quick look; 1 = all.
        batch_size: pictures made at a time.

    Raises:
        ValueError: a number below 1, or a record that is not GenEval's.
    """

    def __init__(
        self,
        prompts: PromptRecords,
        detector: NamedDetector,
        classes: Sequence[str],
        colors: NamesColors | None = None,
        pictures: int = 1,
        every: int = 1,
        batch_size: int = 64,
    ) -> None:
        if min(pictures, every, batch_size) < 1:
            raise ValueError(f"pictures, every and batch_size are at least 1, got {pictures}, {every}, {batch_size}")
        self.prompts: list[GenEvalPrompt] = [parse_prompt(record) for record in prompts.records()][::every]
        self.pictures, self.batch_size = pictures, batch_size
        self.detector = detector
        self.judge = GenEvalJudge(detector, classes, colors or getattr(detector, "colors", None))

    def run(self, make: Make, rank: int = 0, world: int = 1) -> dict[str, float]:
        """Score a model; every rank calls it.

        Args:
            make: makes pictures; called without gradients.
            rank: this rank.
            world: number of ranks.

        Returns:
            ``overall`` and the share of every task, ``images`` and ``prompts``, of all ranks.

        Raises:
            ValueError: a picture holds NaN or infinity; as 8-bit values it would look black or white.
        """
        score = GenEvalScore(self.detector.name, metric=geneval_metric(self.detector))
        count = len(self.prompts) * self.pictures
        mine = list(range(count))[rank::world]
        for start in range(0, len(mine), self.batch_size):
            numbers = mine[start : start + self.batch_size]
            chosen = [self.prompts[number // self.pictures] for number in numbers]
            made = make([prompt.prompt for prompt in chosen], torch.tensor(numbers))
            bad = (~made.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"{len(bad)} of {len(chosen)} pictures that the model made hold NaN or infinity, the first for the "
                    f"prompt {chosen[bad[0]].prompt!r}: such pictures are not judged; has the training diverged?"
                )
            results = self.judge(signed_to_uint8(made).cpu(), chosen)
            places = [divmod(number, self.pictures) for number in numbers]
            score.update(results, [prompt for prompt, _ in places], [picture for _, picture in places])
        return {name: float(value) for name, value in score.compute().items()}
