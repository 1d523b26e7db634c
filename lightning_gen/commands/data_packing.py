"""Options that `convert` and `repack` share, and what both of them print."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator

from lightning_gen.data.convert.packing import Packing
from lightning_gen.data.convert.pictures import PictureRule
from lightning_gen.data.convert.pipeline import Conversion, convert
from lightning_gen.data.convert.records import CHOICES, COUNTERS, Source
from lightning_gen.data.workers import Watch

from .options import add_workers

__all__ = ["add_packing", "packing_of", "progress_bars", "run_conversion"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MEANINGS = {**COUNTERS, **CHOICES}
_ALWAYS = ("read", "written")


def add_packing(parser: argparse.ArgumentParser) -> None:
    """Add the options.

    Args:
        parser: of the verb.
    """
    shards = parser.add_argument_group("shards")
    shards.add_argument("--name", help="name of the split that is written, default: that of the input")
    shards.add_argument("--max-size", type=_size, default=512 << 20, metavar="SIZE", help="largest shard (512M)")
    shards.add_argument("--max-samples", type=int, metavar="N", help="most samples in a shard")
    shards.add_argument("--shuffle-seed", type=int, metavar="S", help="random order of all samples (input's order)")
    shards.add_argument("--dedupe", action="store_true", help="leave out samples that came before (uid, else bytes)")
    shards.add_argument("--keys", choices=("source", "number"), default="source", help="where keys come from (source)")
    pictures = parser.add_argument_group("pictures (by default every byte passes through)")
    pictures.add_argument("--resize-short", type=int, metavar="PIXELS", help="make the shorter side at most this long")
    pictures.add_argument(
        "--reencode",
        default="never",
        metavar="HOW",
        help="never, png or webp (without loss), webpQ or jpegQ, e.g. jpeg95",
    )
    work = parser.add_argument_group("work")
    add_workers(work)
    work.add_argument("--strict", action="store_true", help="a row that gives no sample is an error, not a count")
    work.add_argument("--overwrite", action="store_true", help="replace a data set in OUT")
    work.add_argument("--fresh", action="store_true", help="throw away what an interrupted call has done in OUT")


def packing_of(options: argparse.Namespace, name: str, limit: int | None = None) -> Packing:
    """Read the options.

    Args:
        options: the parsed arguments.
        name: name of the split where ``--name`` is not given.
        limit: most samples.

    Returns:
        How to pack.
    """
    return Packing(
        name=options.name or re.sub(r"[^A-Za-z0-9_-]+", "_", name),
        max_bytes=options.max_size,
        max_samples=options.max_samples,
        shuffle_seed=options.shuffle_seed,
        dedupe=options.dedupe,
        keys=options.keys,
        limit=limit,
        pictures=PictureRule(options.resize_short, options.reencode),
        strict=options.strict,
    )


def run_conversion(source: Source, packing: Packing, options: argparse.Namespace) -> int:
    """Convert, with progress bars, and print what became of the rows.

    Args:
        source: where the samples come from.
        packing: what is done to them.
        options: the parsed arguments.

    Returns:
        0.
    """
    how = {"workers": options.workers, "overwrite": options.overwrite, "fresh": options.fresh}
    with progress_bars() as watch:
        done = convert(source, options.out, packing, watch=watch, **how)
    _print(done)
    return 0


def _print(done: Conversion) -> None:
    """What became of the rows, and where the shards are."""
    for counter, number in done.tally.counts.items():
        if number or counter in _ALWAYS:
            print(f"{counter:<14}{number:>12,}  {_MEANINGS.get(counter, '')}".rstrip())
    for lines in done.tally.examples.values():
        print(f"  for instance {lines[0]}")
    manifest = done.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    print(f"{manifest.folder}: {len(manifest.shards)} shards, {size / 1e6:,.1f} MB; counts in conversion.json")


@contextlib.contextmanager
def progress_bars() -> Iterator[Watch]:
    """Progress bars on standard error, where that is a terminal.

    Yields:
        What is called with the progress.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield watch


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or float(match.group(1)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 512M, 1G or a number of bytes")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])
