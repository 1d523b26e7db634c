"""What fitting an arena costs, against PyPI's trueskill in the same run.

(a) rows per second of one pass: the solver's loop against ``trueskill.rate_1vs1`` (scipy back end), the same games
(b) `lightning arena fit` on a Parquet file with Pick-a-Pic's columns, a process of its own: seconds and memory, against
    budgets of 60 s and 2 GB; and its rows per second, reading included, against trueskill's

    pip install trueskill scipy
    python benchmarks/speed/arena.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from measure import Row, paired, report, with_standard_options

from lightning_gen.alignment.arena_po.arena_solvers import Games, ThurstoneModel, solve_sequential
from lightning_gen.metrics.ratings import BETA, DRAW_PROBABILITY, MU, SIGMA, TAU, draw_margin

_SECONDS, _BYTES = 60.0, 2e9
_MODELS = 30
_GROUP = 1 << 17


class Amounts(NamedTuple):
    """Sizes of a run."""

    rows: int
    games: int
    theirs: int


FULL = Amounts(1_000_000, 200_000, 2_000)
QUICK = Amounts(20_000, 5_000, 200)


def played(count: int, seed: int) -> Games:
    """Games of models whose strengths are spread like those of a public data set."""
    random = np.random.default_rng(seed)
    truth = np.linspace(15, 35, _MODELS)
    first = random.integers(_MODELS, size=count)
    second = (first + random.integers(1, _MODELS, size=count)) % _MODELS
    noise = BETA * random.standard_normal((2, count))
    won = truth[first] + noise[0] > truth[second] + noise[1]
    return Games(np.where(won, first, second), np.where(won, second, first), np.ones(count), np.ones(count))


def belief() -> ThurstoneModel:
    """TrueSkill's own numbers."""
    return ThurstoneModel(MU, SIGMA, BETA, TAU, draw_margin(DRAW_PROBABILITY))


def with_trueskill(games: Games, count: int) -> list[Any]:
    """The first games by trueskill."""
    import trueskill

    environment = trueskill.TrueSkill(backend="scipy")
    ratings = [environment.create_rating() for _ in range(_MODELS)]
    for i, j in zip(games.winner[:count].tolist(), games.loser[:count].tolist(), strict=True):
        ratings[i], ratings[j] = trueskill.rate_1vs1(ratings[i], ratings[j], env=environment)
    return ratings


def loops(amounts: Amounts, repetitions: int) -> tuple[Row, float]:
    """Part (a), and trueskill's seconds per game."""
    games = played(amounts.games, 0)
    few = Games(*(part[: amounts.theirs] for part in games))
    mine, theirs = solve_sequential(few, _MODELS, belief()).mean, with_trueskill(games, amounts.theirs)
    difference = float(np.abs(mine - [one.mu for one in theirs]).max())
    pairs = []
    for _ in range(repetitions):
        # Seconds of the process: pure Python on one core, which other programs may want too.
        start = time.process_time()
        solve_sequential(games, _MODELS, belief())
        middle = time.process_time()
        with_trueskill(games, amounts.theirs)
        pairs.append(((middle - start) / amounts.games, (time.process_time() - middle) / amounts.theirs))
    case = f"one pass over {amounts.games} games, rows/s, trueskill over {amounts.theirs} of them"
    row = paired("a", case, pairs, target=50, difference=difference, items=1)
    return row, row.other


def pickapic_table(path: Path, rows: int) -> None:
    """A table with Pick-a-Pic's exact columns but for the pictures."""
    random = np.random.default_rng(1)
    names = np.array([f"organisation-{number % 5}/Model-{number}" for number in range(_MODELS)])
    schema: Any = None
    writer: Any = None
    for start in range(0, rows, _GROUP):
        count = min(_GROUP, rows - start)
        models = random.integers(_MODELS, size=(2, count))
        quality = np.linspace(15, 35, _MODELS)[models] + BETA * random.standard_normal((2, count))
        label = np.where(random.random(count) < 0.11, 0.5, (quality[0] > quality[1]).astype(float))
        uids = [np.array([f"{start + n:08x}-{side}-4c5f-8a11-0123456789ab" for n in range(count)]) for side in (0, 1)]
        best = np.where(label == 0.5, None, np.where(label == 1, uids[0], uids[1]).astype(object))  # type: ignore[call-overload]
        table = pyarrow.table(
            {
                "are_different": np.ones(count, np.bool_),
                "best_image_uid": pyarrow.array(best.tolist(), pyarrow.string()),
                "caption": [f"a photograph of prompt {n // 16}" for n in range(start, start + count)],
                "created_at": np.arange(start, start + count).astype("datetime64[ns]"),
                "has_label": np.ones(count, np.bool_),
                "image_0_uid": uids[0],
                "image_0_url": [f"https://example.invalid/{uid}" for uid in uids[0]],
                "image_1_uid": uids[1],
                "image_1_url": [f"https://example.invalid/{uid}" for uid in uids[1]],
                "label_0": label,
                "label_1": 1 - label,
                "model_0": names[models[0]],
                "model_1": names[models[1]],
                "ranking_id": np.arange(start, start + count),
                "user_id": random.integers(6000, size=count),
                "num_example_per_prompt": random.integers(1, 20, size=count),
                "__index_level_0__": np.arange(start, start + count),
            }
        )
        if writer is None:
            schema = table.schema
            writer = pyarrow.parquet.ParquetWriter(path, schema)
        writer.write_table(table)
    writer.close()


def command(amounts: Amounts, their_seconds: float) -> Iterator[Row]:
    """Part (b)."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "train.parquet"
        pickapic_table(table, amounts.rows)
        call = [sys.executable, "-m", "lightning_gen", "arena", "fit", str(table), "--out", f"{folder}/arena.json"]
        start = time.perf_counter()
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    if status:
        raise RuntimeError(f"`lightning arena fit` ended with {os.waitstatus_to_exitcode(status)}")
    seconds = usage.ru_utime + usage.ru_stime
    # Linux counts in kilobytes, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    name = f"`lightning arena fit`, {amounts.rows} rows"
    shown = f"{name}: {wall:.1f} s on the clock, budget {_SECONDS:.0f} s"
    yield paired("b", shown, [(wall, _SECONDS)], target=1, items=amounts.rows)
    yield paired("b", f"{name}: {seconds:.1f} s of a core, the same budget", [(seconds, _SECONDS)], items=amounts.rows)
    yield paired("b", f"{name}: {peak / 1e9:.2f} GB at most, budget {_BYTES / 1e9:.0f} GB", [(peak, _BYTES)], target=1)
    per_row = seconds / amounts.rows
    yield paired("b", f"{name} with start and reading, rows/s, trueskill", [(per_row, their_seconds)], items=1)


def main() -> None:
    """Run the parts that were asked for."""
    parser = with_standard_options(
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter),
        "benchmarks/results/speed_arena.json",
    )
    options = parser.parse_args()
    amounts = QUICK if options.quick else FULL
    repetitions = 1 if options.quick else options.repetitions
    first, their_seconds = loops(amounts, repetitions)
    rows = [first, *command(amounts, their_seconds)]
    settings = {**amounts._asdict(), "threads": options.threads, "repetitions": repetitions, "quick": options.quick}
    report(rows, options.out, settings, unit="rows")


if __name__ == "__main__":
    main()
