from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.data.quarantine import DataError
from lightning_gen.metrics.compositional.dpg_bench import (
    DPGBench,
    DPGPrompt,
    DPGQuestion,
    ask_questions,
    gate_answers,
    read_dpg_bench,
    score_answers,
    split_grid,
)

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
ROWS = [
    "a,A red cup,,1,0,entity,whole,entity - whole (cup),Is there a cup?",
    'a,A red cup,,2,1,attribute,color,"attribute - color (cup, red)",Is the cup red?',
    "b,A dog left of a cat,,1,0,entity,whole,entity - whole (dog),Is there a dog?",
    "b,A dog left of a cat,,2,0,entity,whole,entity - whole (cat),Is there a cat?",
    'b,A dog left of a cat,,3,"1, 2",relation,spatial,"relation - spatial (dog, cat, left of)",Is the dog left?',
]


def question(number: int, *parents: int, category: str = "entity - whole") -> DPGQuestion:
    return DPGQuestion(number, parents or (0,), f"Q{number}?", category)


def save(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


# ------------------------------------------------------------------ reading


def test_all_questions_are_read_on_request(tmp_path: Path) -> None:
    first, second = read_dpg_bench(save(tmp_path / "dpg.csv", *ROWS), skip_first_row=False)
    assert (first.item_id, first.text, len(first.questions)) == ("a", "A red cup", 2)
    assert first.questions[1] == DPGQuestion(2, (1,), "Is the cup red?", "attribute - color")
    assert second.questions[2] == DPGQuestion(3, (1, 2), "Is the dog left?", "relation - spatial")
    assert [one.level1 for one in second.questions] == ["entity", "entity", "relation"]


def test_the_benchmarks_script_skips_the_first_question(tmp_path: Path) -> None:
    first, second = read_dpg_bench(save(tmp_path / "dpg.csv", *ROWS))
    # What hung on the question that is gone stands alone.
    assert first.questions == (DPGQuestion(2, (), "Is the cup red?", "attribute - color"),)
    assert len(second.questions) == 3
    # A first prompt of a single question is gone.
    (only,) = read_dpg_bench(save(tmp_path / "dpg.csv", ROWS[0], *ROWS[2:]))
    assert only.item_id == "b"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, "a,A red cup,,3,0,,,entity - whole (x),Q?"], "line 7: the rows of a do not stand together"),
        ([*ROWS, ROWS[4]], "line 7: b has proposition 3 twice"),
        ([*ROWS, "b,t,,x,0,,,entity - whole (x),Q?"], "line 7: proposition_id 'x'"),
        ([*ROWS, "b,t,,4,one,,,entity - whole (x),Q?"], "line 7: proposition_id '4' and dependency 'one'"),
        ([*ROWS, "b,t,,4,9,,,entity - whole (x),Q?"], r"b depends on the propositions \[9\]"),
        ([*ROWS, "b,t,,4,0,,,entity - whole (x),"], "line 7 lacks a tuple or a question"),
        ([*ROWS, "b,t,,4"], "line 7"),
        (ROWS[:1], "holds no question"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dpg_bench(save(tmp_path / "dpg.csv", *rows))


def test_a_table_without_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks the columns dependency, tuple"):
        read_dpg_bench(save(tmp_path / "dpg.csv", header="item_id,text,proposition_id,question_natural_language"))
    with pytest.raises(DataError, match="cannot be read"):
        read_dpg_bench(tmp_path / "nowhere.csv")


# ------------------------------------------------------------------ dependencies


def test_a_yes_whose_parent_is_no_is_taken_back() -> None:
    questions = [question(1), question(2, 1), question(3, 1, 2), question(4)]
    assert gate_answers(questions, [True, True, True, True]) == (1, 1, 1, 1)
    assert gate_answers(questions, [False, True, True, True]) == (0, 0, 0, 1)
    assert gate_answers(questions, [True, False, True, True]) == (1, 0, 0, 1)
    assert gate_answers(questions, [True, True, False, False]) == (1, 1, 0, 0)


def test_one_parent_of_several_is_enough() -> None:
    questions = [question(1), question(2), question(3, 1, 2)]
    assert gate_answers(questions, [True, False, True]) == (1, 0, 0)
    assert gate_answers(questions, [False, True, True]) == (0, 1, 0)


def test_grandchildren_fall_in_the_order_of_the_file() -> None:
    assert gate_answers([question(1), question(2, 1), question(3, 2)], [False, True, True]) == (0, 0, 0)
    # A child before its parent sees the parent's own answer.
    assert gate_answers([question(3, 2), question(2, 1), question(1)], [True, True, False]) == (1, 0, 0)


def test_parent_0_is_no_parent() -> None:
    assert gate_answers([question(1, 0)], [True]) == (1,)


def test_the_score_of_a_prompt_is_the_mean_over_images_of_the_mean_over_questions() -> None:
    questions = [question(1), question(2, 1)]
    answers = [[True, True], [True, False], [False, True], [False, False]]
    result = score_answers(questions, answers)
    assert result.gated == ((1, 1), (1, 0), (0, 0), (0, 0))
    assert result.raw == ((1, 1), (1, 0), (0, 1), (0, 0))
    assert result.score == pytest.approx((1 + 0.5 + 0 + 0) / 4)


def test_answers_must_fit_the_questions() -> None:
    with pytest.raises(ValueError, match="1 questions, 2 answers"):
        score_answers([question(1)], [[True, False]])
    with pytest.raises(ValueError, match="0 images and 1 questions"):
        score_answers([question(1)], [])


# ------------------------------------------------------------------ asking


class Bright:
    """Says yes about bright pictures, in its own words."""

    def __init__(self, yes: str = "yes") -> None:
        self.yes = yes

    def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        return [self.yes if float(image.float().mean()) > 128 else "no" for image in images]


@pytest.mark.parametrize(("word", "score"), [("yes", 0.5), ("Yes.", 0.5), (" YES ", 0.5), ("yes it is", 0), ("no", 0)])
def test_only_yes_counts(word: str, score: float) -> None:
    images = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (255, 0, 255, 0)]
    result = ask_questions(Bright(word), DPGPrompt("a", "", (question(1), question(2))), images)
    assert result.score == score and len(result.raw) == 4


def test_pictures_must_be_uint8() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ask_questions(Bright(), DPGPrompt("a", "", (question(1),)), [torch.rand(3, 4, 4)])


def test_a_model_that_answers_too_little_is_an_error() -> None:
    class Silent:
        def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
            return []

    with pytest.raises(ValueError, match="1 questions about a, 0 answers"):
        ask_questions(Silent(), DPGPrompt("a", "", (question(1),)), [torch.zeros(3, 4, 4, dtype=torch.uint8)])


def test_a_grid_is_cut_row_by_row() -> None:
    grid = torch.arange(4).reshape(1, 2, 2).repeat_interleave(3, 1).repeat_interleave(5, 2).expand(3, 6, 10)
    cells = split_grid(grid)
    assert [cell.unique().tolist() for cell in cells] == [[0], [1], [2], [3]]
    assert all(cell.shape == (3, 3, 5) for cell in cells)
    assert [cell.shape for cell in split_grid(torch.zeros(3, 6, 10), 1, 5)] == [(3, 6, 2)] * 5
    with pytest.raises(ValueError, match="5 x 10 is no grid of 2 x 2"):
        split_grid(torch.zeros(3, 5, 10))


# ------------------------------------------------------------------ the benchmark

PROMPTS = [
    DPGPrompt("a", "", (question(1), question(2, 1, category="attribute - color"))),
    DPGPrompt(
        "b", "", (question(1), question(2, 1, category="attribute - size"), question(3, category="relation - spatial"))
    ),
]
ANSWERS: list[list[list[bool]]] = [
    [[True, True], [True, True], [True, True], [False, True]],
    [[True, True, True], [True, True, False], [True, False, False], [True, False, True]],
]


def measured(**options: Any) -> DPGBench:
    metric = DPGBench("toy", PROMPTS, **options)
    results = [score_answers(prompt.questions, rows) for prompt, rows in zip(PROMPTS, ANSWERS, strict=True)]
    metric.update(results, [0, 1])
    return metric


def values(metric: DPGBench) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def test_the_total_is_the_mean_over_prompts_times_100() -> None:
    first = (1 + 1 + 1 + 0) / 4
    second = (1 + 2 / 3 + 1 / 3 + 2 / 3) / 4
    assert values(measured())["total"] == pytest.approx(100 * (first + second) / 2)


def test_categories_see_the_raw_answers_about_the_last_image() -> None:
    found = values(measured())
    # Last images: a = no, yes; b = yes, no, yes.
    assert found["level2/attribute - color"] == 100 and found["level2/attribute - size"] == 0
    assert found["level2/entity - whole"] == 50 and found["level2/relation - spatial"] == 100
    assert {name: found[f"level1/{name}"] for name in ("attribute", "entity", "relation")} == {
        "attribute": 50,
        "entity": 50,
        "relation": 100,
    }


def test_categories_on_request_see_all_images_or_gated_answers() -> None:
    assert values(measured(category_images="all"))["level1/entity"] == pytest.approx(100 * 7 / 8)
    assert values(measured(category_images="all"))["level2/attribute - color"] == 100
    assert values(measured(category_answers="gated"))["level2/attribute - color"] == 0
    both = values(measured(category_images="all", category_answers="gated"))
    assert both["level2/attribute - color"] == pytest.approx(75)


def test_level_1_weighs_questions_and_not_subcategories() -> None:
    prompts = [DPGPrompt("a", "", (question(1), question(2), question(3, category="entity - part")))]
    metric = DPGBench("toy", prompts)
    metric.update([score_answers(prompts[0].questions, [[True, True, False]])], [0])
    assert values(metric)["level1/entity"] == pytest.approx(100 * 2 / 3)


def test_the_total_on_request_is_the_mean_of_the_level_1_categories() -> None:
    assert values(measured(total="categories"))["total"] == pytest.approx((50 + 50 + 100) / 3)
    assert measured(total="categories").measurements()[0].error is None


def test_a_prompt_counts_once() -> None:
    metric = measured()
    before = values(metric)
    metric.update([score_answers(PROMPTS[0].questions, ANSWERS[0])], [0])
    assert values(metric) == before and metric.num_samples == 2


def test_the_protocol_says_what_was_counted() -> None:
    total, *parts = measured(details={"skip_first_row": True}).measurements()
    assert total.protocol.id == "dpg-bench@2/toy" and total.error is not None
    assert total.protocol.details["skip_first_row"] is True
    assert total.protocol.details["category_images"] == "last"
    assert parts[0].protocol.id == "dpg-bench:level1:attribute/toy"


@pytest.mark.parametrize("wrong", [{"total": "sum"}, {"category_images": "first"}, {"category_answers": "none"}])
def test_a_choice_that_does_not_exist_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is one of"):
        DPGBench("toy", PROMPTS, **wrong)


def test_an_unknown_category_is_refused() -> None:
    with pytest.raises(ValueError, match="the category 'other - text' is not one of"):
        measured().update([score_answers([question(1, category="other - text")], [[True]])], [5])
