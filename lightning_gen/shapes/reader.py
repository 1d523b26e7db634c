"""Reads the words of the embedded world back out of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.shapes.detector import ink_coverage
from lightning_gen.shapes.glyphs import ALPHABET, CELLS, GLYPHS, LONGEST, word_scale

__all__ = ["GlyphReader"]

Floats = npt.NDArray[np.float32]

_TEMPLATES: Final = np.stack([GLYPHS[letter] for letter in ALPHABET])
_SHIFTS: Final = (-2, -1, 0, 1, 2)
"""Pixels by which a word may stand beside its place."""


class GlyphReader:
    """Reads one word of up to five letters, wherever it stands in the picture, in any of the ten colours.

    A word of n letters at scale s and corner p explains the part

        1 - sum_pixels (a - ink)^2 / sum_pixels a^2

    of the picture, a = how much of a pixel is ink. The best n, s, p and letters are taken. It is a text reader for the
    OCR score.

    Args:
        least: words that explain less than this are not read; in [0, 1].
    """

    name = "shapes-glyphs"
    """What it is called in protocol ids."""

    def __init__(self, least: float = 0.55) -> None:
        if not 0 <= least <= 1:
            raise ValueError(f"least is a share in [0, 1], got {least}")
        self.least = least

    @property
    def fingerprint(self) -> str:
        """sha256 of its code: the reader has no weights."""
        files = sorted(Path(__file__).parent.glob("*.py"))
        code = b"".join(path.read_bytes() for path in files if path.stem in ("detector", "glyphs", "reader"))
        return hashlib.sha256(code + str(self.least).encode()).hexdigest()

    def __call__(self, image: Tensor) -> list[tuple[str, float]]:
        """Read a picture.

        Args:
            image: uint8, (3, H, W), or float in [0, 1].

        Returns:
            The word with the share of the picture that it explains; empty where there is no word.

        Raises:
            ValueError: not a picture of three channels.
        """
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"the reader needs one picture, (3, H, W), got {tuple(image.shape)}")
        unit = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        alpha, total = ink_coverage(unit)
        if total == 0:
            return []
        word, gain = max(
            (self._fit(alpha, *place) for place in _places(alpha)), key=lambda fit: fit[1], default=("", 0)
        )
        share = max(gain / total, 0.0)
        return [(word, share)] if word and share >= self.least else []

    @staticmethod
    def _fit(alpha: Floats, letters: int, scale: int, top: int, left: int) -> tuple[str, float]:
        """The best word at a place, and how much smaller the squared error is with it than without."""
        rows, columns = CELLS
        tall, wide = rows * scale, (letters * (columns + 1) - 1) * scale
        part = np.zeros((tall, letters * (columns + 1) * scale), np.float32)
        part[:, :wide] = alpha[top : top + tall, left : left + wide]
        cells = part.reshape(rows, scale, letters, columns + 1, scale).sum((1, 4))[..., :columns]
        # sum a^2 - sum (a - ink)^2 = 2 sum a ink - sum ink^2
        gains = 2 * np.einsum("rnc,lrc->nl", cells, _TEMPLATES) - scale**2 * _TEMPLATES.sum((1, 2))
        best = gains.argmax(1)
        return "".join(ALPHABET[number] for number in best.tolist()), float(gains.max(1).sum())


def _places(alpha: Floats) -> Iterator[tuple[int, int, int, int]]:
    """Letters, scale, first row and first column of the words that may stand in a picture."""
    height, width = alpha.shape
    inked = alpha > 0.5
    down, across = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    seen = set[tuple[int, int, int, int]]()
    for letters in range(1, LONGEST + 1):
        usual = word_scale(letters, (height, width))
        corners: set[tuple[int, tuple[int, int] | None]] = {(usual, None)}
        if len(down):
            measured = max(1, round((down[-1] + 1 - down[0]) / CELLS[0]))
            corners |= {(measured, (int(down[0]), int(across[0])))}
        for scale, corner in corners:
            tall, wide = CELLS[0] * scale, (letters * (CELLS[1] + 1) - 1) * scale
            top, left = corner or ((height - tall) // 2, (width - wide) // 2)
            seen |= {
                (letters, scale, top + y, left + x)
                for y in _SHIFTS
                for x in _SHIFTS
                if 0 <= top + y <= height - tall and 0 <= left + x <= width - wide
            }
    yield from sorted(seen)
