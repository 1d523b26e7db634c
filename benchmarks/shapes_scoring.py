"""How good pictures of the embedded world are: GenEval's rules with the exact detector, by task, and for rare pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.generators.dit.text_module import TextLatentDiffusion
from lightning_gen.generators.dit.training import Sampling
from lightning_gen.metrics.compositional.geneval_prompts import TAGS, parse_prompt
from lightning_gen.metrics.compositional.geneval_rules import RuleResult
from lightning_gen.metrics.detectors import geneval_metric
from lightning_gen.metrics.geneval import GenEvalJudge, GenEvalScore
from lightning_gen.metrics.intervals import bootstrap_interval, wilson_interval
from lightning_gen.shapes.detector import ShapesDetector
from lightning_gen.shapes.grammar import Phrase, Request
from lightning_gen.shapes.mixture import RARE
from lightning_gen.shapes.vocabulary import COLORS, KINDS

__all__ = ["LEVEL", "Share", "Verdicts", "is_rare", "pair_requests", "pictures_of", "share", "summary", "verdicts"]

LEVEL = 0.95
_BATCH = 64

Verdicts = list[list[RuleResult]]
"""For every prompt the verdicts on its pictures."""


class Share(NamedTuple):
    """A share of pictures.

    Attributes:
        value: passed / pictures.
        interval: at ``LEVEL``.
        prompts: how many there are.
    """

    value: float
    interval: tuple[float, float]
    prompts: int

    def __str__(self) -> str:
        """In per cent, as it stands in a table."""
        return f"{100 * self.value:.1f} [{100 * self.interval[0]:.1f}, {100 * self.interval[1]:.1f}]"


def verdicts(
    model: TextLatentDiffusion, requests: Sequence[Request], sampling: Sampling, seed: int, pictures: int
) -> Verdicts:
    """Make pictures and judge them.

    Picture p of prompt n has the number n ``pictures`` + p, so that the seed decides every one, whatever is made
    beside it.

    Args:
        model: makes them.
        requests: what is asked for; no words.
        sampling: how they are made.
        seed: decides the noise.
        pictures: per prompt.

    Returns:
        GenEval's verdicts.
    """
    detector = ShapesDetector()
    judge = GenEvalJudge(detector, KINDS, detector.colors)
    found: Verdicts = [[] for _ in requests]
    for numbers, images in pictures_of(model, requests, sampling, seed, pictures):
        asked = [parse_prompt(requests[number // pictures].metadata()) for number in numbers]
        for number, result in zip(numbers, judge(images, asked), strict=True):
            found[number // pictures].append(result)
    return found


def pictures_of(
    model: TextLatentDiffusion, requests: Sequence[Request], sampling: Sampling, seed: int, pictures: int = 1
) -> Iterator[tuple[list[int], Tensor]]:
    """Make pictures, some at a time.

    Args:
        model: makes them.
        requests: what is asked for.
        sampling: how they are made.
        seed: decides the noise.
        pictures: per prompt.

    Yields:
        Their numbers, and uint8, (B, 3, H, W).
    """
    total = len(requests) * pictures
    for first in range(0, total, _BATCH):
        numbers = list(range(first, min(first + _BATCH, total)))
        prompts = [requests[number // pictures].prompt() for number in numbers]
        yield numbers, signed_to_uint8(model.make(prompts, torch.tensor(numbers), sampling, seed))


def share(found: Verdicts) -> Share:
    """Share of correct pictures.

    Args:
        found: of at least one prompt.

    Returns:
        With Wilson's interval where every prompt has one picture, else with a bootstrap over prompts: pictures of one
        prompt fail together.
    """
    passed = torch.tensor([[result.correct for result in results] for results in found], dtype=torch.float64)
    if passed.shape[1] == 1 or len(passed) < 2:
        interval = wilson_interval(int(passed.sum()), passed.numel(), LEVEL)
    else:
        interval = bootstrap_interval(passed.mean(1), level=LEVEL)
    return Share(float(passed.mean()), interval, len(passed))


def summary(found: Verdicts, requests: Sequence[Request]) -> dict[str, Any]:
    """All numbers of one setting.

    Args:
        found: verdicts on the benchmark's prompts.
        requests: the prompts.

    Returns:
        Plain JSON values: ``overall`` (mean of the tasks, as GenEval has it) with its standard error, ``images``,
        ``tags``, ``rare`` and ``common`` among the prompts that name a pair, and ``verdicts``: a text of 0 and 1 for
        every prompt.
    """
    detector = ShapesDetector()
    score = GenEvalScore(detector.name, metric=geneval_metric(detector))
    for number, results in enumerate(found):
        score.update(results, [number] * len(results), list(range(len(results))))
    overall = score.measurements()[0]
    parts = {tag: [number for number, one in enumerate(requests) if one.tag == tag] for tag in TAGS}
    named = [number for number, one in enumerate(requests) if any(phrase.color for phrase in one.phrases)]
    parts["rare"] = [number for number in named if is_rare(requests[number])]
    parts["common"] = [number for number in named if not is_rare(requests[number])]
    shares = {name: share([found[number] for number in numbers])._asdict() for name, numbers in parts.items()}
    return {
        "protocol": str(overall.protocol),
        "overall": overall.value,
        "overall_error": overall.error,
        "images": share(found)._asdict(),
        "tags": {tag: shares[tag] for tag in TAGS},
        "rare": shares["rare"],
        "common": shares["common"],
        "verdicts": ["".join(str(int(result.correct)) for result in results) for results in found],
    }


def is_rare(request: Request) -> bool:
    """Whether a request names a pair of colour and kind that is rare in the skewed mixture.

    Args:
        request: what is asked for.

    Returns:
        True if one of its phrases does.
    """
    return any((phrase.color, phrase.kind) in RARE for phrase in request.phrases)


def pair_requests() -> list[Request]:
    """A request for every pair of colour and kind.

    Returns:
        80 of them, "a photo of a red circle" first.
    """
    return [Request((Phrase(kind, color),)) for color in COLORS for kind in KINDS]
