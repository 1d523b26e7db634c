from __future__ import annotations

import math
from itertools import groupby

import pytest

from lightning_gen.metrics.compositional.wise import (
    CATEGORIES,
    LEGACY_WEIGHTS,
    VERIFIED_WEIGHTS,
    wise_category,
    wise_overall,
    wise_score,
)


def test_categories_by_prompt() -> None:
    runs = [(name, len(list(group))) for name, group in groupby(wise_category(number) for number in range(1, 1001))]
    assert runs == list(zip(CATEGORIES, (400, 120, 120, 120, 120, 120), strict=True))
    for wrong in (0, 1001):
        with pytest.raises(ValueError, match="from 1 to 1000"):
            wise_category(wrong)


def test_the_score_of_an_image() -> None:
    assert wise_score(2, 2, 2) == pytest.approx(1)
    assert wise_score(1, 0, 0) == pytest.approx(0.35)
    assert wise_score(0, 1, 0) == pytest.approx(0.1)
    assert wise_score(0, 0, 1) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="realism is marked from 0 to 2, got 3"):
        wise_score(2, 3, 2)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(VERIFIED_WEIGHTS, [0.4, 0.12, 0.12, 0.12, 0.12, 0.12]), (LEGACY_WEIGHTS, [0.4, 0.167, 0.133, 0.1, 0.1, 0.1])],
)
def test_categories_are_weighted(weights: dict[str, float], expected: list[float]) -> None:
    for category, weight in zip(CATEGORIES, expected, strict=True):
        scores = {name: [1.0, 0.0] if name == category else [0.0] for name in CATEGORIES}
        assert wise_overall(scores, weights) == pytest.approx(weight / 2)
    assert wise_overall({name: [1.0] for name in CATEGORIES}, weights) == pytest.approx(1)


def test_a_category_without_scores_leaves_no_overall_score() -> None:
    assert math.isnan(wise_overall({name: [1.0] for name in CATEGORIES[1:]}))
    assert math.isnan(wise_overall({name: [1.0] if name != "time" else [] for name in CATEGORIES}))


def test_an_unknown_category_is_refused() -> None:
    with pytest.raises(ValueError, match="no category art"):
        wise_overall({"art": [1.0]})
