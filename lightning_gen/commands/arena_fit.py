"""`lightning arena fit`: capabilities of models from the annotations of a preference data set."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from .arena_options import add_reading, say
from .evaluate_options import new_file
from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning arena fit raw/pickapic_v2 --split train --out arena.json
  lightning arena fit HPDv3/train.json --soft votes --unknown-names real --out arena.json
  lightning arena fit duels.csv --fields model_a=left model_b=right outcome=better --out arena.json
  lightning arena fit data/shards/pickapic/train --solver batch_ep --out arena.json      # no order, full covariance
  lightning arena fit duels.csv --ties draw --draw-probability 0.1 --order-seed 0 --orders 8 --out arena.json

An outcome is 1 (the first won), 0, 0.5 (a tie), or one of model_a, model_b, tie, or the winner's name. Fit to the
training split only; pictures are not needed (pickapic_v2_no_images suffices). One pass of TrueSkill depends on the
order of the rows; batch_ep and laplace do not.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "fit",
        help="capabilities of models from their comparisons",
        description="Infer a Gaussian capability for every model, by TrueSkill or without its order.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    add_reading(parser)
    parser.add_argument("--out", type=new_file, default=Path("arena.json"), metavar="FILE", help="(arena.json)")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--alias", nargs="+", default=[], metavar="NAME=NAME", help="models with several names")
    rows.add_argument("--soft", choices=("none", "confidence", "votes"), default="none",
                      help="how sure outcomes are: as confidence says, or (k + 1/2) / (n + 1) of votes")  # fmt: skip
    rows.add_argument("--min-confidence", type=float, default=0.0, metavar="P", help="leave out rows below (0)")
    rows.add_argument("--unknown", choices=("own_player", "drop", "prior"), default="own_player",
                      help="models without a name: a player, left out, many with the prior (own_player)")  # fmt: skip
    rows.add_argument("--unknown-names", nargs="+", default=[], metavar="NAME", help="further names without a model")
    rows.add_argument("--ties", choices=("drop", "draw"), default="drop", help="(drop)")
    model = parser.add_argument_group("model")
    model.add_argument("--solver", choices=("ep_sequential", "batch_ep", "laplace"), default="ep_sequential",
                       help="(ep_sequential, as the paper traverses all pairs)")  # fmt: skip
    model.add_argument("--prior-mean", type=float, default=25.0, help="mu_0 (25)")
    model.add_argument("--prior-deviation", type=float, default=25 / 3, help="sigma_0 (25/3)")
    model.add_argument("--performance", type=float, default=25 / 6, help="beta, deviation of a picture (25/6)")
    model.add_argument("--dynamics", type=float, default=0.0, help="tau (0; TrueSkill has 25/300)")
    model.add_argument("--draw-probability", type=float, default=0.0, metavar="P", help="of equal models (0)")
    model.add_argument("--order-seed", type=int, metavar="S", help="draw the order of the games (that of the table)")
    model.add_argument("--orders", type=int, default=1, metavar="K", help="average over so many drawn orders (1)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from lightning_gen.alignment.arena_po.arena import ArenaOptions, fit_arena
    from lightning_gen.alignment.arena_po.arena_table import TableOptions, canonical_name, read_comparisons
    from lightning_gen.data.convert.columns import parse_fields

    from .arena_show import standings

    pairs = [word.partition("=") for word in options.alias]
    if bad := [name for name, equals, other in pairs if not (name and equals and other)]:
        raise ValueError(f"--alias {bad[0]}: write NAME=NAME, the name that counts on the right")
    reading = TableOptions(
        parse_fields(options.fields or ()),
        options.split,
        {canonical_name(name): canonical_name(other) for name, _, other in pairs},
        options.soft,
        options.min_confidence,
    )
    wanted = ArenaOptions(
        solver=options.solver,
        prior_mean=options.prior_mean,
        prior_deviation=options.prior_deviation,
        performance=options.performance,
        dynamics=options.dynamics,
        ties=options.ties,
        draw_probability=options.draw_probability,
        order_seed=options.order_seed,
        orders=options.orders,
        unknown_models=options.unknown,
        unknown_names=tuple(canonical_name(name) for name in options.unknown_names),
    )
    table = read_comparisons(options.table, reading)
    arena = fit_arena(table, wanted, dataclasses.asdict(reading))
    arena.save(options.out)
    counts = table.counts
    print(
        f"{table.source}: {counts['rows']:,} rows, {arena.dataset['games']:,} games of {len(arena)} models; "
        f"{counts['ties']:,} ties, {counts['same_model']:,} pairs of one model, {counts['unlabelled']:,} unlabelled"
    )
    print("\n".join(standings(arena, 0.95)))
    say([*table.remarks(), *arena.remarks()])
    print(options.out)
    return 0
