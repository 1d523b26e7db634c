"""Gaps of the pairs of a table, and the file that training joins."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch

from lightning_gen.alignment.arena_po.arena import Arena, ArenaOptions, fit_arena
from lightning_gen.alignment.arena_po.arena_gaps import GapOptions, PairGapTable, pair_gaps, write_gaps
from lightning_gen.alignment.arena_po.arena_table import Comparisons, TableOptions, read_comparisons
from lightning_gen.alignment.arena_po.gap import expected_gap, gap_quantile, win_probability
from lightning_gen.data.gap_table import GapTable
from lightning_gen.data.quarantine import DataError

from .tables import NAMES, pickapic, write

BETA = 25 / 6


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Comparisons:
    return read_comparisons(write(tmp_path_factory.mktemp("gaps") / "t.parquet", pickapic(3000)))


@pytest.fixture(scope="module")
def arena(table: Comparisons) -> Arena:
    return fit_arena(table)


def by_row(found: PairGapTable, row: int) -> dict[str, float]:
    place = int(np.flatnonzero(found.rows == row)[0])
    return {name: float(getattr(found, name)[place]) for name in ("delta", "scale", "gap", "probability", "margin")}


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_every_decided_pair_has_its_gap(arena: Arena, table: Comparisons) -> None:
    found = pair_gaps(arena, table)
    assert found.rows.tolist() == np.flatnonzero(table.outcome != 0.5).tolist()
    assert found.counts["pairs"] + found.counts["ties"] == len(table)
    for row in (found.rows[:40]).tolist():
        first, second = (arena.names.index(table.names[side[row]]) for side in (table.first, table.second))
        winner, loser = (first, second) if table.outcome[row] == 1 else (second, first)
        one = by_row(found, row)
        delta = arena.mean[winner] - arena.mean[loser] if winner != loser else 0.0
        scale = math.sqrt(arena.variance[winner] + arena.variance[loser] + 2 * BETA**2)
        assert (one["delta"], one["scale"]) == pytest.approx((delta, scale))
        assert one["gap"] == pytest.approx(float(expected_gap(tensor(delta), tensor(scale))))
        assert one["probability"] == pytest.approx(float(win_probability(tensor(delta), tensor(scale))))
    assert found.margin.mean() == pytest.approx(1) and found.margin == pytest.approx(found.gap / found.unit)


def test_pairs_of_one_model_keep_a_gap(arena: Arena, table: Comparisons) -> None:
    found = pair_gaps(arena, table)
    same = np.flatnonzero((table.first == table.second) & (table.outcome != 0.5))
    assert len(same) == found.counts["same_model"] > 0
    one = by_row(found, int(same[0]))
    assert one["delta"] == 0 and one["gap"] == pytest.approx(one["scale"] * math.sqrt(2 / math.pi))
    assert one["probability"] == 0.5


def test_readings_and_units(arena: Arena, table: Comparisons) -> None:
    literal = pair_gaps(arena, table, GapOptions("capability"))
    plain = pair_gaps(arena, table)
    assert literal.scale == pytest.approx(np.sqrt(plain.scale**2 - 2 * BETA**2), rel=1e-9)
    assert (
        "the median s is" in literal.remarks[0] and "--variance performance is the other reading" in literal.remarks[0]
    )
    assert plain.remarks == ()
    assert literal.gap.min() < 0.1 < 2 < plain.gap.min()
    nats = pair_gaps(arena, table, GapOptions(normalisation="logit"))
    assert nats.margin == pytest.approx(0.307811959 * nats.gap, rel=1e-8) and nats.unit == pytest.approx(
        1 / 0.307811959
    )
    assert pair_gaps(arena, table, GapOptions(normalisation="none")).unit == 1


def test_a_quantile_in_place_of_the_mean(arena: Arena, table: Comparisons) -> None:
    found = pair_gaps(arena, table, GapOptions(normalisation="none", quantile=0.2))
    wanted = gap_quantile(torch.from_numpy(found.delta), torch.from_numpy(found.scale), 0.2)
    assert found.gap == pytest.approx(wanted.numpy()) and found.margin == pytest.approx(found.gap)
    assert bool((found.gap < pair_gaps(arena, table).gap).all())
    with pytest.raises(ValueError, match="quantile lies between 0 and 1, got 20"):
        GapOptions(quantile=20)


def test_doubtful_winners_have_no_gap(tmp_path: Path) -> None:
    columns = {"model_a": ["a"] * 20, "model_b": ["b"] * 20, "outcome": [1, 0] * 10, "confidence": [0.9] * 20}
    columns["confidence"][:3] = [0.5, 0.2, 0.51]
    table = read_comparisons(write(tmp_path / "t.parquet", columns), TableOptions(soft="confidence"))
    found = pair_gaps(fit_arena(table), table)
    assert found.rows.tolist() == list(range(2, 20)) and found.counts["doubtful"] == 2 and not found.counts["dropped"]
    assert "2 winners are as likely wrong as right, or more, and have no gap" in found.remarks
    columns["confidence"] = [0.4] * 20
    doubted = read_comparisons(write(tmp_path / "d.parquet", columns), TableOptions(soft="confidence"))
    with pytest.raises(DataError, match=r"none of 20 pairs .* \(0 ties, 20 winners that are as likely wrong as right"):
        pair_gaps(fit_arena(doubted), doubted)


def test_where_ties_are_drawn_a_win_is_above_the_margin(tmp_path: Path) -> None:
    columns = {"model_a": ["a"] * 30, "model_b": ["b"] * 30, "outcome": [1.0, 1.0, 0.5] * 10}
    table = read_comparisons(write(tmp_path / "t.parquet", columns))
    arena = fit_arena(table, ArenaOptions(ties="draw", draw_probability=0.3))
    found = pair_gaps(arena, table)
    won = win_probability(torch.from_numpy(found.delta) - arena.options.belief.margin, torch.from_numpy(found.scale))
    assert found.probability == pytest.approx(won.numpy()) and arena.options.belief.margin > 2
    gap = expected_gap(torch.from_numpy(found.delta), torch.from_numpy(found.scale))
    assert found.gap == pytest.approx(gap.numpy()), "the gap stays that of a winner who is better"


def test_rare_models_fall_back(tmp_path: Path) -> None:
    columns = {"model_a": ["a"] * 50 + ["rare"], "model_b": ["b"] * 51, "outcome": [1, 0] * 25 + [1]}
    table = read_comparisons(write(tmp_path / "t.parquet", columns))
    arena = fit_arena(table)
    free, held = (pair_gaps(arena, table, GapOptions(min_games=games)) for games in (0, 10))
    assert by_row(held, 50)["scale"] == pytest.approx(math.sqrt(2) * BETA)
    assert by_row(free, 50)["gap"] > by_row(held, 50)["gap"] + 0.3
    assert by_row(held, 0) == pytest.approx(by_row(free, 0) | {"margin": by_row(held, 0)["margin"]})
    assert "1 of 51 pairs have a model with fewer than 10 games, their s^2 is 2 beta^2" in held.remarks


@pytest.mark.parametrize("solver", ["batch_ep", "laplace"])
def test_leave_one_out_takes_the_pairs_own_game_away(tmp_path: Path, solver: Any) -> None:
    columns = {
        "model_a": ["a"] * 8 + ["b"] * 4,
        "model_b": ["b"] * 8 + ["c"] * 4,
        "outcome": [1] * 6 + [0, 0] + [1] * 4,
    }
    table = read_comparisons(write(tmp_path / "t.parquet", columns))
    options = ArenaOptions(solver=solver)
    found = pair_gaps(fit_arena(table, options), table, GapOptions(leave_one_out=True))
    whole = pair_gaps(fit_arena(table, options), table)
    for row in (0, 7):
        others = {name: column[:row] + column[row + 1 :] for name, column in columns.items()}
        rest = fit_arena(read_comparisons(write(tmp_path / "o.parquet", others)), options)
        a, b = (rest.numbers([name]) for name in "ab")
        delta = float(rest.differences(a, b)[0][0]) * (1 if row == 0 else -1)
        # With a dozen games the others' factors move a little too.
        assert by_row(found, row)["delta"] == pytest.approx(delta, abs=0.3)
        assert by_row(found, row)["delta"] < by_row(whole, row)["delta"] - 0.3, "a winner's own win flatters it"
    with pytest.raises(ValueError, match="keeps no trace of a single game"):
        pair_gaps(fit_arena(table), table, GapOptions(leave_one_out=True))


def test_a_game_of_a_fixed_model_taught_its_opponent_alone(tmp_path: Path) -> None:
    columns = {
        "model_a": ["a", *["b"] * 6, None, "real"],
        "model_b": [None, *["c"] * 5, None, "real", "b"],
        "outcome": [1, 1, 1, 0, 1, 1, 1, 1, 0],
    }
    table = read_comparisons(write(tmp_path / "t.parquet", columns))
    options = ArenaOptions("batch_ep", unknown_models="prior", unknown_names=("real",))
    arena = fit_arena(table, options)
    found, whole = (pair_gaps(arena, table, GapOptions(leave_one_out=one)) for one in (True, False))
    assert by_row(whole, 0)["delta"] > 2
    # Without its only game the model is what it was before, and so is the one of many models.
    assert by_row(found, 0)["delta"] == pytest.approx(0, abs=1e-6)
    assert by_row(found, 0)["scale"] == pytest.approx(math.sqrt(2 * (25 / 3) ** 2 + 2 * BETA**2), rel=1e-6)
    assert by_row(found, 7)["delta"] == by_row(whole, 7)["delta"], "two fixed models taught nobody"
    assert by_row(found, 7)["scale"] == by_row(whole, 7)["scale"]


def test_gaps_of_pairs_that_the_arena_has_not_seen(tmp_path: Path, arena: Arena) -> None:
    other = pickapic(200, seed=5)
    other["model_0"][:20] = ["Org/new"] * 20
    table = read_comparisons(write(tmp_path / "t.parquet", other))
    with pytest.raises(DataError, match=r"fitted to other annotations: .* and .* has 200 pairs, .* say --transfer"):
        pair_gaps(arena, table)
    found = pair_gaps(arena, table, GapOptions(transfer=True))
    new = [row for row in found.rows.tolist() if "new" in (table.names[table.first[row]])]
    assert found.counts["unknown_to_arena"] == len(new) > 0
    assert by_row(found, new[0])["scale"] > math.sqrt((25 / 3) ** 2 + 2 * BETA**2)
    with pytest.raises(ValueError, match="not with transfer"):
        GapOptions(transfer=True, leave_one_out=True)


def test_unknown_models_that_were_dropped_have_no_gap(tmp_path: Path) -> None:
    columns = {"model_a": ["a", "b", None] * 20, "model_b": ["b", "a", "b"] * 20, "outcome": [1, 0, 1] * 20}
    table = read_comparisons(write(tmp_path / "t.parquet", columns))
    found = pair_gaps(fit_arena(table, ArenaOptions(unknown_models="drop")), table)
    assert len(found.rows) == 40 and found.counts["dropped"] == 20
    assert "20 decided pairs of unknown models have no gap" in found.remarks[0]


@pytest.fixture
def file(tmp_path: Path, arena: Arena, table: Comparisons) -> Path:
    options = GapOptions()
    write_gaps(tmp_path / "gaps.parquet", arena, table, pair_gaps(arena, table, options), options)
    return tmp_path / "gaps.parquet"


def test_the_file_has_what_was_found(file: Path, arena: Arena, table: Comparisons) -> None:
    found, stored = pair_gaps(arena, table), pyarrow.parquet.read_table(file)
    assert stored.column_names == ["pair_id", "winner", "loser", "delta", "s", "g", "p", "margin"]
    assert stored.column("pair_id").to_pylist() == [f"{row:09d}" for row in found.rows.tolist()]
    for name, values in (("delta", found.delta), ("s", found.scale), ("g", found.gap), ("p", found.probability)):
        assert stored.column(name).to_numpy().tolist() == values.tolist()
    assert set(stored.column("winner").to_pylist()) == set(NAMES), "names as annotated"
    read = GapTable.load(file)
    assert read.card["fingerprint"] == read.card["arena"] == table.fingerprint
    assert read.card["options"] == dataclasses.asdict(GapOptions())


def test_joining_by_key_and_models(file: Path, table: Comparisons) -> None:
    gaps = GapTable.load(file)
    rows = [0, 5, 7, 11]
    keys = [f"{row:09d}" for row in rows] + ["elsewhere"]
    winners: list[str | None] = [None] * 5
    losers: list[str | None] = [None] * 5
    for place, row in enumerate(rows):
        if table.outcome[row] != 0.5:
            first, second = table.raw_names[table.raw_first[row]], table.raw_names[table.raw_second[row]]
            winners[place], losers[place] = (first, second) if table.outcome[row] == 1 else (second, first)
    winners[4] = losers[4] = "x"
    joined = gaps.joined(keys, winners, losers, "here")
    known = np.array([name is not None for name in winners[:4]])
    assert (~np.isnan(joined.margin[:4]) == known).all() and math.isnan(joined.margin[4])
    again = expected_gap(torch.from_numpy(joined.delta), torch.from_numpy(joined.scale)).numpy()
    assert again[:4][known] == pytest.approx(joined.margin[:4][known], rel=1e-5), "one unit for all three"
    place = int(np.flatnonzero(known)[0])
    winners[place], losers[place] = "Somebody", losers[place]
    with pytest.raises(DataError, match=r"is of another data set: 1 of \d pairs of here name other models"):
        gaps.joined(keys, winners, losers, "here")
    with pytest.raises(DataError, match="no row for any of the 1 decided pairs of here"):
        gaps.joined(["elsewhere"], ["x"], ["y"], "here")
    assert np.isnan(gaps.joined(["elsewhere"], ["x"], ["y"], "a batch", whole=False)).all()


def test_files_that_are_no_table_of_gaps(tmp_path: Path, file: Path) -> None:
    stored = pyarrow.parquet.read_table(file)
    numbers = stored.column("g").to_numpy().copy()
    numbers[3:5] = math.nan
    place = stored.column_names.index("g")
    pyarrow.parquet.write_table(stored.set_column(place, "g", pyarrow.array(numbers)), tmp_path / "nan.parquet")
    with pytest.raises(DataError, match=r"2 of 2,\d+ pairs have a NaN or infinite number, the first is 0000"):
        GapTable.load(tmp_path / "nan.parquet")
    pyarrow.parquet.write_table(pyarrow.concat_tables([stored, stored.slice(0, 2)]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="2 of .* rows have the pair_id of another row"):
        GapTable.load(tmp_path / "twice.parquet")
    pyarrow.parquet.write_table(stored.drop_columns(["s"]), tmp_path / "less.parquet")
    with pytest.raises(DataError, match="no table of gaps .it lacks s.: make one with"):
        GapTable.load(tmp_path / "less.parquet")
    pyarrow.parquet.write_table(stored.replace_schema_metadata({}), tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="its version is None"):
        GapTable.load(tmp_path / "bare.parquet")
    with pytest.raises(FileNotFoundError, match="there is no table of gaps"):
        GapTable.load(tmp_path / "gone.parquet")


def test_a_broken_write_leaves_the_old_file(file: Path, arena: Arena, table: Comparisons) -> None:
    before = file.read_bytes()
    found = pair_gaps(arena, table)
    broken = dataclasses.replace(found, gap=found.gap[:10])
    with pytest.raises(Exception, match=r".+"):
        write_gaps(file, arena, table, broken, GapOptions())
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == ["gaps.parquet"]
