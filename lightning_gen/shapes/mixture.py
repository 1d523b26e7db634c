"""How often what is asked for: the skewed mixture that the base is trained on, and prompts drawn from it.

Some pairs of colour and kind are rare on purpose, so that methods which repair rare compositions have something to do.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np

from lightning_gen.shapes.glyphs import ALPHABET, LONGEST
from lightning_gen.shapes.grammar import Phrase, Request
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS, KINDS, OPENINGS, RELATIONS

__all__ = ["RARE", "RARITY", "TAG_SHARES", "choose", "draw_pair", "draw_request", "draw_tag", "pair_shares"]

T = TypeVar("T")

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
_GROUNDS: Final = tuple(BACKGROUNDS)
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
    shares: np.ndarray[tuple[int], np.dtype[np.float64]] = weights / weights.sum()
    return shares


def choose(generator: np.random.Generator, choices: Sequence[T]) -> T:
    """Draw one of several things, all alike; several times faster than the generator's own ``choice``.

    Args:
        generator: draws it.
        choices: at least one.

    Returns:
        One of them.
    """
    return choices[int(generator.random() * len(choices))]


def draw_pair(generator: np.random.Generator, skewed: bool = True, kind: str | None = None) -> tuple[str, str]:
    """Draw a colour and a kind.

    Args:
        generator: draws it.
        skewed: see :func:`pair_shares`.
        kind: given, where only the colour is drawn.

    Returns:
        Both.
    """
    pairs, ends = _ladder(skewed, kind)
    return pairs[bisect.bisect_right(ends, generator.random() * ends[-1])]


@functools.cache
def _ladder(skewed: bool, kind: str | None) -> tuple[list[tuple[str, str]], list[float]]:
    """The pairs that may come, and the running sum of their shares."""
    shares = dict(zip(_PAIRS, pair_shares(skewed).tolist(), strict=True))
    pairs = [pair for pair in _PAIRS if kind in (None, pair[1])]
    return pairs, list(itertools.accumulate(shares[pair] for pair in pairs))


def draw_tag(generator: np.random.Generator, tags: Sequence[str] = tuple(TAG_SHARES)) -> str:
    """Draw a task by ``TAG_SHARES``.

    Args:
        generator: draws it.
        tags: those that may come.

    Returns:
        One of them.
    """
    ends = list(itertools.accumulate(TAG_SHARES[tag] for tag in tags))
    return tags[bisect.bisect_right(ends, generator.random() * ends[-1])]


def draw_request(generator: np.random.Generator, skewed: bool = True, tag: str | None = None) -> Request:
    """Draw what a picture shall show.

    Args:
        generator: draws everything.
        skewed: whether rare pairs are rare.
        tag: the task; None = by ``TAG_SHARES``.

    Returns:
        The request.
    """
    tag = tag or draw_tag(generator)
    opening = choose(generator, OPENINGS)
    background = choose(generator, _GROUNDS) if generator.random() < _NAMED_BACKGROUND else None
    if tag == "word":
        length = choose(generator, range(2, LONGEST + 1))
        return Request((), word="".join(choose(generator, ALPHABET) for _ in range(length)), opening=opening)
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
            phrases = (Phrase(first, count=choose(generator, (2, 3, 4))),)
        case "color_attr":
            phrases = (Phrase(first, first_color), Phrase(second, second_color))
        case _:
            phrases = (Phrase(first), Phrase(second))
    relation = choose(generator, RELATIONS) if tag == "position" else None
    return Request(phrases, relation, background, opening=opening)
