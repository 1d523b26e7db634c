"""The OCR score: does the image show the text that its prompt puts in double quotes?"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.images import Images, as_uint8_list
from lightning_gen.metrics.protocol import Detail, Measurement
from lightning_gen.metrics.protocol import Protocol as MeasurementProtocol

__all__ = [
    "OCRResult",
    "OCRScore",
    "PaddleReader",
    "TextReader",
    "levenshtein",
    "ocr_score",
    "quoted_text",
    "score_texts",
]

_log = logging.getLogger(__name__)

_QUOTE: Final = '"'


class TextReader(Protocol):
    """Reads the text in a picture."""

    def __call__(self, image: Tensor) -> list[tuple[str, float]]:
        """Read.

        Args:
            image: uint8, (3, H, W).

        Returns:
            Lines in reading order, each with its confidence in [0, 1].
        """
        ...


@dataclasses.dataclass(frozen=True)
class OCRResult:
    """The score of one image.

    Attributes:
        score: in [0, 1].
        text: what was read; empty after an error.
        error: why it could not be read, or empty.
    """

    score: float
    text: str
    error: str = ""


def quoted_text(prompt: str) -> str:
    """What stands between the first pair of double quotes.

    Args:
        prompt: for instance ``a shop with a sign "OPEN"``.

    Returns:
        The text, as it is.

    Raises:
        ValueError: there is no such pair, or nothing but spaces inside it.
    """
    parts = prompt.split(_QUOTE)
    if len(parts) < 3 or not _plain(parts[1]):
        raise ValueError(f"an OCR prompt puts the text to be shown in double quotes; this one does not: {prompt}")
    return parts[1]


def ocr_score(recognised: str, target: str) -> float:
    """How much of the target was read.

    1 if the target is part of what was read, else 1 - min(Levenshtein(read, target), |target|) / |target|,
    both without spaces and in lower case

    Args:
        recognised: all lines of the picture, joined.
        target: what it should show.

    Returns:
        In [0, 1].

    Raises:
        ValueError: a target of nothing but spaces.

    Source: repository yifan123/flow_grpo, flow_grpo/ocr.py.
    """
    read, wanted = _plain(recognised), _plain(target)
    if not wanted:
        raise ValueError("the target text is empty")
    distance = 0 if wanted in read else levenshtein(read, wanted)
    return 1 - min(distance, len(wanted)) / len(wanted)


def levenshtein(first: str, second: str) -> int:
    """The least number of letters to insert, delete or replace.

    Args:
        first: a text.
        second: another.

    Returns:
        At least 0.
    """
    previous = list(range(len(second) + 1))
    for row, letter in enumerate(first, 1):
        current = [row]
        for column, other in enumerate(second, 1):
            replace = previous[column - 1] + (letter != other)
            current.append(min(replace, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


def score_texts(reader: TextReader, images: Images, prompts: Sequence[str]) -> list[OCRResult]:
    """Read images and score them.

    All lines with a confidence above 0 are joined without a space. A picture that the reader fails on scores 0; the
    result says why, and the first failure of a call is logged.

    Args:
        reader: reads the text.
        images: uint8, (B, 3, H, W) or B images of any sizes.
        prompts: B prompts with the text in double quotes.

    Returns:
        B results.

    Raises:
        ValueError: numbers of images and prompts differ, an image is not uint8, or a prompt quotes nothing.
    """
    pictures = as_uint8_list(images)
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} images, {len(prompts)} prompts")
    targets = [quoted_text(prompt) for prompt in prompts]
    results = []
    for picture, target in zip(pictures, targets, strict=True):
        try:
            text = "".join(line for line, confidence in reader(picture) if confidence > 0)
            results.append(OCRResult(ocr_score(text, target), text))
        # Readers fail in ways of their own, and one picture must not end a run that has made thousands.
        except Exception as error:
            results.append(OCRResult(0.0, "", f"{type(error).__name__}: {error}"))
    errors = [result.error for result in results if result.error]
    if errors:
        _log.warning("the text reader failed on %d of %d images: %s", len(errors), len(results), errors[0])
    return results


class OCRScore(CountedOnce):
    """The mean of ``ocr_score`` over images.

    Args:
        reader_name: name of the reader; it names the protocol.
        details: what else decides the number.
    """

    columns = ("score", "error")

    def __init__(self, reader_name: str, details: Mapping[str, Detail] | None = None) -> None:
        super().__init__()
        self.reader_name = MeasurementProtocol("ocr", reader_name).method
        self.details = dict(details or {})

    def update(
        self, results: Sequence[OCRResult], prompts: Sequence[int] | Tensor, samples: Sequence[int] | Tensor
    ) -> None:
        """Count images.

        Args:
            results: of B images.
            prompts: number of the prompt of each.
            samples: number of each among those of its prompt. An image that was counted is not counted again.

        Raises:
            ValueError: the three differ in number.
        """
        rows = torch.tensor([[result.score, bool(result.error)] for result in results], dtype=torch.float64)
        self.count(prompts, samples, rows.reshape(len(results), 2))

    def compute(self) -> Tensor:
        """The mean over all images of all ranks.

        Returns:
            float64 scalar in [0, 1]; NaN if none was counted.
        """
        return self.table()[:, 2].mean()

    def measurements(self) -> list[Measurement]:
        """The mean with its standard error and protocol.

        Returns:
            One measurement; its note says how many pictures could not be read, each of which counts 0.
        """
        with self.on_all_ranks():
            table, repeats = self.table(), self.num_repeats
        scores, errors = table[:, 2], int(table[:, 3].sum())
        protocol = MeasurementProtocol(
            "ocr", self.reader_name, len(scores), details={**self.details, "errors": errors, "repeats": repeats}
        )
        error = float(scores.std()) / len(scores) ** 0.5 if len(scores) > 1 else None
        note = f"{errors} of {len(scores)} images could not be read and count 0" if errors else ""
        return [Measurement(float(scores.mean()), protocol, error, note=note)]


class PaddleReader:
    """PaddleOCR, releases 2 and 3, English by default, without a classifier of the angle.

    Release 3 also turns and flattens whole documents unless it is told not to; here it is. Its models of detection and
    recognition are others than those of release 2 all the same, so the two may read one picture differently.

    Args:
        language: PaddleOCR's name of the language.

    Raises:
        ModuleNotFoundError: paddleocr is not installed.
    """

    def __init__(self, language: str = "en") -> None:
        try:
            import paddleocr
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"reading text needs PaddleOCR ({error}): pip install 'lightning-gen[ocr]'"
            ) from None
        self.name = f"paddleocr-{paddleocr.__version__}-{language}"
        self._second = int(paddleocr.__version__.split(".")[0]) < 3
        third = ("use_doc_orientation_classify", "use_doc_unwarping", "use_textline_orientation")
        options = dict.fromkeys(("use_angle_cls", "show_log") if self._second else third, False)
        self._engine: Any = paddleocr.PaddleOCR(lang=language, **options)

    def __call__(self, image: Tensor) -> list[tuple[str, float]]:
        """Read a picture.

        Args:
            image: uint8, (3, H, W).

        Returns:
            Lines with their confidences.
        """
        pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
        if self._second:
            found = self._engine.ocr(pixels, cls=False)[0] or []
            return [(str(text), float(confidence)) for _, (text, confidence) in found]
        return [
            (str(text), float(confidence))
            for page in self._engine.predict(pixels)
            for text, confidence in zip(page["rec_texts"], page["rec_scores"], strict=True)
        ]


def _plain(text: str) -> str:
    return text.replace(" ", "").lower()
