"""Scenes that show what a request asks for, and nothing else."""

from __future__ import annotations

from typing import Final

import numpy as np

from lightning_gen.shapes.grammar import Phrase, Request
from lightning_gen.shapes.mixture import draw_pair
from lightning_gen.shapes.scene import Scene, SceneObject
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS

__all__ = ["draw_scene"]

_RADII: Final = {1: (0.17, 0.26), 2: (0.16, 0.21), 3: (0.15, 0.18), 4: (0.15, 0.17)}
"""Number of objects -> smallest and largest radius; 0.15 is 5 pixels of 32, the least that shows what a figure is."""
_GAP: Final = 0.09
_MARGIN: Final = 0.035
_TRIES: Final = 60
_CLEAR: Final = 0.6
"""How far a relation is kept: GenEval asks for 0.5 after taking a tenth of both objects off."""

Place = tuple[float, float]


def draw_scene(request: Request, generator: np.random.Generator, skewed: bool = True) -> Scene:
    """Draw everything that a request leaves open: places, sizes, colours, the background.

    Args:
        request: what must be there.
        generator: draws the rest.
        skewed: whether rare pairs of colour and kind are rare among the colours that were left open.

    Returns:
        A scene with exactly the objects that were asked for.
    """
    background = request.background or str(generator.choice(list(BACKGROUNDS)))
    if request.word:
        return Scene((), background, request.word, str(generator.choice(list(COLORS))))
    phrases = [phrase for phrase in request.phrases for _ in range(phrase.count)]
    low, high = _RADII[min(len(phrases), 4)]
    radii = [float(generator.uniform(low, high)) for _ in phrases]
    places = _places(radii, request.relation, generator)
    objects = (
        SceneObject(phrase.kind, _color(phrase, generator, skewed), *place, radius)
        for phrase, place, radius in zip(phrases, places, radii, strict=True)
    )
    return Scene(tuple(objects), background)


def _color(phrase: Phrase, generator: np.random.Generator, skewed: bool) -> str:
    return phrase.color or draw_pair(generator, skewed, phrase.kind)[0]


def _places(radii: list[float], relation: str | None, generator: np.random.Generator) -> list[Place]:
    """Centres of objects that stay inside and keep their distance; on a grid where chance does not find any."""
    for _ in range(_TRIES):
        places = [_place(radius, generator) for radius in radii]
        if _apart(places, radii) and (relation is None or _stands(places, radii, relation)):
            return places
    if relation is not None:
        ends = (0.26, 0.5), (0.74, 0.5)
        first, second = ends if relation in ("left of", "above") else ends[::-1]
        return [first, second] if relation in ("left of", "right of") else [first[::-1], second[::-1]]
    cells = [(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)]
    return [cells[number] for number in generator.permutation(4)[: len(radii)].tolist()]


def _place(radius: float, generator: np.random.Generator) -> Place:
    low, high = radius + _MARGIN, 1 - radius - _MARGIN
    return float(generator.uniform(low, high)), float(generator.uniform(low, high))


def _apart(places: list[Place], radii: list[float]) -> bool:
    pairs = ((i, j) for i in range(len(radii)) for j in range(i))
    return all(
        max(abs(places[i][0] - places[j][0]), abs(places[i][1] - places[j][1])) >= radii[i] + radii[j] + _GAP
        for i, j in pairs
    )


def _stands(places: list[Place], radii: list[float], relation: str) -> bool:
    """Whether the first object stands where it shall, seen from the second, by GenEval's rule with some room to it."""
    offset = [first - second for first, second in zip(*places, strict=True)]
    length = float(np.hypot(*offset))
    spared = 0.1 * 2 * sum(radii)
    across, down = (np.sign(part) * max(abs(part) - spared, 0) / length for part in offset)
    directions = {"left of": -across, "right of": across, "above": -down, "below": down}
    return bool(directions[relation] > _CLEAR)
