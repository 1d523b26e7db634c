"""Scenes hold what was asked for, apart from each other, and relations hold by GenEval's rule."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from lightning_gen.metrics.compositional.geneval_objects import relative_position
from lightning_gen.shapes.grammar import parse_prompt
from lightning_gen.shapes.layout import draw_scene, is_clear, stands
from lightning_gen.shapes.scene import Scene, SceneObject
from lightning_gen.shapes.vocabulary import RELATIONS
from tests.shapes.worlds import scenes


def test_scenes_hold_exactly_what_was_asked_for() -> None:
    for request, scene in scenes(500, words=True):
        wanted = Counter({phrase.kind: phrase.count for phrase in request.phrases})
        assert Counter(one.kind for one in scene.objects) == wanted
        assert request.background in (None, scene.background)
        assert scene.word == request.word
        assert is_clear(scene)
        for phrase in request.phrases:
            if phrase.color:
                assert any((one.kind, one.color) == (phrase.kind, phrase.color) for one in scene.objects)
        if request.relation:
            assert stands(*scene.objects, request.relation)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_relations_and_distances_hold_in_pixels_at_any_aspect(aspect: float) -> None:
    height, width = (64, 64 * aspect) if aspect >= 1 else (64 / aspect, 64)
    for number, relation in enumerate(RELATIONS * 20):
        scene = draw_scene(
            parse_prompt(f"a photo of a star {relation} a moon"), np.random.default_rng(number), aspect=aspect
        )
        boxes = [
            torch.tensor([o.x * width - r, o.y * height - r, o.x * width + r, o.y * height + r])
            for o in scene.objects
            for r in [o.radius * min(height, width)]
        ]
        assert relation in relative_position(*boxes)
        low, high = torch.stack(boxes)[:, :2].amax(0), torch.stack(boxes)[:, 2:].amin(0)
        assert float((low - high).max()) >= 0.089 * 64, "a gap along one axis"
        assert all(float(box.min()) >= 0 for box in boxes)


@pytest.mark.parametrize("aspect", [0.5, 2.0])
def test_objects_stand_anywhere_in_long_pictures(aspect: float) -> None:
    request = parse_prompt("a photo of a star and a moon")
    drawn = [draw_scene(request, np.random.default_rng(n), aspect=aspect) for n in range(100)]
    places = np.array([(one.x, one.y) for scene in drawn for one in scene.objects])
    assert places.min(0).max() < 0.3
    assert places.max(0).min() > 0.7
    assert 0.4 < places.mean() < 0.6


def test_standing_is_geneval_s_rule() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        values = generator.uniform(0.2, 0.8, (2, 2))
        first, second = (SceneObject("square", "red", float(x), float(y), 0.15) for x, y in values)
        boxes = [
            torch.tensor([o.x - 0.15, o.y - 0.15, o.x + 0.15, o.y + 0.15], dtype=torch.float64) for o in (first, second)
        ]
        assert {name for name in RELATIONS if stands(first, second, name)} == relative_position(*boxes)


def test_four_objects_do_not_always_stand_at_the_same_places() -> None:
    places = np.array([
        [(one.x, one.y) for one in draw_scene(parse_prompt("a photo of four stars"), np.random.default_rng(n)).objects]
        for n in range(60)
    ])  # fmt: skip
    assert len(np.unique(places.reshape(-1, 2).round(3), axis=0)) > 200


def test_scenes_that_touch_or_leave_are_not_clear() -> None:
    one, two = SceneObject("star", "red", 0.3, 0.3, 0.15), SceneObject("star", "red", 0.6, 0.3, 0.15)
    assert is_clear(Scene((one,)))
    assert not is_clear(Scene((one, two)))
    assert not is_clear(Scene((SceneObject("star", "red", 0.1, 0.3, 0.15),)))
