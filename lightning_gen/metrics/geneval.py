"""GenEval: does an image show the objects, numbers, colours and positions that its prompt names?

``GenEvalJudge`` looks at images with a detector and a colour model and applies the rules, ``GenEvalScore`` adds the
verdicts up. The rules are those of the benchmark; the number is GenEval's only with its own detector.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from lightning_gen.data.transforms import uint8_to_unit
from lightning_gen.interfaces import Detector
from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules
from lightning_gen.metrics.compositional.geneval_prompts import COLORS, TAGS, GenEvalPrompt
from lightning_gen.metrics.compositional.geneval_rules import FAILURES, Failure, FailureKind, RuleResult, apply_rules
from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.detectors import detect
from lightning_gen.metrics.images import Images, check_uint8
from lightning_gen.metrics.intervals import wilson_interval
from lightning_gen.metrics.protocol import Detail, Measurement
from lightning_gen.metrics.protocol import Protocol as MeasurementProtocol

__all__ = [
    "COLORS",
    "HUMAN_DRIFT",
    "OFFICIAL_DETECTOR",
    "OFFICIAL_IMAGES",
    "TAGS",
    "Failure",
    "FailureKind",
    "GenEvalJudge",
    "GenEvalPrompt",
    "GenEvalRules",
    "GenEvalScore",
    "NamesColors",
    "RuleResult",
    "apply_rules",
]

OFFICIAL_DETECTOR: Final = "mmdet-m2f-swin-s"
"""Name of mmdetection's Mask2Former Swin-S, the detector behind published GenEval numbers."""

OFFICIAL_IMAGES: Final = 4 * 553
"""Images behind a published number: four of each prompt."""

HUMAN_DRIFT: Final = "GenEval differs from human judgement by up to 17.7 points (arXiv:2512.16853)"
"""The warning that travels with every overall score."""

_LEVEL: Final = 0.95


class NamesColors(Protocol):
    """A model that names the colours of the objects in an image."""

    def __call__(self, image: Tensor, boxes: Tensor, masks: Tensor | None, class_name: str) -> list[str]:
        """Name the colour of each object.

        Args:
            image: uint8, (3, H, W).
            boxes: float, (n, 4), pixels x0, y0, x1, y1.
            masks: bool, (n, H, W), or None.
            class_name: what the objects are.

        Returns:
            n of ``COLORS``.
        """
        ...


class GenEvalJudge:
    """Detector, colour model and rules as one function from images and prompts to verdicts.

    Args:
        detector: finds objects; images of one size go through it together.
        classes: all its classes, also those that no prompt names.
        colors: names colours; None where no prompt asks for one.
        rules: the numbers; None = those of the benchmark.
    """

    def __init__(
        self,
        detector: Detector,
        classes: Sequence[str],
        colors: NamesColors | None = None,
        rules: GenEvalRules | None = None,
    ) -> None:
        self.detector = detector
        self.classes = list(classes)
        self.colors = colors
        self.rules = rules or GenEvalRules()

    def __call__(self, images: Images, prompts: Sequence[GenEvalPrompt]) -> list[RuleResult]:
        """Judge images.

        Args:
            images: uint8, (B, 3, H, W) or B images (3, H, W) of any sizes.
            prompts: the prompt of each image.

        Returns:
            One verdict per image, in order.

        Raises:
            ValueError: numbers of images and prompts differ, an image is not uint8 (3, H, W), a prompt names a class
                that is not among ``classes``, or the detector's answer is malformed.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images, {len(prompts)} prompts")
        check_uint8(images)
        for prompt in prompts:
            self._check(prompt)
        results: dict[int, RuleResult] = {}
        for places in _of_one_size(images):
            batch = torch.stack([images[place] for place in places])
            found = detect(self.detector, uint8_to_unit(batch), self.classes)
            for place, detections in zip(places, found, strict=True):
                colors = None if self.colors is None else functools.partial(self.colors, images[place])
                results[place] = apply_rules(prompts[place], detections, colors, self.rules)
        return [results[place] for place in range(len(images))]

    def _check(self, prompt: GenEvalPrompt) -> None:
        wanted = {clause.name for clause in prompt.include} | {exclusion.name for exclusion in prompt.exclude}
        unknown = wanted - set(self.classes)
        if unknown:
            raise ValueError(f"the detector does not know {', '.join(sorted(unknown))}, asked for by: {prompt.prompt}")


class GenEvalScore(CountedOnce):
    """Share of images that show what their prompt asks for, per task, and the mean of the six shares.

    overall = (1/6) sum over tags of correct[tag] / total[tag]

    Every task weighs the same, whatever its number of prompts. A task without images has no share: it is NaN, and so
    is ``overall``; ``measurements`` names the task.

    Args:
        detector_name: name of the detector; it names the protocol.
        details: what else decides the numbers, for instance sha256 of the weights, seed, guidance scale.
        expected_images: N of published numbers; with another N the id is ``geneval@N/DETECTOR``.
        metric: first part of the ids, see ``detectors.geneval_metric``: ``geneval``, or ``geneval-style`` for detectors
            of another kind than the prescribed one.

    Source: arXiv:2310.11513 and repository djghosh13/geneval, evaluation/summary_scores.py.
    """

    columns = ("tag", "correct", "failures", "reward", "exact")

    def __init__(
        self,
        detector_name: str,
        details: Mapping[str, Detail] | None = None,
        expected_images: int = OFFICIAL_IMAGES,
        metric: str = "geneval",
    ) -> None:
        super().__init__()
        self.metric = metric
        self.detector_name = MeasurementProtocol(metric, detector_name).method
        self.details = dict(details or {})
        self.expected_images = expected_images

    def update(
        self, results: Sequence[RuleResult], prompts: Sequence[int] | Tensor, samples: Sequence[int] | Tensor
    ) -> None:
        """Count verdicts.

        Args:
            results: verdicts on B images.
            prompts: number of each image's prompt in the list of prompts.
            samples: number of each image among those of its prompt. An image that was counted is not counted again.

        Raises:
            ValueError: the three differ in number.
        """
        rows = [
            [
                TAGS.index(result.tag),
                result.correct,
                sum(1 << FAILURES.index(kind) for kind in {failure.kind for failure in result.failures}),
                result.reward,
                result.exact,
            ]
            for result in results
        ]
        self.count(prompts, samples, torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(self.columns)))

    @property
    def correct(self) -> Tensor:
        """int64, (6,): correct images of each tag, in the order of ``TAGS``."""
        table = self.table()
        return self._per_tag(table[table[:, 3] == 1])

    @property
    def total(self) -> Tensor:
        """int64, (6,): images of each tag."""
        return self._per_tag(self.table())

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``overall``; the accuracy of each of ``TAGS``; ``images``, the share of correct images; ``prompts``, the
            share of prompts with at least one correct image; ``reward`` and ``exact``, the means of the two rewards.
            float64 scalars, NaN where nothing was counted.
        """
        table = self.table()
        accuracies = self._per_tag(table[table[:, 3] == 1]).double() / self._per_tag(table)
        values = {"overall": accuracies.mean(), **dict(zip(TAGS, accuracies, strict=True))}
        values["images"] = table[:, 3].mean()
        values["prompts"] = self._any_correct(table).double().mean()
        values["reward"], values["exact"] = table[:, 5].mean(), table[:, 6].mean()
        return values

    def failures(self) -> dict[FailureKind, int]:
        """In how many images each rule failed; an image may fail several.

        Returns:
            Counts by ``FAILURES``, over the images of all ranks.
        """
        with self.on_all_ranks():
            kinds = self.table()[:, 4].to(torch.int64)
        return {kind: int((kinds >> bit & 1).sum()) for bit, kind in enumerate(FAILURES)}

    def measurements(self) -> list[Measurement]:
        """The scores with their uncertainty and protocol.

        Accuracies carry Wilson's interval, which takes images for independent. ``overall`` carries a standard error
        that takes prompts for independent: sqrt(sum over tags of var(prompt means) / prompts) / 6.

        Returns:
            ``geneval`` (the overall score), then ``geneval:TAG`` for the six tags, ``geneval:images`` and
            ``geneval:prompts``, over the images of all ranks.
        """
        with self.on_all_ranks():
            table, repeats = self.table(), self.num_repeats
        total, correct = self._per_tag(table).tolist(), self._per_tag(table[table[:, 3] == 1]).tolist()
        any_correct = self._any_correct(table)
        shares = {tag: (passed, number) for tag, passed, number in zip(TAGS, correct, total, strict=True)}
        accuracies = [passed / number if number else math.nan for passed, number in shares.values()]
        empty = [tag for tag, (_, number) in shares.items() if not number]
        shares["images"] = (len(table[table[:, 3] == 1]), len(table))
        shares["prompts"] = (int(any_correct.sum()), len(any_correct))
        details = {**self.details, "prompts": len(any_correct), "repeats": repeats}
        overall = MeasurementProtocol(
            self.metric,
            self.detector_name,
            len(table),
            None if len(table) == self.expected_images else self.expected_images,
            details,
        )
        return [
            Measurement(sum(accuracies) / len(TAGS), overall, _overall_error(table), note=self._note(empty)),
            *(self._share(name, passed, number, details) for name, (passed, number) in shares.items()),
        ]

    def _share(self, name: str, passed: int, number: int, details: Mapping[str, Detail]) -> Measurement:
        protocol = MeasurementProtocol(
            f"{self.metric}:{name}",
            self.detector_name,
            number,
            details={**details, "passed": passed, "interval": "wilson", "level": _LEVEL},
        )
        if not number:
            return Measurement(math.nan, protocol, note="nothing was counted")
        return Measurement(passed / number, protocol, interval=wilson_interval(passed, number, _LEVEL))

    def _note(self, empty: Sequence[str]) -> str:
        notes = [f"no overall score without images of {', '.join(empty)}"] if empty else []
        if self.detector_name != OFFICIAL_DETECTOR:
            notes.append(f"GenEval-style: published numbers come from another detector than {self.detector_name}")
        return "; ".join([*notes, HUMAN_DRIFT])

    @staticmethod
    def _per_tag(table: Tensor) -> Tensor:
        return torch.bincount(table[:, 2].to(torch.int64), minlength=len(TAGS))

    @staticmethod
    def _any_correct(table: Tensor) -> Tensor:
        prompts, group = torch.unique(table[:, 0], return_inverse=True)
        return table.new_zeros(len(prompts)).scatter_reduce(0, group, table[:, 3], "amax") == 1


def _overall_error(table: Tensor) -> float | None:
    """One standard error of the mean of the tags' accuracies; None where a tag has fewer than two prompts."""
    variance = 0.0
    for tag in range(len(TAGS)):
        rows = table[table[:, 2] == tag]
        prompts, group, sizes = torch.unique(rows[:, 0], return_inverse=True, return_counts=True)
        if len(prompts) < 2:
            return None
        passed = rows.new_zeros(len(prompts)).index_add(0, group, rows[:, 3])
        variance += float((passed / sizes).var()) / len(prompts)
    return math.sqrt(variance) / len(TAGS)


def _of_one_size(images: Images) -> Iterator[list[int]]:
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(tuple(image.shape), []).append(place)
    yield from places.values()
