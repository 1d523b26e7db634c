"""How often what is asked for: the skewed mixture that the base is trained on, and prompts drawn from it.

Some pairs of colour and kind are rare on purpose, so that methods which repair rare compositions have something to do.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np

from lightning_gen.shapes.glyphs import ALPHABET, LONGEST
from lightning_gen.shapes.grammar import Phrase, Request
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS, KINDS, OPENINGS, RELATIONS

__all__ = ["RARE", "RARITY", "TAG_SHARES", "draw_pair", "draw_request", "pair_shares"]

RARE: Final = (
    ("purple", "square"),
    ("green", "star"),
    ("black", "moon"),
    ("white", "triangle"),
    ("pink", "cross"),
    ("brown", "ring"),
    ("blue", "triangle"),
    ("red", "moon"),
    ("orange", "diamond"),
    ("yellow", "ring"),
    ("purple", "circle"),
    ("brown", "star"),
)
"""Colour and kind of the pairs that hardly ever occur together."""

RARITY: Final = 1 / 50
"""How often a rare pair comes, seen from a common one."""

TAG_SHARES: Final = {
    "single_object": 0.1,
    "two_object": 0.15,
    "counting": 0.2,
    "colors": 0.15,
    "position": 0.18,
    "color_attr": 0.18,
    "word": 0.04,
}
"""Shares of the tasks among the prompts of the mixture."""

_NAMED_BACKGROUND: Final = 0.3
_PAIRS: Final = tuple((color, kind) for color in COLORS for kind in KINDS)


@functools.cache
def pair_shares(skewed: bool = True) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How often each pair of colour and kind occurs.

    Args:
        skewed: False = all alike.

    Returns:
        float64, (80,), colours outside, kinds inside; the sum is 1.
    """
    weights = np.array([RARITY if skewed and pair in RARE else 1.0 for pair in _PAIRS])
    return weights / weights.sum()


def draw_pair(generator: np.random.Generator, skewed: bool = True, kind: str | None = None) -> tuple[str, str]:
    """Draw a colour and a kind.

    Args:
        generator: draws it.
        skewed: see :func:`pair_shares`.
        kind: given, where only the colour is drawn.

    Returns:
        Both.
    """
    shares = pair_shares(skewed)
    if kind is not None:
        shares = shares * np.array([pair[1] == kind for pair in _PAIRS])
        shares = shares / shares.sum()
    return _PAIRS[int(generator.choice(len(_PAIRS), p=shares))]


def draw_request(generator: np.random.Generator, skewed: bool = True, tag: str | None = None) -> Request:
    """Draw what a picture shall show.

    Args:
        generator: draws everything.
        skewed: whether rare pairs are rare.
        tag: the task; None = by ``TAG_SHARES``.

    Returns:
        The request.
    """
    tag = tag or str(generator.choice(list(TAG_SHARES), p=list(TAG_SHARES.values())))
    opening = str(generator.choice(OPENINGS))
    background = str(generator.choice(list(BACKGROUNDS))) if generator.random() < _NAMED_BACKGROUND else None
    if tag == "word":
        letters = generator.choice(list(ALPHABET), int(generator.integers(2, LONGEST + 1)))
        return Request((), word="".join(letters), opening=opening)
    (first_color, first), (second_color, second) = (draw_pair(generator, skewed) for _ in range(2))
    while tag in ("two_object", "position") and second == first:
        second_color, second = draw_pair(generator, skewed)
    while tag == "color_attr" and (second == first or second_color == first_color):
        second_color, second = draw_pair(generator, skewed)
    match tag:
        case "single_object":
            phrases: tuple[Phrase, ...] = (Phrase(first),)
        case "colors":
            phrases = (Phrase(first, first_color),)
        case "counting":
            phrases = (Phrase(first, count=int(generator.integers(2, 5))),)
        case "color_attr":
            phrases = (Phrase(first, first_color), Phrase(second, second_color))
        case _:
            phrases = (Phrase(first), Phrase(second))
    relation = str(generator.choice(RELATIONS)) if tag == "position" else None
    return Request(phrases, relation, background, opening=opening)
