"""A whole benchmark: error rows, answers kept in a file, runs that were cut off, several questions at a time."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gen.metrics.egip import CaseError
from lightning_gen.metrics.judging.egip_report import ResultsFile, evaluate_egip
from lightning_gen.metrics.judging.egip_rules import SpecificationError
from lightning_gen.metrics.judging.gen_arena import GenArenaCase
from tests.harness.scripted_judge import ScriptedJudge, benchmark, image_of, verdict_json


def mixed(told: dict[str, Any]) -> str:
    """Row 0 passes, row 1 misses an entity, row 2 a constraint, row 3 gets no JSON."""
    number = int(told["case_id"][-3:])
    if number == 3:
        return "I would say pass."
    return verdict_json(told, failing=((), ("e1",), ("c2",))[number])


def test_numbers_of_a_small_benchmark(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = evaluate_egip(
        benchmark(tmp_path), image_of, ScriptedJudge(mixed), progress=lambda done, of: seen.append((done, of))
    )
    values = {name: measurement.value for name, measurement in report.measurements.items()}
    assert values["egip"] == 0.25
    assert values["egip_evaluated_only"] == pytest.approx(1 / 3)
    assert values["entity_pass"] == pytest.approx(5 / 6)
    assert values["constraint_direct"] == pytest.approx(5 / 6)
    assert values["constraint_gated"] == pytest.approx(4 / 6)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    written = json.loads(json.dumps(report.to_json()))
    assert list(written["errors"]) == ["1-cartoon_003"]
    assert "no usable answer in 3 attempts" in written["errors"]["1-cartoon_003"]["message"]
    details = written["measurements"]["egip"]["protocol"]["details"]
    assert (details["judge_temperature"], details["instruction_version"], details["strict_official"]) == (0.0, 1, False)


def test_answers_are_reused_and_errors_asked_again(tmp_path: Path) -> None:
    cases, path = benchmark(tmp_path), tmp_path / "out/results.jsonl"
    first = evaluate_egip(cases, image_of, ScriptedJudge(mixed), results=path)
    assert (first.num_asked, first.num_reused) == (4, 0)
    judge = ScriptedJudge(verdict_json)
    second = evaluate_egip(cases, image_of, judge, results=path)
    assert (second.num_asked, second.num_reused) == (1, 3)
    assert second.measurements["egip"].value == 0.5
    assert second.outcomes["1-cartoon_001"] == first.outcomes["1-cartoon_001"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["case_id"][-1] for row in rows] == ["0", "1", "2", "3", "3"]
    assert rows[1]["gated"] == {"c1": False, "c2": True}
    assert rows[3]["error"]["kind"] == "judge"


def test_another_image_judge_or_row_is_judged_anew(tmp_path: Path) -> None:
    cases, path = benchmark(tmp_path, 2), tmp_path / "results.jsonl"
    evaluate_egip(cases, image_of, ScriptedJudge(verdict_json), results=path)

    def asked(rows: list[GenArenaCase], images: Any, judge: ScriptedJudge) -> int:
        return evaluate_egip(rows, images, judge, results=path).num_asked

    assert asked(cases, image_of, ScriptedJudge(verdict_json)) == 0
    assert asked(cases, lambda case: image_of(case) + int(case.case_id.endswith("1")), ScriptedJudge(verdict_json)) == 1
    assert asked(cases, image_of, ScriptedJudge(verdict_json, name="other")) == 2
    assert asked(cases, image_of, ScriptedJudge(verdict_json)) == 0, "the first judge's answers are still there"
    changed = [cases[0], dataclasses.replace(cases[1], constraints=cases[1].constraints[:1])]
    assert asked(changed, image_of, ScriptedJudge(verdict_json, name="other")) == 1


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    cases, path = benchmark(tmp_path, 3), tmp_path / "results.jsonl"

    class PowerCut(Exception):
        pass

    def stop(told: dict[str, Any]) -> str:
        if told["case_id"].endswith("2"):
            raise PowerCut
        return verdict_json(told)

    with pytest.raises(PowerCut):
        evaluate_egip(cases, image_of, ScriptedJudge(stop), results=path)
    with path.open("a") as file:
        file.write('{"case_id": "1-cartoon_002", "ke')
    report = evaluate_egip(cases, image_of, ScriptedJudge(verdict_json), results=path)
    assert (report.num_asked, report.num_reused) == (1, 2)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3


def test_whatever_a_judge_writes_can_be_kept(tmp_path: Path) -> None:
    cases, path = benchmark(tmp_path, 1), tmp_path / "results.jsonl"
    answer = json.dumps({"entities": {"e1": {"verdict": "pass", "reason": "\ud83d \u2028 \u6f22"}}, "constraints": []})
    first = evaluate_egip(cases, image_of, ScriptedJudge(lambda told: answer), results=path)
    second = evaluate_egip(cases, image_of, ScriptedJudge(lambda told: answer), results=path)
    assert second.num_reused == 1
    assert second.outcomes == first.outcomes


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"name": "x"}\n')
    with pytest.raises(ValueError, match="line 1 is no result of EGIP"):
        ResultsFile(path)


def test_missing_images_are_error_rows(tmp_path: Path) -> None:
    cases = benchmark(tmp_path, 3)

    def images(case: GenArenaCase) -> torch.Tensor:
        if case.case_id.endswith("1"):
            raise FileNotFoundError("1-cartoon_001.png is not there")
        return image_of(case)

    judge = ScriptedJudge(verdict_json)
    report = evaluate_egip(cases, images, judge, results=tmp_path / "results.jsonl")
    assert report.measurements["egip"].value == pytest.approx(2 / 3)
    assert report.outcomes["1-cartoon_001"] == CaseError("image", "FileNotFoundError: 1-cartoon_001.png is not there")
    assert (report.num_asked, report.num_reused) == (2, 0)
    again = evaluate_egip(cases, image_of, judge, results=tmp_path / "results.jsonl")
    assert again.measurements["egip"].value == 1.0
    assert (again.num_asked, again.num_reused) == (1, 2)


def test_several_questions_at_a_time_give_the_same(tmp_path: Path) -> None:
    cases = benchmark(tmp_path, 3)
    together = threading.Barrier(3, timeout=10)

    def wait(told: dict[str, Any]) -> str:
        together.wait()
        return mixed(told)

    parallel = evaluate_egip(cases, image_of, ScriptedJudge(wait), workers=3)
    alone = evaluate_egip(cases, image_of, ScriptedJudge(mixed))
    assert parallel.to_json() == alone.to_json()
    assert list(parallel.outcomes) == list(alone.outcomes)


def test_a_judge_that_cannot_be_used_ends_the_run(tmp_path: Path) -> None:
    def refuse(told: dict[str, Any]) -> str:
        time.sleep(0.02)
        raise ValueError("status 401")

    for workers in (1, 2):
        judge = ScriptedJudge(refuse)
        with pytest.raises(ValueError, match="401"):
            evaluate_egip(benchmark(tmp_path, 6), image_of, judge, workers=workers)
        assert len(judge.messages) < 6


def test_bad_rows_are_found_before_the_first_question(tmp_path: Path) -> None:
    cases, judge = benchmark(tmp_path, 3), ScriptedJudge(verdict_json)
    for bad, message in (
        ([*cases, dataclasses.replace(cases[0], entities=())], "depends on entity 'e1'"),
        ([*cases, cases[1]], "'1-cartoon_001' is used by 2 rows"),
    ):
        with pytest.raises(SpecificationError, match=message):
            evaluate_egip(bad, image_of, judge)
    assert judge.messages == []


def test_incomplete_answers_are_counted(tmp_path: Path) -> None:
    def partly(told: dict[str, Any]) -> str:
        answer = json.loads(verdict_json(told))
        answer["constraints"][1]["verdict"] = "uncertain"
        answer["entities"] = [*answer["entities"][:1], *answer["entities"][:1], {"id": "e9", "verdict": "pass"}, {}]
        return json.dumps(answer)

    report = evaluate_egip(benchmark(tmp_path, 2), image_of, ScriptedJudge(partly))
    assert report.to_json()["completeness"] == {
        "rows_incomplete": 2,
        "omitted": 2,
        "extra": 2,
        "repeated": 2,
        "undecided": 2,
        "unreadable": 2,
    }
    assert report.measurements["egip"].value == 0
