"""`lightning evaluate geneval`: a folder of pictures in the benchmark's layout, a detector, and a CLIP for colours."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluate_options import add_out, add_work, built, is_class_path, positive
from .options import Examples, device_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lightning_gen.interfaces import Detections
    from lightning_gen.metrics.compositional.geneval_folder import GenEvalReport
    from lightning_gen.metrics.detectors import NamedDetector

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning evaluate geneval --samples out/ --detector m2f weights/mask2former-swin-small-coco-instance \\
      --colors weights/clip-vit-large-patch14 --out runs/geneval
  lightning evaluate geneval --samples out/ --metadata evaluation_metadata.jsonl --detector my_idea.MyDetector

SAMPLES holds NNNNN/metadata.jsonl and NNNNN/samples/0000.png, as the benchmark's own generation script writes them. A
detector of yours is a class or function that is called with SOURCE (or without arguments) and returns something with
`name`, `fingerprint` and the call of lightning_gen.interfaces.Detector. With `classes` it says what it knows besides
COCO's names, with `colors(image, boxes, masks, class_name)` it names colours (lightning_gen.ShapesDetector has both).
Every detector has its own protocol id; numbers of published tables come from mmdetection's Mask2Former, which none of
them is. OUT/results.jsonl has the form of the benchmark's own script.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "geneval",
        help="objects, counts, colours and positions in text-to-image samples",
        description="GenEval: do the pictures show the objects, numbers, colours and positions of their prompts?",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("--samples", required=True, metavar="FOLDER", help="pictures in the benchmark's layout")
    parser.add_argument(
        "--detector", required=True, nargs="+", metavar="KIND", help="m2f, grounding-dino or package.Class, then SOURCE"
    )
    parser.add_argument("--colors", metavar="SOURCE", help="CLIP that names colours: folder or hub id")
    parser.add_argument("--colors-model", metavar="NAME", help="its architecture in open_clip, for bare weights")
    parser.add_argument("--metadata", metavar="FILE", help="evaluation_metadata.jsonl: each prompt must be there")
    parser.add_argument(
        "--samples-per-prompt", type=positive, default=4, metavar="N", help="pictures of each prompt (%(default)s)"
    )
    parser.add_argument(
        "--incomplete", action="store_true", help="score what is there where prompts or pictures are missing"
    )
    rules = parser.add_argument_group("rules (the benchmark's by default; others are in the protocol card)")
    rules.add_argument("--threshold", type=float, default=0.3, metavar="F", help="score of a detection (%(default)s)")
    rules.add_argument(
        "--counting-threshold", type=float, default=0.9, metavar="F", help="the same for counting (%(default)s)"
    )
    rules.add_argument("--max-objects", type=positive, default=16, metavar="N", help="of a class (%(default)s)")
    rules.add_argument("--max-overlap", type=float, default=1.0, metavar="F", help="suppression; 1 = off (%(default)s)")
    rules.add_argument("--position-margin", type=float, default=0.1, metavar="F", help="of extents (%(default)s)")
    add_out(parser)
    add_work(parser, batch_size=8)
    parser.set_defaults(run=_run, check=_check)


def _run(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.compositional.geneval_folder import IncompleteError, evaluate_geneval
    from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules
    from lightning_gen.metrics.detection.coco import GENEVAL_NAMES

    from .data_packing import progress_bars
    from .evaluate_output import finish

    _check(options)
    device = device_of(options.device, apple=False)
    rules = GenEvalRules(
        options.threshold,
        options.counting_threshold,
        options.max_objects,
        options.max_overlap,
        options.position_margin,
    )
    given = _detector(*options.detector)
    detector = _OnDevice(given, device)
    # A detector of another world may say what it knows, and may know colours itself.
    classes, colors = getattr(given, "classes", GENEVAL_NAMES), getattr(given, "colors", None)
    clip_sha256 = "none" if colors is None else "the detector"
    if options.colors is not None:
        from lightning_gen.metrics.detection.colors import ColorClassifier
        from lightning_gen.metrics.extraction.clip import load_clip

        colors = ColorClassifier(load_clip(options.colors, options.colors_model).to(device))
        clip_sha256 = colors.fingerprint
    try:
        with progress_bars() as watch:
            report = evaluate_geneval(
                options.samples,
                detector,
                colors,
                rules,
                watch,
                classes=classes,
                metadata=options.metadata,
                results=None if options.out is None else options.out / "results.jsonl",
                samples_per_prompt=options.samples_per_prompt,
                incomplete="warn" if options.incomplete else "raise",
                batch_size=options.batch_size,
                details={"colors_sha256": clip_sha256},
            )
    except IncompleteError as error:
        raise ValueError(f"{error.summary}; --incomplete scores what is there") from None
    return finish(options, _finding(options, report))


def _check(options: argparse.Namespace) -> None:
    kind = options.detector[0]
    if len(options.detector) > 2:
        raise ValueError(f"--detector takes a kind and one source, got {' '.join(options.detector)}")
    if is_class_path(kind):
        return
    if kind not in ("m2f", "grounding-dino"):
        raise ValueError(f"--detector {kind}: choose m2f, grounding-dino, or name a class of yours package.Class")
    if len(options.detector) == 1:
        raise ValueError(f"--detector {kind} needs its weights: --detector {kind} FOLDER")


def _detector(kind: str, source: str = "") -> NamedDetector:
    if is_class_path(kind):
        made: NamedDetector = built(kind, "--detector", source or None)
        if not (callable(made) and all(hasattr(made, part) for part in ("name", "fingerprint"))):
            raise ValueError(f"--detector {kind}: a detector has a name and a fingerprint and can be called")
        return made
    from lightning_gen.metrics.detectors import GroundingDINODetector, Mask2FormerDetector

    return Mask2FormerDetector(source) if kind == "m2f" else GroundingDINODetector(source)


class _OnDevice:
    """A detector that gets its pictures on a device and whose findings are wanted on the CPU."""

    def __init__(self, detector: Any, device: torch.device) -> None:
        self.name: str = detector.name
        self.fingerprint: str = detector.fingerprint
        self.prescribed_by_geneval: bool = getattr(detector, "prescribed_by_geneval", False)
        self._detector, self._device = detector, device

    def __call__(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        from lightning_gen.interfaces import Detections
        from lightning_gen.metrics.detectors import detect

        return [
            Detections(one.boxes.cpu(), one.scores.cpu(), one.classes, None if one.masks is None else one.masks.cpu())
            for one in detect(self._detector, images.to(self._device), classes)
        ]


def _hash(names: Sequence[str], paths: Sequence[Path]) -> str:
    """sha256 over the names and the files, in order."""
    from lightning_gen.metrics.protocol import file_sha256

    return hashlib.sha256(json.dumps([names, [file_sha256(path) for path in paths]]).encode()).hexdigest()


def _finding(options: argparse.Namespace, report: GenEvalReport) -> Any:
    from lightning_gen.metrics.compositional.geneval_folder import read_sample, sum_up

    from .evaluate_output import Cases, Finding

    rows: list[dict[str, Any]] = [
        {
            "name": sample.path.relative_to(options.samples).as_posix(),
            "prompt": sample.prompt.prompt,
            "tag": sample.prompt.tag,
            "correct": result.correct,
            "reward": result.reward,
            "failures": [failure.reason for failure in result.failures],
        }
        for sample, result in report.results
    ]
    names = [f"{'pass' if row['correct'] else 'FAIL'}: {row['prompt']}. {'; '.join(row['failures'])}" for row in rows]
    cases = Cases(
        "graded reward, 1 = everything as asked; pass and FAIL are GenEval's verdict",
        [row["reward"] for row in rows],
        True,
        names,
        lambda case: [read_sample(report.results[case][0].path)],
    )
    return Finding(
        f"GenEval of {options.samples}",
        report.measurements,
        {
            "samples": _hash([row["name"] for row in rows], [sample.path for sample, _ in report.results]),
            **({"missing": list(report.problems)} if report.problems else {}),
        },
        rows,
        cases,
        {kind: count for kind, count in report.failures.items() if count},
        [sum_up(report.problems)] if report.problems else [],
    )
