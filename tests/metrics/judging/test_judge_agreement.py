"""Cohen's kappa against its closed form and scikit-learn, and the agreement of two judges of EGIP."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from lightning_gen.metrics.egip import CaseError
from lightning_gen.metrics.intervals import bootstrap_interval
from lightning_gen.metrics.judging.egip_report import evaluate_egip
from lightning_gen.metrics.judging.judge_agreement import cohen_kappa, egip_agreement
from tests.harness.scripted_judge import ScriptedJudge, benchmark, image_of, verdict_json


def test_kappa_of_a_textbook_table() -> None:
    assert float(cohen_kappa(torch.tensor([[20, 5], [10, 15]]))) == pytest.approx(0.4)


def test_kappa_agrees_with_scikit_learn() -> None:
    chance = np.random.default_rng(0)
    first = chance.integers(0, 3, 200)
    second = np.where(chance.random(200) < 0.6, first, chance.integers(0, 3, 200))
    table = torch.zeros(3, 3)
    for one, other in zip(first, second, strict=True):
        table[one, other] += 1
    assert float(cohen_kappa(table)) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_kappa_at_its_limits() -> None:
    tables = torch.tensor([[[5, 0], [0, 5]], [[4, 4], [4, 4]], [[0, 5], [5, 0]], [[9, 0], [0, 0]]])
    values = cohen_kappa(tables).tolist()
    assert values[:3] == [1.0, 0.0, -1.0]
    assert math.isnan(values[3])


def test_two_judges_of_a_benchmark(tmp_path: Path) -> None:
    cases = benchmark(tmp_path, 6)

    def outcomes(failing: dict[int, tuple[str, ...]]) -> dict[str, object]:
        judge = ScriptedJudge(lambda told: verdict_json(told, failing.get(int(told["case_id"][-3:]), ())))
        return dict(evaluate_egip(cases, image_of, judge).outcomes)

    first = outcomes({0: ("e1",), 1: ("c1",), 2: ("e2", "c2")})
    second = outcomes({0: ("e1",), 1: ("c2",), 4: ("e2",)})
    second["1-cartoon_005"] = CaseError("judge", "no JSON")
    agreement = egip_agreement(first, second)  # type: ignore[arg-type]
    # Entities of rows 0 to 4: both fail one, only the first fails one, only the second fails one, both pass seven.
    entity = agreement["entity"]
    assert (entity.num_items, entity.num_rows, entity.raw) == (10, 5, 0.8)
    assert entity.kappa == pytest.approx(float(cohen_kappa(torch.tensor([[1, 1], [1, 7]]))))
    constraint = agreement["constraint"]
    assert (constraint.raw, constraint.num_items) == (0.7, 10)
    assert constraint.kappa == pytest.approx(float(cohen_kappa(torch.tensor([[0, 2], [1, 7]]))))
    assert agreement["case"].raw == 0.6
    rows = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [0, 2]], [[0, 1], [0, 1]], [[0, 0], [0, 2]], [[0, 0], [1, 1]]])
    assert entity.kappa_interval == bootstrap_interval(rows, lambda sets: cohen_kappa(sets.sum(1)))
    assert entity.raw_interval is not None
    assert entity.raw_interval[0] <= 0.8 <= entity.raw_interval[1]


def test_a_judge_agrees_with_itself(tmp_path: Path) -> None:
    cases = benchmark(tmp_path, 2)
    judge = ScriptedJudge(lambda told: verdict_json(told, ("e1",)))
    outcomes = evaluate_egip(cases, image_of, judge).outcomes
    agreement = egip_agreement(outcomes, outcomes)
    assert (agreement["entity"].raw, agreement["entity"].kappa) == (1.0, 1.0)
    # All constraints pass with both: nothing tells agreement from chance.
    assert math.isnan(agreement["constraint"].kappa)
    assert agreement["constraint"].kappa_interval is None


def test_judges_of_different_things_are_not_compared(tmp_path: Path) -> None:
    cases = benchmark(tmp_path, 1)
    fewer = [dataclasses.replace(cases[0], constraints=cases[0].constraints[:1])]
    first = evaluate_egip(cases, image_of, ScriptedJudge(verdict_json)).outcomes
    second = evaluate_egip(fewer, image_of, ScriptedJudge(verdict_json)).outcomes
    with pytest.raises(ValueError, match="'1-cartoon_000': the two judges saw different"):
        egip_agreement(first, second)
    with pytest.raises(ValueError, match="no row was judged by both"):
        egip_agreement(first, {})
