"""The arena as a whole: which rows count, unknown models, files, leaderboard, calibration. Checks 6 and 7."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gen.alignment.arena_po.arena import Arena, ArenaOptions, fit_arena, games_of
from lightning_gen.alignment.arena_po.arena_calibration import calibration, meetings_of, predicted_wins
from lightning_gen.alignment.arena_po.arena_table import UNKNOWN, Comparisons, TableOptions, read_comparisons
from lightning_gen.data.quarantine import DataError
from lightning_gen.metrics.ratings import draw_margin

from .tables import TRUTH, pickapic, write

CANONICAL = ("fine", "good", "fair", "poor")


def table_of(tmp_path: Path, columns: dict[str, Any], **options: Any) -> Comparisons:
    return read_comparisons(write(tmp_path / "t.parquet", columns), TableOptions(**options))


def means(arena: Arena) -> dict[str, float]:
    return dict(zip(arena.names, arena.mean.tolist(), strict=True))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Comparisons:
    return table_of(tmp_path_factory.mktemp("arena"), pickapic(6000))


@pytest.mark.parametrize("solver", ["ep_sequential", "batch_ep", "laplace"])
def test_recovers_the_models_of_a_table(table: Comparisons, solver: Any) -> None:
    arena = fit_arena(table, ArenaOptions(solver=solver))
    found = means(arena)
    centre = np.mean(list(found.values()))
    for name, true in zip(CANONICAL, TRUTH, strict=True):
        assert found[name] - centre == pytest.approx(true - np.mean(TRUTH), abs=0.5)
    assert [line.name for line in arena.leaderboard()] == list(CANONICAL)
    decided = table.outcome != 0.5
    assert arena.dataset["games"] == int((decided & (table.first != table.second)).sum()), "no ties, no pairs of one"


def test_the_stored_order_of_pictures_does_not_matter(tmp_path: Path, table: Comparisons) -> None:
    columns = pickapic(6000)
    for n in range(0, 6000, 3):
        for name in ("model", "label"):
            one, two = columns[f"{name}_0"], columns[f"{name}_1"]
            one[n], two[n] = two[n], one[n]
        one, two = columns["image_0_uid"], columns["image_1_uid"]
        one[n], two[n] = two[n], one[n]
    for options in (ArenaOptions(), ArenaOptions(ties="draw", draw_probability=0.1)):
        turned = fit_arena(table_of(tmp_path, columns), options)
        straight = fit_arena(table, options)
        assert turned.mean.tolist() == pytest.approx(straight.mean.tolist(), abs=1e-9)
        assert turned.variance.tolist() == pytest.approx(straight.variance.tolist(), abs=1e-9)


def test_pairs_of_one_model_say_nothing(tmp_path: Path) -> None:
    columns = {"model_a": ["x", "y", "x"], "model_b": ["y", "y", "x"], "outcome": [1, 1, 0]}
    arena = fit_arena(table_of(tmp_path, columns))
    alone = fit_arena(table_of(tmp_path, {name: column[:1] for name, column in columns.items()}))
    assert means(arena) == means(alone) and arena.dataset["games"] == 1
    assert arena.mean.sum() == pytest.approx(50, abs=1e-12)


def test_order_is_an_option_that_is_kept(table: Comparisons) -> None:
    plain = fit_arena(table)
    drawn = [fit_arena(table, ArenaOptions(order_seed=seed)) for seed in (0, 0, 1)]
    assert means(drawn[0]) == means(drawn[1]) != means(drawn[2])
    assert means(plain) != means(drawn[0])
    many = fit_arena(table, ArenaOptions(order_seed=0, orders=8))
    batch = fit_arena(table, ArenaOptions(solver="batch_ep"))

    def distance(one: Arena) -> float:
        return float(np.abs(one.mean - one.mean.mean() - batch.mean + batch.mean.mean()).max())

    assert distance(many) < max(distance(one) for one in drawn)
    assert many.options.order_seed == 0 and many.options.orders == 8


def test_what_the_order_decides_is_not_known(tmp_path: Path) -> None:
    table = table_of(tmp_path, pickapic(200))
    one, many = (fit_arena(table, ArenaOptions(order_seed=0, orders=orders)).variance.mean() for orders in (1, 16))
    # The level of all models drifts by 0.6 with the order, a variance of 0.4, but means nothing and is not counted.
    assert 1.03 * one < many < 1.2 * one


def test_ties_drop_or_draw(tmp_path: Path) -> None:
    columns = {"model_a": ["x"] * 40, "model_b": ["y"] * 40, "outcome": [1.0] * 8 + [0.5] * 32}
    table = table_of(tmp_path, columns)
    dropped, drawn = fit_arena(table), fit_arena(table, ArenaOptions(ties="draw", draw_probability=0.5))
    assert dropped.games.tolist() == [8, 8] and drawn.games.tolist() == [40, 40]
    assert np.ptp(drawn.mean) < np.ptp(dropped.mean)
    assert dropped.meetings.ties.tolist() == [32], "known, though they did not count"
    for arena, rates in ((dropped, {"x": 1.0, "y": 0.0}), (drawn, {"x": 0.6, "y": 0.4})):
        lines = arena.leaderboard()
        assert {line.name: line.win_rate for line in lines} == rates, "of the games that it shows"
        assert [line.games for line in lines] == arena.games.tolist() == arena.record.sum(0).tolist()
    with pytest.raises(ValueError, match="ties: draw needs one above 0"):
        ArenaOptions(ties="draw")


def test_unknown_models(tmp_path: Path) -> None:
    columns = {
        "model_a": ["x", "x", None, "real"] * 20,
        "model_b": ["y", "", "y", "y"] * 20,
        "outcome": [1, 1, 1, 1] * 20,
    }
    table = table_of(tmp_path, columns)
    own = fit_arena(table)
    assert set(own.names) == {"x", "y", "real", UNKNOWN} and own.dataset["games"] == 80
    gone = fit_arena(table, ArenaOptions(unknown_models="drop", unknown_names=("real",)))
    assert set(gone.names) == {"x", "y"} and gone.dataset["games"] == 20
    prior = fit_arena(table, ArenaOptions(unknown_models="prior"))
    place = prior.names.index(UNKNOWN)
    assert prior.mean[place] == 25 and math.sqrt(prior.variance[place]) == pytest.approx(25 / 3)
    assert prior.mean[prior.names.index("x")] > gone.mean[gone.names.index("x")] - 1
    with pytest.raises(DataError, match="no game is left: no model is known; unknown_models: own_player keeps those"):
        fit_arena(table, ArenaOptions(unknown_models="drop", unknown_names=("real", "x")))


def test_a_statement_more_likely_wrong_is_turned_round(tmp_path: Path) -> None:
    columns = {"model_a": ["x"] * 3, "model_b": ["y"] * 3, "outcome": [1, 1, 1], "confidence": [0.9, 0.2, 0.5]}
    games, rows = games_of(table_of(tmp_path, columns, soft="confidence"), ArenaOptions())
    assert rows.tolist() == [0, 1], "one that says nothing is left out"
    assert games.winner.tolist() == [0, 1] and games.certainty.tolist() == pytest.approx([0.9, 0.8])


def test_too_little_to_compare(tmp_path: Path) -> None:
    ties = {"model_a": ["x"] * 9, "model_b": ["y"] * 9, "outcome": [0.5] * 9}
    with pytest.raises(DataError, match="no game is left: 9 of 9 pairs are ties; ties: draw with a draw_probability"):
        fit_arena(table_of(tmp_path, ties))
    one = {"model_a": ["x"] * 9, "model_b": ["X"] * 9, "outcome": [1] * 9}
    with pytest.raises(DataError, match="all 9 pairs of .* are by one model, 'x': an arena compares two at least"):
        fit_arena(table_of(tmp_path, one))
    even = {"model_a": ["x"] * 9, "model_b": ["y"] * 9, "outcome": [1] * 9, "confidence": [0.5] * 9}
    with pytest.raises(DataError, match="no game is left: 9 outcomes are as likely wrong as right"):
        fit_arena(table_of(tmp_path, even, soft="confidence"))
    texts = {"model_a": [f"text {n}" for n in range(5000)], "model_b": ["y"] * 5000, "outcome": [1] * 5000}
    with pytest.raises(DataError, match="has 5,001 models in 5,000 pairs, for instance 'text-0'; .* 4,096 at most"):
        fit_arena(table_of(tmp_path, texts))


@pytest.mark.parametrize("solver", ["ep_sequential", "laplace"])
def test_files_are_plain_json_and_come_back(tmp_path: Path, table: Comparisons, solver: Any) -> None:
    arena = fit_arena(table, ArenaOptions(solver=solver, unknown_names=("real",)), {"soft": "none"})
    arena.save(tmp_path / "new" / "arena.json")
    content = json.loads((tmp_path / "new" / "arena.json").read_text())
    assert content["dataset"]["fingerprint"] == table.fingerprint
    player = next(one for one in content["players"] if one["name"] == "good")
    assert set(player["raw_names"]) == {"other/GOOD "}
    number = arena.names.index("good")
    met = arena.meetings
    won = int(met.wins[met.first == number].sum() + met.losses[met.second == number].sum())
    lost = int(met.losses[met.first == number].sum() + met.wins[met.second == number].sum())
    assert (player["wins"], player["losses"], player["ties"]) == (won, lost, 0) and player["games"] == won + lost
    again = Arena.load(tmp_path / "new" / "arena.json")
    assert again.names == arena.names and again.options == arena.options
    assert again.mean.tolist() == arena.mean.tolist()
    assert again.covariance == pytest.approx(arena.covariance, abs=1e-12)
    assert [part.tolist() for part in again.meetings] == [part.tolist() for part in arena.meetings]


def test_files_of_earlier_versions(tmp_path: Path, table: Comparisons) -> None:
    path = tmp_path / "arena.json"
    fit_arena(table, reading={"soft": "none"}).save(path)
    content = json.loads(path.read_text())
    for player in content["players"]:
        del player["wins"], player["losses"], player["ties"]
    del content["meetings"]["certainty"]
    path.write_text(json.dumps(content))
    arena = Arena.load(path)
    assert arena.record.sum() == 2 * arena.dataset["games"] and arena.meetings.certainty.tolist() == [1.0] * 6
    content["dataset"]["reading"]["soft"] = "votes"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="does not say how sure its soft outcomes were.*make one with `lightning arena"):
        Arena.load(path)


def test_files_that_are_no_arena(tmp_path: Path, table: Comparisons) -> None:
    path = tmp_path / "arena.json"
    with pytest.raises(FileNotFoundError, match="there is no arena"):
        Arena.load(path)
    fit_arena(table).save(path)
    sound = json.loads(path.read_text())
    for change, message in (
        ({"version": 9}, "version 9"),
        ({"players": [{"name": "x"}]}, "is no arena"),
        ({"options": {"solver": "magic", "unknown_names": []}}, "solver is one of"),
        ({"players": [{**one, "deviation": 0.0} for one in sound["players"]]}, "deviations positive"),
        ({"players": [{**one, "mean": math.nan} for one in sound["players"]]}, "must be finite"),
    ):
        path.write_text(json.dumps({**sound, **change}))
        with pytest.raises(DataError, match=message):
            Arena.load(path)
    path.write_text("nothing")
    with pytest.raises(DataError, match="is no arena"):
        Arena.load(path)


def test_the_leaderboard_knows_what_it_does_not_know(tmp_path: Path) -> None:
    columns = {"model_a": ["a"] * 60 + ["b", "c"], "model_b": ["z"] * 60 + ["c", "b"], "outcome": [1] * 62}
    arena = fit_arena(table_of(tmp_path, columns), ArenaOptions(solver="batch_ep"))
    lines = {line.name: line for line in arena.leaderboard(0.95)}
    assert lines["a"].ranks[0] == 1 and lines["z"].ranks[1] == 4
    assert lines["b"].ranks[0] <= 2 and lines["b"].ranks[1] >= 3, "b and c have one win each"
    assert lines["a"].win_rate == 1 and lines["b"].win_rate == 0.5
    assert lines["a"].conservative == pytest.approx(lines["a"].mean - 3 * math.sqrt(arena.variance[0]))
    narrow = {line.name: line for line in arena.leaderboard(0.5)}
    assert np.ptp(narrow["a"].interval) < np.ptp(lines["a"].interval)
    assert "2 of 4 models have fewer than 10 games (b, c)" in arena.remarks()[0]


def test_covariance_counts_from_the_mean_of_all(table: Comparisons) -> None:
    arena = fit_arena(table, ArenaOptions(solver="laplace"))
    assert arena.covariance.sum() == pytest.approx(0, abs=1e-9)
    one_pass = fit_arena(table)
    assert arena.variance == pytest.approx(one_pass.variance, rel=0.6), "without the shift that nobody knows"
    delta, variance = arena.differences(np.array([0, 2]), np.array([1, 2]))
    assert delta[1] == 0 and variance[1] == pytest.approx(2 * arena.variance[2])
    assert variance[0] < arena.variance[0] + arena.variance[1] - 2 * arena.covariance[0, 1] + 1e-15


def test_predictions_hold_on_other_games(tmp_path: Path, table: Comparisons) -> None:
    arena = fit_arena(table)
    other = table_of(tmp_path, pickapic(20_000, seed=9))
    found = calibration(arena, *meetings_of(arena, other))
    assert found.error < 0.02 and found.log_loss < found.coin_log_loss and 0.6 < found.accuracy < 0.9
    assert found.games == sum(one.games for one in found.bins) and found.unknown == 0
    spread = dataclasses.replace(arena, mean=25 + 3 * (arena.mean - 25))
    assert calibration(spread, *meetings_of(arena, other)).error > 0.05, "an arena that is too sure is found out"


def test_predictions_are_of_labels_as_noted(tmp_path: Path) -> None:
    columns = pickapic(20_000, ties=0)
    flipped = np.random.default_rng(3).random(20_000) < 0.25
    for name in ("label_0", "label_1"):
        columns[name] = np.where(flipped, 1 - np.array(columns[name]), columns[name]).tolist()
    del columns["best_image_uid"]
    table = table_of(tmp_path, columns | {"confidence": [0.75] * 20_000}, soft="confidence")
    arena = fit_arena(table, reading={"soft": "confidence"})
    assert arena.meetings.certainty == pytest.approx(0.75)
    arena.save(tmp_path / "arena.json")
    for found in (calibration(Arena.load(tmp_path / "arena.json")), calibration(arena, *meetings_of(arena, table))):
        assert found.error < 0.02 and max(one.predicted for one in found.bins) < 0.75, "who may be noted wrong"


def test_predictions_are_of_games_that_somebody_won(tmp_path: Path) -> None:
    models = np.random.default_rng(4).integers(4, size=(2, 20_000))
    quality = np.array(TRUTH)[models] + 25 / 6 * np.random.default_rng(5).standard_normal((2, 20_000))
    apart = quality[0] - quality[1]
    outcome = np.where(np.abs(apart) < draw_margin(0.4, 25 / 6), 0.5, (apart > 0).astype(float))
    columns = {"model_a": models[0].astype(str), "model_b": models[1].astype(str), "outcome": outcome}
    arena = fit_arena(table_of(tmp_path, columns), ArenaOptions("batch_ep", ties="draw", draw_probability=0.4))
    found = calibration(arena)
    assert found.games == int((arena.meetings.wins + arena.meetings.losses).sum()) < arena.dataset["games"]
    assert found.error < 0.02


def test_predictions_are_of_both_sides(table: Comparisons) -> None:
    arena = fit_arena(table)
    forth, back = (predicted_wins(arena, *(np.array([one]) for one in pair)) for pair in ((0, 1), (1, 0)))
    assert forth + back == pytest.approx(1)


def test_options_that_make_no_sense() -> None:
    for options, message in (
        ({"solver": "magic"}, "solver is one of ep_sequential, batch_ep, laplace"),
        ({"performance": 0.0}, "performance are positive"),
        ({"solver": "laplace", "order_seed": 1}, "knows no order"),
        ({"orders": 3}, "give order_seed"),
        ({"draw_probability": 1.0}, r"lies in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ArenaOptions(**options)
