"""Weaker painters make more faults, and pairs are won by the strengths that are written down."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from lightning_gen.data.synth.preference import STRENGTHS
from lightning_gen.shapes.degraded import Degraded, draw_preference
from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.layout import draw_scene
from lightning_gen.shapes.mixture import draw_request
from lightning_gen.shapes.specifications import read_picture, specification, verdicts
from lightning_gen.training.randomness import numpy_generator


def requests(count: int) -> list[Request]:
    return [draw_request(numpy_generator(0, "test painters", number)) for number in range(count)]


def test_faults_come_as_often_as_they_should() -> None:
    asked = [draw_request(numpy_generator(0, "test painters", number), tag="colors") for number in range(1500)]
    for strength in (1.0, -1.0):
        painter, count = Degraded(strength), Counter[str]()
        for number, request in enumerate(asked):
            (meant,) = draw_scene(request, numpy_generator(1, "x", number)).objects
            found = painter.scene(request, numpy_generator(1, "x", number)).objects
            count[f"{len(found)} objects"] += 1
            count["seen"] += bool(found)
            count["color"] += bool(found) and found[0].color != meant.color
            count["kind"] += bool(found) and found[0].kind != meant.kind
        p = 1 / (1 + math.exp(1 + strength))
        assert painter.fault_probability == pytest.approx(p)
        for name, share in (("0 objects", p * (1 - p)), ("2 objects", p * (1 - p)), ("1 objects", p**2 + (1 - p) ** 2)):
            assert count[name] / 1500 == pytest.approx(share, abs=0.05)
        assert count["color"] / count["seen"] == pytest.approx(p, abs=0.05)
        assert count["kind"] / count["seen"] == pytest.approx(p, abs=0.05)


def test_a_weaker_painter_makes_all_faults_of_a_stronger_one() -> None:
    for number, request in enumerate(requests(200)):
        meant = draw_scene(request, numpy_generator(2, "x", number))
        wrong = []
        for strength in (2.0, 0.0, -3.0):
            scene = Degraded(strength).scene(request, numpy_generator(2, "x", number))
            letters = {n for n, (a, b) in enumerate(zip(meant.word, scene.word, strict=True)) if a != b}
            wrong.append((letters, max(0, len(meant.objects) - len(scene.objects))))
        assert wrong[0][0] <= wrong[1][0] <= wrong[2][0]
    assert Degraded(50.0).scene(request, numpy_generator(2, "x", number)) == meant


def test_a_perfect_painter_paints_what_was_asked_for_and_weaker_ones_less() -> None:
    scores = []
    for strength in (6.0, 1.5, 0.0, -1.5):
        passed = 0
        for number, request in enumerate(requests(60)):
            picture = Degraded(strength).picture(request, numpy_generator(3, "x", number))
            found = verdicts(specification(request, "x"), read_picture(picture))
            passed += all(item["verdict"] == "pass" for part in found.values() for item in part)
        scores.append(passed / 60)
    assert scores[0] > 0.95
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.3


def test_weaker_pictures_are_more_blurred_and_noisier() -> None:
    request = Request((), word="HH")
    flat = [Degraded(s).picture(request, numpy_generator(4, "x", 0)).float() for s in (3.0, 0.0, -2.0)]
    grain = [float((picture[:, :4, 1:] - picture[:, :4, :-1]).std()) for picture in flat]
    assert grain == sorted(grain)
    assert grain[2] > 3 * grain[0]
    assert all(picture.shape == (3, 32, 32) for picture in flat)


def test_winners_follow_the_strengths() -> None:
    wins, games, ties = Counter[tuple[str, str]](), Counter[tuple[str, str]](), 0
    for number in range(900):
        pair = draw_preference(numpy_generator(5, "x", number), noise=0.7, ties=0.1)
        assert pair.models[0] != pair.models[1]
        ties += pair.label == 0.5
        if pair.label != 0.5:
            games[pair.models] += 1
            wins[pair.models] += pair.label == 1
    assert ties / 900 == pytest.approx(0.1, abs=0.03)
    assert len(games) == 12
    for (first, second), count in games.items():
        chance = 1 / (1 + math.exp(-(STRENGTHS[first] - STRENGTHS[second]) / 0.7))
        assert wins[first, second] / count == pytest.approx(chance, abs=4 * (0.25 / count) ** 0.5)


def test_without_noise_the_stronger_painter_wins_and_pairs_are_reproducible() -> None:
    for number in range(60):
        pair = draw_preference(np.random.default_rng(number), noise=0.0)
        assert pair.label == float(STRENGTHS[pair.models[0]] > STRENGTHS[pair.models[1]])
        again = draw_preference(np.random.default_rng(number), noise=0.0)
        assert all(torch.equal(a, b) for a, b in zip(pair.pictures, again.pictures, strict=True))
