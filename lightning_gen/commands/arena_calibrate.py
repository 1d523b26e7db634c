"""`lightning arena calibrate`: does an arena predict who wins?"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from .arena_options import add_arena, add_reading, reading_of, say
from .evaluate_options import new_folder
from .options import Examples

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning arena calibrate raw/pickapic_v2 --split validation --arena arena.json --out pictures
  lightning arena calibrate --arena arena.json        # on the games that it was fitted to, which flatters it

Games are sorted by how sure the favourite is; "won" should be near "predicted" in every line. Ties are left out, and of
doubtful outcomes (--soft of `lightning arena fit`) "predicted" is the chance that they are noted so.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "calibrate",
        help="predicted against counted wins, on other games",
        description="Compare the predictions of an arena with results.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    add_reading(parser, "[TABLE]")
    add_arena(parser)
    parser.add_argument("--bins", type=int, default=10, metavar="B", help="between 0.5 and 1 (%(default)s)")
    parser.add_argument(
        "--out", type=new_folder, metavar="FOLDER", help="write calibration.json and calibration.png there"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import json

    from lightning_gen.alignment.arena_po.arena import Arena
    from lightning_gen.alignment.arena_po.arena_calibration import calibration, meetings_of
    from lightning_gen.alignment.arena_po.arena_table import read_comparisons

    if options.bins < 1:
        raise ValueError(f"--bins is at least 1, got {options.bins}")
    arena = Arena.load(options.arena)
    if options.table is None:
        found = calibration(arena, bins=options.bins)
        say(["these are the games that the arena was fitted to: give a table of others for an honest comparison"])
    else:
        table = read_comparisons(options.table, reading_of(arena, options))
        if table.fingerprint == arena.dataset["fingerprint"]:
            say(["the arena was fitted to this table: give one of other games for an honest comparison"])
        found = calibration(arena, *meetings_of(arena, table), options.bins)
    if found.unknown:
        say([f"{found.unknown:,} pairs have a model that the arena does not know and were left out"])
    print(
        f"{found.games:,} games: error {found.error:.4f}, favourite won {100 * found.accuracy:.1f} %, "
        f"log loss {found.log_loss:.4f} (a coin {found.coin_log_loss:.4f}), Brier {found.brier:.4f}"
    )
    print("predicted    won      95% interval      games")
    for one in found.bins:
        low, high = one.interval
        print(f"    {one.predicted:.3f}  {one.observed:.3f}  {low:.3f} .. {high:.3f}  {one.games:>9,}")
    if options.out is not None:
        from .arena_pictures import draw_calibration

        options.out.mkdir(parents=True, exist_ok=True)
        content = {**dataclasses.asdict(found), "bins": [one._asdict() for one in found.bins]}
        path = options.out / "calibration.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(path, draw_calibration(found, options.out / "calibration.png"), sep="\n")
    return 0
