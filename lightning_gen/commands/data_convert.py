"""`lightning data convert`: any data set into shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gen.data.convert.columns import parse_fields
from lightning_gen.data.convert.formats import FORMATS, ROWS, Request, open_source

from .data_packing import add_packing, packing_of, run_conversion
from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
formats:
{formats}

examples:
  lightning data convert --from parquet pickapic_v2 shards/pickapic/train --split train --shuffle-seed 0 --workers 8
  lightning data convert --from hf yuvalkirstain/pickapic_v2 shards/test --split test --include 'data/test-*'
  lightning data convert --from hpdv3 HPDv3 shards/hpdv3/train --split train --shuffle-seed 0
  lightning data convert --from imagefolder ILSVRC2012/train shards/imagenet/train --classes --shuffle-seed 0
  lightning data convert --from csv list.csv shards/mine --fields image=file caption=title --images pictures
  lightning data convert --from wds 'other-{{0000..0015}}.tar' shards/other/train
  lightning data convert --from prompts pickscore/train.txt shards/prompts/train

Rows that give no sample are left out and counted; conversion.json names examples. A call that was interrupted goes on
when it is started again, and ends with the same bytes, whatever the number of workers. Unfinished work lies in
OUT/.convert and needs as much disk as the shards.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    formats = "\n".join(f"  {name:<13}{text}" for name, (text, _) in FORMATS.items())
    parser = verbs.add_parser(
        "convert",
        help="write any data set into shards",
        description="Write a data set into shards with indices, a manifest and counts of what became of every row.",
        epilog=_EPILOG.format(formats=formats),
        formatter_class=Examples,
    )
    parser.add_argument("source", metavar="SOURCE", help="file, folder, pattern, or OWNER/NAME on the hub")
    parser.add_argument("out", metavar="OUT", help="folder to write; one split per folder")
    parser.add_argument("--from", dest="format", required=True, choices=FORMATS, metavar="FORMAT", help="see below")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--split", help="split of the input (the only one)")
    reading.add_argument(
        "--rows",
        default="auto",
        choices=("auto", *ROWS),
        metavar="KIND",
        help=f"what a row is: {', '.join(ROWS)} (auto)",
    )
    reading.add_argument(
        "--fields", nargs="+", default=[], metavar="FIELD=COLUMN", help="columns with other names than usual"
    )
    reading.add_argument("--keep", nargs="+", default=[], metavar="COLUMN", help="further columns for the metadata")
    reading.add_argument("--images", type=Path, metavar="FOLDER", help="where files lie that rows name (the list's)")
    reading.add_argument("--classes", action="store_true", help="imagefolder: the first folder is the class")
    reading.add_argument("--class-names", type=Path, metavar="FILE", help="imagefolder: classes in order, one a line")
    reading.add_argument(
        "--dots", choices=("auto", "field", "key"), default="auto", help="wds: what a dot in a name is part of (auto)"
    )
    reading.add_argument(
        "--user", choices=("hash", "drop"), default="hash", help="pairs: what takes the place of user_id (hash)"
    )
    reading.add_argument("--title", metavar="TEXT", help="where the data come from, for people (name of SOURCE)")
    reading.add_argument("--revision", help="hf: branch, tag or commit")
    reading.add_argument("--include", nargs="+", default=[], metavar="PATTERN", help="hf: files to fetch (all)")
    add_packing(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    request = Request(
        where=options.source,
        split=options.split,
        rows=options.rows,
        fields=parse_fields(options.fields),
        keep=tuple(options.keep),
        images=options.images,
        classes=options.classes,
        class_names=options.class_names,
        dots=options.dots,
        user=options.user,
        title=options.title,
        revision=options.revision,
        include=tuple(options.include),
    )
    source = open_source(options.format, request)
    packing = packing_of(options, str(source.settings.get("split") or options.split or "train"))
    return run_conversion(source, packing, options)
