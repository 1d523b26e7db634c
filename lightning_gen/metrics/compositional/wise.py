"""WISE: scores of prompts that need world knowledge, from a judge's marks. Two protocols, never to be mixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["CATEGORIES", "LEGACY_WEIGHTS", "VERIFIED_WEIGHTS", "wise_category", "wise_overall", "wise_score"]

_LAST_ID: Final = {"culture": 400, "time": 520, "space": 640, "biology": 760, "physics": 880, "chemistry": 1000}

CATEGORIES: Final = tuple(_LAST_ID)
"""The six categories in the order of the prompts."""

LEGACY_WEIGHTS: Final[Mapping[str, float]] = {
    "culture": 0.4,
    "time": 0.167,
    "space": 0.133,
    **dict.fromkeys(("biology", "physics", "chemistry"), 0.1),
}
"""Weights of the first protocol, whose prompts are marked 0 to 2 three times."""

VERIFIED_WEIGHTS: Final[Mapping[str, float]] = {name: 0.4 if name == "culture" else 0.12 for name in CATEGORIES}
"""Weights of WISE_Verified, whose prompts pass or fail."""


def wise_category(prompt_id: int) -> str:
    """The category of a prompt.

    Args:
        prompt_id: 1 to 1000.

    Returns:
        One of ``CATEGORIES``.

    Raises:
        ValueError: no prompt has this id.
    """
    if not 1 <= prompt_id <= 1000:
        raise ValueError(f"WISE's prompts are numbered from 1 to 1000, got {prompt_id}")
    return next(name for name, last in _LAST_ID.items() if prompt_id <= last)


def wise_score(consistency: float, realism: float, aesthetic: float) -> float:
    """WiScore of one image in the first protocol.

    (0.7 consistency + 0.2 realism + 0.1 aesthetic) / 2

    Args:
        consistency: the judge's mark, 0 to 2.
        realism: 0 to 2.
        aesthetic: 0 to 2.

    Returns:
        In [0, 1].

    Raises:
        ValueError: a mark outside its range.

    Source: arXiv:2503.07265 and repository PKU-YuanGroup/WISE, WISE_legacy.
    """
    for name, mark in (("consistency", consistency), ("realism", realism), ("aesthetic", aesthetic)):
        if not 0 <= mark <= 2:
            raise ValueError(f"{name} is marked from 0 to 2, got {mark}")
    return (0.7 * consistency + 0.2 * realism + 0.1 * aesthetic) / 2


def wise_overall(scores: Mapping[str, Sequence[float]], weights: Mapping[str, float] = VERIFIED_WEIGHTS) -> float:
    """The weighted mean of the categories' means.

    sum over categories of weight * mean(scores)

    Args:
        scores: per category the scores of its prompts: 0 or 1 in WISE_Verified, ``wise_score`` in the first protocol.
        weights: ``VERIFIED_WEIGHTS`` or ``LEGACY_WEIGHTS``.

    Returns:
        In [0, 1]; NaN where a category has no score.

    Raises:
        ValueError: a category that does not exist.

    Source: repository PKU-YuanGroup/WISE.
    """
    unknown = set(scores) - set(weights)
    if unknown:
        raise ValueError(f"WISE has no category {', '.join(sorted(unknown))}; it has {', '.join(weights)}")
    means = {name: math.fsum(mine) / len(mine) if mine else math.nan for name, mine in scores.items()}
    return math.fsum(weight * means.get(name, math.nan) for name, weight in weights.items())
