"""`lightning arena gaps`: the gap of every pair, as a table that training joins."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arena_options import add_arena, add_reading, reading_of, say
from .evaluate_options import new_file
from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning arena gaps raw/pickapic_v2 --arena arena.json --out gaps.parquet
  lightning arena gaps raw/pickapic_v2 --arena arena.json --variance capability --out literal.parquet
  lightning fit --config arena_po_sd15_pickapic --data.gaps gaps.parquet

A row per pair with a winner: pair_id, winner, loser, delta, s, g, p and margin, which is g in the unit of the loss.
Without --split and --fields the table is read as the arena's own was.

pair_id is the number of the row, the key that `lightning data convert` gives a pair, and in shards their own key. Where
the table has a column pair_id, its values are taken instead; data.gaps then finds only pairs of shards with such keys.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "gaps",
        help="the gap of every pair, in a Parquet file for data.gaps",
        description="How much better is every winner expected to be, given that it won?",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    add_reading(parser)
    add_arena(parser)
    parser.add_argument("--out", type=new_file, default=Path("gaps.parquet"), metavar="FILE", help="(gaps.parquet)")
    parser.add_argument("--variance", choices=("performance", "capability"), default="performance",
                        help="what a picture is: a performance of its model, or a draw from its capability, as the "
                        "abstract may be read (performance)")  # fmt: skip
    parser.add_argument("--normalise", choices=("none", "mean", "zscore_clip", "logit"), default="mean",
                        help="unit of the margin, over all pairs (mean)")  # fmt: skip
    parser.add_argument("--min-games", type=int, default=0, metavar="N",
                        help="pairs of a model with fewer have s^2 = 2 beta^2 (0)")  # fmt: skip
    parser.add_argument("--leave-one-out", action="store_true", help="every pair without its own game: for small sets")
    parser.add_argument("--transfer", action="store_true", help="pairs that the arena was not fitted to")
    parser.add_argument("--quantile", type=float, metavar="Q",
                        help="take this quantile of what the gap may be, and not its mean: below 0.5 is "
                        "careful")  # fmt: skip
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import numpy as np

    from lightning_gen.alignment.arena_po.arena import Arena
    from lightning_gen.alignment.arena_po.arena_gaps import GapOptions, pair_gaps, write_gaps
    from lightning_gen.alignment.arena_po.arena_table import read_comparisons

    wanted = GapOptions(
        options.variance, options.normalise, options.min_games, options.leave_one_out, options.transfer,
        options.quantile,
    )  # fmt: skip
    arena = Arena.load(options.arena)
    table = read_comparisons(options.table, reading_of(arena, options))
    found = pair_gaps(arena, table, wanted)
    rows = write_gaps(options.out, arena, table, found, wanted)
    print(f"{rows:,} pairs, {found.counts['ties']:,} ties without a gap, {found.counts['same_model']:,} of one model")
    for name, values in (("g", found.gap), ("p", found.probability), ("margin", found.margin)):
        quantiles = "  ".join(f"{value:.4g}" for value in np.quantile(values, (0, 0.05, 0.5, 0.95, 1)))
        print(f"{name:>6}: mean {values.mean():.4g}; least, 5 %, median, 95 %, most  {quantiles}")
    say(found.remarks)
    print(options.out)
    return 0
