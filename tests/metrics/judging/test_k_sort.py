"""K-Sort Eval: the protocol's formulas, its choices, and judges that fail."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gen.metrics.judging.judges import JudgeReplyError, Message
from lightning_gen.metrics.judging.k_sort import (
    KSortSettings,
    agreement_weight,
    corrected,
    evaluate_k_sort,
    next_case,
    parse_ranking,
    ranking_instruction,
    spearman,
)
from lightning_gen.metrics.judging.k_sort_cases import KSortAnchor, KSortCase, read_k_sort
from lightning_gen.metrics.ratings import Rating, rate_ranking

RATINGS = {"a": Rating(20, 1), "b": Rating(24, 1), "c": Rating(28, 2), "d": Rating(32, 2)}


class Sorter:
    """Sorts pictures by their brightness, or backwards."""

    name = "sorter"
    settings: Mapping[str, Any] = {}

    def __init__(self, backwards: bool = False, silent: int = 0) -> None:
        self.backwards, self.silent, self.seen = backwards, silent, 0
        self.orders: list[list[float]] = []

    def __call__(self, message: Message) -> str:
        self.seen += 1
        if self.seen <= self.silent:
            return "no"
        levels = [float(part.float().mean()) for part in message if isinstance(part, torch.Tensor)]
        self.orders.append(levels)
        order = sorted(range(len(levels)), key=lambda n: levels[n] if self.backwards else -levels[n])
        return json.dumps({"ranking": [n + 1 for n in order]})


def case(name: str, models: str = "abcd") -> KSortCase:
    return KSortCase(name, "a cat", tuple(KSortAnchor(m, Path(m), 4 - "abcd".index(m)) for m in models))


def shade(level: int) -> torch.Tensor:
    return torch.full((3, 4, 4), level, dtype=torch.uint8)


def run(judge: Sorter, count: int = 6, **settings: Any) -> Any:
    cases = [case(str(number)) for number in range(count)]
    levels = dict(zip("abcd", (40, 80, 160, 200), strict=True))
    return evaluate_k_sort(
        cases, RATINGS, lambda one: shade(120), lambda path: shade(levels[path.name]), judge, KSortSettings(**settings)
    )


def test_formulas() -> None:
    assert spearman([1, 2, 3, 4], [1, 2, 3, 4]) == 1 and spearman([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert spearman([1, 1, 2, 2], [1, 2, 3, 4]) == pytest.approx(0.894427191)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0
    assert agreement_weight(0) == 0.5 and agreement_weight(1) == pytest.approx(1 / (1 + math.exp(-5)))
    old, new = Rating(20, 4), Rating(30, 2)
    half = corrected(old, new, 0.5)
    assert half.mean == 25 and half.deviation == pytest.approx(math.sqrt(10))
    share = 0.9**2 / (0.9**2 + 0.1**2)
    assert corrected(old, new, 0.9).deviation == pytest.approx(math.sqrt(4 * share + 16 * (1 - share)))
    assert corrected(old, new, 0.9).mean == pytest.approx(29)


def test_the_first_round_is_its_formulas() -> None:
    report = run(Sorter(), max_rounds=1)
    order = [RATINGS["d"], RATINGS["c"], Rating(), RATINGS["b"], RATINGS["a"]]
    wanted = corrected(Rating(), rate_ranking(order)[2], agreement_weight(1.0))
    assert report.rounds[0].rank == 3 and report.rounds[0].agreement == 1
    assert (report.rating.mean, report.rating.deviation) == pytest.approx((wanted.mean, wanted.deviation))
    assert report.score == pytest.approx(report.rating.mean - 3 * 1.5), "the anchors' mean sigma, not the model's"


def test_a_judge_that_sorts_against_people_is_hardly_believed() -> None:
    honest, backwards = run(Sorter(), max_rounds=1), run(Sorter(backwards=True), max_rounds=1)
    assert backwards.rounds[0].agreement == -1
    assert abs(backwards.rating.mean - 25) < 0.05 * abs(rate_ranking([RATINGS[m] for m in "abcd"])[0].mean - 25) + 0.5
    assert backwards.rating.deviation > 0.99 * 25 / 3 > honest.rating.deviation


def test_pictures_come_in_another_order_every_round_and_anchors_stay() -> None:
    judge = Sorter()
    report = run(judge)
    assert len({tuple(order) for order in judge.orders}) > 1
    assert run(Sorter()).rounds == report.rounds, "the same seed, the same order"
    assert RATINGS["a"] == Rating(20, 1)


def test_rounds_end_when_enough_is_known() -> None:
    report = run(Sorter(), 40, enough=3.0)
    assert report.settled and len(report.rounds) < 40 and report.rating.deviation < 3
    assert not run(Sorter(), 2).settled


def test_the_next_case_has_opponents_of_its_level_that_are_new() -> None:
    cases = [case("low", "ab"), case("level", "bc"), case("high", "cd")]
    assert next_case(cases, RATINGS, Rating(26, 1), {}, 0.5) == 1
    assert next_case(cases, RATINGS, Rating(33, 1), {}, 0.5) == 2
    twins = [case("one", "bc"), case("two", "ad")]
    assert next_case(twins, RATINGS, Rating(26, 1), {"b": 3, "c": 3}, 0.5) == 1


def test_answers_that_cannot_be_read() -> None:
    assert parse_ranking('{"ranking": [3, 1, 2]}', 3) == [2, 0, 1]
    for reply in ('{"ranking": [1, 2]}', '{"ranking": [1, 1, 2]}', "[1, 2, 3]", '{"ranking": [true, 2, 3]}', "none"):
        with pytest.raises(JudgeReplyError):
            parse_ranking(reply, 3)
    assert "numbered 1 to 5" in ranking_instruction("a cat", 5)
    report = run(Sorter(silent=2), attempts=2)
    assert report.rounds[0].error and not report.rounds[1].error
    assert report.rounds[0].rating == Rating()
    assert "1 of 6 rounds have no answer" in report.measurements[0].note
    with pytest.raises(ValueError, match="no usable answer in 2 rounds"):
        run(Sorter(silent=99), 2)


def test_a_round_without_an_answer_changes_nothing_but_is_counted() -> None:
    cases, done = [case("level", "bc"), case("low", "ab")], list[tuple[int, int]]()
    report = evaluate_k_sort(
        cases, RATINGS, lambda one: shade(120), lambda path: shade(10 * "abcd".index(path.name)), Sorter(silent=1),
        KSortSettings(attempts=1), lambda now, total: done.append((now, total)),
    )  # fmt: skip
    assert [one.case_id for one in report.rounds if one.error] == ["level"]
    assert done == [(1, 2), (2, 2)]
    assert report.score == pytest.approx(report.rating.mean - 3), "the model c was met in the round without an answer"


def test_reading_the_benchmark(tmp_path: Path) -> None:
    row = {
        "id": "1",
        "prompt": "p",
        "images": [{"model": m, "path": f"{m}.png", "rank": r} for m, r in (("x", 1), ("y", 2))],
    }
    (tmp_path / "leaderboard.json").write_text(json.dumps({"x": [27, 1], "y": "(24.5/0.8)"}))
    (tmp_path / "k_sort.jsonl").write_text(json.dumps(row) + "\n")
    cases, ratings = read_k_sort(tmp_path)
    assert ratings["y"] == Rating(24.5, 0.8) and cases[0].anchors[1].path == tmp_path / "y.png"
    for changed, message in (
        ({**row, "images": row["images"][:1]}, "line 1: a case has a text id"),
        ({**row, "images": [{**row["images"][0], "model": "z"}, row["images"][1]]}, "the model 'z' has no rating"),
        ({**row, "images": [{**row["images"][0], "path": "../x"}, row["images"][1]]}, "leaves the folder"),
    ):
        (tmp_path / "k_sort.jsonl").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            read_k_sort(tmp_path)
    (tmp_path / "k_sort.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}")
    with pytest.raises(ValueError, match="has the id '1' twice"):
        read_k_sort(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no k_sort.jsonl"):
        read_k_sort(tmp_path / "nowhere")
