"""The seam of detectors: what is checked of a foreign one; COCO's names; pre-processing against the library's."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.interfaces import Detections
from lightning_gen.metrics.detection.coco import COCO_NAMES, GENEVAL_NAMES, coco_index, coco_indexes
from lightning_gen.metrics.detection.detector_images import ImagePreparation
from lightning_gen.metrics.detection.mask2former import mask_boxes
from lightning_gen.metrics.detectors import NamedDetector, check_detections, detect, geneval_metric
from tests.harness.tiny_detectors import MEAN, STD

COLOURS = {"red ball": (1.0, 0.0, 0.0), "blue ball": (0.0, 0.0, 1.0)}


class ExactDetector:
    """Finds areas of exactly one colour, as the detector of a drawn world does."""

    name = "exact-colours"
    fingerprint = "exact-colours-1"

    def __call__(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        found = []
        for image in images:
            masks = {name: (image == torch.tensor(COLOURS[name])[:, None, None]).all(0) for name in classes}
            masks = {name: mask for name, mask in masks.items() if mask.any()}
            stack = torch.stack([*masks.values()]) if masks else torch.zeros(0, *image.shape[1:], dtype=torch.bool)
            found.append(Detections(mask_boxes(stack), torch.ones(len(masks)), tuple(masks), stack))
        return found


def test_any_object_of_the_right_shape_is_a_detector() -> None:
    detector: NamedDetector = ExactDetector()
    images = torch.zeros(2, 3, 8, 10)
    images[0, 0, 2:4, 3:9] = 1.0
    found = detect(detector, images, ["red ball", "blue ball"])
    assert [one.classes for one in found] == [("red ball",), ()]
    assert found[0].boxes.tolist() == [[3, 2, 9, 4]]
    assert geneval_metric(detector) == "geneval-style"
    detector.prescribed_by_geneval = True  # type: ignore[attr-defined]
    assert geneval_metric(detector) == "geneval"


GOOD = Detections(
    torch.tensor([[0.0, 1.0, 4.0, 6.0], [2.0, 2.0, 2.0, 3.0]]),
    torch.tensor([1.0, 0.0]),
    ("cat", "dog"),
    torch.ones(2, 6, 4, dtype=torch.bool),
)


def changed(index: tuple[int, ...], value: float) -> Tensor:
    boxes = GOOD.boxes.clone()
    boxes[index] = value
    return boxes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": GOOD.boxes.long()}, r"float boxes \(2, 4\), got torch.int64"),
        ({"boxes": GOOD.boxes[:1]}, r"got torch.float32 \(1, 4\)"),
        ({"scores": GOOD.scores[:, None]}, r"float scores \(2,\)"),
        ({"masks": torch.ones(2, 6, 4)}, "masks must be bool"),
        ({"masks": torch.ones(2, 4, 6, dtype=torch.bool)}, r"got torch.bool \(2, 4, 6\)"),
        ({"scores": torch.tensor([0.5, 1.2])}, "score 1, 1.2"),
        ({"scores": torch.tensor([0.5, math.nan])}, "score 1, nan"),
        ({"boxes": changed((1, 0), 3.0)}, "box 1, .*x0 <= x1"),
        ({"boxes": changed((0, 3), math.nan)}, "box 0, .*x0 <= x1"),
        ({"boxes": changed((0, 2), 5.5)}, "box 0, .*leaves the image of 6x4"),
        ({"boxes": changed((0, 1), -1.5)}, "leaves the image"),
        ({"classes": ("cat", "cow")}, "class 'cow' was not asked for; asked for: cat, dog"),
    ],
)
def test_records_that_would_be_counted_wrongly_are_refused(changes: dict[str, Any], message: str) -> None:
    check_detections(GOOD, (6, 4), ["cat", "dog"])
    check_detections(dataclasses.replace(GOOD, masks=None, boxes=changed((0, 2), 5.0)), (6, 4), ["cat", "dog"])
    with pytest.raises(ValueError, match=message):
        check_detections(dataclasses.replace(GOOD, **changes), (6, 4), ["cat", "dog"])


def test_the_picture_with_a_bad_record_is_named() -> None:
    bad = dataclasses.replace(GOOD, scores=torch.tensor([0.5, -1.0]))
    answer: Callable[[Tensor, Sequence[str]], list[Detections]] = lambda images, classes: [GOOD, bad]  # noqa: E731
    with pytest.raises(ValueError, match="image 1 of the batch: score 1, -1"):
        detect(answer, torch.zeros(2, 3, 6, 4), ["cat", "dog"])
    with pytest.raises(ValueError, match="2 records for 3 images"):
        detect(answer, torch.zeros(3, 3, 6, 4), ["cat", "dog"])


def test_cocos_classes_by_position_and_by_every_name() -> None:
    assert len(COCO_NAMES) == len(set(COCO_NAMES)) == 80
    # Anchors all along the list: a name that was left out or exchanged moves one of them.
    anchors = {0: "person", 9: "traffic light", 11: "stop sign", 20: "elephant", 24: "backpack", 32: "sports ball"}
    anchors |= {39: "bottle", 46: "banana", 53: "pizza", 57: "couch", 62: "tv", 67: "cell phone", 73: "book"}
    anchors |= {77: "teddy bear", 79: "toothbrush"}
    assert {index: COCO_NAMES[index] for index in anchors} == anchors
    differ = {index: GENEVAL_NAMES[index] for index in range(80) if GENEVAL_NAMES[index] != COCO_NAMES[index]}
    assert differ == {64: "computer mouse", 65: "tv remote", 66: "computer keyboard"}
    for names in (COCO_NAMES, GENEVAL_NAMES):
        assert [coco_index(name) for name in names] == list(range(80))
    assert [coco_index(name) for name in ("Sofa", "tv_monitor", "hair-dryer", "Motorbike")] == [57, 62, 78, 3]


def test_names_are_kept_and_ambiguous_ones_refused() -> None:
    assert coco_indexes(["tv remote", "cat", "cat"]) == {65: "tv remote", 15: "cat"}
    with pytest.raises(ValueError, match="'tv' and 'television' are the same class"):
        coco_indexes(["tv", "television"])
    with pytest.raises(ValueError, match="'unicorn' is not one of the 80"):
        coco_index("unicorn")
    with pytest.raises(ValueError, match="at least one name"):
        coco_indexes([])


def written(folder: Path, name: str = "preprocessor_config.json", nest: str = "", **entries: Any) -> ImagePreparation:
    config = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 64, "longest_edge": 100}, **entries}
    (folder / name).write_text(json.dumps({nest: config} if nest else config))
    return ImagePreparation.read(folder)


@pytest.mark.parametrize("longest", [1333, 900])
def test_sizes_are_the_librarys(tmp_path: Path, longest: int) -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio

    prepare = written(tmp_path, size={"shortest_edge": 800, "longest_edge": longest})
    stretched = dataclasses.replace(prepare, divisor=32)
    rng = random.Random(0)
    for _ in range(500):
        size = (rng.randint(1, 2000), rng.randint(1, 2000))
        height, width = get_size_with_aspect_ratio(size, 800, longest)
        assert prepare.resized(size) == (height, width)
        assert stretched.resized(size) == (-(-height // 32) * 32, -(-width // 32) * 32)


@pytest.mark.parametrize("size", [(48, 80), (120, 64), (64, 90)])
@pytest.mark.parametrize(
    "entries",
    [
        {"size_divisor": 32},
        {"size": {"height": 40, "width": 56}, "resample": 3, "size_divisor": 0},
        {"do_resize": False, "size_divisor": 0, "pad_size": {"height": 128, "width": 96}},
        {"do_normalize": False, "size_divisor": 0, "pad_size": {"height": 128, "width": 128}},
    ],
    ids=["stretched", "fixed and bicubic", "as it is", "filled up"],
)
def test_pixels_are_the_librarys_up_to_rounding(tmp_path: Path, size: tuple[int, int], entries: dict[str, Any]) -> None:
    from transformers import Mask2FormerImageProcessor

    prepare = written(tmp_path, **entries)
    small = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    levels = (F.interpolate(small, size, mode="bicubic").clamp(0, 1) * 255).round()
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    theirs = Mask2FormerImageProcessor(**config)(levels.byte(), return_tensors="pt")
    pixels, (height, width) = prepare(levels / 255)
    assert pixels.shape == theirs["pixel_values"].shape
    assert int(theirs["pixel_mask"].sum()) == height * width == int(theirs["pixel_mask"][0, :height, :width].sum())
    # One level of 1/255 is 0.019 after the division by the smallest standard deviation.
    assert (pixels - theirs["pixel_values"]).abs().max() < 0.02
    assert (pixels - theirs["pixel_values"]).abs().mean() < 0.006


def test_other_forms_of_the_file(tmp_path: Path) -> None:
    usual = written(tmp_path, size_divisor=32)
    (tmp_path / "preprocessor_config.json").unlink()
    assert written(tmp_path, "processor_config.json", nest="image_processor", size_divisor=32) == usual
    assert written(tmp_path, size=64, max_size=100, size_divisor=32) == usual


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"rescale_factor": 1.0}, "rescaled by 1.0, expected 1/255"),
        ({"do_rescale": False}, "rescaled by"),
        ({"size": {"max_height": 5, "max_width": 5}}, "size has the keys"),
        ({"size": {"height": 5}}, "size has the keys"),
        ({"resample": 1}, "KeyError: 1"),
        ({"image_mean": None}, "TypeError"),
    ],
)
def test_preparation_that_is_not_done_here_is_refused(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(MissingWeightsError, match=message):
        written(tmp_path, **entries)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("[1, 2]")
    with pytest.raises(MissingWeightsError, match=r"preprocessor_config\.json is not a readable description"):
        ImagePreparation.read(tmp_path)
