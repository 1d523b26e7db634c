"""`lightning data verify`: is a data set what its manifest says?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lightning_gen.data.finding import find_manifest
from lightning_gen.data.inspection.verifying import verify

from .data_packing import progress_bars
from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning data verify data/shards/pickapic/train
  lightning data verify data/shards/pickapic/train --decode all      # every picture
  lightning data verify data/shards/pickapic/train --no-hashes       # without reading the tars in full

Ends with code 1 and a list that names shards and keys where something is wrong.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "verify",
        help="compare shards with their manifest and decode samples",
        description="Compare every shard with the manifest (bytes, sha256, samples, index) and decode samples.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("where", metavar="WHERE", help="manifest, folder, FOLDER#SPLIT, pattern of tars")
    parser.add_argument(
        "--decode", type=_number, default=100, metavar="N", help="samples to decode, spread over the set; or all (100)"
    )
    parser.add_argument("--no-hashes", action="store_true", help="do not read the tars in full")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    manifest = find_manifest(options.where, progress=True)
    with progress_bars() as watch:
        problems = verify(manifest, hashes=not options.no_hashes, samples=options.decode, watch=watch)
    for problem in problems:
        print(problem)
    print(
        f"{options.where}: {manifest.total:,} samples in {len(manifest.shards)} shards, {problems.decoded:,} decoded: "
        f"{f'{len(problems)} faults' if problems else 'all is well'}"
    )
    return 1 if problems else 0


def _number(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return int(text)
