"""Short words in capital letters of five by seven cells: written into pictures, and read out of them again."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["ALPHABET", "CELLS", "GLYPHS", "LONGEST", "word_scale", "write_word"]

Pixels = npt.NDArray[np.float32]

_ROWS: Final = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01111 10000 10000 10011 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "11111 00100 00100 00100 00100 00100 11111",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 11001 10101 10011 10011 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "Q": "01110 10001 10001 10001 10101 10010 01101",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 10001 01010 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
}

GLYPHS: Final = {
    letter: np.array([[cell == "1" for cell in row] for row in rows.split()], np.float32)
    for letter, rows in _ROWS.items()
}
"""Letter -> float32, (7, 5), 1 = ink."""

ALPHABET: Final = "".join(GLYPHS)
"""All letters."""

CELLS: Final = (7, 5)
"""Rows and columns of a glyph; one empty column separates it from the next."""

LONGEST: Final = 5
"""Letters of the longest word: five of them fill 29 of 32 pixels."""


def word_scale(letters: int, size: tuple[int, int]) -> int:
    """Pixels along each side of a cell.

    Args:
        letters: of the word.
        size: height and width of the picture.

    Returns:
        At least 1.
    """
    rows, columns = CELLS[0], letters * (CELLS[1] + 1) - 1
    return max(1, min((size[1] - 2) // columns, (size[0] - 2) // rows // 2))


def write_word(pixels: Pixels, word: str, color: tuple[int, int, int]) -> None:
    """Write a word across the middle of a picture, as large as whole multiples of the glyphs fit.

    Args:
        pixels: float32, (H, W, 3), written to.
        word: capital letters, at most ``LONGEST``.
        color: RGB of 0..255.

    Raises:
        ValueError: a word that is too long, or a letter that is not in ``ALPHABET``.
    """
    if not 1 <= len(word) <= LONGEST or any(letter not in GLYPHS for letter in word):
        raise ValueError(f"a word has 1 to {LONGEST} letters of {ALPHABET}, got {word!r}")
    gap = np.zeros((7, 1), np.float32)
    columns = [part for letter in word for part in (GLYPHS[letter], gap)][:-1]
    ink = np.concatenate(columns, axis=1)
    height, width, _ = pixels.shape
    scale = word_scale(len(word), (height, width))
    ink = ink.repeat(scale, 0).repeat(scale, 1)
    top, left = (height - ink.shape[0]) // 2, (width - ink.shape[1]) // 2
    region = pixels[top : top + ink.shape[0], left : left + ink.shape[1]]
    region += ink[..., None] * (np.array(color, np.float32) - region)
