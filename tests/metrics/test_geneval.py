from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.interfaces import Detections
from lightning_gen.metrics.compositional.geneval_prompts import GenEvalPrompt, parse_prompt
from lightning_gen.metrics.geneval import (
    HUMAN_DRIFT,
    OFFICIAL_DETECTOR,
    TAGS,
    GenEvalJudge,
    GenEvalScore,
)
from lightning_gen.metrics.intervals import wilson_interval
from tests.harness.metric_jobs_geneval import counted, geneval_job, geneval_rows, geneval_values, verdict
from tests.harness.processes import two_processes


def score_of(**shares: tuple[int, int]) -> GenEvalScore:
    """A metric that saw some correct images out of some, each image with a prompt of its own."""
    metric = GenEvalScore("toy")
    prompt = 0
    for tag, (passed, total) in shares.items():
        results = [verdict(tag, number < passed) for number in range(total)]
        metric.update(results, range(prompt, prompt + total), [0] * total)
        prompt += total
    return metric


# ------------------------------------------------------------------ adding up


def test_the_overall_score_is_the_unweighted_mean_over_tags() -> None:
    shares = dict.fromkeys(TAGS, (0, 100))
    for tag in TAGS[:3]:
        shares[tag] = (4, 4)
    values = score_of(**shares).compute()
    assert float(values["overall"]) == 0.5
    assert float(values["images"]) == pytest.approx(12 / 312)


def test_each_tag_has_its_share() -> None:
    shares = {tag: (number, 8) for number, tag in enumerate(TAGS)}
    metric = score_of(**shares)
    values = metric.compute()
    assert [float(values[tag]) for tag in TAGS] == [number / 8 for number in range(6)]
    assert metric.correct.tolist() == [0, 1, 2, 3, 4, 5] and metric.total.tolist() == [8] * 6
    assert float(values["overall"]) == pytest.approx(2.5 / 8)


def test_a_prompt_counts_as_shown_if_any_of_its_images_is_correct() -> None:
    metric = GenEvalScore("toy")
    pattern = {7: [0, 0, 0, 1], 8: [0, 0, 0, 0], 9: [1, 1, 1, 1]}
    for prompt, correct in pattern.items():
        metric.update([verdict("colors", bool(one)) for one in correct], [prompt] * 4, range(4))
    values = metric.compute()
    assert float(values["images"]) == pytest.approx(5 / 12) and float(values["prompts"]) == pytest.approx(2 / 3)


def test_the_images_of_a_prompt_may_arrive_in_different_batches() -> None:
    metric = GenEvalScore("toy")
    for sample, correct in enumerate([False, True, False]):
        metric.update([verdict("colors", correct)], [0], [sample])
    assert float(metric.compute()["prompts"]) == 1


def test_an_image_counts_once() -> None:
    metric = GenEvalScore("toy")
    results = [verdict("colors", True), verdict("colors", False)]
    metric.update(results, [0, 0], [0, 1])
    metric.update(results, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert metric.total.sum() == 2 and metric.num_repeats == 2 and metric.num_samples == 2
    assert float(metric.compute()["images"]) == 0.5
    assert metric.measurements()[0].protocol.details["repeats"] == 2


def test_two_images_under_one_name_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    metric = GenEvalScore("toy")
    metric.update([verdict("colors", True), verdict("colors", False)], [0, 0], [0, 0])
    with caplog.at_level(logging.WARNING):
        assert float(metric.compute()["images"]) == 1
    assert "1 repeated samples have another result" in caplog.text


def test_a_tag_without_images_leaves_no_overall_score_and_is_named() -> None:
    metric = score_of(colors=(1, 2), counting=(1, 2))
    values = metric.compute()
    assert math.isnan(float(values["overall"])) and math.isnan(float(values["position"]))
    assert float(values["colors"]) == 0.5
    overall, *tags = metric.measurements()
    assert math.isnan(overall.value)
    assert overall.note.startswith("no overall score without images of single_object, two_object, position, color_attr")
    assert tags[TAGS.index("position")].note == "nothing was counted"


def test_nothing_counted_is_not_a_number() -> None:
    with pytest.warns(UserWarning, match="before the ``update``"):
        values = GenEvalScore("toy").compute()
    assert all(math.isnan(float(value)) for value in values.values())


def test_rewards_are_averaged() -> None:
    metric = GenEvalScore("toy")
    metric.update([verdict("colors", True, reward=-0.5), verdict("colors", False, reward=0.25)], [0, 1], [0, 0])
    values = metric.compute()
    assert float(values["reward"]) == -0.125 and float(values["exact"]) == 0.5


def test_failures_are_counted_once_per_image() -> None:
    metric = GenEvalScore("toy")
    metric.update(
        [
            verdict("colors", False, "color"),
            verdict("position", False, "missing", "no_target"),
            verdict("two_object", False, "missing", "missing"),
            verdict("colors", True),
        ],
        range(4),
        [0] * 4,
    )
    assert metric.failures() == {
        "missing": 2,
        "too_many": 0,
        "excluded": 0,
        "color": 1,
        "position": 0,
        "no_target": 1,
    }


def test_numbers_of_verdicts_and_names_must_agree() -> None:
    with pytest.raises(ValueError, match="2 prompt ids, 1 sample ids and 1 results"):
        GenEvalScore("toy").update([verdict("colors", True)], [0, 1], [0])


# ------------------------------------------------------------------ protocol


def test_the_measurements_say_how_they_were_measured() -> None:
    metric = counted(GenEvalScore("m2f-swin-s-hf", {"seed": 3}, expected_images=72), geneval_rows())
    overall, *rest = metric.measurements()
    assert overall.protocol.id == "geneval/m2f-swin-s-hf"
    assert overall.protocol.count == 72 and overall.protocol.details["seed"] == 3
    assert overall.note == (
        "GenEval-style: published numbers come from another detector than m2f-swin-s-hf; " + HUMAN_DRIFT
    )
    assert "17.7" in HUMAN_DRIFT and "2512.16853" in HUMAN_DRIFT
    ids = [f"geneval:{name}/m2f-swin-s-hf" for name in (*TAGS, "images", "prompts")]
    assert [one.protocol.id for one in rest] == ids
    assert overall.value == pytest.approx(float(metric.compute()["overall"]), abs=1e-15)
    for one, name in zip(rest, (*TAGS, "images", "prompts"), strict=True):
        assert one.value == pytest.approx(float(metric.compute()[name]), abs=1e-15)
        assert one.interval == wilson_interval(round(one.value * (one.protocol.count or 0)), one.protocol.count or 0)


def test_another_number_of_images_than_the_benchmarks_shows_in_the_name() -> None:
    assert counted(GenEvalScore("m2f"), geneval_rows()).measurements()[0].protocol.id == "geneval@72/m2f"


def test_only_the_benchmarks_own_detector_is_called_geneval() -> None:
    assert "GenEval-style" not in counted(GenEvalScore(OFFICIAL_DETECTOR), geneval_rows()).measurements()[0].note
    for name in ("m2f-swin-s-hf", "gdino-swin-t-hf", "toy"):
        assert "GenEval-style" in counted(GenEvalScore(name), geneval_rows()).measurements()[0].note


def test_the_standard_error_takes_prompts_for_independent() -> None:
    # Two prompts per tag, one with all images correct and one with none: variance 1/2 of a mean over two.
    metric = GenEvalScore("toy")
    for number in range(12):
        metric.update([verdict(TAGS[number % 6], number < 6)] * 4, [number] * 4, range(4))
    assert metric.measurements()[0].error == pytest.approx(math.sqrt(6 * 0.5 / 2) / 6)


def test_one_prompt_per_tag_gives_no_standard_error() -> None:
    metric = GenEvalScore("toy")
    metric.update([verdict(tag, True) for tag in TAGS], range(6), [0] * 6)
    assert metric.measurements()[0].error is None


# ------------------------------------------------------------------ ranks, epochs, checkpoints


@pytest.mark.parametrize("split", ["uneven", "padded", "one rank only"])
def test_two_processes_give_the_numbers_of_one(split: str) -> None:
    expected = geneval_values(counted(GenEvalScore("toy"), geneval_rows()))
    for found in two_processes(geneval_job, split):
        assert found == expected


def test_the_order_of_the_images_does_not_matter() -> None:
    rows = geneval_rows()
    expected = geneval_values(counted(GenEvalScore("toy"), rows))
    assert geneval_values(counted(GenEvalScore("toy"), rows[::-1], batch=7)) == expected


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_an_epoch_begins_anew() -> None:
    metric = counted(GenEvalScore("toy"), geneval_rows())
    metric.reset()
    assert metric.num_samples == 0 and math.isnan(float(metric.compute()["images"]))
    metric.update([verdict("colors", True)], [0], [0])
    assert metric.num_samples == 1 and float(metric.compute()["images"]) == 1


def test_a_checkpoint_and_a_copy_hold_what_was_counted() -> None:
    metric = counted(GenEvalScore("toy"), geneval_rows())
    metric.persistent(True)
    other = GenEvalScore("toy")
    other.load_state_dict(metric.state_dict())
    assert torch.equal(other.table(), metric.table()) and torch.equal(copy.deepcopy(metric).table(), metric.table())


def test_a_cast_to_half_precision_keeps_large_ids() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.metric = GenEvalScore("toy")

    parent = Parent()
    parent.metric.update([verdict("colors", True), verdict("colors", False)], [100001, 100002], [0, 0])
    parent.to(torch.bfloat16)
    assert parent.metric.num_samples == 2 and parent.metric.table().dtype == torch.float64


def test_forward_gives_the_batch_and_adds_it() -> None:
    metric = GenEvalScore("toy")
    for number in range(2):
        batch = metric([verdict("colors", number == 0)], [number], [0])
        assert float(batch["images"]) == (number == 0)
    assert float(metric.compute()["images"]) == 0.5


# ------------------------------------------------------------------ judging images


class BrightnessDetector:
    """One object over the whole image, its class by the image's brightness; remembers what it was shown."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        assert images.dtype == torch.float32 and float(images.max()) <= 1
        self.shapes.append(tuple(images.shape))
        self.classes = list(classes)
        names = ["cat" if float(image.mean()) > 0.5 else "dog" for image in images]
        height, width = images.shape[-2:]
        whole = torch.tensor([[0.0, 0.0, width, height]])
        return [Detections(whole, torch.tensor([0.95]), (name,)) for name in names]


def wanted(name: str, **more: Any) -> GenEvalPrompt:
    return parse_prompt({"tag": "colors", "prompt": name, "include": [{"class": name, "count": 1, **more}]})


def flat(value: int, height: int = 8, width: int = 8) -> Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def test_images_of_one_size_go_through_the_detector_together_and_come_back_in_order() -> None:
    detector = BrightnessDetector()
    images = [flat(255), flat(0, 8, 12), flat(0), flat(255, 8, 12), flat(255)]
    results = GenEvalJudge(detector, ["cat", "dog", "cow"])(images, [wanted("cat")] * 5)
    assert [result.correct for result in results] == [True, False, False, True, True]
    assert detector.shapes == [(3, 3, 8, 8), (2, 3, 8, 12)]
    assert detector.classes == ["cat", "dog", "cow"]


def test_the_colour_model_sees_the_image_of_its_prompt() -> None:
    seen = []

    def colors(image: Tensor, boxes: Tensor, masks: Tensor | None, class_name: str) -> list[str]:
        seen.append((int(image.max()), boxes.tolist(), masks, class_name))
        return ["red"]

    images = torch.stack([flat(200), flat(250)])
    results = GenEvalJudge(BrightnessDetector(), ["cat"], colors)(images, [wanted("cat", color="red")] * 2)
    assert all(result.correct for result in results)
    assert seen == [(200, [[0, 0, 8, 8]], None, "cat"), (250, [[0, 0, 8, 8]], None, "cat")]


def test_what_the_judge_refuses() -> None:
    judge = GenEvalJudge(BrightnessDetector(), ["cat"])
    with pytest.raises(ValueError, match="does not know cow"):
        judge([flat(0)], [wanted("cow")])
    with pytest.raises(ValueError, match="1 images, 2 prompts"):
        judge([flat(0)], [wanted("cat")] * 2)
    for wrong in (torch.full((1, 3, 8, 8), math.nan), torch.zeros(1, 3, 8, 8)):
        with pytest.raises(ValueError, match="signed_to_uint8"):
            judge(wrong, [wanted("cat")])
    silent = GenEvalJudge(lambda images, classes: [], ["cat"])
    with pytest.raises(ValueError, match="0 records for 1 images"):
        silent([flat(0)], [wanted("cat")])
