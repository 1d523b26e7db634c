"""`lightning data stats`: what is in a data set, as a table, as JSON and as pictures."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gen.data.finding import find_manifest
from lightning_gen.data.inspection.overlap import Overlap, measure_overlap
from lightning_gen.data.inspection.statistics import PairStatistics, Statistics, gather_statistics

from .data_packing import progress_bars
from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning data stats data/shards/pickapic/train
  lightning data stats data/shards/pickapic/train --out pictures   # and stats.json, sizes.png, labels.png, wins.png
  lightning data stats data/shards/pickapic/train --against data/shards/pickapic/test_unique   # leakage

Only indices and JSON members are read, no pixel is decoded. Ends with code 1 where a shard could not be read.
"""
_MOST_MODELS = 12


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "stats",
        help="count labels, ties, wins per model, sizes",
        description="Count what is in a data set: fields, sizes, classes, labels, ties, and which model beats which.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("where", metavar="WHERE", help="manifest, folder, FOLDER#SPLIT, pattern of tars")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write stats.json and pictures there")
    parser.add_argument(
        "--against", metavar="OTHER", help="another set: count the keys, uids, captions and pictures that both have"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    manifest = find_manifest(options.where, progress=True)
    other = None if options.against is None else find_manifest(options.against, progress=True)
    with progress_bars() as watch:
        found = gather_statistics(manifest, watch)
        overlap = None if other is None else measure_overlap(manifest, other, watch)
    print("\n".join(_lines(found)))
    if overlap is not None:
        print("\n".join(_overlap_lines(overlap, options.against)))
    if options.out is not None:
        from lightning_gen.data.inspection.statistics_pictures import draw_statistics

        written = draw_statistics(found, options.out)
        table = options.out / "stats.json"
        content = found.to_json() | ({} if overlap is None else {"against": overlap.to_json()})
        table.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print("\n".join(map(str, [table, *written])))
    damaged = dict.fromkeys([*found.damaged, *(overlap.damaged if overlap is not None else [])])
    for sentence in damaged:
        print(sentence, file=sys.stderr)
    return 1 if damaged else 0


def _overlap_lines(overlap: Overlap, other: str) -> Iterator[str]:
    yield f"{'different values':<18}{'here':>12}{'there':>12}{'shared':>12}   there = {other}"
    for kind, (here, there, shared) in overlap.counts.items():
        yield f"  {kind:<16}{here:>12,}{there:>12,}{shared:>12,}"
    if overlap.unreadable:
        yield f"unreadable JSON in both: {overlap.unreadable:,}, compared by key alone"


def _lines(found: Statistics) -> Iterator[str]:
    data = found.to_json()
    size = data["bytes"] / 1e6
    yield f"{found.manifest.name}: {data['samples']:,} samples in {data['shards']} shards, {size:,.1f} MB"
    for name, field in data["fields"].items():
        yield f"  {name:<12}{field['samples']:>12,} samples {field['bytes'] / 1e6:>12,.1f} MB"
    for name, size in data["sizes"].items():
        if size["pictures"]:
            short, ratio = size["short_side"], size["width_by_height"]
            yield (
                f"{name}: shorter side {short['least']:.0f} to {short['most']:.0f}, median {short['median']:.0f}; "
                f"width / height {ratio['least']:.2f} to {ratio['most']:.2f}, median {ratio['median']:.2f}"
            )
    for what, number in (("pictures of unknown size", found.unknown_sizes), ("unreadable JSON", found.unreadable)):
        if number:
            yield f"{what}: {number:,}"
    if found.caption_lengths:
        length = data["caption_characters"]
        yield f"captions: {length['least']:.0f} to {length['most']:.0f} characters, median {length['median']:.0f}"
    if found.classes:
        counts = found.classes.values()
        share = found.class_entropy / math.log(len(found.classes)) if len(found.classes) > 1 else 0.0
        yield f"classes: {len(counts)}, {min(counts):,} to {max(counts):,} samples each, evenness {share:.3f}"
    if found.tasks:
        yield f"tasks: {', '.join(f'{name} {number:,}' for name, number in found.tasks.most_common(20))}"
    if found.pairs is not None:
        yield from _pair_lines(found.pairs)


def _pair_lines(pairs: PairStatistics) -> Iterator[str]:
    total = sum(pairs.labels.values())
    names = {1.0: "picture 0 won", 0.5: "ties", 0.0: "picture 1 won"}
    for label, name in names.items():
        yield f"{name:<14}{pairs.labels[label]:>12,}  {100 * pairs.labels[label] / total:5.1f} %"
    if pairs.labels[1.0] == total:
        yield "the first picture won in every pair: present pairs in random order, or a model learns just that"
    models = pairs.models(_MOST_MODELS)
    if not models:
        return
    rates, games = pairs.wins(models)
    width = max(len(name) for name in models) + 2
    yield f"{'% of pairs won against':<{width}}" + "".join(f"{number:>7}" for number in range(1, len(models) + 1))
    for row, name in enumerate(models):
        cells = ("      -" if math.isnan(rate) else f"{100 * rate:7.1f}" for rate in rates[row])
        yield f"{row + 1:>2} {name:<{width}}" + "".join(cells) + f"  of {int(games[row].sum()):,}"
