"""`lightning evaluate egip`: one picture per case of Gen-Arena, and a judge that looks at them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from .evaluate_options import add_out, built, images_of, is_class_path, positive
from .options import Examples, device_of

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gen.metrics.egip import CaseError
    from lightning_gen.metrics.image_sets import ImageSet
    from lightning_gen.metrics.judging.egip_report import EGIPReport
    from lightning_gen.metrics.judging.egip_rules import CaseResult
    from lightning_gen.metrics.judging.gen_arena import GenArenaCase
    from lightning_gen.metrics.judging.judges import Judge

    from .evaluate_output import Finding

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["add_judge", "configure", "judge_of"]

_EPILOG = """\
examples:
  lightning evaluate egip --cases data/gen-arena --samples out/ --out runs/egip \\
      --judge https://HOST/v1/chat/completions --judge-model gemini-3-pro --judge-key JUDGE_API_KEY --workers 8
  lightning evaluate egip --cases data/gen-arena --samples out/ --judge weights/Qwen3-VL-8B-Instruct --out runs/egip
  lightning evaluate egip --cases data/gen-arena --samples out/ --judge my_idea.MyJudge

CASES is the folder of Gen-Arena. SAMPLES holds one picture per case, named by its id: 1-cartoon_004.png, in folders or
not. The key of a hosted judge is read from the environment variable that --judge-key names. Answers are kept in
OUT/results.jsonl: the same call asks again only for what is missing or was an error. A case whose picture is missing,
or whose judge never answers in the form that is asked for, counts as a failure and is listed.
"""


_ADDRESSES = ("http://", "https://")


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "egip",
        help="entities and constraints of Gen-Arena, seen by a judge",
        description="EGIP, the Entity-Gated Intent Pass Rate: are all entities there, and do all constraints hold?",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("--cases", required=True, metavar="FOLDER", help="the benchmark, with its reference images")
    parser.add_argument("--samples", required=True, metavar="WHERE", help="one picture per case id")
    judge = add_judge(parser)
    judge.add_argument("--workers", type=positive, default=1, metavar="N", help="questions at a time (%(default)s)")
    judge.add_argument("--device", default="auto", help="of a local model: cpu, cuda, ... (auto)")
    judge.add_argument(
        "--strict-official",
        action="store_true",
        help="as the official program: the judge does not see the prompt, dangling ids fail, empty rows pass",
    )
    add_out(parser)
    parser.set_defaults(run=_run, check=_check)


def add_judge(parser: argparse.ArgumentParser, required: bool = True) -> argparse._ArgumentGroup:
    """Add who is asked, and how.

    Args:
        parser: of the verb.
        required: whether somebody must be.

    Returns:
        The group of options.
    """
    judge = parser.add_argument_group("judge")
    judge.add_argument(
        "--judge", required=required, metavar="WHO", help="http(s) address, folder of a local model, or package.Class"
    )
    judge.add_argument("--judge-model", metavar="NAME", help="name of the model at the address")
    judge.add_argument("--judge-key", metavar="VARIABLE", help="environment variable with the key of the address")
    judge.add_argument("--no-json-mode", action="store_true", help="for addresses that cannot be asked for JSON")
    judge.add_argument(
        "--attempts", type=positive, default=3, metavar="N", help="for an answer that parses (%(default)s)"
    )
    return judge


def _run(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.judging.egip_report import evaluate_egip
    from lightning_gen.metrics.judging.gen_arena import GEN_ARENA_CATEGORIES, read_gen_arena

    from .data_packing import progress_bars
    from .evaluate_output import finish

    _check(options)
    official = options.strict_official
    cases = read_gen_arena(options.cases, "fail" if official else "error", "pass" if official else "error")
    images = images_of(options.samples)
    places, warnings = _places(cases, images)
    found = dict.fromkeys(case.category for case in cases)
    known = set(found) <= set(GEN_ARENA_CATEGORIES)
    judge = judge_of(options)
    with progress_bars() as watch:
        report = evaluate_egip(
            cases,
            _picture_of(images, places),
            judge,
            results=None if options.out is None else options.out / "results.jsonl",
            attempts=options.attempts,
            strict_official=official,
            workers=options.workers,
            categories=GEN_ARENA_CATEGORIES if known else tuple(found),
            progress=lambda done, total: watch("judging", done, total),
        )
    return finish(options, _finding(options, report, cases, images, places, warnings))


def _places(cases: Sequence[GenArenaCase], images: ImageSet) -> tuple[dict[str, int], list[str]]:
    """Case id -> number of its picture; and what is strange."""
    by_stem: dict[str, int] = {}
    for number, name in enumerate(images.names):
        stem = PurePosixPath(name).stem
        if stem in by_stem:
            raise ValueError(f"{images.where}: {images.names[by_stem[stem]]} and {name} are both pictures of {stem}")
        by_stem[stem] = number
    places = {case.case_id: by_stem[case.case_id] for case in cases if case.case_id in by_stem}
    if not places:
        raise ValueError(
            f"{images.where}: no picture is named by a case id, such as {cases[0].case_id}.png; the first one here is "
            f"{images.names[0]}"
        )
    warnings = []
    if missing := [case.case_id for case in cases if case.case_id not in places]:
        warnings.append(f"{len(missing)} of {len(cases)} cases have no picture and fail, the first is {missing[0]}")
    if extra := len(images) - len(places):
        warnings.append(f"{extra} pictures are of no case and were not looked at")
    return places, warnings


def _picture_of(images: ImageSet, places: dict[str, int]) -> Callable[[GenArenaCase], Tensor]:
    def picture_of(case: GenArenaCase) -> Tensor:
        if case.case_id not in places:
            raise FileNotFoundError(f"{images.where} has no picture of {case.case_id}")
        return images.read(places[case.case_id])

    return picture_of


def _check(options: argparse.Namespace) -> None:
    who: str = options.judge
    _check_address(options)
    if not who.startswith(_ADDRESSES) and options.workers != 1 and not is_class_path(who):
        raise ValueError("--workers is for judges behind an address: a local model answers one question at a time")


def _check_address(options: argparse.Namespace) -> None:
    who: str = options.judge
    if who.startswith(_ADDRESSES) and options.judge_model is None:
        raise ValueError(f"--judge {who.partition('?')[0]} needs --judge-model, the model's name there")


def judge_of(options: argparse.Namespace) -> Judge:
    """Open the judge.

    Args:
        options: of the call; see :func:`add_judge`, and ``device`` of a local model.

    Returns:
        It.

    Raises:
        ValueError: an address without a model's name, or something that is no judge.
    """
    _check_address(options)
    who: str = options.judge
    if who.startswith(_ADDRESSES):
        from lightning_gen.metrics.judging.http_judge import HTTPJudge

        return HTTPJudge(who, options.judge_model, key_variable=options.judge_key, json_mode=not options.no_json_mode)
    if is_class_path(who):
        made: Judge = built(who, "--judge", options.judge_model)
        if not (callable(made) and all(hasattr(made, part) for part in ("name", "settings"))):
            raise ValueError(f"--judge {who}: a judge has a name and settings and can be called with a message")
        return made
    from lightning_gen.metrics.judging.local_judge import TransformersJudge

    return TransformersJudge(who, device=device_of(options.device, apple=False))


def _finding(
    options: argparse.Namespace,
    report: EGIPReport,
    cases: Sequence[GenArenaCase],
    images: ImageSet,
    places: dict[str, int],
    warnings: list[str],
) -> Finding:
    from .evaluate_output import Cases, Finding

    rows = [_row(case, report.outcomes[case.case_id]) for case in cases]
    errors = [row for row in rows if row["error"]]
    if errors:
        warnings = [
            *warnings,
            f"{len(errors)} cases have no verdict, the first: {errors[0]['id']}: {errors[0]['error']}",
        ]
    complete = report.to_json()["completeness"]
    if said := [f"{complete[kind]} {kind}" for kind in ("omitted", "undecided", "unreadable") if complete[kind]]:
        warnings = [*warnings, f"verdicts of the judge: {', '.join(said)}; only a clear pass passes"]
    shown = [row for row in rows if str(row["id"]) in places]
    drawn = Cases(
        "share of entities and gated constraints that passed; PASS and fail are EGIP's verdict",
        [float("nan") if row["error"] else float(str(row["share"])) for row in shown],
        True,
        [f"{'PASS' if row['passed'] else 'fail'} {row['id']}: {row['prompt']}" for row in shown],
        lambda number: [images.read(places[str(shown[number]["id"])])],
    )
    main = {name: one for name, one in report.measurements.items() if "/" not in name or name.startswith("egip/")}
    return Finding(
        f"EGIP of {options.samples}",
        list(main.values()),
        {
            "samples": images.fingerprint,
            "pictures": len(images),
            "cases": len(cases),
            **complete,
        },
        rows,
        drawn if any(not row["error"] for row in shown) else None,
        warnings=warnings,
        further=[one for name, one in report.measurements.items() if name not in main],
    )


def _row(case: GenArenaCase, outcome: CaseResult | CaseError) -> dict[str, object]:
    from lightning_gen.metrics.egip import CaseError

    row: dict[str, object] = {"id": case.case_id, "category": case.category, "prompt": case.prompt}
    if isinstance(outcome, CaseError):
        return {**row, "passed": False, "share": None, "error": f"{outcome.kind}: {outcome.message}"}
    verdicts = [*outcome.entities.values(), *outcome.gated.values()]
    return {
        **row,
        "passed": outcome.passed,
        "share": sum(verdicts) / len(verdicts) if verdicts else 1.0,
        "error": None,
        "entities": dict(outcome.entities),
        "direct": dict(outcome.direct),
        "gated": dict(outcome.gated),
    }
