"""`lightning data synth`: small data sets whose truth is known."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import lightning_gen.shapes.synth  # noqa: F401  (adds its kinds to the table)
from lightning_gen.data.synth.kinds import KINDS
from lightning_gen.data.synth.layouts import LAYOUTS, write_synthetic
from lightning_gen.data.synth.options import SynthOptions

from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
kinds:
{kinds}

examples:
  lightning data synth preference data/shards/synth/train --count 1000
  lightning data synth preference practice --as parquet --flaws 3      # Pick-a-Pic's columns, faulty rows among them
  lightning data convert --from parquet practice data/shards/practice/train --shuffle-seed 0
  lightning data synth hpdv3 practice3 --as hpdv3                      # train.json and images/
  lightning data synth imagenet classes --as folder --classes 5        # class folders

truth.json in the folder says what is true of the set, for instance the strength of every model.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "synth",
        help="make up a small data set whose truth is known",
        description="Make up a small data set whose truth is known, as shards or in the raw forms that convert reads.",
        epilog=_EPILOG.format(kinds="\n".join(f"  {name:<18}{kind.summary}" for name, kind in KINDS.items())),
        formatter_class=Examples,
    )
    defaults = SynthOptions()
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help="see below")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--as", dest="layout", choices=LAYOUTS, default="shards", help="form of the files (shards)")
    parser.add_argument("--count", type=int, default=defaults.count, metavar="N", help="samples (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="decides everything (%(default)s)")
    parser.add_argument("--size", type=int, default=defaults.size, metavar="PIXELS", help="shorter side (%(default)s)")
    parser.add_argument("--classes", type=int, default=defaults.classes, metavar="N", help="imagenet (%(default)s)")
    parser.add_argument("--ties", type=float, default=defaults.ties, help="preference: share of ties (%(default)s)")
    parser.add_argument(
        "--noise", type=float, default=defaults.noise, help="pairs: how often the weaker wins, 0 = never (%(default)s)"
    )
    parser.add_argument("--per-file", type=int, default=1024, metavar="N", help="samples per file (%(default)s)")
    parser.add_argument(
        "--flaws", type=int, default=0, metavar="N", help="parquet of pairs: faulty rows of every kind (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a synthetic set in OUT")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    wanted = SynthOptions(options.count, options.seed, options.size, options.classes, options.ties, options.noise)
    write_synthetic(
        options.kind, options.out, wanted, options.layout, options.per_file, options.flaws, options.overwrite
    )
    print(f"{options.out}: {options.count:,} samples ({options.kind}, {options.layout}); the truth is in truth.json")
    return 0
