"""Pictures of the base for labelling by eye, and how far the exact detector agrees with the labels.

    python benchmarks/shapes_labels.py sheets runs/labels                     # sheet_00.png ..., detector.json
    python benchmarks/shapes_labels.py compare runs/labels labels.csv         # agreement, with intervals
    python benchmarks/shapes_labels.py compare runs/labels labels.csv --card data/shapes_base

The sheets show numbers and no prompts, so that labels are blind. A label is a line ``number,count,objects``: objects
are "color kind" joined by ";", in any order, for instance ``17,2,red circle;blue moon``; count = 0 and no objects for
an empty picture. Objects that nobody could name are written "? kind", "color ?" or "? ?", and count as a disagreement.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from shapes_base import filled
from shapes_scoring import LEVEL, pictures_of

from lightning_gen.generators.dit.text_module import TextLatentDiffusion
from lightning_gen.metrics.contact_sheet import Cell, draw_contact_sheet
from lightning_gen.metrics.intervals import wilson_interval
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.detector import ShapesDetector, find_objects
from lightning_gen.shapes.grammar import Request, parse_prompt
from lightning_gen.shapes.vocabulary import COLORS, KINDS

PER_SHEET, COLUMNS, ENLARGED = 20, 5, 6
_UNKNOWN = "?"
_ROWS = {
    "count": "number of objects",
    "color": "colours",
    "kind": "kinds",
    "picture": "all pairs of colour and kind",
    "verdict": "verdict on the prompt (positions left out)",
}


def sheets(model: TextLatentDiffusion, folder: Path, pictures: int, seed: int, least: float) -> None:
    """Make pictures for prompts spread over all tasks, draw the sheets, and write what the detector reads."""
    requests = list(benchmark_requests())
    chosen = [requests[len(requests) * number // pictures] for number in range(pictures)]
    images = torch.cat([part for _, part in pictures_of(model, chosen, model.sampling, seed)])
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, pictures, PER_SHEET):
        numbers = range(first, min(first + PER_SHEET, pictures))
        cells = [Cell([images[number]], str(number)) for number in numbers]
        rows = [("", cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)]
        title = f"pictures {numbers[0]} to {numbers[-1]}: number,count,objects"
        sheet = draw_contact_sheet(title, rows, ENLARGED * max(images.shape[2:]))
        sheet.save(folder / f"sheet_{first // PER_SHEET:02d}.png")
    found = [
        [[one.color, one.kind] for one in objects if one.score >= least]
        for objects in find_objects(images.float() / 255)
    ]
    record = {"seed": seed, "least": least, "prompts": [one.prompt() for one in chosen], "found": found}
    (folder / "detector.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_labels(path: Path) -> dict[int, list[tuple[str, str]]]:
    """Labels by number; a line that makes no sense is named."""
    labels: dict[int, list[tuple[str, str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            where = f"{path}:{line}"
            try:
                number, count = int(row["number"]), int(row["count"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{where}: a label is number,count,objects (with that header), got {row}") from None
            objects = [tuple(text.split()) for text in (row.get("objects") or "").split(";") if text.strip()]
            wrong = [one for one in objects if len(one) != 2 or not _is_known(one[0], one[1])]
            if wrong:
                raise ValueError(f"{where}: {' '.join(wrong[0])!r} is no colour and kind of the embedded world")
            if len(objects) != count or number in labels:
                reason = "the number was labelled before" if number in labels else f"{len(objects)} objects"
                raise ValueError(f"{where}: count {count}, but {reason}")
            labels[number] = [(one[0], one[1]) for one in objects]
    return labels


def _is_known(color: str, kind: str) -> bool:
    return color in (*COLORS, _UNKNOWN) and kind in (*KINDS, _UNKNOWN)


def agreement(
    found: Sequence[Sequence[Sequence[str]]], labels: Mapping[int, Sequence[tuple[str, str]]]
) -> dict[str, Any]:
    """How often detector and labels agree about count, colours, kinds and whole pictures.

    Colours and kinds are compared as multisets; whole pictures agree if every pair of colour and kind does.
    """
    unknown = sorted(set(labels) - set(range(len(found))))
    if unknown or not labels:
        raise ValueError(f"no picture has the number {unknown[0]}" if unknown else "there are no labels")
    agreed: collections.Counter[str] = collections.Counter()
    apart = []
    for number, mine in sorted(labels.items()):
        theirs = [(color, kind) for color, kind in found[number]]
        same = {
            "count": len(mine) == len(theirs),
            "color": sorted(color for color, _ in mine) == sorted(color for color, _ in theirs),
            "kind": sorted(kind for _, kind in mine) == sorted(kind for _, kind in theirs),
            "picture": sorted(mine) == sorted(theirs),
        }
        agreed.update({name: int(value) for name, value in same.items()})
        if not same["picture"]:
            apart.append({"number": number, "label": sorted(mine), "detector": sorted(theirs)})
    total = len(labels)
    parts = {
        name: {
            "agree": agreed[name],
            "of": total,
            "share": agreed[name] / total,
            "interval": wilson_interval(agreed[name], total, LEVEL),
        }
        for name in ("count", "color", "kind", "picture")
    }
    return {**parts, "apart": apart}


def shows(request: Request, objects: Sequence[Sequence[str]]) -> bool | None:
    """Whether the objects are what was asked for by GenEval's rules; None where positions matter, which labels lack."""
    if request.relation is not None:
        return None
    record = request.metadata()

    def count(clause: Mapping[str, Any]) -> int:
        return sum(kind == clause["class"] and color == clause.get("color", color) for color, kind in objects)

    enough = all(count(clause) >= clause["count"] for clause in record["include"])
    return enough and all(count(clause) < clause["count"] for clause in record.get("exclude", ()))


def verdicts(
    prompts: Sequence[str],
    found: Sequence[Sequence[Sequence[str]]],
    labels: Mapping[int, Sequence[tuple[str, str]]],
) -> dict[str, Any]:
    """What the score makes of the detector's reading and of the labels, picture by picture."""
    pairs = []
    for number, mine in labels.items():
        request = parse_prompt(prompts[number])
        pairs.append((shows(request, found[number]), shows(request, mine)))
    counted: collections.Counter[tuple[bool, bool]] = collections.Counter(
        (theirs, mine) for theirs, mine in pairs if theirs is not None and mine is not None
    )
    total = counted.total()
    agree = counted[True, True] + counted[False, False]
    return {
        "agree": agree,
        "of": total,
        "share": agree / max(total, 1),
        "interval": wilson_interval(agree, total, LEVEL),
        "detector_only": counted[True, False],
        "label_only": counted[False, True],
        "right_by_label": counted[True, True] + counted[False, True],
    }


def table(found: Mapping[str, Any]) -> str:
    """Agreement as Markdown."""
    lines = ["| | agree | per cent, 95 % interval |", "| --- | --- | --- |"]
    for name, words in _ROWS.items():
        one = found[name]
        low, high = (100 * end for end in one["interval"])
        lines.append(f"| {words} | {one['agree']} of {one['of']} | {100 * one['share']:.1f} [{low:.1f}, {high:.1f}] |")
    one = found["verdict"]
    lines.append("")
    lines.append(
        f"Right by the labels: {one['right_by_label']} of {one['of']} pictures; right by the detector only: "
        f"{one['detector_only']}, by the labels only: {one['label_only']}."
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("sheets", help="make the pictures")
    draw.add_argument("folder", type=Path)
    draw.add_argument("--weights", default="shapes_base", help="folder (the shipped ones)")
    draw.add_argument("--pictures", type=int, default=200)
    draw.add_argument("--seed", type=int, default=1, help="another than that of the score (%(default)s)")
    compare = commands.add_parser("compare", help="hold labels against the detector")
    compare.add_argument("folder", type=Path)
    compare.add_argument("labels", type=Path, help="CSV with the header number,count,objects")
    compare.add_argument("--card", type=Path, help="folder of the weights: the table goes into its README.md")
    options = parser.parse_args(argv)
    if options.command == "sheets":
        model = TextLatentDiffusion.from_pretrained(options.weights)
        sheets(model, options.folder, options.pictures, options.seed, ShapesDetector().least)
        print(f"sheets and detector.json in {options.folder}")
        return
    record = json.loads((options.folder / "detector.json").read_text(encoding="utf-8"))
    labels = read_labels(options.labels)
    found = agreement(record["found"], labels)
    found["verdict"] = verdicts(record["prompts"], record["found"], labels)
    (options.folder / "agreement.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    if options.card is not None:
        readme = options.card / "README.md"
        readme.write_text(filled(readme.read_text(encoding="utf-8"), {"labels": table(found)}), encoding="utf-8")
    for one in found["apart"]:
        print(f"{one['number']}: label {one['label']}, detector {one['detector']}")


if __name__ == "__main__":
    main()
