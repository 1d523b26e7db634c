from __future__ import annotations

import logging
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.compositional.ocr import (
    OCRResult,
    OCRScore,
    PaddleReader,
    levenshtein,
    ocr_score,
    quoted_text,
    score_texts,
)

PICTURE = torch.zeros(3, 8, 12, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_levenshtein(first: str, second: str, distance: int) -> None:
    assert levenshtein(first, second) == levenshtein(second, first) == distance


def test_letters_count_without_spaces_and_case() -> None:
    assert ocr_score("hello" + "WORLD", "Hello World") == 1
    assert ocr_score("The sign says: HELLO  world!", "Hello World") == 1


def test_unrelated_long_text_scores_0_and_never_less() -> None:
    assert ocr_score("x" * 500, "Hello World") == 0
    assert ocr_score("", "Hello World") == 0


def test_the_score_falls_with_the_distance_relative_to_the_target() -> None:
    assert ocr_score("helo", "hello") == pytest.approx(4 / 5)
    # 10 letters without the space: one wrong letter costs a tenth.
    assert ocr_score("hellx world", "Hello World") == pytest.approx(9 / 10)
    # Eight letters more than the target, and the target is not part of them.
    assert ocr_score("helxlo" + "abcde", "hello") == 0


def test_an_empty_target_is_an_error() -> None:
    with pytest.raises(ValueError, match="target text is empty"):
        ocr_score("a", "  ")


def test_the_first_quoted_text_counts() -> None:
    assert quoted_text('a shop "OPEN now" beside "closed"') == "OPEN now"
    assert quoted_text('"" nothing'.replace('""', '"x"')) == "x"


@pytest.mark.parametrize("prompt", ["a shop", 'a "shop', 'a "" shop', 'a "  " shop and "more"', "a 'shop'"])
def test_a_prompt_without_quoted_text_is_an_error(prompt: str) -> None:
    with pytest.raises(ValueError, match="in double quotes; this one does not: "):
        quoted_text(prompt)


def test_lines_are_joined_without_those_of_no_confidence() -> None:
    lines = [("Hello", 0.9), ("junk", 0.0), ("World", 0.01)]
    (result,) = score_texts(lambda image: lines, [PICTURE], ['a sign "hello world"'])
    assert result == OCRResult(1.0, "HelloWorld")


def test_a_picture_that_cannot_be_read_scores_0_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    def reader(image: Tensor) -> list[tuple[str, float]]:
        if int(image.max()):
            raise RuntimeError("no memory")
        return [("a", 1.0)]

    with caplog.at_level(logging.WARNING):
        good, bad = score_texts(reader, [PICTURE, PICTURE + 1], ['"a"', '"a"'])
    assert (good.score, good.error) == (1, "") and (bad.score, bad.error) == (0, "RuntimeError: no memory")
    assert "failed on 1 of 2 images: RuntimeError: no memory" in caplog.text


def test_what_is_not_scored_at_all() -> None:
    with pytest.raises(ValueError, match="1 images, 2 prompts"):
        score_texts(lambda image: [], [PICTURE], ['"a"', '"b"'])
    with pytest.raises(ValueError, match="uint8"):
        score_texts(lambda image: [], [torch.rand(3, 8, 8)], ['"a"'])
    with pytest.raises(ValueError, match="double quotes"):
        score_texts(lambda image: [], [PICTURE], ["a"])


def test_the_metric_is_the_mean_over_images_each_counted_once() -> None:
    metric = OCRScore("toy")
    metric.update([OCRResult(1.0, ""), OCRResult(0.5, "")], [0, 0], [0, 1])
    metric.update([OCRResult(0.5, ""), OCRResult(0.0, "", "broken")], [0, 1], [1, 0])
    assert float(metric.compute()) == pytest.approx(0.5)
    (one,) = metric.measurements()
    assert one.protocol.id == "ocr/toy" and one.protocol.count == 3
    assert one.protocol.details == {"errors": 1, "repeats": 1}
    assert one.note == "1 of 3 images could not be read and count 0"
    assert one.error == pytest.approx(0.5 / 3**0.5)


# ------------------------------------------------------------------ PaddleOCR, as its two releases answer


def fake_paddle(monkeypatch: pytest.MonkeyPatch, version: str, answer: Any) -> list[Any]:
    calls: list[Any] = []

    class PaddleOCR:
        def __init__(self, **options: Any) -> None:
            calls.append(options)

        def ocr(self, pixels: Any, cls: bool) -> Any:
            calls.append((pixels.shape, str(pixels.dtype), cls))
            return answer

        def predict(self, pixels: Any) -> Any:
            calls.append((pixels.shape, str(pixels.dtype)))
            return answer

    module = types.ModuleType("paddleocr")
    module.__version__ = version  # type: ignore[attr-defined]
    module.PaddleOCR = PaddleOCR  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "paddleocr", module)
    return calls


def test_release_2(monkeypatch: pytest.MonkeyPatch) -> None:
    corners = [[0, 0], [1, 0], [1, 1], [0, 1]]
    calls = fake_paddle(monkeypatch, "2.9.1", [[[corners, ("OPEN", 0.98)], [corners, ("late", 0.5)]]])
    reader = PaddleReader()
    assert reader(PICTURE) == [("OPEN", 0.98), ("late", 0.5)]
    assert reader.name == "paddleocr-2.9.1-en"
    assert calls == [{"lang": "en", "use_angle_cls": False, "show_log": False}, ((8, 12, 3), "uint8", False)]


def test_release_2_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_paddle(monkeypatch, "2.9.1", [None])
    assert PaddleReader()(PICTURE) == []


def test_release_3(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_paddle(monkeypatch, "3.1.0", [{"rec_texts": ["OPEN", "late"], "rec_scores": [0.98, 0.5]}])
    assert PaddleReader("fr")(PICTURE) == [("OPEN", 0.98), ("late", 0.5)]
    off = {"use_doc_orientation_classify": False, "use_doc_unwarping": False, "use_textline_orientation": False}
    assert calls == [{"lang": "fr", **off}, ((8, 12, 3), "uint8")]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paddleocr", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-gen\[ocr\]'"):
        PaddleReader()
