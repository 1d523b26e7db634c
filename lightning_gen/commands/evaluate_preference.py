"""`lightning evaluate preference`: learned scores of pictures and their prompts, alone or against other pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from .evaluate_options import add_out, add_work, built, check_pairs, images_of, is_class_path
from .options import Examples, device_of

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gen.metrics.image_sets import ImageSet
    from lightning_gen.metrics.preference import PreferenceScorer

    from .evaluate_output import Cases

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
scorers (--scorer KIND SOURCE):
  pickscore FOLDER        PickScore, layout of transformers     hpsv2 FILE      HPS v2.1, HPS_v2.1_compressed.pt
  clipscore FOLDER        plain cosine of a CLIP                aesthetic HEAD CLIP      LAION's head, and its CLIP
  package.Class [SOURCE]  of yours; returns a lightning_gen.metrics.preference.PreferenceScorer

examples:
  lightning evaluate preference --samples out/ --prompts prompts.jsonl --scorer pickscore weights/PickScore_v1
  lightning evaluate preference --samples out/ --against baseline/ --prompts prompts.jsonl \\
      --scorer hpsv2 HPS_v2.1_compressed.pt --out runs/hps

PROMPTS has a JSON object per line: {"image": "0001.png", "prompt": "a cat"}; "image" is the path inside SAMPLES, with
or without its ending. Where no line has "image", and in a .txt with a prompt per line, lines belong to the pictures in
order. --against holds pictures of the same names; the win rate is over prompts, and a tie is half a win.
"""

_KEYS: Final = ("image", "name", "file_name")
_SCORERS: Final = {"pickscore": 1, "hpsv2": 1, "clipscore": 1, "aesthetic": 2}
"""Scorer -> how many sources it takes."""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "preference",
        help="PickScore, HPS v2.1, CLIPScore, aesthetic score; win rates",
        description="Learned scores of pictures and their prompts; higher is better.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("--samples", required=True, metavar="WHERE", help="folder of pictures, npz, tar")
    parser.add_argument("--prompts", required=True, metavar="FILE", help=".jsonl or .txt")
    parser.add_argument("--scorer", required=True, nargs="+", metavar="KIND", help="see below")
    parser.add_argument("--against", metavar="WHERE", help="other pictures of the same prompts, for a win rate")
    add_out(parser)
    add_work(parser, batch_size=32)
    parser.set_defaults(run=_run, check=_check)


def _run(options: argparse.Namespace) -> int:
    from lightning_gen.metrics.preference_score import PreferenceScore, duel
    from lightning_gen.metrics.win_rate import WinRate

    from .data_packing import progress_bars
    from .evaluate_output import Finding, finish

    _check(options)
    images = images_of(options.samples)
    texts = _texts(options.prompts, images)
    others = None if options.against is None else images_of(options.against)
    warnings = [] if others is None else check_pairs(images, others)
    scorer = _scorer(options.scorer).to(device_of(options.device, apple=False))
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    ids = [numbers[text] for text in texts]
    with progress_bars() as watch:
        scores = _scores(scorer, images.batches(options.batch_size, options.threads), texts, watch, "samples")
        theirs = None
        if others is not None:
            theirs = _scores(scorer, others.batches(options.batch_size, options.threads), texts, watch, "against")
    card = {"prompts_sha256": _hash(options.prompts)}
    metric = PreferenceScore(scorer.protocol, card)
    metric.update(scores, ids, range(len(ids)))
    measured = list(metric.measurements())
    rows = [
        {"name": name, "prompt": text, "score": score}
        for name, text, score in zip(images.names, texts, scores.tolist(), strict=True)
    ]
    if theirs is not None:
        outcome = duel(scores, theirs)
        wins_of = WinRate(scorer.protocol, card)
        wins_of.update(scores, theirs, ids, range(len(ids)))
        measured += wins_of.measurements()
        rows = [
            {**row, "against": other, "wins": wins}
            for row, other, wins in zip(rows, theirs.tolist(), outcome.tolist(), strict=True)
        ]
    inputs = {"samples": images.fingerprint, **({} if others is None else {"against": others.fingerprint})}
    cases = _cases(images, others, scores, theirs, texts)
    return finish(
        options, Finding(f"{scorer.name} of {options.samples}", measured, inputs, rows, cases, warnings=warnings)
    )


def _texts(path: str, images: ImageSet) -> list[str]:
    """The prompt of every picture."""
    from lightning_gen.data.prompts import PromptFile

    file = PromptFile(path)
    records = [json.loads(stored.metadata) for stored in file.prompts]
    for number, record in zip(file.numbers, records, strict=True):
        if wrong := [key for key in _KEYS if key in record and not isinstance(record[key], str)]:
            raise ValueError(
                f'{path} line {number}: "{wrong[0]}" is {json.dumps(record[wrong[0]])}, no text: write the path of the '
                "picture inside SAMPLES in quotes"
            )
    named = [next((record[key] for key in _KEYS if key in record), None) for record in records]
    if all(name is None for name in named):
        if len(named) != len(images):
            raise ValueError(
                f"{path} has {len(named)} prompts, {images.where} {len(images)} pictures: say for every line which "
                'picture it belongs to, as "image"'
            )
        return [stored.prompt for stored in file.prompts]
    by_name: dict[str, str] = {}
    for number, name, stored in zip(file.numbers, named, file.prompts, strict=True):
        if name is None:
            raise ValueError(f'{path} line {number} has no "image", others have')
        if name in by_name:
            raise ValueError(f"{path} line {number}: {name} has a prompt already")
        by_name[name] = stored.prompt
    found = [
        by_name.pop(name, None) or by_name.pop(str(PurePosixPath(name).with_suffix("")), None) for name in images.names
    ]
    if None in found:
        raise ValueError(f"{path} has no prompt for the picture {images.names[found.index(None)]} of {images.where}")
    if by_name:
        raise ValueError(f"{images.where} has no picture {next(iter(by_name))}, which {path} has a prompt for")
    return [text for text in found if text is not None]


def _check(options: argparse.Namespace) -> None:
    kind, sources = options.scorer[0], options.scorer[1:]
    if is_class_path(kind):
        if len(sources) > 1:
            raise ValueError(f"--scorer {kind} takes one SOURCE at most, got {sources}")
        return
    if kind not in _SCORERS:
        raise ValueError(f"--scorer {kind}: choose {', '.join(_SCORERS)}, or name a class of yours package.Class")
    if len(sources) != _SCORERS[kind]:
        wanted = "HEAD and CLIP" if _SCORERS[kind] == 2 else "one SOURCE"
        raise ValueError(f"--scorer {kind} takes {wanted}, got {sources}")


def _scorer(given: Sequence[str]) -> PreferenceScorer:
    from lightning_gen.metrics import preference

    kind, sources = given[0], list(given[1:])
    if is_class_path(kind):
        made = built(kind, "--scorer", sources[0] if sources else None)
        if not isinstance(made, preference.PreferenceScorer):
            raise ValueError(f"--scorer {kind} made a {type(made).__name__}, no PreferenceScorer")
        return made
    makers: dict[str, Any] = {
        "pickscore": preference.PickScore,
        "hpsv2": preference.HPSv21,
        "clipscore": preference.CLIPScore,
        "aesthetic": preference.AestheticScore,
    }
    scorer: PreferenceScorer = makers[kind](*sources)
    return scorer


def _scores(
    scorer: PreferenceScorer, batches: Iterator[list[Tensor]], texts: Sequence[str], watch: Any, what: str
) -> Tensor:
    import torch

    found: list[Tensor] = []
    done = 0
    with torch.no_grad():
        for batch in batches:
            found.append(scorer(batch, texts[done : done + len(batch)]).double().cpu())
            done += len(batch)
            watch(what, done, len(texts))
    scores = torch.cat(found)
    if not torch.isfinite(scores).all():
        bad = int((~torch.isfinite(scores)).nonzero()[0])
        raise ValueError(f"the score of picture {bad} of the {what} is {float(scores[bad])}: are the weights sound?")
    return scores


def _cases(
    images: ImageSet, others: ImageSet | None, scores: Tensor, theirs: Tensor | None, texts: Sequence[str]
) -> Cases:
    from .evaluate_output import Cases

    if others is None or theirs is None:
        return Cases(
            "score, higher is better",
            scores.tolist(),
            True,
            [f"{name}: {text}" for name, text in zip(images.names, texts, strict=True)],
            lambda case: images.select([case]),
        )
    return Cases(
        f"score minus that of {others.where}, which is on the right",
        (scores - theirs).tolist(),
        True,
        [f"{name}: {text}" for name, text in zip(images.names, texts, strict=True)],
        lambda case: [*images.select([case]), *others.select([case])],
    )


def _hash(path: str) -> str:
    from lightning_gen.metrics.protocol import file_sha256

    return file_sha256(path)
