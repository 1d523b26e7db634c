"""`lightning data index`: index and manifest for tars that are there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gen.data.finding import list_shards
from lightning_gen.data.inspection.indexing import doubtful_shards, index_in_place
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.remote.urls import is_remote
from lightning_gen.data.shard_lists import pattern_name

from .data_packing import progress_bars
from .options import Examples, add_workers

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning data index data/shards/other                       # a folder of tars
  lightning data index data/shards/imagenet-1k#train --out data/shards/imagenet-1k/train-index
  lightning data index 'tars/part-{0000..0127}.tar' --hashes --workers 8

Training indexes tars of strangers by itself, in a cache. This verb writes the index beside the tars, once and for
everybody: TAR.idx per tar, manifest.json and _info.json. An interrupted call goes on.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "index",
        help="write index and manifest beside existing tars",
        description="Walk the headers of existing tars and write an index per tar and a manifest.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("where", metavar="WHERE", help="folder of tars, FOLDER#SPLIT in timm's manner, pattern")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where index and manifest go (beside the tars)")
    parser.add_argument("--name", help="name of the split (told by the tars' names)")
    parser.add_argument("--hashes", action="store_true", help="read every tar in full for its sha256 and md5")
    add_workers(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a manifest and make every index again")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    tars, name = _tars(options.where)
    folder = options.out or tars[0].parent
    with progress_bars() as watch:
        made = index_in_place(
            tars,
            folder,
            options.name or name,
            hashes=options.hashes,
            workers=options.workers,
            overwrite=options.overwrite,
            watch=watch,
        )
    print(f"{folder / 'manifest.json'}: {made.total:,} samples in {len(made.shards)} shards")
    for doubt in doubtful_shards(made):
        print(f"warning: {doubt}", file=sys.stderr)
    return 0


def _tars(where: str) -> tuple[list[Path], str]:
    if (Path(where) / "manifest.json").is_file():
        # The manifest is what is to be made again; it may not know every tar.
        where = str(Path(where) / "*.tar")
    if "*" in where:
        tars = sorted(Path(where).parent.glob(Path(where).name))
        if not tars:
            raise FileNotFoundError(f"{where}: there is no tar")
        return tars, pattern_name(tars[0].name)
    found = list_shards(where)
    if isinstance(found, Manifest):
        return [found.tar_path(number) for number in range(len(found.shards))], found.name
    if any(is_remote(tar) for tar in found.locations):
        raise DataError(f"{where} is remote: index tars of this machine")
    return [Path(tar) for tar in found.locations], found.name
