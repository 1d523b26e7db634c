from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.data.quarantine import DataError
from lightning_gen.metrics.compositional.geneval2 import (
    GenEval2Prompt,
    GenEval2Question,
    GenEval2Score,
    answer_spellings,
    first_token_probability,
    judge_questions,
    read_geneval2,
    soft_tifa,
)
from tests.harness.metric_jobs_geneval import other_metrics, other_metrics_job
from tests.harness.processes import two_processes

RECORD: dict[str, Any] = {
    "prompt": "two red cups",
    "atom_count": 3,
    "vqa_list": [["Is there a cup?", "Yes"], ["How many cups are there?", "two"], ["Are they red?", "yes"]],
    "skills": ["object", "count", "attribute"],
}


def prompt(*skills: str, atoms: int = 3) -> GenEval2Prompt:
    return GenEval2Prompt("p", atoms, tuple(GenEval2Question("Is it?", "Yes", skill) for skill in skills))


# ------------------------------------------------------------------ reading


def test_the_benchmark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "geneval2.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | {"atom_count": 10}) + "\n")
    first, second = read_geneval2(path)
    assert first.questions[1] == GenEval2Question("How many cups are there?", "two", "count")
    assert (first.prompt, first.atom_count, second.atom_count) == ("two red cups", 3, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skills": ["object", "count"]}, "one length"),
        ({"vqa_list": [], "skills": []}, "at least 1"),
        ({"skills": ["object", "count", "mood"]}, "unknown skill 'mood'"),
        ({"vqa_list": [["Is it?", "No"]], "skills": ["object"]}, "must be Yes, got 'No'"),
        ({"vqa_list": [["How many?", "many"]], "skills": ["count"]}, "wants a number"),
        ({"atom_count": "some"}, "is wrong"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "geneval2.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | change))
    with pytest.raises(DataError, match=f"line 2 .*{message}"):
        read_geneval2(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "geneval2.jsonl"
    path.write_text(json.dumps({key: value for key, value in RECORD.items() if key != "skills"}))
    with pytest.raises(DataError, match="line 1 lacks 'skills'"):
        read_geneval2(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="line 1 is wrong: an object is needed, got list"):
        read_geneval2(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_geneval2(tmp_path / "nowhere")


# ------------------------------------------------------------------ the probability of an answer


def test_spellings_of_yes() -> None:
    assert set(answer_spellings("Is there a cup?", "Yes")) == {"Yes", "yes", " yes", " Yes"}


@pytest.mark.parametrize("answer", ["two", "Two", "2"])
def test_spellings_of_a_number(answer: str) -> None:
    wanted = {"two", "Two", " two", " Two", "2", " 2"}
    assert set(answer_spellings("How many cups are there?", answer)) == wanted


def test_only_the_first_token_of_a_spelling_counts_and_shared_ones_count_twice() -> None:
    probabilities = torch.tensor([0.05, 0.3, 0.2, 0.1, 0.35])
    tokens = {"Yes": [1], "yes": [2, 4], " yes": [3, 2], " Yes": [3, 1]}
    spellings = answer_spellings("Is it?", "Yes")
    official = first_token_probability(probabilities, spellings, tokens.__getitem__)
    once = first_token_probability(probabilities, spellings, tokens.__getitem__, deduplicate=True)
    assert official == pytest.approx(0.3 + 0.2 + 0.1 + 0.1) and once == pytest.approx(0.6)


def test_the_sum_of_the_benchmark_may_exceed_1() -> None:
    certain = torch.tensor([0.0, 1.0])
    assert first_token_probability(certain, ["a", "b"], lambda text: [1]) == 2
    assert first_token_probability(certain, ["a", "b"], lambda text: [1], deduplicate=True) == 1


def test_what_has_no_probability() -> None:
    with pytest.raises(ValueError, match="no token of 'a'"):
        first_token_probability(torch.tensor([1.0]), ["a"], lambda text: [])
    with pytest.raises(ValueError, match="not finite"):
        first_token_probability(torch.tensor([math.nan]), ["a"], lambda text: [0])


class Echo:
    """Answers with the brightness of the picture; remembers what it was asked."""

    name = "echo"

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def answer_probabilities(
        self, images: Sequence[Tensor], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> Tensor:
        self.asked += [(question, tuple(spellings)) for question, spellings in zip(questions, answers, strict=True)]
        return torch.stack([image.double().mean() / 255 for image in images])


def test_every_question_is_asked_with_the_instruction() -> None:
    model = Echo()
    asked = GenEval2Prompt(
        "p", 3, (GenEval2Question("Is it?", "Yes", "object"), GenEval2Question("How many?", "two", "count"))
    )
    images = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (51, 204)]
    scores = judge_questions(model, images, [asked, asked])
    assert scores == [pytest.approx([0.2, 0.2]), pytest.approx([0.8, 0.8])]
    assert [question for question, _ in model.asked[:2]] == [
        "Is it? Answer in one word.",
        "How many? Answer in one word.",
    ]
    assert " 2" in model.asked[1][1] and "Yes" in model.asked[0][1]
    with pytest.raises(ValueError, match="uint8"):
        judge_questions(model, [torch.rand(3, 4, 4)], [asked])


# ------------------------------------------------------------------ means


def test_means_of_a_prompt() -> None:
    assert soft_tifa([0.25, 1.0]) == pytest.approx((0.625, 0.5))
    assert soft_tifa([0.9, 0.0]) == (0.45, 0.0)
    assert soft_tifa([0.5] * 5) == pytest.approx((0.5, 0.5))
    for wrong in ([], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="finite and at least 0"):
            soft_tifa(wrong)


def test_the_benchmark_is_the_mean_over_prompts_times_100() -> None:
    metric = GenEval2Score("toy")
    metric.update(
        [prompt("object", "count"), prompt("count", "count", "verb", atoms=5)], [[0.25, 1.0], [0.0, 0.5, 1.0]], [0, 1]
    )
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == pytest.approx(
        {
            "am": 100 * (0.625 + 0.5) / 2,
            "gm": 25.0,
            "am/atoms/3": 62.5,
            "gm/atoms/3": 50.0,
            "am/atoms/5": 50.0,
            "gm/atoms/5": 0.0,
            "skill/object": 25.0,
            "skill/count": 50.0,
            "skill/verb": 100.0,
        }
    )


def test_an_image_counts_once_and_samples_of_a_prompt_each() -> None:
    metric = GenEval2Score("toy")
    for _ in range(2):
        metric.update([prompt("verb")] * 2, [[0.0], [1.0]], [4, 4], [0, 1])
    assert metric.num_samples == 2 and float(metric.compute()["am"]) == 50


def test_the_protocol_says_how_many_prompts() -> None:
    metric = GenEval2Score("qwen3-vl-8b", {"deduplicate": False}, expected_prompts=2)
    metric.update([prompt("verb")], [[0.5]], [0])
    assert [one.protocol.id for one in metric.measurements()[:2]] == [
        "geneval2-am@1/qwen3-vl-8b",
        "geneval2-gm@1/qwen3-vl-8b",
    ]
    metric.update([prompt("verb")], [[1.0]], [1])
    am, gm, *parts = metric.measurements()
    assert am.protocol.id == "geneval2-am/qwen3-vl-8b" and am.value == 75
    assert am.error == pytest.approx(25) and gm.error == pytest.approx(25)
    assert am.protocol.details["deduplicate"] is False
    assert [part.protocol.id for part in parts][-1] == "geneval2-skill:verb/qwen3-vl-8b"


def test_scores_must_fit_the_questions() -> None:
    with pytest.raises(ValueError, match="2 questions, 1 scores of: p"):
        GenEval2Score("toy").update([prompt("verb", "count")], [[0.5]], [0])


def test_two_processes_give_the_numbers_of_one_with_a_sample_on_both() -> None:
    expected = other_metrics(None)
    assert expected["geneval2 N"] == 5
    for found in two_processes(other_metrics_job):
        assert found == expected
