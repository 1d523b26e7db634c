"""Rare pairs are rare, tasks come by their shares, and an even mixture is even."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lightning_gen.shapes.mixture import (
    RARE,
    RARITY,
    TAG_SHARES,
    choose,
    draw_pair,
    draw_request,
    draw_tag,
    pair_shares,
)
from lightning_gen.shapes.vocabulary import COLORS, KINDS
from lightning_gen.training.randomness import numpy_generator


def test_rare_pairs_come_as_rarely_as_they_say() -> None:
    assert len(set(RARE)) == len(RARE) == 12
    generator = np.random.default_rng(0)
    found = Counter(draw_pair(generator) for _ in range(100_000))
    common = [found[color, kind] for color in COLORS for kind in KINDS if (color, kind) not in RARE]
    rare = [found[pair] for pair in RARE]
    assert np.mean(rare) / np.mean(common) == pytest.approx(RARITY, rel=0.15)
    assert pair_shares().sum() == pytest.approx(1)
    assert min(common) > 10 * max(rare)


def test_an_even_mixture_is_even_and_a_given_kind_stays() -> None:
    assert np.allclose(pair_shares(False), 1 / 80)
    generator = np.random.default_rng(0)
    found = Counter(draw_pair(generator, False) for _ in range(40_000))
    assert len(found) == 80
    assert max(abs(count - 500) for count in found.values()) < 5 * 500**0.5
    colors = Counter(draw_pair(generator, True, "star") for _ in range(5000))
    assert {kind for _, kind in colors} == {"star"}
    assert colors["green", "star"] < 0.1 * colors["red", "star"]


def test_tasks_come_by_their_shares() -> None:
    tags = Counter(draw_request(numpy_generator(0, "test tags", number)).tag for number in range(4000))
    assert sum(TAG_SHARES.values()) == pytest.approx(1)
    for tag, share in TAG_SHARES.items():
        assert tags[tag] / 4000 == pytest.approx(share, abs=4 * (share / 4000) ** 0.5)
    generator = np.random.default_rng(0)
    some = Counter(draw_tag(generator, ("colors", "word")) for _ in range(2000))
    assert some["word"] / 2000 == pytest.approx(0.04 / 0.19, abs=0.03)
    assert len(some) == 2


def test_choose_takes_all_alike() -> None:
    generator = np.random.default_rng(0)
    found = Counter(choose(generator, "abc") for _ in range(3000))
    assert set(found) == set("abc")
    assert min(found.values()) > 850


def test_what_belongs_to_a_request_is_different() -> None:
    for number in range(500):
        first, second = draw_request(numpy_generator(0, "test pairs", number), tag="color_attr").phrases
        assert first.kind != second.kind
        assert first.color != second.color
