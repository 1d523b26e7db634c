"""GenEval and OCR as rewards, with the exact detector and reader of the embedded world and with scripted ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.interfaces import Detections
from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules
from lightning_gen.rewards.geneval import GenEvalReward
from lightning_gen.rewards.text import OCRReward
from lightning_gen.shapes.detector import ShapesDetector
from lightning_gen.shapes.reader import GlyphReader
from lightning_gen.shapes.render import render
from lightning_gen.shapes.scene import Scene
from tests.harness.tiny_clip import write_tiny_clip
from tests.harness.tiny_detectors import save_mask2former
from tests.shapes.worlds import scenes


class Finds:
    """A detector that finds so many of each class, all alike, in a row."""

    classes = ("cat", "dog")
    fingerprint = "finds"

    def __init__(self, colors: Sequence[str] = ("red",), score: float = 0.95, **counts: int) -> None:
        self.counts, self.names, self.score = counts, colors, score

    def __call__(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        names = tuple(name for name, count in self.counts.items() for _ in range(count))
        boxes = torch.tensor([[2.0 * n, 2, 2.0 * n + 1, 3] for n in range(len(names))]).reshape(-1, 4)
        return [Detections(boxes, torch.full((len(names),), self.score), names) for _ in images]

    def colors(self, image: Tensor, boxes: Tensor, masks: Tensor | None, class_name: str) -> list[str]:
        return [self.names[number % len(self.names)] for number in range(len(boxes))]


IMAGES = torch.zeros(1, 3, 64, 64)


def record(*clauses: dict[str, Any], tag: str = "two_object") -> dict[str, Any]:
    return {"tag": tag, "include": list(clauses)}


def score(detector: Finds, *clauses: dict[str, Any], kind: Any = "dense", tag: str = "two_object") -> float:
    return float(GenEvalReward(detector, kind)(IMAGES, ["p"], [record(*clauses, tag=tag)]))


CAT, TWO_RED = {"class": "cat", "count": 1}, {"class": "cat", "count": 2, "color": "red"}
DOG_RIGHT = {"class": "dog", "count": 1, "position": ["right of", 0]}


@pytest.mark.parametrize(
    ("detector", "clauses", "dense", "strict"),
    [
        (Finds(cat=1), [CAT], 1, 1),
        (Finds(cat=3), [CAT], 1 - 2, 0),
        (Finds(), [CAT], 0, 0),
        (Finds(cat=2), [TWO_RED], 1, 1),
        (Finds(cat=1), [TWO_RED], (0.5 + 0) / 2, 0),
        (Finds(cat=2, colors=("red", "blue")), [TWO_RED], (1 + 0.5) / 2, 0),
        (Finds(cat=1, dog=1), [CAT, DOG_RIGHT], 1, 1),
        (Finds(cat=2, dog=1), [CAT, DOG_RIGHT], (0 + 1 + 0) / 3, 0),
        (Finds(dog=1, cat=1), [CAT, DOG_RIGHT], (1 + 1 + 0) / 3, 0),
        (Finds(cat=1), [CAT, DOG_RIGHT], (1 + 0 + 0) / 3, 0),
    ],
)
def test_dense_and_strict_are_those_of_flow_grpo(
    detector: Finds, clauses: list[dict[str, Any]], dense: float, strict: float
) -> None:
    assert score(detector, *clauses) == pytest.approx(dense)
    assert score(detector, *clauses, kind="strict") == strict


def test_thresholds_and_the_benchmark_s_verdict() -> None:
    unsure = Finds(cat=1, score=0.5)
    assert score(unsure, CAT, kind="strict") == 1
    assert score(unsure, CAT, kind="strict", tag="counting") == 0
    assert score(Finds(cat=2), CAT, kind="benchmark") == 1
    rules = GenEvalRules(threshold=0.6)
    assert float(GenEvalReward(unsure, "strict", rules=rules)(IMAGES, ["p"], [record(CAT)])) == 0


def test_the_exact_detector_pays_for_pictures_of_their_prompts() -> None:
    requests, worlds = zip(*scenes(40), strict=True)
    images = torch.stack([render(scene, (32, 32)) for scene in worlds]).float() / 255
    prompts, records = [request.prompt() for request in requests], [request.metadata() for request in requests]
    for kind in ("dense", "strict"):
        reward = GenEvalReward(ShapesDetector(), kind)
        assert reward(images, prompts, records).tolist() == [1.0] * 40
        assert reward(images.roll(1, 0), prompts, records).mean() < 0.5


def test_records_of_other_worlds_are_not_applicable_and_wrong_ones_an_error() -> None:
    reward = GenEvalReward(Finds(cat=1))
    records: list[dict[str, Any]] = [record(CAT), {"include": [CAT]}, {}, record(CAT, tag="word")]
    scores = reward(IMAGES.expand(4, -1, -1, -1), ["p"] * 4, records)
    assert scores.isnan().tolist() == [False, True, True, True]
    assert 'lack "tag"' in str(reward.inapplicable("p", records[1]))
    assert "does not know the tag 'word'" in str(reward.inapplicable("p", records[3]))
    with pytest.raises(ValueError, match=r"prompt 'p': include\[0\] has the class 'horse'"):
        reward(IMAGES, ["p"], [record({"class": "horse", "count": 1})])


def test_detector_and_colours_come_from_weights_on_disk(tmp_path: Path) -> None:
    from lightning_gen.metrics.detectors import Mask2FormerDetector

    detector = Mask2FormerDetector(str(save_mask2former(tmp_path / "m2f")))
    reward = GenEvalReward(detector, color_clip=str(write_tiny_clip(tmp_path / "clip")))
    dog = {"class": "dog", "count": 1, "color": "red"}
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    scores = reward(images, ["p", "q"], [record(dog, tag="colors")] * 2)
    assert scores.isfinite().all()
    assert detector.fingerprint in str(reward.fingerprint)
    assert reward.fingerprint != GenEvalReward(detector, "strict").fingerprint


def test_colours_are_named_by_one_model() -> None:
    with pytest.raises(ValueError, match="not by both"):
        GenEvalReward(Finds(), colors=Finds().colors, color_clip="x")
    with pytest.raises(ValueError, match="dense, strict or benchmark"):
        GenEvalReward(Finds(), "other")


# ------------------------------------------------------------------ text


def word(text: str) -> Tensor:
    return render(Scene((), "mist", text, "blue"), (32, 32)).float() / 255


def test_the_exact_reader_reads_for_the_ocr_reward() -> None:
    images = torch.stack([word("CAT"), word("CATS"), word("CAR"), word("HOUSE")])
    reward = OCRReward(GlyphReader())
    assert reward(images, ['a sign "c a t"'] * 4, [{}] * 4).tolist() == pytest.approx([1, 1, 2 / 3, 0])
    assert GlyphReader().fingerprint in str(reward.fingerprint)


class Fails:
    """Fails on dark pictures."""

    def __call__(self, image: Tensor) -> list[tuple[str, float]]:
        if image.float().mean() < 128:
            raise IndexError("no box")
        return [("CAT", 0.9), ("dog", 0.0)]


def test_a_picture_that_cannot_be_read_scores_nothing_but_not_all_may(caplog: pytest.LogCaptureFixture) -> None:
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    reward = OCRReward(Fails())
    assert reward(images, ['"cat"'] * 2, [{}] * 2).tolist() == [0, 1]
    assert "failed on 1 of 2 images: no box" in caplog.text
    with pytest.raises(RuntimeError, match="failed on all of 1 pictures: no box"):
        reward(images[:1], ['"cat"'], [{}])


def test_prompts_without_quotes_are_not_applicable() -> None:
    reward = OCRReward(Fails())
    assert reward(torch.ones(2, 3, 8, 8), ["a cat", 'a "cat"'], [{}] * 2).isnan().tolist() == [True, False]
    assert "double quotes" in str(reward.inapplicable('a "cat', {}))
