"""`lightning arena show`: the leaderboard of a fitted arena, and its pictures."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .arena_options import say
from .evaluate_options import new_folder
from .options import Examples

if TYPE_CHECKING:
    from lightning_gen.alignment.arena_po.arena import Arena

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure", "standings"]

_EPILOG = """\
examples:
  lightning arena show arena.json
  lightning arena show arena.json --out pictures     # leaderboard.json, leaderboard.png, wins.png, calibration.png

"ranks" are the best and the worst place that the differences to all other models leave open. The calibration drawn here
is of the games that the arena was fitted to; `lightning arena calibrate` compares it with others.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "show",
        help="leaderboard with intervals; win matrix and calibration as pictures",
        description="Show who is better than whom, and how sure that is.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("arena", type=Path, metavar="ARENA", help="arena.json of `lightning arena fit`")
    parser.add_argument("--level", type=float, default=0.95, help="coverage of the intervals (%(default)s)")
    parser.add_argument("--out", type=new_folder, metavar="FOLDER", help="write pictures and leaderboard.json there")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import json

    from lightning_gen.alignment.arena_po.arena import Arena
    from lightning_gen.alignment.arena_po.arena_calibration import calibration

    arena = Arena.load(options.arena)
    settings = arena.options
    print(
        f"{arena.dataset['source']}: {arena.dataset['games']:,} games, {settings.solver}, "
        f"beta {settings.performance:.4g}, tau {settings.dynamics:.4g}, ties: {settings.ties}"
    )
    print("\n".join(standings(arena, options.level)))
    say(arena.remarks())
    if options.out is None:
        return 0
    from .arena_pictures import draw_calibration, draw_leaderboard, draw_wins

    options.out.mkdir(parents=True, exist_ok=True)
    lines = [line._asdict() for line in arena.leaderboard(options.level)]
    lines = [{key: None if value != value else value for key, value in line.items()} for line in lines]
    table = options.out / "leaderboard.json"
    table.write_text(json.dumps({"level": options.level, "models": lines}, indent=1) + "\n", encoding="utf-8")
    written = [
        table,
        draw_leaderboard(arena, options.level, options.out / "leaderboard.png"),
        draw_wins(arena, options.out / "wins.png"),
    ]
    if int((arena.meetings.wins + arena.meetings.losses).sum()):
        written.append(draw_calibration(calibration(arena), options.out / "calibration.png"))
    print("\n".join(map(str, written)))
    return 0


def standings(arena: Arena, level: float) -> Iterator[str]:
    """The leaderboard as text.

    Args:
        arena: fitted.
        level: coverage of the intervals.

    Yields:
        Lines.
    """
    lines = arena.leaderboard(level)
    width = max(5, *(len(line.name) for line in lines))
    interval = f"{level:.0%} interval"
    yield f"rank  {'model':{width}}    mean  {interval:>16}    ranks  mean-3s      games   won"
    for line in lines:
        low, high = line.interval
        rate = "    -" if math.isnan(line.win_rate) else f"{100 * line.win_rate:4.1f}%"
        ranks = f"{line.ranks[0]}-{line.ranks[1]}"
        yield (
            f"{line.rank:>4}  {line.name:{width}}  {line.mean:6.2f}  {f'{low:.2f} .. {high:.2f}':>16}  {ranks:>7}  "
            f"{line.conservative:7.2f}  {line.games:>9,}  {rate}"
        )
