"""Grounding DINO's queries as boxes, on logits whose answer is known, and the detector around a tiny network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics.detection.grounding_dino import (
    GroundingDINODetector,
    boxes_from_queries,
    class_tokens,
    detection_prompt,
)
from lightning_gen.metrics.detectors import check_detections
from tests.harness.tiny_detectors import save_grounding_dino

CLASSES = ("Traffic  light", "toothbrush", "hot dog", "dog")


def logits(*rows: list[float]) -> Tensor:
    """Logits of given probabilities; 0 = no token."""
    return torch.logit(torch.tensor(rows, dtype=torch.float64))


def pictures(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, height // 8, width // 8, generator=generator)
    return (F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1) * 255).round() / 255


def test_a_prompt_and_the_places_of_its_classes() -> None:
    prompt = detection_prompt(CLASSES)
    assert prompt.text == "traffic light. toothbrush. hot dog. dog."
    assert [prompt.text[start:end] for start, end in prompt.spans] == ["traffic light", "toothbrush", "hot dog", "dog"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "at least one"),
        (["cat", " "], "phrase without"),
        (["st. bernard"], "phrase without"),
        (["cat?"], "phrase without"),
        (["cat", "Cat"], "'cat' is asked for twice"),
    ],
)
def test_classes_that_the_network_would_misread_are_refused(classes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detection_prompt(classes)


def test_tokens_of_classes_by_their_place_in_the_text() -> None:
    # [CLS] hot dog . dog . [SEP]
    offsets = [(0, 0), (0, 3), (4, 7), (7, 8), (9, 12), (12, 13), (0, 0)]
    found = class_tokens(offsets, detection_prompt(["hot dog", "dog"]).spans)
    assert found.int().tolist() == [[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]]
    with pytest.raises(ValueError, match="no token for class number 1"):
        class_tokens(offsets[:4], [(0, 7), (9, 12)])


TOKENS = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.bool)
BOX = [0.5, 0.5, 0.2, 0.4]


def test_scores_boxes_and_order_by_hand() -> None:
    shares = logits(
        [0.9, 0.1, 0.4, 0.9, 0.2, 0.9, 0.0],  # class 0 by its second token; what belongs to no class is ignored
        [0.1, 0.1, 0.1, 0.1, 0.7, 0.1, 0.0],
        [0.9, 0.2, 0.1, 0.9, 0.1, 0.9, 0.0],  # nothing, whatever the full stop says
    )
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.4, 0.4], BOX], dtype=torch.float64)
    found = boxes_from_queries(shares, boxes, TOKENS, (100, 200), threshold=0.35, text_threshold=0.25)
    assert found.queries.tolist() == [1, 0] and found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.7, 0.4], rel=1e-12)
    # The second query's box leaves the picture at the left and at the bottom.
    for box, wanted in zip(found.boxes.tolist(), [[0, 70, 60, 100], [80, 30, 120, 70]], strict=True):
        assert box == pytest.approx(wanted, abs=1e-12)


def test_thresholds_are_strict_and_a_query_may_name_two_classes() -> None:
    shares = torch.tensor([[-9.0, -9, 0, -9, 1, -9], [-9, -9, 1, -9, 0, -9], [-9, -9, 0, -9, 0, -9]])
    boxes = torch.tensor([BOX] * 3)
    both = boxes_from_queries(shares, boxes, TOKENS, (8, 8), threshold=0.5, text_threshold=0.4)
    assert [*zip(both.queries.tolist(), both.labels.tolist(), strict=True)] == [(0, 1), (1, 0), (0, 0), (1, 1)]
    one = boxes_from_queries(shares, boxes, TOKENS, (8, 8), threshold=0.5, text_threshold=0.5)
    assert [*zip(one.queries.tolist(), one.labels.tolist(), strict=True)] == [(0, 1), (1, 0)]


def test_equal_scores_keep_the_order_of_the_queries() -> None:
    shares, boxes = torch.full((60, 6), 2.0), torch.tensor([BOX] * 60)
    found = boxes_from_queries(shares, boxes, TOKENS, (8, 8))
    assert (2 * found.queries + found.labels).tolist() == list(range(120))


def test_a_box_outside_of_the_picture_is_dropped() -> None:
    boxes = torch.tensor([[1.2, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.2], BOX])
    found = boxes_from_queries(torch.ones(3, 6), boxes, TOKENS[:1], (8, 8))
    assert found.queries.tolist() == [2]
    nothing = boxes_from_queries(torch.ones(3, 6), boxes, TOKENS, (8, 8), threshold=0.9)
    assert [tuple(part.shape) for part in nothing] == [(0,), (0,), (0,), (0, 4)]


def test_outputs_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need logits \(Q, T\)"):
        boxes_from_queries(torch.ones(3, 6), torch.ones(2, 4), TOKENS, (8, 8))
    with pytest.raises(ValueError, match="6 text tokens, but"):
        boxes_from_queries(torch.ones(3, 5), torch.ones(3, 4), TOKENS, (8, 8))
    with pytest.raises(ValueError, match="NaN"):
        boxes_from_queries(torch.full((1, 6), math.nan), torch.ones(1, 4), TOKENS, (8, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_grounding_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def detector(folder: Path) -> GroundingDINODetector:
    return GroundingDINODetector(str(folder), threshold=0.3, text_threshold=0.3)


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_the_tokenizer_finds_words_and_their_pieces(detector: GroundingDINODetector) -> None:
    prompt = detection_prompt(CLASSES)
    text = detector.tokenizer.encode(prompt.text)
    tokens = class_tokens(text.offsets, prompt.spans)
    found = [[text.tokens[place] for place in row.nonzero().flatten()] for row in tokens]
    assert found == [["traffic", "light"], ["tooth", "##brush"], ["hot", "dog"], ["dog"]]
    assert not (tokens[2] & tokens[3]).any()


@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_pictures_of_two_sizes_against_the_librarys_own_way(
    folder: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    """The network is given what the library gives it, filling included, and its output is read as the library does."""
    from transformers import AutoTokenizer, GroundingDinoImageProcessor, GroundingDinoProcessor

    padded = copied(folder, tmp_path / "padded")
    config = json.loads((padded / "preprocessor_config.json").read_text())
    config |= {"pad_size": {"height": 112, "width": 128}}
    (padded / "preprocessor_config.json").write_text(json.dumps(config))
    detector = GroundingDINODetector(str(padded), threshold=0.0, text_threshold=0.0)
    calls: list[tuple[dict[str, Tensor], Any]] = []
    detector.network.register_forward_hook(
        lambda module, args, given, output: calls.append((given, output)), with_kwargs=True
    )
    images = pictures(2, *size)
    found = detector(images, ["Traffic light"])
    ((given, output),) = calls

    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor(**config, do_pad=True), AutoTokenizer.from_pretrained(folder)
    )
    theirs = processor(
        images=[*(images * 255).round().byte()], text=[["traffic light"]] * 2, return_tensors="pt", padding=True
    )
    assert {*given} == {*theirs}
    for name, tensor in theirs.items():
        assert torch.allclose(given[name].double(), tensor.double(), atol=1e-5), name
    records = processor.post_process_grounded_object_detection(output, threshold=0.0, target_sizes=[size] * 2)
    for number, one in enumerate(found):
        check_detections(one, size, ["Traffic light"])
        assert one.masks is None and set(one.classes) == {"Traffic light"}
        edge = torch.tensor([size[1], size[0]])
        boxes, scores = records[number]["boxes"], records[number]["scores"]
        boxes = torch.cat([boxes[:, :2].clamp(min=0), boxes[:, 2:].minimum(edge)], 1)
        # Their score is the best over all tokens, ours the best of the class.
        own = output.logits[number, :, [1, 2]].sigmoid().amax(1)
        assert 0 < int((own == scores).sum()) < len(own)
        visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
        order = own[visible].argsort(descending=True, stable=True)
        assert len(order) > 5
        assert torch.allclose(one.scores, own[visible][order], rtol=1e-6, atol=0)
        assert torch.allclose(one.boxes, boxes[visible][order], atol=1e-4)


def test_the_librarys_phrases_are_our_classes() -> None:
    names = ["traffic light", "dog"]
    # [CLS] traffic light . dog . [SEP]
    tokens = torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]], dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    shares = torch.full((30, 7), -4.0)
    owner = torch.randint(2, (30,), generator=generator)
    strength = 3 * torch.randn(30, generator=generator)
    shares[tokens[owner]] = strength.repeat_interleave(tokens[owner].sum(1))
    boxes = 0.25 + 0.2 * torch.rand(30, 4, generator=generator)
    ids = torch.tensor([[101, 1, 2, 1012, 3, 1012, 102]])
    words = {1: "traffic", 2: "light", 3: "dog"}

    from transformers import GroundingDinoProcessor

    stub = SimpleNamespace(batch_decode=lambda rows: [" ".join(words[int(i)] for i in row) for row in rows])
    theirs = GroundingDinoProcessor.post_process_grounded_object_detection(
        stub,  # type: ignore[arg-type]
        SimpleNamespace(logits=shares[None], pred_boxes=boxes[None], input_ids=ids),
        threshold=0.4,
        text_threshold=0.3,
        target_sizes=[(100, 60)],
    )[0]
    ours = boxes_from_queries(shares, boxes, tokens, (100, 60), threshold=0.4, text_threshold=0.3)
    order = theirs["scores"].argsort(descending=True, stable=True)
    assert torch.equal(ours.scores, theirs["scores"][order]) and len(order) > 5
    assert torch.allclose(ours.boxes, theirs["boxes"][order], atol=1e-4)
    assert [names[label] for label in ours.labels] == [theirs["text_labels"][place] for place in order]


def test_a_picture_does_not_depend_on_its_batch(detector: GroundingDINODetector) -> None:
    images = pictures(3, 64, 64)
    for number, one in enumerate(detector(images, CLASSES)):
        alone = detector(images[number : number + 1], CLASSES)[0]
        assert one.classes == alone.classes and len(one.classes) > 0
        assert torch.allclose(one.boxes, alone.boxes, atol=1e-3) and torch.allclose(one.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 80), (128, 64)])
def test_names_come_back_as_they_were_asked_for(detector: GroundingDINODetector, size: tuple[int, int]) -> None:
    found = detector(pictures(1, *size), [*CLASSES, *CLASSES])[0]
    check_detections(found, size, CLASSES)
    assert set(found.classes) <= set(CLASSES) and len(set(found.classes)) > 1
    assert detector.name == "gdino-swin-8-1.1.1.1-hf" and len(detector.fingerprint) == 64
    assert not detector.prescribed_by_geneval


def test_scores_do_not_depend_on_the_precision_of_the_run(detector: GroundingDINODetector) -> None:
    images = pictures(1, 64, 64)
    before = detector(images, CLASSES)[0]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            after = detector(images, CLASSES)[0]
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before.scores, after.scores) and after.scores.dtype == torch.float32


def test_more_text_than_the_network_reads_is_refused(detector: GroundingDINODetector) -> None:
    with pytest.raises(ValueError, match="are 35 tokens, the network reads 24: ask for fewer"):
        detector(pictures(1, 64, 64), [f"{'a ' * number}cat" for number in range(1, 6)] + ["a dog", "a light", "light"])


def test_folders_and_thresholds_that_do_not_work_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text_threshold must be in \[0, 1\], got 25"):
        GroundingDINODetector(str(folder), text_threshold=25)
    with pytest.raises(MissingWeightsError, match="there is no folder"):
        GroundingDINODetector(str(tmp_path / "nowhere"))
    other = copied(folder, tmp_path / "other")
    tokenizer = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(
        tokenizer.replace('".": 1012', '".": 1013').replace('"[unused1013]": 1013', '"[unused1013]": 1012')
    )
    with pytest.raises(MissingWeightsError, match="gives '.' the number 1013, the network expects 1012"):
        GroundingDINODetector(str(other))
    (other / "tokenizer.json").write_text("{")
    with pytest.raises(MissingWeightsError, match="not a readable tokenizer"):
        GroundingDINODetector(str(other))
    (other / "tokenizer.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"holds no tokenizer\.json"):
        GroundingDINODetector(str(other))
