"""Mask2Former's queries as instances, on logits whose answer is known, and the detector around a tiny network."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.interfaces import Detections
from lightning_gen.metrics.detection import mask2former
from lightning_gen.metrics.detection.coco import COCO_NAMES, GENEVAL_NAMES
from lightning_gen.metrics.detection.detector_network import swin_name
from lightning_gen.metrics.detection.mask2former import Mask2FormerDetector, instances_from_queries, mask_boxes
from lightning_gen.metrics.detectors import check_detections
from tests.harness.tiny_detectors import save_grounding_dino, save_mask2former


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def class_logits(*rows: list[float]) -> Tensor:
    """Logits of given probabilities, moved by a constant that softmax ignores."""
    return torch.tensor(rows, dtype=torch.float64).log() + 2.5


def mask_logits(count: int, height: int, width: int) -> Tensor:
    """Nothing anywhere."""
    return torch.full((count, height, width), -3.0, dtype=torch.float64)


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth pictures of whole levels: they survive a resize."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, height // 8, width // 8, generator=generator)
    return (F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1) * 255).round() / 255


def test_scores_boxes_and_order_by_hand() -> None:
    masks = mask_logits(3, 4, 5)
    masks[0, 1:3, 0:2] = logit(0.75)
    masks[1, 3, 3], masks[1, 3, 4] = logit(0.9), logit(0.5 + 0.1)
    masks[2] = 0.0  # not above 0: no pixel
    found = instances_from_queries(class_logits([0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1]), masks, (4, 5))
    wanted = [(0, 0, 0.7 * 0.75), (1, 1, 0.6 * 0.75), (0, 1, 0.2 * 0.75), (1, 0, 0.1 * 0.75)]
    assert [*zip(found.queries.tolist(), found.labels.tolist(), strict=True)] == [entry[:2] for entry in wanted]
    assert found.scores.tolist() == pytest.approx([entry[2] for entry in wanted], rel=1e-12)
    first, second = [0.0, 1.0, 2.0, 3.0], [3.0, 3.0, 5.0, 4.0]
    assert found.boxes.tolist() == [first, second, first, second]
    assert torch.equal(found.masks, masks[[0, 1, 0, 1]] > 0)


def test_a_sure_mask_overtakes_a_likelier_class() -> None:
    masks = mask_logits(2, 2, 2)
    masks[0], masks[1] = logit(0.55), logit(0.99)
    found = instances_from_queries(class_logits([0.9, 0.1], [0.6, 0.4]), masks, (2, 2))
    assert found.queries.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.594, 0.495], rel=1e-12)


def test_the_best_pairs_are_chosen_by_class_before_masks_and_wanted_classes_count() -> None:
    masks = mask_logits(2, 2, 2)
    masks[1] = logit(0.99)
    classes = class_logits([0.6, 0.3, 0.1], [0.5, 0.2, 0.3])
    assert instances_from_queries(classes, masks, (2, 2), top=2).queries.tolist() == [1]
    assert instances_from_queries(classes, masks, (2, 2), top=1).queries.tolist() == []
    assert instances_from_queries(classes, masks, (2, 2), top=3, wanted=[1]).queries.tolist() == []
    assert instances_from_queries(classes, masks, (2, 2), top=4, wanted=[1]).labels.tolist() == [1]


def test_equal_scores_keep_the_order_of_query_and_class() -> None:
    masks = torch.full((50, 2, 2), logit(0.8))
    found = instances_from_queries(torch.zeros(50, 5), masks, (2, 2), top=90)
    assert (found.queries * 4 + found.labels).tolist() == list(range(90))


def test_masks_may_overlap_and_empty_ones_are_left_out() -> None:
    masks = mask_logits(3, 4, 4)
    masks[0, :3], masks[2, 1:] = 2.0, 1.0
    found = instances_from_queries(class_logits([0.9, 0.1], [0.95, 0.05], [0.8, 0.2]), masks, (4, 4))
    assert found.queries.tolist() == [0, 2]
    assert [int(mask.sum()) for mask in found.masks] == [12, 12]
    nothing = instances_from_queries(torch.zeros(2, 4), mask_logits(2, 4, 4), (6, 8))
    assert [tuple(part.shape) for part in nothing] == [(0,), (0,), (0,), (0, 4), (0, 6, 8)]


def test_masks_grow_to_the_input_are_cut_and_then_go_to_the_picture() -> None:
    classes = class_logits([0.5, 0.5])
    row = torch.tensor([[[-1.0, 1.0]]], dtype=torch.float64)
    # To 4 pixels: -1, -0.5, 0.5, 1. To 2 pixels, their means in pairs: -0.75, 0.75.
    found = instances_from_queries(classes, row, (1, 2), input_size=(1, 4))
    assert found.scores.item() == pytest.approx(0.5 / (1 + math.exp(-0.75)), rel=1e-12)
    # The fourth of the 4 pixels is filling: it must not reach the picture.
    found = instances_from_queries(classes, row, (1, 3), input_size=(1, 4), content=(1, 3))
    assert found.scores.item() == pytest.approx(0.5 / (1 + math.exp(-0.5)), rel=1e-12)
    assert found.boxes.tolist() == [[2.0, 0.0, 3.0, 1.0]]


def test_few_at_a_time_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(9, 6, generator=generator), torch.randn(9, 8, 8, generator=generator)
    whole = instances_from_queries(classes, masks, (20, 24), input_size=(32, 32))
    monkeypatch.setattr(mask2former, "_PIECE", 2 * 32 * 32)
    for one, other in zip(whole, instances_from_queries(classes, masks, (20, 24), input_size=(32, 32)), strict=True):
        assert torch.equal(one, other)


def test_the_same_instances_as_the_library_finds_at_its_own_size() -> None:
    from transformers import Mask2FormerImageProcessor

    generator = torch.Generator().manual_seed(1)
    classes = 3 * torch.randn(1, 10, 81, generator=generator)
    masks = F.interpolate(4 * torch.randn(1, 10, 5, 5, generator=generator) - 2, (96, 96), mode="bicubic")
    masks[0, 3] = -1.0
    output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    theirs = Mask2FormerImageProcessor().post_process_instance_segmentation(
        output, threshold=0.0, return_binary_maps=True
    )[0]
    ours = instances_from_queries(classes[0], masks[0], (384, 384), top=10)
    info = theirs["segments_info"]
    order = sorted(range(len(info)), key=lambda i: -info[i]["score"])
    assert ours.labels.tolist() == [info[i]["label_id"] for i in order]
    assert ours.scores.tolist() == pytest.approx([info[i]["score"] for i in order], abs=2e-6)
    assert torch.equal(ours.masks, theirs["segmentation"][order] == 1)


def test_boxes_of_masks() -> None:
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 4, 6] = masks[2, 1, 5] = masks[2, 3, 2] = True
    assert mask_boxes(masks).tolist() == [[0, 0, 1, 1], [6, 4, 7, 5], [2, 1, 6, 4]]


def test_logits_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="same queries"):
        instances_from_queries(torch.zeros(2, 4), torch.zeros(3, 4, 4), (4, 4))
    with pytest.raises(ValueError, match="NaN"):
        instances_from_queries(torch.full((1, 4), math.nan), torch.zeros(1, 4, 4), (4, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mask2former(tmp_path_factory.mktemp("m2f"))


@pytest.fixture(scope="module")
def detector(folder: Path) -> Mask2FormerDetector:
    return Mask2FormerDetector(str(folder))


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def edit_json(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def close(one: Detections, other: Detections) -> bool:
    assert one.masks is not None and other.masks is not None
    return (
        one.classes == other.classes
        and torch.allclose(one.scores, other.scores, atol=1e-5)
        and torch.equal(one.boxes, other.boxes)
        and bool((one.masks != other.masks).float().mean() < 1e-3)
    )


@pytest.mark.parametrize("size", [(48, 80), (96, 64)])
def test_pictures_of_two_sizes_go_through_network_and_resizes(
    detector: Mask2FormerDetector, size: tuple[int, int]
) -> None:
    images = pictures(2, *size)
    found = detector(images, GENEVAL_NAMES)
    pixels, content = detector.prepare(images)
    assert pixels.shape[-2:] == content and {side % 32 for side in content} == {0}
    with torch.no_grad():
        output = detector.network(pixel_values=pixels)
    for number, one in enumerate(found):
        check_detections(one, size, GENEVAL_NAMES)
        assert len(one.classes) == 100 and one.masks is not None
        assert torch.equal(one.scores, one.scores.sort(descending=True).values)
        # The first one, made again step by step.
        shares = output.class_queries_logits[number].softmax(-1)[:, :-1]
        big = F.interpolate(output.masks_queries_logits[number][None], content, mode="bilinear")
        masks = F.interpolate(big, size, mode="bilinear")[0]
        confidence = torch.stack([mask[mask > 0].sigmoid().mean() for mask in masks])
        best = (shares * confidence[:, None]).flatten().argmax()
        query, label = divmod(int(best), 80)
        assert one.classes[0] == GENEVAL_NAMES[label]
        assert torch.allclose(one.scores[0], shares[query, label] * confidence[query], rtol=1e-5)
        assert torch.equal(one.masks[0], masks[query] > 0)
    assert not close(found[0], found[1])


def test_a_picture_does_not_depend_on_its_batch(detector: Mask2FormerDetector) -> None:
    images = pictures(3, 64, 64)
    together = detector(images, GENEVAL_NAMES)
    for number, one in enumerate(together):
        assert close(one, detector(images[number : number + 1], GENEVAL_NAMES)[0])


def test_classes_are_told_by_index_and_named_as_asked(detector: Mask2FormerDetector) -> None:
    images = pictures(1, 64, 64)
    everything = detector(images, COCO_NAMES)[0]
    asked = ["tv remote", "TV", *(name for name in COCO_NAMES if name not in ("remote", "tv"))]
    renamed = detector(images, asked)[0]
    translate = {"remote": "tv remote", "tv": "TV"}
    assert renamed.classes == tuple(translate.get(name, name) for name in everything.classes)
    wanted = everything.classes[3]
    only = detector(images, [wanted])[0]
    places = [i for i, name in enumerate(everything.classes) if name == wanted]
    assert only.classes == (wanted,) * len(places)
    assert torch.equal(only.scores, everything.scores[places]) and only.masks is not None
    assert everything.masks is not None and torch.equal(only.masks, everything.masks[places])
    with pytest.raises(ValueError, match="did you mean 'giraffe'"):
        detector(images, ["girafe"])


def test_what_was_filled_up_is_cut_away(folder: Path, tmp_path: Path) -> None:
    padded = copied(folder, tmp_path / "padded")
    edit_json(padded / "preprocessor_config.json", pad_size={"height": 96, "width": 128})
    detector = Mask2FormerDetector(str(padded))
    images = pictures(1, 64, 64)
    pixels, content = detector.prepare(images)
    assert pixels.shape[-2:] == (96, 128) and content == (64, 64)
    found = detector(images, GENEVAL_NAMES)[0]
    with torch.no_grad():
        output = detector.network(pixel_values=pixels)
    big = F.interpolate(output.masks_queries_logits, (96, 128), mode="bilinear")[0, :, :64, :64]
    wanted = instances_from_queries(output.class_queries_logits[0], big, (64, 64))
    assert found.masks is not None and torch.equal(found.masks, wanted.masks)
    with pytest.raises(ValueError, match="does not fit into the pad_size 96x128"):
        detector(pictures(1, 128, 64), GENEVAL_NAMES)


def test_a_constant_of_the_run(detector: Mask2FormerDetector) -> None:
    images = pictures(1, 64, 64).requires_grad_()
    before = detector(images, GENEVAL_NAMES)[0]
    assert not before.scores.requires_grad
    parent = nn.Linear(2, 2)
    parent.detector = copy.deepcopy(detector)
    parent.train().bfloat16().requires_grad_()
    assert len([*parent.parameters()]) == 2 and len(parent.state_dict()) == 2
    assert not parent.detector.network.training
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            after = parent.detector(images.detach(), GENEVAL_NAMES)[0]
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before.scores, after.scores) and after.scores.dtype == torch.float32


def test_name_and_fingerprint(detector: Mask2FormerDetector, folder: Path) -> None:
    assert detector.name == "m2f-swin-8-1.1.1.1-hf"
    assert swin_name(96, [2, 2, 18, 2]) == "s" and swin_name(96, (2, 2, 6, 2)) == "t"
    assert detector.fingerprint == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert Mask2FormerDetector(str(folder), name="mine").name == "mine"
    assert not detector.prescribed_by_geneval


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "float images"),
        (torch.zeros(3, 64, 64), "float images"),
        (torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64), "from -1 to 1: convert them"),
        (torch.full((1, 3, 64, 64), math.nan), "from nan to nan"),
    ],
)
def test_pictures_of_another_kind_are_refused(detector: Mask2FormerDetector, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector(images, GENEVAL_NAMES)


def test_folders_that_are_no_detector_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="there is no folder"):
        Mask2FormerDetector(str(tmp_path / "nowhere"))
    with pytest.raises(MissingWeightsError, match="has 7 classes, not the 80"):
        Mask2FormerDetector(str(save_mask2former(tmp_path / "seven", num_labels=7)))
    with pytest.raises(MissingWeightsError, match="describes 'grounding-dino', expected 'mask2former'"):
        Mask2FormerDetector(str(save_grounding_dino(tmp_path / "dino")))
    pickled = copied(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(MissingWeightsError, match="only pickled weights"):
        Mask2FormerDetector(str(pickled))
    bare = copied(folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(MissingWeightsError, match="holds no preprocessor_config.json"):
        Mask2FormerDetector(str(bare))
    for layers, message in ((4, "they lack"), (1, "they hold beyond it")):
        unfit = copied(folder, tmp_path / f"layers{layers}")
        edit_json(unfit / "config.json", decoder_layers=layers)
        with pytest.raises(MissingWeightsError, match=message):
            Mask2FormerDetector(str(unfit))
    with pytest.raises(ValueError, match="top must be at least 1"):
        Mask2FormerDetector(str(folder), top=0)
