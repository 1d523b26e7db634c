"""`lightning data repack`: shards into other shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gen.data.convert.shards import ShardsSource
from lightning_gen.data.finding import find_manifest
from lightning_gen.data.quarantine import DataError

from .data_packing import add_packing, packing_of, run_conversion
from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning data repack data/shards/pickapic/train data/shards/pickapic/512 --resize-short 512 --reencode jpeg95
  lightning data repack data/shards/imagenet-1k#train mixed --shuffle-seed 1 --max-size 1G --workers 8
  lightning data repack data/shards/pickapic/train probe --shuffle-seed 0 --limit 1000
  lightning data repack data/shards/mine/train captions --only txt json

Without --resize-short and --reencode every byte of a sample passes through.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "repack",
        help="other shard sizes, order, subset or picture sizes",
        description="Pack shards again: other sizes, another order, fewer samples or fields, smaller pictures.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("where", metavar="WHERE", help="manifest, folder, FOLDER#SPLIT, pattern of tars")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    subset = parser.add_argument_group("subset")
    subset.add_argument("--limit", type=int, metavar="N", help="only N samples: the first of the final order")
    subset.add_argument("--key-list", type=Path, metavar="FILE", help="only samples with these keys, one a line")
    subset.add_argument("--only", nargs="+", metavar="FIELD", help="only these fields, for instance txt json")
    add_packing(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    manifest = find_manifest(options.where, progress=True)
    if manifest.folder.resolve() == Path(options.out).resolve():
        raise ValueError(f"{options.out} is the data set that is read: choose another folder")
    packing = packing_of(options, manifest.name, options.limit)
    source = ShardsSource(
        manifest,
        touch=not packing.pictures.keeps_bytes,
        fields=frozenset(options.only) if options.only else None,
        keys=_keys(options.key_list) if options.key_list else None,
    )
    return run_conversion(source, packing, options)


def _keys(path: Path) -> frozenset[str]:
    keys = frozenset(path.read_text(encoding="utf-8").split())
    if not keys:
        raise DataError(f"{path} lists no key")
    return keys
