"""The metric over rows: micro rates, error rows, categories, types, repeated rows, intervals, two ranks."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gen.metrics.egip import EGIP, CaseError
from lightning_gen.metrics.intervals import ratio_bootstrap_interval, wilson_interval
from lightning_gen.metrics.judging.egip_rules import CaseResult, Constraint, Entity, Judgement, Verdicts, judge_case
from lightning_gen.metrics.judging.gen_arena import GEN_ARENA_CATEGORIES
from tests.harness.metric_jobs_egip import Row, egip_of_shares, random_rows
from tests.harness.processes import two_processes

CARTOON, GAME = GEN_ARENA_CATEGORIES[:2]


def case(
    seen: int, entities: int, held: int, constraints: int, kind: str = "layout", gates: bool = False
) -> CaseResult:
    """A row of which the first entities and constraints pass; each constraint rests on the last entity if it gates."""
    things = [Entity(f"e{number}", "thing") for number in range(entities)]
    depends = (things[-1].id,) if gates else ()
    rules = [Constraint(f"c{number}", kind, "text", depends) for number in range(constraints)]
    verdicts = Verdicts(
        tuple(Judgement(item.id, "pass") for item in things[:seen]),
        tuple(Judgement(item.id, "pass") for item in rules[:held]),
    )
    return judge_case(things, rules, verdicts)


def metric_of(rows: list[Row], **arguments: object) -> EGIP:
    metric = EGIP("scripted", **arguments)  # type: ignore[arg-type]
    for index, category, outcome in rows:
        metric.update(index, category, outcome)  # type: ignore[arg-type]
    return metric


def scores(rows: list[Row]) -> dict[str, float]:
    return {name: value.item() for name, value in metric_of(rows).compute().items()}


def test_micro_not_macro() -> None:
    values = scores([(0, CARTOON, case(1, 1, 1, 1)), (1, CARTOON, case(1, 1, 0, 9))])
    assert values["constraint_direct"] == 0.1
    assert values["egip"] == 0.5


def test_gating_lowers_only_the_gated_rate() -> None:
    values = scores([(0, CARTOON, case(1, 2, 3, 3, gates=True)), (1, CARTOON, case(2, 2, 1, 1, gates=True))])
    assert values["constraint_direct"] == 1
    assert values["constraint_gated"] == 0.25
    assert values["entity_pass"] == 0.75
    assert values["egip"] == 0.5


@pytest.mark.parametrize("errors", [1, 4])
def test_error_rows_lower_the_overall_rate_alone(errors: int) -> None:
    good = random_rows(40, errors=0)
    bad: list[Row] = [(40 + number, CARTOON, CaseError("judge", "no JSON")) for number in range(errors)]
    before, after = scores(good), scores(good + bad)
    assert after["egip"] == pytest.approx(before["egip"] * 40 / (40 + errors), abs=1e-15)
    assert after["egip_evaluated_only"] == before["egip"]
    for name in before:
        if name.startswith(("entity_pass", "constraint_", "egip/")):
            assert after[name] == before[name], name
    assert (after["num_errors"], after["num_errors/judge"], after["num_errors/image"]) == (errors, errors, 0)
    assert after[f"num_errors/category/{CARTOON}"] == errors


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_inequalities_hold_for_random_benchmarks(seed: int) -> None:
    rows = random_rows(12, seed, errors=0)
    values = scores(rows)
    results = [outcome for _, _, outcome in rows if isinstance(outcome, CaseResult)]
    products = [math.prod(result.entities.values()) * math.prod(result.gated.values()) for result in results]
    assert values["egip"] == sum(products) / 12
    assert values["egip"] <= sum(all(result.entities.values()) for result in results) / 12
    if "constraint_direct" in values:
        assert values["constraint_gated"] <= values["constraint_direct"]


def test_categories_and_types_add_up_to_the_whole() -> None:
    rows = random_rows(60)
    values = scores(rows)
    results = [(category, outcome) for _, category, outcome in rows if isinstance(outcome, CaseResult)]
    for name in GEN_ARENA_CATEGORIES:
        here = [result for category, result in results if category == name]
        assert values[f"egip/category/{name}"] == sum(result.passed for result in here) / len(here)
        entities = [verdict for result in here for verdict in result.entities.values()]
        assert values[f"entity_pass/category/{name}"] == sum(entities) / len(entities)
    for kind in ("attribute", "layout", "relation"):
        gated = [result.gated[c] for _, result in results for c, found in result.types.items() if found == kind]
        direct = [result.direct[c] for _, result in results for c, found in result.types.items() if found == kind]
        assert values[f"constraint_gated/type/{kind}"] == sum(gated) / len(gated)
        assert values[f"constraint_direct/type/{kind}"] == sum(direct) / len(direct)
        assert values[f"num_constraints/type/{kind}"] == len(gated)
    assert "constraint_gated/type/text" not in values


def test_the_order_of_rows_does_not_matter() -> None:
    rows = random_rows(40)
    shuffled = rows.copy()
    random.Random(1).shuffle(shuffled)
    first, second = metric_of(rows).measurements(), metric_of(shuffled).measurements()
    assert {name: value.to_json() for name, value in first.items()} == {
        name: value.to_json() for name, value in second.items()
    }


def test_a_repeated_row_counts_once() -> None:
    rows = random_rows(20)
    assert scores(rows + rows[:5]) == scores(rows)


def test_two_samples_of_a_row_are_two() -> None:
    metric = EGIP("scripted")
    metric.update(0, CARTOON, case(1, 1, 1, 1), sample=0)
    metric.update(0, CARTOON, case(0, 1, 1, 1), sample=1)
    assert metric.compute()["egip"] == 0.5


def test_two_ranks_are_one_bit_for_bit() -> None:
    rows = random_rows(31)
    expected = metric_of(rows)
    one = (
        {name: value.item() for name, value in expected.compute().items()},
        {name: value.to_json() for name, value in expected.measurements().items()},
    )
    # As a sampler deals them out: every second row, and the first one again to make the shares equal.
    dealt = two_processes(egip_of_shares, [rows[0::2], [*rows[1::2], rows[0]]])
    uneven = two_processes(egip_of_shares, [rows, []])
    for got, measured, _ in dealt + uneven:
        assert (got, measured) == one
    assert [held for _, _, held in dealt] == [16, 16], "after the measurement each rank has its own rows again"


def test_measurements_carry_interval_and_protocol() -> None:
    rows = random_rows(50)
    metric = metric_of(rows, details={"judge_model": "scripted-1"})
    measured = metric.measurements(level=0.9, resamples=500, seed=7)
    results = [outcome for _, _, outcome in rows if isinstance(outcome, CaseResult)]
    passed = sum(result.passed for result in results)
    egip = measured["egip"]
    assert (egip.value, egip.interval) == (passed / 50, wilson_interval(passed, 50, 0.9))
    assert egip.protocol.details["interval"] == "wilson"
    assert egip.protocol.details["judge_model"] == "scripted-1"
    assert measured["egip_evaluated_only"].interval == wilson_interval(passed, 47, 0.9)
    gated = measured["constraint_gated"]
    wanted = ratio_bootstrap_interval(
        torch.tensor([sum(result.gated.values()) for result in results]),
        torch.tensor([len(result.gated) for result in results]),
        500,
        0.9,
        7,
    )
    assert gated.interval == wanted
    assert gated.protocol.details["of"] == sum(len(result.gated) for result in results)
    assert "3 of 50 rows could not be judged" in egip.note


def test_the_name_tells_a_part_of_the_benchmark_from_all_of_it() -> None:
    rows = random_rows(4)
    assert metric_of(rows).measurements()["egip"].protocol.id == "egip@4/scripted"
    whole = metric_of(rows, expected_rows=4).measurements()
    assert whole["egip"].protocol.id == "egip/scripted"
    assert whole["entity_pass"].protocol.id == "egip:entity_pass/scripted"
    assert whole["egip"].protocol.count == 4


def test_a_category_of_errors_alone_has_a_count_and_no_rate() -> None:
    values = scores([(0, CARTOON, case(1, 1, 1, 1)), (1, GAME, CaseError("image", "gone"))])
    assert f"egip/category/{GAME}" not in values
    assert values[f"num_errors/category/{GAME}"] == 1


def test_a_single_row_has_no_bootstrap_interval() -> None:
    measured = metric_of([(0, CARTOON, case(1, 1, 1, 2))]).measurements()
    assert measured["constraint_gated"].interval is None
    assert measured["egip"].interval is not None


def test_reset_forgets_and_counting_goes_on() -> None:
    metric = metric_of(random_rows(5))
    metric.reset()
    with pytest.raises(ValueError, match="no rows"):
        metric.measurements()
    metric.update(0, CARTOON, case(1, 1, 1, 1))
    assert metric.compute()["egip"] == 1
    metric.update(1, CARTOON, case(0, 1, 1, 1))
    assert metric.compute()["egip"] == 0.5


def test_another_precision_does_not_round_the_rows() -> None:
    metric = metric_of([(1001, CARTOON, case(1, 1, 1, 1)), (1002, CARTOON, case(0, 1, 1, 1))])
    torch.nn.Sequential(metric).to(torch.bfloat16)
    assert metric.compute()["egip"] == 0.5


def test_bad_rows_are_refused() -> None:
    metric = EGIP("scripted")
    with pytest.raises(ValueError, match="category 'cartoon', not one of 1-cartoon"):
        metric.update(0, "cartoon", case(1, 1, 1, 1))
    with pytest.raises(ValueError, match="at least 0"):
        metric.update(-1, CARTOON, case(1, 1, 1, 1))
    with pytest.raises(ValueError, match="slash"):
        EGIP("owner/model")
    with pytest.raises(ValueError, match="kind of error"):
        CaseError("weather", "rain")  # type: ignore[arg-type]
