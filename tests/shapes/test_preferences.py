"""Pairs of the embedded world: by painters of known strength, with noisy labels, the preferred picture first."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from lightning_gen.data.batches import PreferenceBatch
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.synth.preference import STRENGTHS
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.grammar import parse_prompt
from lightning_gen.shapes.preferences import ShapesPreferenceDataModule


def pairs(**options: Any) -> ShapesPreferenceDataModule:
    return ShapesPreferenceDataModule(**({"global_batch_size": 8, "samples": 32, "val_samples": 12} | options))


def batches(data: ShapesPreferenceDataModule) -> list[PreferenceBatch]:
    return list(data.train_loader(0))


def test_the_preferred_picture_comes_first_and_is_by_its_painter() -> None:
    data = pairs(noise=0.0, strengths=[6.0, -4.0])
    [first, *_] = batches(data)
    assert first.models == (("painter0", "painter1"),) * 8
    assert first.winner.images.shape == first.loser.images.shape == (8, 3, 32, 32)  # type: ignore[union-attr]
    # A weak painter's pictures are noisy.
    grain = [
        (part.images[:, :, :, 1:] - part.images[:, :, :, :-1]).abs().mean() for part in (first.winner, first.loser)
    ]  # type: ignore[index]
    assert float(grain[0]) < float(grain[1])
    assert all(parse_prompt(text).prompt() == text for text in first.winner.caption)
    assert first.winner.caption == first.loser.caption and torch.equal(first.winner.index, first.loser.index)
    assert bool(first.gap.isnan().all()) and first.preference.tolist() == [1.0] * 8


def test_labels_follow_the_strengths() -> None:
    data = pairs(samples=3000, noise=0.7, spread=0.5, same_model=0.2, ties=0.1)
    assert data.painters == {name: 0.5 * strength for name, strength in STRENGTHS.items()}
    wins, games, same, ties = Counter[tuple[str, str]](), Counter[tuple[str, str]](), 0, 0
    for pair in data.comparisons():
        ties += pair.label == 0.5
        same += pair.models[0] == pair.models[1]
        games[pair.models] += pair.label != 0.5
        wins[pair.models] += pair.label == 1
    assert ties / 3000 == pytest.approx(0.1, abs=0.02) and same / 3000 == pytest.approx(0.2, abs=0.03)
    for (first, second), count in games.items():
        chance = 1 / (1 + math.exp(-(data.painters[first] - data.painters[second]) / 0.7))
        assert wins[first, second] / count == pytest.approx(chance, abs=4 * (0.25 / count) ** 0.5)


def test_comparisons_are_those_of_the_batches() -> None:
    data = pairs(ties=0.3, same_model=0.2)
    told = data.comparisons()
    seen = set()
    for batch in batches(data):
        for row, number in enumerate(batch.winner.index.tolist()):
            pair = told[number]
            assert batch.models[row] == (pair.models if pair.label == 1 else pair.models[::-1])
            assert batch.winner.caption[row] == pair.request.prompt()
            seen.add(number)
    assert seen <= {number for number, pair in enumerate(told) if pair.label != 0.5} and len(seen) >= 16
    again = batches(pairs(ties=0.3, same_model=0.2))
    assert torch.equal(again[0].winner.images, batches(data)[0].winner.images)  # type: ignore[arg-type]
    assert data._set("train").fingerprint != pairs(noise=0.5)._set("train").fingerprint


def test_without_noise_a_pair_of_one_painter_is_a_coin() -> None:
    labels = [pair.label for pair in pairs(samples=400, noise=0.0, same_model=1.0).comparisons()]
    assert sum(labels) / 400 == pytest.approx(0.5, abs=0.1)


def test_validation_has_pairs_of_its_own_and_every_one_counts_once() -> None:
    data = pairs(benchmark_prompts=True)
    found = [batch.winner.index[batch.winner.valid] for batch in data.evaluation_loader("val")]
    assert sorted(torch.cat(found).tolist()) == list(range(12))
    assert data.comparisons("val")[0] != data.comparisons("train")[0]


def test_pairs_for_prompts_of_the_benchmark_are_left_out() -> None:
    benchmark = {one.prompt() for one in benchmark_requests()}
    data = pairs(samples=256)
    drawn = [pair.request.prompt() for pair in data.comparisons()]
    kept = [number for number, prompt in enumerate(drawn) if prompt not in benchmark]
    assert 0.1 < 1 - len(kept) / len(drawn) < 0.4
    seen = torch.cat([batch.winner.index for batch in batches(data)]).tolist()
    assert set(seen) <= set(kept) and len(seen) > len(kept) - 8
    assert len(batches(pairs(samples=256, benchmark_prompts=True))) == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "sides are at least 32 pixels"),
        ({"samples": 0}, "must be at least 1"),
        ({"tags": ["swirl"]}, "swirl unknown"),
        ({"ties": 1.0}, r"data.ties lies in \[0, 1\)"),
        ({"strengths": [1.0]}, "comparing takes two painters"),
    ],
)
def test_odd_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs(**options)
    with pytest.raises(DataError, match="has no mixture 'odd'"):
        pairs(train="odd").setup("fit")
