"""The 553 prompts are GenEval's mixture, and its rules judge pictures of them as they should."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from lightning_gen.metrics.compositional.geneval_prompts import parse_prompt
from lightning_gen.metrics.compositional.geneval_rules import RuleResult, apply_rules
from lightning_gen.shapes.benchmark import COUNTS, benchmark_prompts, benchmark_requests
from lightning_gen.shapes.detector import ShapesDetector
from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.layout import draw_scene
from lightning_gen.shapes.mixture import RARE
from lightning_gen.shapes.render import render
from lightning_gen.shapes.scene import Scene
from lightning_gen.shapes.vocabulary import COLORS, KINDS
from lightning_gen.training.randomness import numpy_generator

REQUESTS = benchmark_requests()
SCENES = [draw_scene(request, numpy_generator(0, "test benchmark", n)) for n, request in enumerate(REQUESTS)]


def judged(requests: Sequence[Request], drawn: Sequence[Scene], size: int = 32) -> list[RuleResult]:
    """What GenEval's rules say about clean pictures."""
    pictures, detector = [render(scene, (size, size)) for scene in drawn], ShapesDetector()
    found = detector(torch.stack(pictures).float() / 255, KINDS)
    return [
        apply_rules(
            parse_prompt(request.metadata()),
            detections,
            lambda boxes, masks, name, image=picture: detector.colors(image, boxes, masks, name),
        )
        for request, picture, detections in zip(requests, pictures, found, strict=True)
    ]


def those(*tags: str) -> tuple[list[Request], list[Scene]]:
    """Requests and scenes of some tasks."""
    kept = [number for number, request in enumerate(REQUESTS) if request.tag in tags]
    return [REQUESTS[number] for number in kept], [SCENES[number] for number in kept]


def test_there_are_553_different_prompts_in_geneval_s_proportions() -> None:
    prompts = benchmark_prompts()
    assert len(prompts) == len({one["prompt"] for one in prompts}) == 553
    assert Counter(one["tag"] for one in prompts) == COUNTS
    assert list(COUNTS.values()) == [80, 99, 80, 94, 100, 100]
    assert [request.metadata() for request in benchmark_requests()] == prompts
    pairs = [(phrase.color, phrase.kind) for request in REQUESTS for phrase in request.phrases if phrase.color]
    assert sum(pair in RARE for pair in pairs) / len(pairs) == pytest.approx(12 / 80, abs=0.06), "no skew here"


@pytest.mark.parametrize("size", [32, 64])
def test_clean_pictures_of_all_prompts_are_right(size: int) -> None:
    results = judged(REQUESTS, SCENES, size)
    assert [
        (request.prompt(), one.failures) for request, one in zip(REQUESTS, results, strict=True) if one.failures
    ] == []
    assert all(one.exact and one.reward == 1 for one in results)


def test_a_picture_without_one_of_the_objects_is_wrong() -> None:
    poorer = [dataclasses.replace(scene, objects=scene.objects[1:]) for scene in SCENES]
    for result in judged(REQUESTS, poorer):
        assert not result.correct
        assert result.failures[0].kind == "missing"
        assert result.reward < 1


def test_another_colour_is_wrong_where_one_was_asked_for() -> None:
    names = list(COLORS)
    requests, drawn = those("colors", "color_attr")
    painted = [
        dataclasses.replace(scene, objects=(dataclasses.replace(one, color=other), *scene.objects[1:]))
        for scene in drawn
        for one in scene.objects[:1]
        for other in [names[(names.index(one.color) + 3) % len(names)]]
    ]
    assert {failure.kind for result in judged(requests, painted) for failure in result.failures} == {"color"}
    assert not any(result.correct for result in judged(requests, painted))


def test_the_other_side_is_wrong() -> None:
    requests, drawn = those("position")
    swapped = [
        dataclasses.replace(
            scene,
            objects=tuple(
                dataclasses.replace(one, x=other.x, y=other.y)
                for one, other in zip(scene.objects, scene.objects[::-1], strict=True)
            ),
        )
        for scene in drawn
    ]
    results = judged(requests, swapped)
    assert not any(result.correct for result in results)
    assert {failure.kind for result in results for failure in result.failures} == {"position"}


def test_one_too_many_is_wrong_where_a_number_was_asked_for() -> None:
    requests = [request for request in those("counting")[0] if request.phrases[0].count < 4]
    more = [
        draw_scene(
            Request((dataclasses.replace(request.phrases[0], count=request.phrases[0].count + 1),)),
            numpy_generator(1, "test benchmark", number),
        )
        for number, request in enumerate(requests)
    ]
    results = judged(requests, more)
    assert len(results) > 40
    assert not any(result.correct for result in results)
    assert {failure.kind for result in results for failure in result.failures} == {"too_many"}
