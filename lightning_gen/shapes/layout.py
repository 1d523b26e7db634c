"""Scenes that show what a request asks for, and nothing else."""

from __future__ import annotations

import math
from typing import Final, NamedTuple, Protocol

import numpy as np

from lightning_gen.shapes.grammar import Phrase, Request
from lightning_gen.shapes.mixture import choose, draw_pair
from lightning_gen.shapes.scene import Scene, SceneObject
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS

__all__ = ["Standing", "draw_scene", "is_clear", "stands"]

_RADII: Final = {1: (0.17, 0.26), 2: (0.16, 0.21), 3: (0.15, 0.18), 4: (0.15, 0.17)}
"""Number of objects -> smallest and largest radius; 0.15 is 5 pixels of 32, the least that shows what a figure is."""
_GAP: Final = 0.09
_MARGIN: Final = 0.035
_TRIES: Final = 60
_CLEAR: Final = 0.6
"""How far a relation is kept: GenEval asks for 0.5 after taking a tenth of both objects off."""

_COLORS: Final = tuple(COLORS)
_GROUNDS: Final = tuple(BACKGROUNDS)

Place = tuple[float, float]


class Standing(Protocol):
    """An object of a scene, or one that was read."""

    @property
    def x(self) -> float:
        """Centre, to the right."""
        ...

    @property
    def y(self) -> float:
        """Centre, downwards."""
        ...

    @property
    def radius(self) -> float:
        """Half its extent, in the same unit."""
        ...


def draw_scene(request: Request, generator: np.random.Generator, skewed: bool = True, aspect: float = 1.0) -> Scene:
    """Draw everything that a request leaves open: places, sizes, colours, the background.

    Args:
        request: what must be there.
        generator: draws the rest.
        skewed: whether rare pairs of colour and kind are rare among the colours that were left open.
        aspect: width over height of the pictures that the scene is for.

    Returns:
        A scene with exactly the objects that were asked for.
    """
    background = request.background or choose(generator, _GROUNDS)
    if request.word:
        return Scene((), background, request.word, choose(generator, _COLORS))
    phrases = [phrase for phrase in request.phrases for _ in range(phrase.count)]
    low, high = _RADII[min(len(phrases), 4)]
    radii = [low + (high - low) * generator.random() for _ in phrases]
    extent = max(1.0, aspect), max(1.0, 1 / aspect)
    places = _places(radii, request.relation, extent, generator)
    objects = (
        SceneObject(phrase.kind, _color(phrase, generator, skewed), x / extent[0], y / extent[1], radius)
        for phrase, (x, y), radius in zip(phrases, places, radii, strict=True)
    )
    return Scene(tuple(objects), background)


def is_clear(scene: Scene) -> bool:
    """Whether all objects lie inside a square picture and keep their distance from each other.

    Args:
        scene: any.

    Returns:
        True where they can be told apart at any size.
    """
    radii = [one.radius for one in scene.objects]
    edges = [min(one.x, 1 - one.x, one.y, 1 - one.y) - one.radius for one in scene.objects]
    return min(edges, default=1.0) >= _MARGIN and _apart([(one.x, one.y) for one in scene.objects], radii)


def stands(first: Standing, second: Standing, relation: str, clear: float = 0.5) -> bool:
    """Whether an object stands somewhere, seen from another, by GenEval's rule.

    (d - (2 r + 2 r') / 10) / ||d'|| > clear, d = offset along the relation, d' = the whole one, r and r' = radii

    Args:
        first: which one stands there.
        second: seen from where; both in one unit for both axes.
        relation: one of ``RELATIONS``.
        clear: 0.5 is GenEval's.

    Returns:
        Whether the relation holds.

    Source: repository djghosh13/geneval, evaluation/evaluate_images.py. deviates: extents are those of the figures'
        squares.
    """
    across, down = first.x - second.x, first.y - second.y
    along = across if relation in ("left of", "right of") else down
    sign = -1 if relation in ("left of", "above") else 1
    spared = 0.1 * 2 * (first.radius + second.radius)
    return sign * along - spared > clear * math.hypot(across, down)


class _Disc(NamedTuple):
    x: float
    y: float
    radius: float


def _color(phrase: Phrase, generator: np.random.Generator, skewed: bool) -> str:
    return phrase.color or draw_pair(generator, skewed, phrase.kind)[0]


def _places(radii: list[float], relation: str | None, extent: Place, generator: np.random.Generator) -> list[Place]:
    """Centres, in units of the shorter side; in quarters of the picture where chance does not find any."""
    for _ in range(_TRIES):
        places = [_place(radius, extent, generator) for radius in radii]
        if _apart(places, radii) and (relation is None or _related(places, radii, relation)):
            return places
    if relation is not None:
        return _in_line(radii, relation, extent)
    cells = generator.permutation(4).tolist()
    return [_inside_quarter(cell, radius, extent, generator) for cell, radius in zip(cells, radii, strict=False)]


def _place(radius: float, extent: Place, generator: np.random.Generator) -> Place:
    low = radius + _MARGIN
    return low + (extent[0] - 2 * low) * generator.random(), low + (extent[1] - 2 * low) * generator.random()


def _in_line(radii: list[float], relation: str, extent: Place) -> list[Place]:
    """Two objects side by side, or one above the other, in the middle of the picture."""
    forward = relation in ("left of", "above")
    near, far = radii if forward else radii[::-1]
    taken = 2 * (near + far)
    gap = _GAP + max(0.0, 1 - 2 * _MARGIN - _GAP - taken) / 2
    axis = 0 if relation in ("left of", "right of") else 1
    start = (extent[axis] - taken - gap) / 2
    ends = [start + near, start + 2 * near + gap + far]
    places = [(end, extent[1] / 2) if axis == 0 else (extent[0] / 2, end) for end in ends]
    return places if forward else places[::-1]


def _inside_quarter(cell: int, radius: float, extent: Place, generator: np.random.Generator) -> Place:
    """Anywhere in a quarter of the picture that leaves half the gap to its neighbours."""
    low = radius + _MARGIN
    room = (side / 2 - _GAP / 2 - radius - low for side in extent)
    x, y = (low + max(free, 0) * generator.random() for free in room)
    return (extent[0] - x if cell % 2 else x), (extent[1] - y if cell // 2 else y)


def _apart(places: list[Place], radii: list[float]) -> bool:
    for i, (x, y) in enumerate(places):
        for j in range(i):
            if max(abs(x - places[j][0]), abs(y - places[j][1])) < radii[i] + radii[j] + _GAP:
                return False
    return True


def _related(places: list[Place], radii: list[float], relation: str) -> bool:
    first, second = (_Disc(*place, radius) for place, radius in zip(places, radii, strict=True))
    return stands(first, second, relation, _CLEAR)
