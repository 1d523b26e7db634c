"""GenEval on a folder of pictures in the benchmark's layout: NNNNN/metadata.jsonl and NNNNN/samples/0000.png."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from lightning_gen.data.decode import decode_pixels
from lightning_gen.data.index import replace_file
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.workers import Watch
from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules
from lightning_gen.metrics.compositional.geneval_prompts import GenEvalPrompt, read_prompts
from lightning_gen.metrics.compositional.geneval_rules import RuleResult
from lightning_gen.metrics.detection.coco import GENEVAL_NAMES
from lightning_gen.metrics.detectors import NamedDetector, geneval_metric
from lightning_gen.metrics.geneval import GenEvalJudge, GenEvalScore, NamesColors
from lightning_gen.metrics.protocol import Detail, Measurement, file_sha256

__all__ = [
    "GenEvalReport",
    "GenEvalSample",
    "IncompleteError",
    "evaluate_geneval",
    "find_samples",
    "read_sample",
    "sum_up",
]

_log = logging.getLogger(__name__)

_PROMPT: Final = re.compile(r"[0-9]+")
_PICTURE: Final = re.compile(r"[0-9]+\.(png|jpe?g|webp)", re.IGNORECASE)
_SHOWN: Final = 5

Incomplete = Literal["raise", "warn"]


class IncompleteError(DataError):
    """Pictures or folders are missing, or too many.

    Args:
        folder: where.
        problems: one text each.
    """

    def __init__(self, folder: str | Path, problems: Sequence[str]) -> None:
        self.summary = f"{folder} is not complete: {sum_up(problems)}"
        super().__init__(f'{self.summary}; incomplete="warn" scores what is there')


@dataclasses.dataclass(frozen=True)
class GenEvalSample:
    """One picture of the folder.

    Attributes:
        prompt_id: number of its prompt: the name of the folder.
        sample_id: number among the pictures of its prompt: the name of the file.
        path: the file.
        prompt: what was asked for.
    """

    prompt_id: int
    sample_id: int
    path: Path
    prompt: GenEvalPrompt


@dataclasses.dataclass(frozen=True)
class GenEvalReport:
    """What an evaluation found.

    Attributes:
        measurements: overall score, tasks, shares of images and of prompts.
        failures: images by the kind of rule that failed.
        problems: where the folder is not complete.
        results: the verdict on each picture, in the order of the folder.
    """

    measurements: tuple[Measurement, ...]
    failures: dict[str, int]
    problems: tuple[str, ...]
    results: tuple[tuple[GenEvalSample, RuleResult], ...]

    @property
    def overall(self) -> float:
        """The mean of the six tasks' accuracies; NaN where a task has no picture."""
        return self.measurements[0].value

    def to_json(self) -> dict[str, Any]:
        """Measurements with their protocol cards, failures and problems."""
        return {
            "measurements": [one.to_json() for one in self.measurements],
            "failures": self.failures,
            "problems": list(self.problems),
        }


def evaluate_geneval(
    folder: str | Path,
    detector: NamedDetector,
    colors: NamesColors | None = None,
    rules: GenEvalRules | None = None,
    progress: Watch | None = None,
    *,
    classes: Sequence[str] = GENEVAL_NAMES,
    metadata: str | Path | None = None,
    results: str | Path | None = None,
    samples_per_prompt: int | None = 4,
    incomplete: Incomplete = "raise",
    batch_size: int = 8,
    details: Mapping[str, Detail] | None = None,
) -> GenEvalReport:
    """Score all pictures of a folder, in this process alone.

    Args:
        folder: the pictures; see ``find_samples``.
        detector: finds objects; its name and fingerprint go into the protocol.
        colors: names their colours; None where no prompt asks for one.
        rules: the numbers; None = those of the benchmark.
        progress: told how many pictures are scored, and of how many.
        classes: all classes of the detector, as the prompts spell them (``object_names.txt``).
        metadata: ``evaluation_metadata.jsonl``: then its prompts count, and each must have its folder.
        results: JSON lines to write, one per picture, in the format of the benchmark's own script, so that its
            summary reads them too; None = not written. It appears when all pictures are scored.
        samples_per_prompt: pictures that each prompt must have; None = any number.
        incomplete: what to do where pictures or folders are missing: ``raise``, or ``warn`` and score what is there.
        batch_size: pictures read at a time; those of one size go through the detector together.
        details: what else decides the numbers (seed, guidance scale, sampler); goes into the protocol.

    Returns:
        Scores, failures and problems.

    Raises:
        IncompleteError: an incomplete folder.
        DataError: no picture, or a picture or record that cannot be used.
        ValueError: a prompt names a class that is not among ``classes``, or the detector's answer is malformed.

    Source: repository djghosh13/geneval, evaluation/evaluate_images.py and summary_scores.py.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    judge = GenEvalJudge(detector, classes, colors, rules)
    samples, problems = find_samples(folder, metadata, samples_per_prompt, judge.classes)
    if problems and incomplete == "raise":
        raise IncompleteError(folder, problems)
    if problems:
        _log.warning("%s is not complete: %s; what is there is scored", folder, sum_up(problems))
    prompts = "those of the folder" if metadata is None else file_sha256(metadata)
    card = {"detector_sha256": detector.fingerprint, "prompts_sha256": prompts, **dataclasses.asdict(judge.rules)}
    score = GenEvalScore(detector.name, {**card, **(details or {})}, metric=geneval_metric(detector))
    # This process reads the whole folder, also where it is one of several.
    score.distributed_available_fn = lambda: False
    verdicts: list[tuple[GenEvalSample, RuleResult]] = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        found = judge([read_sample(sample.path) for sample in batch], [sample.prompt for sample in batch])
        score.update(found, [sample.prompt_id for sample in batch], [sample.sample_id for sample in batch])
        verdicts += zip(batch, found, strict=True)
        if progress is not None:
            progress("scoring pictures", len(verdicts), len(samples))
    if results is not None:
        Path(results).parent.mkdir(parents=True, exist_ok=True)
        replace_file(results, "".join(_result_line(*verdict) for verdict in verdicts).encode())
    failures = {str(kind): count for kind, count in score.failures().items()}
    return GenEvalReport(tuple(score.measurements()), failures, tuple(problems), tuple(verdicts))


def find_samples(
    folder: str | Path,
    metadata: str | Path | None = None,
    samples_per_prompt: int | None = 4,
    classes: Collection[str] | None = None,
) -> tuple[list[GenEvalSample], list[str]]:
    """List the pictures of a folder in the benchmark's layout.

    Folders and pictures are known by names that are numbers; others (``grid.png``) are not looked at.

    Args:
        folder: holds NNNNN/metadata.jsonl and NNNNN/samples/0000.png (or .jpg, .webp).
        metadata: ``evaluation_metadata.jsonl``: prompt NNNNN is its line NNNNN, counted from 0, and a
            ``metadata.jsonl`` in the folder may be missing but not differ.
        samples_per_prompt: pictures that each prompt must have; None = at least one.
        classes: classes that the detector knows; None = not checked.

    Returns:
        The pictures by prompt and number, and what is missing or too much.

    Raises:
        DataError: no folder, no picture, a folder without a record, a record that is wrong or not that of
            ``metadata``, or two folders or pictures of one number.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; GenEval needs NNNNN/samples/0000.png inside one")
    prompts = None if metadata is None else read_prompts(metadata, classes)
    places = _places(folder)
    samples: list[GenEvalSample] = []
    problems = [f"prompt {number} has no folder" for number in range(len(prompts or ())) if number not in places]
    for number, place in sorted(places.items()):
        prompt = _prompt(place, number, prompts, metadata, classes)
        pictures = _pictures(place / "samples")
        samples += [GenEvalSample(number, sample, path, prompt) for sample, path in sorted(pictures.items())]
        wanted = len(pictures) or 1 if samples_per_prompt is None else samples_per_prompt
        if len(pictures) != wanted:
            problems.append(f"{place.name}/samples has {len(pictures)} pictures instead of {wanted}")
    if not samples:
        raise DataError(f"{folder} holds no picture; GenEval needs NNNNN/samples/0000.png inside it")
    return samples, problems


def read_sample(path: str | Path) -> Tensor:
    """Read a picture upright (EXIF orientation applied), as RGB.

    Args:
        path: the file.

    Returns:
        uint8, (3, H, W).

    Raises:
        DataError: it cannot be read or decoded; the message names the file.
    """
    try:
        pixels = decode_pixels(Path(path).read_bytes()).pixels
    except (OSError, SampleError) as error:
        raise DataError(f"the picture {path} cannot be used: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def sum_up(problems: Sequence[str]) -> str:
    """Problems in one line, however many there are.

    Args:
        problems: one text each.

    Returns:
        The first five, and how many others there are.
    """
    rest = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{', '.join(problems[:_SHOWN])}{rest}"


def _places(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for place in sorted(folder.iterdir()):
        if not (place.is_dir() and _PROMPT.fullmatch(place.name)):
            continue
        number = int(place.name)
        if number in found:
            raise DataError(f"{folder} holds prompt {number} twice: {found[number].name} and {place.name}")
        found[number] = place
    return found


def _prompt(
    place: Path,
    number: int,
    prompts: Sequence[GenEvalPrompt] | None,
    metadata: str | Path | None,
    classes: Collection[str] | None,
) -> GenEvalPrompt:
    path = place / "metadata.jsonl"
    if prompts is not None and number >= len(prompts):
        raise DataError(f"{place} has no prompt: {metadata} has {len(prompts)}, counted from 0")
    if prompts is not None and not path.exists():
        return prompts[number]
    if not path.exists():
        raise DataError(f"{path} is missing: write it, or give the evaluation_metadata.jsonl of all prompts")
    own = read_prompts(path, classes)
    if len(own) != 1:
        raise DataError(f"{path} must hold one record, it has {len(own)}")
    if prompts is not None and own[0] != prompts[number]:
        raise DataError(
            f'{path} asks for "{own[0].prompt}", but prompt {number} of {metadata} for "{prompts[number].prompt}": '
            "were the pictures made from another list?"
        )
    return own[0]


def _pictures(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _PICTURE.fullmatch(path.name):
            continue
        number = int(path.stem)
        if number in found:
            raise DataError(f"{folder} holds picture {number} twice: {found[number].name} and {path.name}")
        found[number] = path
    return found


def _result_line(sample: GenEvalSample, result: RuleResult) -> str:
    row = {
        "filename": str(sample.path),
        "tag": result.tag,
        "prompt": sample.prompt.prompt,
        "correct": result.correct,
        "reason": "\n".join(failure.reason for failure in result.failures),
        # Text within text, as in the benchmark's files: its summary groups pictures by this column.
        "metadata": json.dumps(dict(sample.prompt.record)),
        "details": json.dumps(dict(result.boxes)),
    }
    return json.dumps(row) + "\n"
