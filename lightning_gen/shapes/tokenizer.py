"""Prompts as numbers: one per word, one per letter of a quoted word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_gen.shapes.glyphs import ALPHABET
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS, KINDS, NUMBERS, OPENINGS, PLURALS, RELATIONS

__all__ = ["MAX_LENGTH", "ShapesTokenizer"]

MAX_LENGTH: Final = 15
"""Numbers of the longest prompt of the grammar, rounded up."""


def _vocabulary() -> dict[str, int]:
    texts = [*OPENINGS, *RELATIONS, *NUMBERS.values(), *COLORS, *KINDS, *PLURALS.values(), *BACKGROUNDS]
    words = sorted({word for text in texts for word in text.split()} | {"and", "on", "background", "the", "word"})
    return {word: number for number, word in enumerate([*words, '"', *ALPHABET], start=1)}


class ShapesTokenizer:
    """Number 0 is padding; the order of the rest is fixed by the vocabulary.

    Args:
        length: numbers of every row.
    """

    def __init__(self, length: int = MAX_LENGTH) -> None:
        self.length = length
        self._numbers = _vocabulary()

    @property
    def vocabulary_size(self) -> int:
        """Number of different numbers, padding included."""
        return len(self._numbers) + 1

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn prompts into numbers.

        Args:
            prompts: B texts; the empty text is the unconditional prompt.

        Returns:
            int64, (B, length), and its mask, bool, True = a word.

        Raises:
            ValueError: a word that the world does not have, or a prompt that is too long.
        """
        rows = [self._row(prompt) for prompt in prompts]
        numbers = torch.zeros(len(rows), self.length, dtype=torch.int64)
        for place, row in enumerate(rows):
            numbers[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return numbers, numbers > 0

    def _row(self, prompt: str) -> list[int]:
        row = []
        for word in prompt.strip().removesuffix(".").split():
            # A quoted word is spelled in capital letters; everything else is a word in small ones.
            parts = list(word.upper()) if word.startswith('"') else [word.lower()]
            for part in parts:
                if part not in self._numbers:
                    raise ValueError(f"prompt {prompt!r}: the embedded world does not have the word {word!r}")
                row.append(self._numbers[part])
        if len(row) > self.length:
            raise ValueError(f"prompt {prompt!r} has {len(row)} words and letters, at most {self.length} fit")
        return row
