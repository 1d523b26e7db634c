"""GenEval from a folder on disk: pictures of coloured rectangles, and a detector that finds exactly those.

A class is the shape of a rectangle: a ``cup`` is 8 x 8 pixels, a ``bench`` 16 x 8, a ``clock`` 8 x 16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_gen.data.quarantine import DataError
from lightning_gen.interfaces import Detections
from lightning_gen.metrics.compositional.geneval_folder import (
    GenEvalReport,
    IncompleteError,
    evaluate_geneval,
    find_samples,
    read_sample,
)
from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules
from lightning_gen.metrics.geneval import TAGS

RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
SHAPES = {"cup": (8, 8), "bench": (16, 8), "clock": (8, 16)}

Thing = tuple[str, str, int, int]
"""Class, colour, left, top."""


class RectangleDetector:
    """Finds single-coloured rectangles on black that do not touch."""

    name = "rectangles"
    fingerprint = "0" * 64

    def __init__(self, score: float = 0.95) -> None:
        self.score = score
        self.batches: list[int] = []

    def __call__(self, images: Tensor, classes: Sequence[str]) -> list[Detections]:
        assert list(classes) == list(SHAPES)
        self.batches.append(len(images))
        return [self._objects(image) for image in images]

    def _objects(self, image: Tensor) -> Detections:
        left = image.sum(0) > 0
        boxes, names, masks = [], [], []
        while bool(left.any()):
            y, x = (int(value) for value in left.nonzero()[0])
            color = image[:, y, x]
            same = (image == color[:, None, None]).all(0)
            width = int(same[y, x:].int().cumprod(0).sum())
            height = int(same[y:, x].int().cumprod(0).sum())
            mask = torch.zeros_like(left)
            mask[y : y + height, x : x + width] = True
            left &= ~mask
            boxes.append([x, y, x + width, y + height])
            names.append(next(name for name, shape in SHAPES.items() if shape == (width, height)))
            masks.append(mask)
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.full((len(boxes),), self.score),
            tuple(names),
            torch.stack(masks) if masks else torch.zeros(0, *left.shape, dtype=torch.bool),
        )


def name_colors(image: Tensor, boxes: Tensor, masks: Tensor | None, class_name: str) -> list[str]:
    """The colour under each mask, which must be of the class's shape."""
    assert image.dtype == torch.uint8 and masks is not None and class_name in SHAPES
    assert all(int(mask.sum()) == math.prod(SHAPES[class_name]) for mask in masks)
    by_value = {value: name for name, value in RGB.items()}
    return [by_value[tuple(image[:, mask][:, 0].tolist())] for mask in masks]


def draw(things: Sequence[Thing], width: int = 96, height: int = 48) -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = np.zeros((height, width, 3), np.uint8)
    for name, color, x, y in things:
        w, h = SHAPES[name]
        pixels[y : y + h, x : x + w] = RGB[color]
    return pixels


def record(tag: str, *include: dict[str, Any], exclude: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    more = {} if exclude is None else {"exclude": exclude}
    return {"tag": tag, "include": list(include), **more, "prompt": f"a picture for {tag}"}


def clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def cups(number: int, color: str = "red") -> list[Thing]:
    return [("cup", color, 12 * i, 4) for i in range(number)]


# Per prompt: its record, its four pictures, and which of them show what was asked for.
WORLD: list[tuple[dict[str, Any], list[list[Thing]], list[bool]]] = [
    (
        record("single_object", clause("cup")),
        [cups(1), cups(3), [], [("clock", "red", 0, 0)]],
        [True, True, False, False],
    ),
    (
        record("two_object", clause("cup"), clause("clock")),
        [cups(1), [*cups(1), ("clock", "blue", 40, 4)], [("clock", "red", 0, 0)], []],
        [False, True, False, False],
    ),
    (
        record("counting", clause("cup", 3), exclude=[clause("cup", 4)]),
        [cups(2), cups(3), cups(4), cups(3, "blue")],
        [False, True, False, True],
    ),
    (
        record("colors", clause("bench", color="red")),
        [
            [("bench", "red", 0, 0)],
            [("bench", "blue", 0, 0)],
            [("bench", "red", 40, 30)],
            [("bench", "red", 3, 3), ("cup", "blue", 40, 3)],
        ],
        [True, False, True, True],
    ),
    (
        record("position", clause("cup"), clause("clock", position=["left of", 0])),
        [
            [("cup", "red", 60, 8), ("clock", "red", 10, 8)],
            [("cup", "red", 10, 8), ("clock", "red", 60, 8)],
            [("cup", "red", 40, 2), ("clock", "red", 40, 25)],
            [("clock", "red", 10, 8)],
        ],
        [True, False, False, False],
    ),
    (
        record("color_attr", clause("cup", color="green"), clause("bench", color="white")),
        [
            [("cup", "green", 0, 0), ("bench", "white", 40, 0)],
            [("cup", "white", 0, 0), ("bench", "green", 40, 0)],
            [("cup", "green", 0, 0), ("bench", "red", 40, 0)],
            [("cup", "green", 0, 0), ("bench", "white", 40, 0)],
        ],
        [True, False, False, True],
    ),
]

# 2/4, 1/4, 2/4, 3/4, 1/4 and 2/4 of the tags in the order of TAGS.
ACCURACY = [0.5, 0.25, 0.5, 0.75, 0.25, 0.5]
# Missing: 2 of single_object, 3 of two_object, 1 of counting, 1 of position (which has no target then).
FAILURES = {"missing": 7, "too_many": 1, "excluded": 0, "color": 3, "position": 2, "no_target": 1}


def save(root: Path, number: int, entry: dict[str, Any], pictures: Sequence[Sequence[Thing]]) -> None:
    samples = root / f"{number:05d}" / "samples"
    samples.mkdir(parents=True)
    (samples.parent / "metadata.jsonl").write_text(json.dumps(entry))
    for sample, things in enumerate(pictures):
        Image.fromarray(draw(things)).save(samples / f"{sample:04d}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number, (entry, pictures, _) in enumerate(WORLD):
        save(root, number, entry, pictures)
        # The benchmark's own script puts an overview there.
        Image.fromarray(draw([])).save(root / f"{number:05d}" / "grid.png")
    (root / "notes").mkdir()
    return root


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry, _, _ in WORLD))
    return path


def evaluate(folder: Path, **options: Any) -> GenEvalReport:
    return evaluate_geneval(folder, RectangleDetector(), name_colors, classes=tuple(SHAPES), **options)


# ------------------------------------------------------------------ end to end


def test_a_folder_is_scored_as_computed_by_hand(folder: Path, metadata: Path) -> None:
    report = evaluate(folder, metadata=metadata)
    assert [result.correct for _, result in report.results] == [one for _, _, correct in WORLD for one in correct]
    by_id = {one.protocol.id: one.value for one in report.measurements}
    assert [by_id[f"geneval-style:{tag}/rectangles"] for tag in TAGS] == ACCURACY
    assert by_id["geneval-style@24/rectangles"] == report.overall == pytest.approx(sum(ACCURACY) / 6)
    assert by_id["geneval-style:images/rectangles"] == pytest.approx(11 / 24)
    assert by_id["geneval-style:prompts/rectangles"] == 1
    assert report.failures == FAILURES
    assert report.problems == ()


def test_the_report_names_detector_rules_and_prompts(folder: Path, metadata: Path) -> None:
    import hashlib

    report = evaluate(folder, metadata=metadata, details={"seed": 5})
    card = report.to_json()["measurements"][0]["protocol"]
    assert card["id"] == "geneval-style@24/rectangles"
    expected = {"threshold": 0.3, "counting_threshold": 0.9, "max_objects": 16, "max_overlap": 1.0, "seed": 5}
    assert expected.items() <= card["details"].items()
    assert card["details"]["prompts_sha256"] == hashlib.sha256(metadata.read_bytes()).hexdigest()
    assert card["details"]["detector_sha256"] == "0" * 64
    assert "GenEval-style" in report.measurements[0].note
    json.dumps(report.to_json())


def test_without_the_list_of_prompts_the_folders_own_records_count(folder: Path) -> None:
    assert evaluate(folder).overall == pytest.approx(sum(ACCURACY) / 6)


def test_without_own_records_the_list_of_prompts_counts(folder: Path, metadata: Path) -> None:
    for path in folder.glob("*/metadata.jsonl"):
        path.unlink()
    assert evaluate(folder, metadata=metadata).overall == pytest.approx(sum(ACCURACY) / 6)


def test_the_rules_can_be_changed(folder: Path) -> None:
    report = evaluate(folder, rules=GenEvalRules(counting_threshold=0.99))
    assert report.measurements[1 + TAGS.index("counting")].value == 0
    assert report.measurements[0].protocol.details["counting_threshold"] == 0.99


def test_a_detector_that_is_not_sure_enough_finds_nothing(folder: Path) -> None:
    report = evaluate_geneval(folder, RectangleDetector(0.3), name_colors, classes=tuple(SHAPES))
    assert report.overall == 0 and report.failures["missing"] == 24


def test_results_are_written_in_the_format_of_the_benchmarks_script(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "results.jsonl"
    evaluate(folder, results=path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(rows[0]) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert len(rows) == 24 and [path.name] == [other.name for other in path.parent.iterdir()]
    assert rows[0]["filename"] == str(folder / "00000" / "samples" / "0000.png")
    assert rows[0]["correct"] is True and rows[0]["reason"] == ""
    assert json.loads(rows[0]["metadata"]) == WORLD[0][0]
    (cup,) = json.loads(rows[0]["details"])["cup"]
    assert cup[:4] == [0, 4, 8, 12] and cup[4] == pytest.approx(0.95)
    assert rows[2]["reason"] == "1 cup wanted, 0 found" and rows[2]["correct"] is False
    # What the benchmark's summary computes from these columns.
    share = [np.mean([row["correct"] for row in rows if row["tag"] == tag]) for tag in TAGS]
    assert share == ACCURACY
    groups = {row["metadata"]: 0 for row in rows}
    for row in rows:
        groups[row["metadata"]] |= row["correct"]
    assert len(groups) == 6 and all(groups.values())


def test_progress_is_told(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(folder, progress=lambda *what: told.append(what), batch_size=10)
    assert told == [("scoring pictures", done, 24) for done in (10, 20, 24)]


def test_pictures_of_one_size_share_a_call(folder: Path) -> None:
    other = folder / "00000" / "samples" / "0001.png"
    Image.fromarray(draw(cups(3), width=64)).save(other)
    detector = RectangleDetector()
    report = evaluate_geneval(folder, detector, name_colors, classes=tuple(SHAPES), batch_size=12)
    assert sorted(detector.batches) == [1, 11, 12]
    assert report.overall == pytest.approx(sum(ACCURACY) / 6)


def test_the_size_of_batches_does_not_matter(folder: Path) -> None:
    expected = evaluate(folder, batch_size=100).measurements
    assert all(evaluate(folder, batch_size=size).measurements == expected for size in (1, 7))


def test_pictures_are_turned_upright(folder: Path) -> None:
    things: list[Thing] = [("cup", "red", 60, 8), ("clock", "red", 10, 8)]
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(draw(things), -1)))
    exif = Image.Exif()
    exif[0x0112] = 8
    path = folder / "00004" / "samples" / "0000.png"
    stored.save(path, exif=exif)
    assert torch.equal(read_sample(path), torch.from_numpy(draw(things)).permute(2, 0, 1))
    assert evaluate(folder).overall == pytest.approx(sum(ACCURACY) / 6)


# ------------------------------------------------------------------ what is wrong with a folder


def test_a_missing_picture_is_an_error_or_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "00002" / "samples" / "0003.png").unlink()
    with pytest.raises(DataError, match='00002/samples has 3 pictures instead of 4; incomplete="warn"'):
        evaluate(folder)
    report = evaluate(folder, incomplete="warn")
    assert report.problems == ("00002/samples has 3 pictures instead of 4",)
    assert "00002/samples has 3 pictures instead of 4" in caplog.text
    assert report.measurements[1 + TAGS.index("counting")].value == pytest.approx(1 / 3)
    assert evaluate(folder, samples_per_prompt=None).problems == ()


def test_a_picture_too_many_is_noticed(folder: Path) -> None:
    Image.fromarray(draw([])).save(folder / "00002" / "samples" / "0004.png")
    with pytest.raises(DataError, match="00002/samples has 5 pictures instead of 4"):
        evaluate(folder)


def test_a_prompt_without_a_folder_is_noticed(folder: Path, metadata: Path) -> None:
    with metadata.open("a") as file:
        file.write(json.dumps(record("colors", clause("cup", color="red"))) + "\n")
    with pytest.raises(DataError, match="prompt 6 has no folder"):
        evaluate(folder, metadata=metadata)
    assert evaluate(folder, metadata=metadata, incomplete="warn").problems == ("prompt 6 has no folder",)


def test_a_prompt_without_pictures_is_noticed(folder: Path) -> None:
    for path in (folder / "00001" / "samples").iterdir():
        path.unlink()
    for samples in (4, None):
        _, problems = find_samples(folder, samples_per_prompt=samples)
        assert problems == [f"00001/samples has 0 pictures instead of {samples or 1}"]
    (folder / "00001" / "samples").rmdir()
    report = evaluate(folder, incomplete="warn")
    assert math.isnan(report.overall)
    assert report.measurements[0].note.startswith("no overall score without images of two_object")


def test_many_problems_are_summed_up(folder: Path) -> None:
    with pytest.raises(DataError, match=r"00004/samples has 4 pictures instead of 5 and 1 more"):
        evaluate(folder, samples_per_prompt=5)


def test_a_missing_record_is_an_error(folder: Path) -> None:
    (folder / "00003" / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"00003/metadata.jsonl is missing: write it, or give"):
        evaluate(folder)


def test_a_folder_that_was_made_from_other_prompts_is_an_error(folder: Path, metadata: Path) -> None:
    lines = metadata.read_text().splitlines()
    metadata.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(DataError, match="were the pictures made from another list"):
        evaluate(folder, metadata=metadata)
    metadata.write_text("\n".join(lines[:5]))
    with pytest.raises(DataError, match="00005 has no prompt: .* has 5, counted from 0"):
        evaluate(folder, metadata=metadata)


def test_a_wrong_record_is_named(folder: Path) -> None:
    path = folder / "00003" / "metadata.jsonl"
    path.write_text(json.dumps(record("colors", clause("cup", color="mauve"))))
    with pytest.raises(DataError, match=r"00003/metadata.jsonl line 1: include\[0\] has the unknown color 'mauve'"):
        evaluate(folder)
    path.write_text(json.dumps(record("colors", clause("sofa"))))
    with pytest.raises(DataError, match="'sofa', which the detector does not know"):
        evaluate(folder)
    path.write_text((json.dumps(WORLD[0][0]) + "\n") * 2)
    with pytest.raises(DataError, match="must hold one record, it has 2"):
        evaluate(folder)


def test_a_damaged_picture_is_named(folder: Path) -> None:
    path = folder / "00003" / "samples" / "0001.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"00003/samples/0001.png cannot be used"):
        evaluate(folder)


def test_two_pictures_of_one_number_are_an_error(folder: Path) -> None:
    Image.fromarray(draw([])).save(folder / "00003" / "samples" / "1.jpg")
    with pytest.raises(DataError, match="picture 1 twice: 0001.png and 1.jpg"):
        evaluate(folder)


def test_two_folders_of_one_number_are_an_error(folder: Path) -> None:
    save(folder / "twice", 3, WORLD[3][0], WORLD[3][1])
    (folder / "twice" / "00003").rename(folder / "3")
    with pytest.raises(DataError, match="prompt 3 twice: 00003 and 3"):
        find_samples(folder)


def test_names_that_only_look_like_numbers_are_not_looked_at(folder: Path) -> None:
    (folder / "\u00b2").mkdir()
    (folder / "\u0662").mkdir()
    Image.fromarray(draw([])).save(folder / "00003" / "samples" / "\u0661.png")
    assert len(find_samples(folder)[0]) == 24


def test_an_incomplete_folder_says_so_without_the_argument(folder: Path) -> None:
    (folder / "00002" / "samples" / "0003.png").unlink()
    with pytest.raises(IncompleteError) as caught:
        evaluate(folder)
    assert caught.value.summary == f"{folder} is not complete: 00002/samples has 3 pictures instead of 4"


def test_what_is_no_such_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        evaluate(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        evaluate(tmp_path / "empty")
    with pytest.raises(ValueError, match="batch_size is at least 1"):
        evaluate(folder, batch_size=0)


def test_a_failed_run_leaves_no_results(folder: Path, tmp_path: Path) -> None:
    (folder / "00005" / "samples" / "0003.png").write_bytes(b"")
    with pytest.raises(DataError):
        evaluate(folder, results=tmp_path / "results.jsonl")
    assert not (tmp_path / "results.jsonl").exists()
