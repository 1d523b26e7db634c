"""`lightning evaluate geneval2` and `lightning evaluate dpg`: questions about pictures, answered by a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from .evaluate_options import add_out, built, images_of, is_class_path
from .options import Examples, device_of

if TYPE_CHECKING:
    from lightning_gen.metrics.compositional.dpg_questions import DPGPrompt
    from lightning_gen.metrics.image_sets import ImageSet

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_GENEVAL2_EPILOG = """\
examples:
  lightning evaluate geneval2 --prompts geneval2_data.jsonl --samples out/ --model weights/Qwen3-VL-8B-Instruct

SAMPLES holds one picture per prompt, named by the number of its line from 0: 00000.png. Published numbers come from
Qwen3-VL-8B-Instruct. A model of yours is a class or function that is called without arguments and returns something
with `name` and the call `answer_probabilities` of lightning_gen.metrics.compositional.geneval2.VQAModel.
"""

_DPG_EPILOG = """\
examples:
  lightning evaluate dpg --prompts dpg_bench.csv --samples out/ --model weights/Qwen3-VL-8B-Instruct --out runs/dpg

SAMPLES holds ITEM.png, a grid of 2 x 2 pictures, or ITEM/0.png ... ITEM/3.png, exactly four. Published numbers come
from mPLUG-large, which is not read here: with another model the protocol id is another one. A model of yours is a class
or function that is called without arguments and returns something with `name` and the call `answer` of
lightning_gen.metrics.compositional.dpg_questions.AnswersQuestions.
"""


def configure(verbs: Verbs) -> None:
    """Add the verbs.

    Args:
        verbs: where to.
    """
    for name, summary, epilog, run in (
        ("geneval2", "GenEval 2: probable answers to questions about samples", _GENEVAL2_EPILOG, _run_geneval2),
        ("dpg", "DPG-Bench: long prompts as questions that depend on each other", _DPG_EPILOG, _run_dpg),
    ):
        parser = verbs.add_parser(
            name, help=summary, description=f"{summary}.", epilog=epilog, formatter_class=Examples
        )
        parser.add_argument("--samples", required=True, metavar="WHERE", help="pictures, see below")
        parser.add_argument("--prompts", required=True, metavar="FILE", help="the benchmark's file")
        parser.add_argument(
            "--model", required=True, metavar="WHO", help="folder of a vision-language model, or package.Class"
        )
        parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto = cuda if there is one (auto)")
        parser.add_argument("--incomplete", action="store_true", help="score what is there where pictures are missing")
        if name == "geneval2":
            parser.add_argument(
                "--deduplicate", action="store_true", help="count a first token once that several spellings share"
            )
        else:
            parser.add_argument(
                "--all-rows", action="store_true", help="also the first row, which published numbers leave out"
            )
        add_out(parser)
        parser.set_defaults(run=run)


def _run_geneval2(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.compositional.geneval2 import GenEval2Score, judge_questions, read_geneval2, soft_tifa

    from .data_packing import progress_bars
    from .evaluate_output import Cases, Finding, finish

    prompts = read_geneval2(options.prompts)
    images = images_of(options.samples)
    places = _numbered(images, len(prompts))
    numbers, warnings = _present([str(number) in places for number in range(len(prompts))], options)
    model = _model(options, "answer_probabilities")
    score = GenEval2Score(model.name, {**getattr(model, "settings", {})})
    rows: list[dict[str, Any]] = []
    with progress_bars() as watch:
        for number in numbers:
            place = places[str(number)]
            [answers] = judge_questions(model, [images.read(place)], [prompts[number]])
            score.update([prompts[number]], [answers], [number])
            mean, geometric = soft_tifa(answers)
            questions = [one.text for one in prompts[number].questions]
            row = {"name": images.names[place], "prompt": prompts[number].prompt, "am": mean, "gm": geometric}
            rows.append({**row, "answers": dict(zip(questions, answers, strict=True))})
            watch("prompts", len(rows), len(numbers))
    cases = Cases(
        "arithmetic mean of the wanted answers' probabilities",
        [row["am"] for row in rows],
        True,
        [row["prompt"] for row in rows],
        lambda case: [images.read(places[str(numbers[case])])],
    )
    inputs = {"samples": images.fingerprint, "prompts": _hash(options.prompts)}
    found = Finding(f"GenEval 2 of {options.samples}", score.measurements(), inputs, rows, cases, warnings=warnings)
    return finish(options, found)


def _run_dpg(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.compositional.dpg_bench import DPGBench, ask_questions, read_dpg_bench, split_grid

    from .data_packing import progress_bars
    from .evaluate_output import Cases, Finding, finish

    prompts = read_dpg_bench(options.prompts, skip_first_row=not options.all_rows)
    images = images_of(options.samples)
    places = _by_item(images, prompts)
    numbers, warnings = _present([prompt.item_id in places for prompt in prompts], options)
    if extra := len(images) - sum(map(len, places.values())):
        warnings.append(f"{extra} pictures are of no prompt and were not looked at")
    model = _model(options, "answer")
    score = DPGBench(model.name, prompts, details={**getattr(model, "settings", {})})
    rows: list[dict[str, Any]] = []
    with progress_bars() as watch:
        for number in numbers:
            prompt = prompts[number]
            pictures = images.select(places[prompt.item_id])
            if len(pictures) == 1:
                pictures = split_grid(pictures[0])
            result = ask_questions(model, prompt, pictures)
            score.update([result], [number])
            asked = [question.text for question in prompt.questions]
            row = {"name": prompt.item_id, "prompt": prompt.text, "score": result.score, "questions": asked}
            rows.append({**row, "raw": result.raw, "gated": result.gated})
            watch("prompts", len(rows), len(numbers))
    cases = Cases(
        "mean of the gated answers over the pictures of a prompt; the first picture is shown",
        [row["score"] for row in rows],
        True,
        [row["prompt"] for row in rows],
        lambda case: images.select(places[prompts[numbers[case]].item_id][:1]),
    )
    inputs = {"samples": images.fingerprint, "prompts": _hash(options.prompts)}
    found = Finding(f"DPG-Bench of {options.samples}", score.measurements(), inputs, rows, cases, warnings=warnings)
    return finish(options, found)


def _model(options: argparse.Namespace, call: str) -> Any:
    if is_class_path(options.model):
        made = built(options.model, "--model", None)
        if not (hasattr(made, "name") and hasattr(made, call)):
            raise ValueError(f"--model {options.model}: a model has a name and the call {call}")
        return made
    from lightning_gen.metrics.compositional.local_vqa import TransformersVQA
    from lightning_gen.metrics.judging.local_judge import TransformersJudge

    judge = TransformersJudge(options.model, device=device_of(options.device, apple=False))
    return TransformersVQA(judge, getattr(options, "deduplicate", False))


def _numbered(images: ImageSet, count: int) -> dict[str, int]:
    """Number of a prompt, as text -> number of its picture."""
    places: dict[str, int] = {}
    for place, name in enumerate(images.names):
        stem = PurePosixPath(name).stem
        if not stem.isdecimal() or int(stem) >= count:
            raise ValueError(f"{images.where}: {name} is not named by one of the {count} prompts, from 00000.png on")
        if str(int(stem)) in places:
            raise ValueError(f"{images.where}: {name} is the second picture of prompt {int(stem)}")
        places[str(int(stem))] = place
    return places


def _by_item(images: ImageSet, prompts: Sequence[DPGPrompt]) -> dict[str, list[int]]:
    """Item -> numbers of its pictures: one grid, or four of their own."""
    items = {prompt.item_id for prompt in prompts}
    grids: dict[str, list[int]] = {}
    folders: dict[str, list[int]] = {}
    for place, name in enumerate(images.names):
        path = PurePosixPath(name)
        # The folder first: where items are numbers, the pictures in it are named like other items.
        if path.parent.name in items:
            folders.setdefault(path.parent.name, []).append(place)
        elif path.stem in items:
            grids.setdefault(path.stem, []).append(place)
    for item in {**grids, **folders}:
        names = [images.names[place] for place in (*grids.get(item, ()), *folders.get(item, ()))]
        numbers = {PurePosixPath(images.names[place]).stem for place in folders.get(item, ())}
        if (len(grids.get(item, ())), len(numbers), len(names)) not in ((1, 0, 1), (0, 4, 4)):
            raise ValueError(
                f"{images.where}: {item} has the pictures {', '.join(names[:5])}{' ...' if len(names) > 5 else ''} "
                f"({len(names)}); there must be {item}.png, a grid of four, or exactly four with names of their own in "
                f"{item}/"
            )
    return {**grids, **folders}


def _present(there: Sequence[bool], options: argparse.Namespace) -> tuple[list[int], list[str]]:
    """Numbers of the prompts that have pictures, and a word about the others."""
    numbers = [number for number, is_there in enumerate(there) if is_there]
    missing = len(there) - len(numbers)
    if not numbers:
        raise ValueError(
            f"{options.samples}: no picture belongs to a prompt of {options.prompts}; see --help for names"
        )
    if not missing:
        return numbers, []
    said = f"{missing} of {len(there)} prompts have no picture, the first is prompt {there.index(False)}"
    if not options.incomplete:
        raise ValueError(f"{options.samples}: {said}; --incomplete scores what is there")
    return numbers, [said]


def _hash(path: str) -> str:
    from lightning_gen.metrics.protocol import file_sha256

    return file_sha256(path)
