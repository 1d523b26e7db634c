"""The rules of GenEval with the numbers of its protocol."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.interfaces import Detections
from lightning_gen.metrics.compositional.geneval_objects import (
    GenEvalRules,
    box_overlap,
    keep_objects,
    relative_position,
)
from lightning_gen.metrics.compositional.geneval_prompts import GenEvalPrompt, parse_prompt
from lightning_gen.metrics.compositional.geneval_rules import RuleResult, apply_rules


def box(x: float, y: float, width: float = 10, height: float = 10) -> list[float]:
    return [x, y, x + width, y + height]


def found(*objects: tuple[str, float, list[float]], dtype: torch.dtype = torch.float32) -> Detections:
    return Detections(
        torch.tensor([one[2] for one in objects], dtype=dtype).reshape(-1, 4),
        torch.tensor([one[1] for one in objects], dtype=dtype),
        tuple(one[0] for one in objects),
    )


def many(name: str, number: int, score: float = 0.95) -> list[tuple[str, float, list[float]]]:
    return [(name, score, box(30.0 * i, 0)) for i in range(number)]


def prompt(tag: str, *include: dict[str, Any], exclude: list[dict[str, Any]] | None = None) -> GenEvalPrompt:
    return parse_prompt({"tag": tag, "prompt": "p", "include": list(include), "exclude": exclude or []})


def clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def by_place(colors: dict[float, str]) -> Any:
    """A colour model that knows objects by the left edge of their boxes."""

    def name_colors(boxes: Tensor, masks: Tensor | None, class_name: str) -> list[str]:
        return [colors[float(one[0])] for one in boxes]

    return name_colors


def kinds(result: RuleResult) -> list[str]:
    return [failure.kind for failure in result.failures]


def at(x: float, y: float, width: float = 10, height: float = 10) -> Tensor:
    """A box around a centre."""
    return torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dtype=torch.float64)


ORIGIN = at(0, 0)


# ------------------------------------------------------------------ geometry


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.0, 3.0, 4.0])
def test_boxes_of_10_pixels_stand_in_no_relation_up_to_an_offset_of_4(distance: float) -> None:
    assert relative_position(at(distance, 0), ORIGIN) == frozenset()
    assert relative_position(at(-distance, 0), ORIGIN) == frozenset()
    assert relative_position(at(0, distance), ORIGIN) == frozenset()
    assert relative_position(at(0, -distance), ORIGIN) == frozenset()


@pytest.mark.parametrize("distance", [4.001, 5.0, 100.0])
def test_beyond_an_offset_of_4_they_do(distance: float) -> None:
    assert relative_position(at(distance, 0), ORIGIN) == {"right of"}
    assert relative_position(at(-distance, 0), ORIGIN) == {"left of"}
    assert relative_position(at(0, distance), ORIGIN) == {"below"}
    assert relative_position(at(0, -distance), ORIGIN) == {"above"}


def test_two_relations_hold_far_away_at_45_degrees() -> None:
    assert relative_position(at(300, 300), ORIGIN) == {"right of", "below"}
    assert relative_position(at(-300, -300), ORIGIN) == {"left of", "above"}


def test_at_a_flat_angle_only_one_relation_holds() -> None:
    assert relative_position(at(300, 100), ORIGIN) == {"right of"}
    # 60 degrees: dx = 0.5 - 2 / 600 lies below one half because the margin counts against it.
    assert relative_position(at(300, 300 * 3**0.5), ORIGIN) == {"below"}


def test_the_direction_is_divided_by_the_whole_offset() -> None:
    # Divided by what is left after the margin, dx would be 1 and dy 0 at any distance.
    assert relative_position(at(3, 0), ORIGIN) == frozenset()


def test_the_extents_of_both_boxes_matter() -> None:
    wide, small = at(0, 0, width=200), lambda x: at(x, 0, width=20)
    assert relative_position(small(44), wide) == frozenset()
    assert relative_position(small(44.01), wide) == {"right of"}
    assert relative_position(wide, small(-44)) == frozenset()
    assert relative_position(wide, small(-44.01)) == {"right of"}
    # Each axis has its own extents.
    assert relative_position(at(0, 5), wide) == {"below"}


def test_the_order_of_a_boxes_corners_does_not_matter() -> None:
    mirrored = ORIGIN[[2, 3, 0, 1]]
    assert relative_position(at(4, 0), mirrored) == frozenset()
    assert relative_position(at(5, 0), mirrored) == {"right of"}


def test_overlap_counts_the_last_row_and_column() -> None:
    # Two boxes of 11 x 11 pixels that share 6 columns.
    assert box_overlap(torch.tensor(box(0, 0)), torch.tensor(box(5, 0))) == pytest.approx(66 / (2 * 121 - 66))
    assert box_overlap(torch.tensor(box(0, 0)), torch.tensor(box(10, 0))) == pytest.approx(11 / (2 * 121 - 11))
    assert box_overlap(torch.tensor(box(0, 0)), torch.tensor(box(11, 0))) == 0
    assert box_overlap(torch.tensor(box(0, 0)), torch.tensor(box(0, 0))) == 1


# ------------------------------------------------------------------ which detections count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tag", "threshold"), [("single_object", 0.3), ("counting", 0.9)])
def test_a_score_on_the_threshold_is_rejected(tag: str, threshold: float, dtype: torch.dtype) -> None:
    rules = GenEvalRules()
    on = found(("cat", threshold, box(0, 0)), dtype=dtype)
    above = found(("cat", threshold + 1e-6, box(0, 0)), dtype=dtype)
    assert keep_objects(on, tag, rules) == {}
    assert len(keep_objects(above, tag, rules)["cat"]) == 1


def test_only_counting_uses_the_high_threshold() -> None:
    detections = found(("cat", 0.5, box(0, 0)))
    for tag in ("single_object", "two_object", "colors", "position", "color_attr"):
        assert apply_rules(prompt(tag, clause("cat")), detections).correct
    assert not apply_rules(prompt("counting", clause("cat")), detections).correct


def test_the_17th_detection_is_ignored() -> None:
    detections = found(*many("cat", 17))
    assert len(keep_objects(detections, "counting", GenEvalRules())["cat"]) == 16
    assert kinds(apply_rules(prompt("counting", clause("cat", 17)), detections)) == ["missing"]
    fewer_than_17 = prompt("counting", clause("cat", 16), exclude=[clause("cat", 17)])
    assert apply_rules(fewer_than_17, detections).correct


def test_the_most_confident_are_kept_whatever_their_order() -> None:
    scores = [0.4, 0.8, 0.6]
    detections = found(*(("cat", score, box(10.0 * i, 0)) for i, score in enumerate(scores)))
    kept = keep_objects(detections, "colors", GenEvalRules(max_objects=2))["cat"]
    assert kept.boxes[:, 0].tolist() == [10, 20]
    torch.testing.assert_close(kept.scores, torch.tensor([0.8, 0.6], dtype=torch.float64), atol=1e-7, rtol=0)


def test_masks_follow_their_boxes() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[1, 1], masks[2, 2] = True, True
    plain = found(("dog", 0.2, box(0, 0)), ("cat", 0.5, box(1, 0)), ("cat", 0.7, box(2, 0)))
    detections = Detections(plain.boxes, plain.scores, plain.classes, masks)
    kept = keep_objects(detections, "colors", GenEvalRules())["cat"]
    assert kept.masks is not None and kept.masks[:, :, 0].int().argmax(1).tolist() == [2, 1]
    seen: list[Tensor | None] = []
    apply_rules(
        prompt("colors", clause("cat", color="red")),
        detections,
        lambda boxes, masks, name: seen.append(masks) or ["red"],  # type: ignore[func-returns-value]
    )
    assert seen[0] is not None and torch.equal(seen[0], masks[[2]])


def test_overlapping_objects_stay_unless_suppression_is_switched_on() -> None:
    twins = found(
        ("cat", 0.95, box(0, 0)), ("cat", 0.94, box(0, 0)), ("cat", 0.93, box(5, 0)), ("dog", 0.92, box(0, 0))
    )
    count = {
        limit: len(keep_objects(twins, "counting", GenEvalRules(max_overlap=limit))["cat"]) for limit in (1.0, 0.9)
    }
    assert count == {1.0: 3, 0.9: 2}
    # The overlap of the third is 66 / 176 = 0.375: suppressed at exactly that.
    assert len(keep_objects(twins, "counting", GenEvalRules(max_overlap=0.375))["cat"]) == 1
    # Another class is never suppressed.
    assert len(keep_objects(twins, "counting", GenEvalRules(max_overlap=0.1))["dog"]) == 1


def test_suppression_looks_at_the_first_16_only() -> None:
    detections = found(*[("cat", 0.95, box(0, 0))] * 16, ("cat", 0.94, box(100, 0)))
    assert len(keep_objects(detections, "counting", GenEvalRules(max_overlap=0.5))["cat"]) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_detector_that_gives_no_numbers_is_an_error_and_not_an_empty_image(value: float) -> None:
    for broken in (found(("cat", value, box(0, 0))), found(("cat", 0.9, box(value, 0)))):
        with pytest.raises(ValueError, match="not finite"):
            apply_rules(prompt("single_object", clause("cat")), broken)


def test_detections_that_do_not_fit_together_are_an_error() -> None:
    good = found(*many("cat", 2))
    for broken in (
        Detections(good.boxes[:1], good.scores, good.classes),
        Detections(good.boxes, good.scores, ("cat",)),
        Detections(good.boxes, good.scores, good.classes, torch.zeros(1, 4, 4, dtype=torch.bool)),
    ):
        with pytest.raises(ValueError, match="the detector named"):
            apply_rules(prompt("single_object", clause("cat")), broken)


def test_nothing_found_is_a_missing_object() -> None:
    assert kinds(apply_rules(prompt("single_object", clause("cat")), found())) == ["missing"]


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.5}, {"max_overlap": -0.1}, {"max_objects": 0}, {"position_margin": -1.0}]
)
def test_numbers_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        GenEvalRules(**wrong)


def test_the_defaults_are_those_of_the_benchmark() -> None:
    assert GenEvalRules() == GenEvalRules(0.3, 0.9, 16, 1.0, 0.1)


# ------------------------------------------------------------------ the verdict


def test_five_cats_are_a_cat_but_not_three_cats() -> None:
    five = found(*many("cat", 5))
    assert apply_rules(prompt("single_object", clause("cat")), five).correct
    three = prompt("counting", clause("cat", 3), exclude=[clause("cat", 4)])
    result = apply_rules(three, five)
    assert not result.correct and kinds(result) == ["too_many"]
    assert result.failures[0].reason == "fewer than 4 cat wanted, 5 found"
    assert apply_rules(three, found(*many("cat", 3))).correct
    assert kinds(apply_rules(three, found(*many("cat", 2)))) == ["missing"]


def test_another_class_that_must_not_be_there() -> None:
    no_dog = prompt("single_object", clause("cat"), exclude=[clause("dog", 1), clause("cow", 1)])
    assert apply_rules(no_dog, found(*many("cat", 1))).correct
    assert kinds(apply_rules(no_dog, found(*many("cat", 1), *many("dog", 1)))) == ["excluded"]
    assert kinds(apply_rules(no_dog, found(*many("dog", 1), *many("cow", 1)))) == ["missing", "excluded", "excluded"]


def test_every_clause_must_be_met() -> None:
    both = prompt("two_object", clause("cat"), clause("dog"))
    assert apply_rules(both, found(*many("cat", 2), *many("dog", 1))).correct
    assert kinds(apply_rules(both, found(*many("cat", 2)))) == ["missing"]


def test_only_the_most_confident_object_is_asked_for_its_colour() -> None:
    red_cat = prompt("colors", clause("cat", color="red"))
    cats = found(("cat", 0.9, box(0, 0)), ("cat", 0.8, box(50, 0)))
    result = apply_rules(red_cat, cats, by_place({0: "blue", 50: "red"}))
    assert not result.correct and kinds(result) == ["color"]
    assert apply_rules(red_cat, cats, by_place({0: "red", 50: "blue"})).correct


def test_all_wanted_objects_need_the_colour() -> None:
    two_red = prompt("colors", clause("cat", 2, color="red"))
    cats = found(*many("cat", 2))
    assert apply_rules(two_red, cats, by_place({0: "red", 30: "red"})).correct
    assert not apply_rules(two_red, cats, by_place({0: "red", 30: "blue"})).correct


def test_two_objects_of_one_class_with_two_colours_fail_one_clause() -> None:
    # Both clauses look at the same most confident object: a property of the benchmark.
    two = prompt("color_attr", clause("cat", color="red"), clause("cat", color="blue"))
    assert kinds(apply_rules(two, found(*many("cat", 2)), by_place({0: "red", 30: "blue"}))) == ["color"]


def test_colours_without_a_colour_model_are_an_error() -> None:
    with pytest.raises(ValueError, match="give a model that names colours"):
        apply_rules(prompt("colors", clause("cat", color="red")), found(*many("cat", 1)))
    # A missing object is known to be wrong without asking for its colour.
    assert kinds(apply_rules(prompt("colors", clause("cat", color="red")), found())) == ["missing"]


def test_a_colour_model_with_another_number_of_names_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 names for 1 boxes of cat"):
        apply_rules(
            prompt("colors", clause("cat", color="red")), found(*many("cat", 1)), lambda b, m, c: ["red", "red"]
        )


def dog_left_of_cat(**target: Any) -> GenEvalPrompt:
    return prompt("position", clause("cat", **target), clause("dog", position=["left of", 0]))


def test_position() -> None:
    cat = ("cat", 0.9, box(100, 0))
    assert apply_rules(dog_left_of_cat(), found(cat, ("dog", 0.9, box(0, 0)))).correct
    result = apply_rules(dog_left_of_cat(), found(cat, ("dog", 0.9, box(200, 0))))
    assert kinds(result) == ["position"] and result.failures[0].reason.endswith("found: right of")
    nowhere = apply_rules(dog_left_of_cat(), found(cat, ("dog", 0.9, box(100, 0))))
    assert nowhere.failures[0].reason.endswith("found: no relation")


def test_every_object_must_stand_so_to_every_target() -> None:
    pairs = prompt("position", clause("cat", 2), clause("dog", 2, position=["left of", 0]))
    cats = [("cat", 0.9, box(100, 0)), ("cat", 0.8, box(200, 0))]
    assert apply_rules(pairs, found(*cats, ("dog", 0.9, box(0, 0)), ("dog", 0.8, box(50, 0)))).correct
    assert not apply_rules(pairs, found(*cats, ("dog", 0.9, box(0, 0)), ("dog", 0.8, box(150, 0)))).correct
    assert not apply_rules(pairs, found(*cats, ("dog", 0.9, box(300, 0)), ("dog", 0.8, box(0, 0)))).correct


def test_position_looks_at_the_most_confident_objects_only() -> None:
    cat = ("cat", 0.9, box(100, 0))
    assert apply_rules(dog_left_of_cat(), found(cat, ("dog", 0.9, box(0, 0)), ("dog", 0.8, box(200, 0)))).correct
    assert not apply_rules(dog_left_of_cat(), found(cat, ("dog", 0.8, box(0, 0)), ("dog", 0.9, box(200, 0)))).correct


def test_a_target_with_the_wrong_colour_makes_the_position_fail() -> None:
    detections = found(("cat", 0.9, box(100, 0)), ("dog", 0.9, box(0, 0)))
    red_target = dog_left_of_cat(color="red")
    assert apply_rules(red_target, detections, by_place({100: "red"})).correct
    assert kinds(apply_rules(red_target, detections, by_place({100: "blue"}))) == ["color", "no_target"]


def test_a_missing_target_makes_the_position_fail() -> None:
    assert kinds(apply_rules(dog_left_of_cat(), found(("dog", 0.9, box(0, 0))))) == ["missing", "no_target"]


def test_an_object_of_the_wrong_colour_is_not_asked_for_its_position() -> None:
    wanted = prompt("position", clause("cat"), clause("dog", color="red", position=["left of", 0]))
    detections = found(("cat", 0.9, box(100, 0)), ("dog", 0.9, box(200, 0)))
    assert kinds(apply_rules(wanted, detections, by_place({200: "blue"}))) == ["color"]
    assert kinds(apply_rules(wanted, detections, by_place({200: "red"}))) == ["position"]


def test_a_target_that_is_out_of_place_is_no_target() -> None:
    chain = prompt(
        "position", clause("cat"), clause("dog", position=["left of", 0]), clause("cow", position=["left of", 1])
    )
    cat, dog, cow = ("cat", 0.9, box(200, 0)), ("dog", 0.9, box(100, 0)), ("cow", 0.9, box(0, 0))
    assert apply_rules(chain, found(cat, dog, cow)).correct
    assert kinds(apply_rules(chain, found(("cat", 0.9, box(50, 0)), dog, cow))) == ["position", "no_target"]


def test_the_kept_boxes_are_reported() -> None:
    result = apply_rules(prompt("colors", clause("cat")), found(("cat", 0.5, box(1, 2)), ("dog", 0.25, box(0, 0))))
    assert result.boxes == {"cat": [[1, 2, 11, 12, 0.5]]}


# ------------------------------------------------------------------ rewards


@pytest.mark.parametrize(("number", "reward"), [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (4, 2 / 3), (6, 0), (9, -1)])
def test_the_reward_of_a_number_falls_with_its_error_and_may_be_negative(number: int, reward: float) -> None:
    three = prompt("counting", clause("cat", 3), exclude=[clause("cat", 4)])
    result = apply_rules(three, found(*many("cat", number)))
    assert result.reward == pytest.approx(reward, abs=1e-12)
    assert result.exact == result.correct == (number == 3)


def test_too_many_objects_are_correct_but_not_exact() -> None:
    result = apply_rules(prompt("single_object", clause("cat")), found(*many("cat", 2)))
    assert result.correct and not result.exact and result.reward == 0


def test_a_wrong_number_adds_a_zero_for_colour_or_position() -> None:
    # One of two found: 1/2 and, where more is asked for, a 0.
    assert apply_rules(prompt("counting", clause("cat", 2)), found(*many("cat", 1))).reward == pytest.approx(1 / 2)
    colored = prompt("colors", clause("cat", 2, color="red"))
    assert apply_rules(colored, found(*many("cat", 1))).reward == pytest.approx(1 / 4)
    # Three of two: the two most confident are red, which satisfies the benchmark but earns nothing here.
    three = apply_rules(colored, found(*many("cat", 3)), by_place({0: "red", 30: "red", 60: "red"}))
    assert three.correct and not three.exact and three.reward == pytest.approx(1 / 4)
    # Two extra dogs: the list is [1, -1, 0].
    placed = apply_rules(dog_left_of_cat(), found(("cat", 0.9, box(500, 0)), *many("dog", 3)))
    assert placed.correct and placed.reward == pytest.approx(0)


def test_the_reward_of_colours_is_their_share() -> None:
    two_red = prompt("colors", clause("cat", 2, color="red"))
    rewards = [
        apply_rules(two_red, found(*many("cat", 2)), by_place({0: first, 30: second})).reward
        for first, second in (("red", "red"), ("red", "blue"), ("blue", "blue"))
    ]
    assert rewards == pytest.approx([1, 3 / 4, 1 / 2])


def test_the_reward_of_a_position_is_all_or_nothing() -> None:
    cat = ("cat", 0.9, box(100, 0))
    right = apply_rules(dog_left_of_cat(), found(cat, ("dog", 0.9, box(0, 0))))
    wrong = apply_rules(dog_left_of_cat(), found(cat, ("dog", 0.9, box(200, 0))))
    assert (right.reward, right.exact) == (1, True)
    assert wrong.reward == pytest.approx(2 / 3) and not wrong.exact


def test_a_target_of_the_wrong_number_earns_no_position() -> None:
    # Two cats instead of one: the list is [0, 1, 0], though the benchmark's verdict is correct.
    cats = [("cat", 0.9, box(100, 0)), ("cat", 0.8, box(200, 0))]
    result = apply_rules(dog_left_of_cat(), found(*cats, ("dog", 0.9, box(0, 0))))
    assert result.correct and not result.exact and result.reward == pytest.approx(1 / 3)


def test_the_rewards_do_not_know_exclusions() -> None:
    result = apply_rules(
        prompt("counting", clause("cat"), exclude=[clause("dog", 1)]), found(*many("cat", 1), *many("dog", 1))
    )
    assert not result.correct and result.exact and result.reward == 1
