"""Scenes with the requests that they were drawn for."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.layout import draw_scene
from lightning_gen.shapes.mixture import draw_request
from lightning_gen.shapes.scene import Scene
from lightning_gen.training.randomness import numpy_generator


def scenes(count: int, seed: int = 0, tag: str | None = None, words: bool = False) -> Iterator[tuple[Request, Scene]]:
    """So many scenes with all pairs alike."""
    number = 0
    while count:
        generator = numpy_generator(seed, "test scenes", number)
        request = draw_request(generator, skewed=False, tag=tag)
        number += 1
        if words or not request.word:
            count -= 1
            yield request, draw_scene(request, generator, skewed=False)
