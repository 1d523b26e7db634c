"""`lightning evaluate preference`: learned scores of pictures and their prompts, alone or against other pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from .evaluate_k_sort import EPILOG, add_k_sort, check_k_sort, run_k_sort
from .evaluate_options import add_out, add_work, built, check_pairs, images_of, is_class_path
from .options import Examples, device_of

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gen.metrics.image_sets import ImageSet
    from lightning_gen.metrics.preference import PreferenceScorer
    from lightning_gen.metrics.protocol import Detail, Measurement

    from .evaluate_output import Cases

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = (
    """\
scorers (--scorer KIND SOURCE, several with a + between them):
  pickscore FOLDER        PickScore, layout of transformers     hpsv2 FILE      HPS v2.1, HPS_v2.1_compressed.pt
  clipscore FOLDER        plain cosine of a CLIP                aesthetic HEAD CLIP      LAION's head, and its CLIP
  package.Class [SOURCE]  of yours; returns a lightning_gen.metrics.preference.PreferenceScorer

examples:
  lightning evaluate preference --samples out/ --prompts prompts.jsonl --scorer pickscore weights/PickScore_v1
  lightning evaluate preference --samples out/ --against baseline/ --prompts prompts.jsonl \\
      --scorer hpsv2 HPS_v2.1_compressed.pt --out runs/hps
  lightning evaluate preference --samples out/ --against base/ dpo/ --prompts prompts.jsonl --out runs/duels \\
      --scorer pickscore weights/PickScore_v1 + hpsv2 HPS_v2.1_compressed.pt      # a table of win rates
  lightning evaluate preference --samples out/ --k-sort data/k-sort --judge my_idea.MyJudge --out runs/ksort

PROMPTS has a JSON object per line: {"image": "0001.png", "prompt": "a cat"}; "image" is the path inside SAMPLES, with
or without its ending. Where no line has "image", and in a .txt with a prompt per line, lines belong to the pictures in
order. --against holds pictures of the same names; the win rate is over prompts, and a tie is half a win.

"""
    + EPILOG
)

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
        help="PickScore, HPS v2.1, CLIPScore, aesthetic score; win rates; K-Sort Eval",
        description="Learned scores of pictures and their prompts; higher is better.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("--samples", required=True, metavar="WHERE", help="folder of pictures, npz, tar")
    parser.add_argument("--prompts", metavar="FILE", help=".jsonl or .txt")
    parser.add_argument("--scorer", nargs="+", metavar="KIND", help="see below")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="WHERE", help="other pictures of the same prompts, for win rates"
    )
    add_k_sort(parser)
    add_out(parser)
    add_work(parser, batch_size=32)
    parser.set_defaults(run=_run, check=_check)


def _run(options: argparse.Namespace) -> int:
    from .data_packing import progress_bars
    from .evaluate_output import Finding, finish

    _check(options)
    if options.k_sort is not None:
        return run_k_sort(options)
    images = images_of(options.samples)
    texts = _texts(options.prompts, images)
    others = [images_of(where) for where in options.against]
    warnings = list(dict.fromkeys(warning for one in others for warning in check_pairs(images, one)))
    measured: list[Measurement] = []
    rows: list[dict[str, Any]] = []
    cases: Cases | None = None
    names: list[str] = []
    several = _several(options.scorer)
    with progress_bars() as watch:
        for given in several:
            # One network at a time in the device's memory.
            scorer = _scorer(given).to(device_of(options.device, apple=False))
            label = f"{scorer.name} " if len(several) > 1 else ""

            def batches(one: ImageSet) -> Iterator[list[Tensor]]:
                return one.batches(options.batch_size, options.threads)

            scores = _scores(scorer, batches(images), texts, watch, f"{label}samples")
            theirs = [_scores(scorer, batches(one), texts, watch, f"{label}against {one.where}") for one in others]
            names.append(scorer.name)
            measured += _measured(scorer, scores, list(zip(others, theirs, strict=True)), texts, options.prompts)
            rows += _rows(images, texts, scores, list(zip(others, theirs, strict=True)))
            if cases is None:
                rival = (others[0], theirs[0]) if others else (None, None)
                cases = _cases(images, rival[0], scores, rival[1], texts)
    if len(names) > 1:
        # The rows of every scorer come one after the other.
        per_scorer = len(rows) // len(names)
        rows = [{"scorer": names[number // per_scorer], **row} for number, row in enumerate(rows)]
    found: dict[str, Any] = {"samples": images.fingerprint}
    if others:
        found["against"] = others[0].fingerprint if len(others) == 1 else [one.fingerprint for one in others]
    return finish(
        options, Finding(f"{', '.join(names)} of {options.samples}", measured, found, rows, cases, warnings=warnings)
    )


def _several(given: Sequence[str]) -> list[list[str]]:
    """Scorers with a + between them."""
    parts: list[list[str]] = [[]]
    for word in given:
        if word == "+":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _measured(
    scorer: PreferenceScorer,
    scores: Tensor,
    rivals: Sequence[tuple[ImageSet, Tensor]],
    texts: Sequence[str],
    prompts: str,
) -> list[Measurement]:
    """Mean and median of a scorer, and its win rate against every other set."""
    import dataclasses

    from lightning_gen.metrics.preference_score import PreferenceScore
    from lightning_gen.metrics.win_rate import WinRate

    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    ids = [numbers[text] for text in texts]
    card: dict[str, Detail] = {"prompts_sha256": _hash(prompts)}
    metric = PreferenceScore(scorer.protocol, card)
    metric.update(scores, ids, range(len(ids)))
    measured = list(metric.measurements())
    for other, theirs in rivals:
        wins = WinRate(scorer.protocol, {**card, "against": str(other.where), "against_sha256": other.fingerprint})
        wins.update(scores, theirs, ids, range(len(ids)))
        for one in wins.measurements():
            counts = one.protocol.details
            said = f"against {other.where}: {counts['wins']} won, {counts['ties']} tied, {counts['losses']} lost"
            measured.append(dataclasses.replace(one, note="; ".join(part for part in (said, one.note) if part)))
    return measured


def _rows(
    images: ImageSet, texts: Sequence[str], scores: Tensor, rivals: Sequence[tuple[ImageSet, Tensor]]
) -> list[dict[str, Any]]:
    """A record per picture, or per picture and rival."""
    from lightning_gen.metrics.preference_score import duel

    own: list[dict[str, Any]] = [
        {"name": name, "prompt": text, "score": score}
        for name, text, score in zip(images.names, texts, scores.tolist(), strict=True)
    ]
    if not rivals:
        return own
    return [
        {**row, **({"rival": str(other.where)} if len(rivals) > 1 else {}), "against": score, "wins": wins}
        for other, theirs in rivals
        for row, score, wins in zip(own, theirs.tolist(), duel(scores, theirs).tolist(), strict=True)
    ]


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
    if options.k_sort is not None:
        check_k_sort(options)
        return
    if options.judge is not None:
        raise ValueError("--judge is for --k-sort")
    if options.scorer is None or options.prompts is None:
        raise ValueError("give --scorer and --prompts, or --k-sort and --judge")
    for given in _several(options.scorer):
        _check_scorer(given)


def _check_scorer(given: Sequence[str]) -> None:
    if not given:
        raise ValueError("--scorer: a + stands between two scorers")
    kind, sources = given[0], list(given[1:])
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
