"""K-Sort Eval as a part of `lightning evaluate preference`."""

from __future__ import annotations

import argparse
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .evaluate_egip import add_judge, judge_of
from .evaluate_options import images_of, positive

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EPILOG", "add_k_sort", "check_k_sort", "run_k_sort"]

_SIZE = (512, 512)
"""Height and width of the pictures that the published protocol asks for."""

EPILOG = """\
K-Sort Eval (--k-sort FOLDER --judge WHO): FOLDER has k_sort.jsonl, a JSON object per line {"id": "0001", "prompt":
"a cat", "images": [{"model": "sdxl", "path": "0001/sdxl.png", "rank": 2}, ...]} with people's ranks, and
leaderboard.json {"sdxl": [27.1, 0.9], ...}, mu and sigma. SAMPLES holds the new model's pictures, named by id.
"""


def add_k_sort(parser: argparse.ArgumentParser) -> None:
    """Add its options.

    Args:
        parser: of the verb.
    """
    group = parser.add_argument_group("K-Sort Eval, in place of a scorer")
    group.add_argument("--k-sort", type=Path, metavar="FOLDER", help="cases with sorted pictures of rated models")
    group.add_argument("--rounds", type=positive, default=150, metavar="N", help="cases at most (%(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of the order of the pictures (%(default)s)")
    add_judge(parser, required=False)


def check_k_sort(options: argparse.Namespace) -> None:
    """Insist that the options belong together.

    Args:
        options: of the call.

    Raises:
        ValueError: they do not.
    """
    if options.judge is None:
        raise ValueError("--k-sort needs --judge, who sorts the pictures")
    if options.scorer or options.against or options.prompts:
        raise ValueError("--k-sort brings its own prompts and opponents: leave --scorer, --prompts and --against away")


def run_k_sort(options: argparse.Namespace) -> int:
    """Rate a model by K-Sort Eval.

    Args:
        options: of the call.

    Returns:
        0.

    Raises:
        ValueError: no picture belongs to a case, or the judge never answers.
    """
    from lightning_gen.metrics.judging.k_sort import KSortSettings, evaluate_k_sort
    from lightning_gen.metrics.judging.k_sort_cases import KSortCase, read_k_sort

    from .data_packing import progress_bars
    from .evaluate_output import Finding, finish

    cases, ratings = read_k_sort(options.k_sort)
    images = images_of(options.samples)
    places = {PurePosixPath(name).stem: number for number, name in enumerate(images.names)}
    known = [case for case in cases if case.case_id in places]
    if not known:
        raise ValueError(
            f"{images.where}: no picture is named by a case id, such as {cases[0].case_id}.png; the first one here is "
            f"{images.names[0]}"
        )
    warnings = []
    if missing := len(cases) - len(known):
        warnings.append(f"{missing:,} of {len(cases):,} cases have no picture and cannot be picked")

    sizes: set[tuple[int, int]] = set()

    def picture_of(case: KSortCase) -> Tensor:
        picture = images.read(places[case.case_id])
        sizes.add((picture.shape[-2], picture.shape[-1]))
        return picture

    with progress_bars() as watch:
        report = evaluate_k_sort(
            known,
            ratings,
            picture_of,
            _read,
            judge_of(options),
            KSortSettings(max_rounds=options.rounds, attempts=options.attempts, seed=options.seed),
            lambda done, total: watch("rounds", done, total),
        )
    if not report.settled:
        warnings.append(f"sigma is {report.rating.deviation:.2f} after all rounds; the protocol stops below 0.75")
    shown = " and ".join(f"{height} x {width}" for height, width in sorted(sizes))
    if sizes != {_SIZE}:
        warnings.append(f"pictures of {shown} pixels; the published ratings are of {_SIZE[0]} x {_SIZE[1]}")
    if silent := [one for one in report.rounds if one.error]:
        warnings.append(f"{len(silent)} rounds have no answer, the first: {silent[0].case_id}: {silent[0].error}")
    rows = [
        {
            "id": one.case_id,
            "rank": one.rank,
            "agreement": one.agreement,
            "mu": one.rating.mean,
            "sigma": one.rating.deviation,
            "error": one.error or None,
        }
        for one in report.rounds
    ]
    inputs = {"samples": images.fingerprint, "cases": len(cases), "models": len(ratings), "pixels": shown}
    return finish(
        options, Finding(f"K-Sort Eval of {options.samples}", report.measurements, inputs, rows, warnings=warnings)
    )


def _read(path: Path) -> Tensor:
    import torch

    from lightning_gen.data.decode import decode_pixels

    return torch.from_numpy(decode_pixels(path.read_bytes()).pixels).permute(2, 0, 1).contiguous()
