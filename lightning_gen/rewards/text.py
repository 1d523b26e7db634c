"""The OCR reward: how much of the text that a prompt puts in double quotes can be read in the picture.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.metrics.compositional.ocr import PaddleReader, TextReader, ocr_score, quoted_text
from lightning_gen.metrics.judging.http_client import ServerError
from lightning_gen.rewards.applicability import check_batch
from lightning_gen.training.needs import ModelNeeds, WeightNeed

__all__ = ["OCRReward"]

_log = logging.getLogger(__name__)


class OCRReward:
    """How much of the wanted text was read.

    target = text between the first pair of double quotes; both sides in lower case and without spaces
    reward = 1 if the target is part of what was read, else 1 - min(Levenshtein(read, target), |target|) / |target|

    The reader is PaddleOCR in this process, started by ``load`` or by the first picture, ``RemoteTextReader`` (a
    server), or any other with their signature. A picture that a reader in this process fails on scores 0, as in the
    source, and the failure is logged; a server that fails, and a reader that fails on every picture, is an error. Lines
    with a confidence above 0 are joined.

    Prompts without quoted text are not applicable.

    Args:
        reader: reads the text of a picture; None = ``PaddleReader``: PaddleOCR, English, no classifier of angles.
        threads: pictures that are read at a time; 1 for readers in this process, more for a server.

    Raises:
        ValueError: ``threads`` is smaller than 1.

    Source: repository yifan123/flow_grpo, flow_grpo/ocr.py. deviates: a reader that reads nothing at all ends the run.
    """

    def __init__(self, reader: TextReader | None = None, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._reader = reader
        self.threads = threads

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """Whether PaddleOCR is installed, where it is the reader; see ``RewardSuite.needs``."""
        if init_args.get("reader") is not None:
            return ModelNeeds(0)
        found = find_spec("paddleocr") is not None
        hint = "pip install 'lightning-gen[ocr]', or name a reader, for instance lightning_gen.RemoteTextReader"
        return ModelNeeds(0, weights=(WeightNeed("text reader", "PaddleOCR", found, "" if found else hint),))

    def load(self) -> None:
        """Start PaddleOCR, where it is the reader and does not run yet.

        Raises:
            ModuleNotFoundError: paddleocr is not installed.
        """
        if self._reader is None:
            self._reader = PaddleReader()

    @property
    def reader(self) -> TextReader:
        """Reads the text of a picture."""
        self.load()
        assert self._reader is not None
        return self._reader

    @property
    def background(self) -> bool:
        """Whether the reader waits for a server."""
        return bool(getattr(self._reader, "background", False))

    @property
    def fingerprint(self) -> str | None:
        """That of the reader, or its name; None where it has neither."""
        known = getattr(self.reader, "fingerprint", None) or getattr(self.reader, "name", None)
        return None if known is None else f"ocr {known}"

    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """See :class:`SaysWhereItApplies`."""
        try:
            quoted_text(prompt)
        except ValueError as error:
            return str(error)
        return None

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: not used.

        Returns:
            float32, (B,), in [0, 1]; NaN where the prompt quotes nothing.

        Raises:
            ModuleNotFoundError: paddleocr is not installed.
            ServerError: the reader's server failed.
            RuntimeError: the reader failed on every picture.
            ValueError: images, prompts and metadata that do not belong together.
        """
        check_batch(images, prompts, metadata)
        self.load()
        rows = [row for row, prompt in enumerate(prompts) if self.inapplicable(prompt, metadata[row]) is None]
        pictures = [unit_to_uint8(images[row]).cpu() for row in rows]
        with ThreadPoolExecutor(self.threads) as pool:
            texts = list(pool.map(self._read, pictures))
        failures = [text for text in texts if isinstance(text, Exception)]
        if failures and len(failures) == len(rows):
            raise RuntimeError(f"the text reader failed on all of {len(rows)} pictures: {failures[0]}") from failures[0]
        if failures:
            _log.warning("the text reader failed on %d of %d images: %s", len(failures), len(rows), failures[0])
        scores = torch.full((len(images),), torch.nan)
        for row, text in zip(rows, texts, strict=True):
            scores[row] = 0.0 if isinstance(text, Exception) else ocr_score(text, quoted_text(prompts[row]))
        return scores

    def _read(self, picture: Tensor) -> str | Exception:
        try:
            return "".join(line for line, confidence in self.reader(picture) if confidence > 0)
        except (ServerError, ModuleNotFoundError):
            raise
        # Readers fail in ways of their own, and one picture must not end a run that has made thousands.
        except Exception as error:
            return error
