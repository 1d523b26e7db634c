"""Painters of known strength: they draw what a request asks for, with more faults the weaker they are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.data.synth.preference import STRENGTHS
from lightning_gen.shapes.glyphs import ALPHABET
from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.layout import draw_scene
from lightning_gen.shapes.mixture import choose, draw_request
from lightning_gen.shapes.render import noisy, render
from lightning_gen.shapes.scene import Scene, SceneObject
from lightning_gen.shapes.vocabulary import COLORS, KINDS

__all__ = ["Comparison", "Degraded", "PreferencePair", "draw_comparison", "draw_preference"]


@dataclasses.dataclass(frozen=True)
class Degraded:
    """A painter.

    Every fault comes with the probability p = sigmoid(-1 - strength): an object has another colour, another kind, or is
    missing; an object comes twice; a letter of a word is another one. Objects are shifted by a normal number of
    standard deviation 0.08 p, the picture is blurred (standard deviation p pixels of 32) and noisy (10 p levels). With
    one generator state a weaker painter makes all faults of a stronger one.

    Attributes:
        strength: on the scale of Bradley and Terry; 2 makes a fault in 20 chances, 0 in 4, -1.5 in 1.6.
        size: height and width of the pictures.
    """

    strength: float
    size: tuple[int, int] = (32, 32)

    @property
    def fault_probability(self) -> float:
        """p."""
        return 1 / (1 + math.exp(1 + self.strength))

    def scene(self, request: Request, generator: np.random.Generator) -> Scene:
        """What the painter means to paint.

        Args:
            request: what was asked for.
            generator: draws the scene and the faults.

        Returns:
            A scene with the faults in it.
        """
        meant = draw_scene(request, generator, aspect=self.size[1] / self.size[0])
        word = "".join(self._or(letter, ALPHABET, generator) for letter in meant.word)
        objects = [self._painted(one, generator) for one in meant.objects]
        kept = [one for one in objects if generator.random() >= self.fault_probability]
        twin = choose(generator, objects) if objects else None
        place = [0.1 + 0.8 * part for part in generator.random(2).tolist()]
        if generator.random() < self.fault_probability and twin is not None:
            kept.append(dataclasses.replace(twin, x=place[0], y=place[1]))
        return dataclasses.replace(meant, objects=tuple(kept), word=word)

    def picture(self, request: Request, generator: np.random.Generator) -> Tensor:
        """Paint.

        Args:
            request: what was asked for.
            generator: draws everything.

        Returns:
            uint8, (3, H, W).
        """
        clean = render(self.scene(request, generator), self.size)
        p = self.fault_probability
        return noisy(_blurred(clean, p * min(self.size) / 32), generator, 10 * p)

    def _painted(self, one: SceneObject, generator: np.random.Generator) -> SceneObject:
        color, kind = self._or(one.color, tuple(COLORS), generator), self._or(one.kind, KINDS, generator)
        across, down = (0.08 * self.fault_probability * generator.standard_normal(2)).tolist()
        x, y = min(max(one.x + across, 0.0), 1.0), min(max(one.y + down, 0.0), 1.0)
        return SceneObject(kind, color, x, y, one.radius)

    def _or(self, right: str, choices: tuple[str, ...] | str, generator: np.random.Generator) -> str:
        wrong = choose(generator, [one for one in choices if one != right])
        return wrong if generator.random() < self.fault_probability else right


class Comparison(NamedTuple):
    """Which of two painters' pictures of one request is preferred, before either is painted.

    Attributes:
        request: what is asked for.
        models: names of the painters.
        label: 1 = the first is preferred, 0 = the second, 0.5 = a tie.
    """

    request: Request
    models: tuple[str, str]
    label: float


class PreferencePair(NamedTuple):
    """Two painters' pictures of one request, and which was preferred.

    Attributes:
        request: what was asked for.
        models: names of the painters.
        pictures: two of uint8, (3, H, W).
        label: 1 = the first is preferred, 0 = the second, 0.5 = a tie.
    """

    request: Request
    models: tuple[str, str]
    pictures: tuple[Tensor, Tensor]
    label: float


def draw_comparison(
    generator: np.random.Generator,
    noise: float = 1.0,
    ties: float = 0.0,
    strengths: Mapping[str, float] = STRENGTHS,
    same_model: float = 0.0,
    request: Request | None = None,
) -> Comparison:
    """Draw a comparison.

    P(0 beats 1) = sigmoid((s_0 - s_1) / noise), s = strength; the pictures themselves are not looked at.

    Args:
        generator: draws everything.
        noise: how often the weaker wins; 0 = never.
        ties: share of comparisons without a winner, in [0, 1).
        strengths: of the painters, by name.
        same_model: share of comparisons of two pictures by one painter, in [0, 1].
        request: what is asked for; None = drawn.

    Returns:
        The comparison.
    """
    names = tuple(strengths)
    first = choose(generator, names)
    alone = same_model > 0 and generator.random() < same_model
    second = first if alone else choose(generator, [name for name in names if name != first])
    tie, chance = generator.random(2).tolist()
    gap = strengths[first] - strengths[second]
    wins = float(np.sign(gap) + 1) / 2 if noise == 0 else 1 / (1 + math.exp(-gap / noise))
    request = draw_request(generator) if request is None else request
    return Comparison(request, (first, second), 0.5 if tie < ties else float(chance < wins))


def draw_preference(
    generator: np.random.Generator, size: tuple[int, int] = (32, 32), noise: float = 1.0, ties: float = 0.0
) -> PreferencePair:
    """Draw a pair by the painters of ``STRENGTHS``, see :func:`draw_comparison`.

    Args:
        generator: draws everything.
        size: height and width of the pictures.
        noise: how often the weaker wins; 0 = never.
        ties: share of pairs without a winner, in [0, 1).

    Returns:
        The pair.
    """
    drawn = draw_comparison(generator, noise, ties)
    first, second = (Degraded(STRENGTHS[name], size).picture(drawn.request, generator) for name in drawn.models)
    return PreferencePair(drawn.request, drawn.models, (first, second), drawn.label)


def _blurred(picture: Tensor, deviation: float) -> Tensor:
    """A Gaussian of three deviations to each side; the border repeats."""
    reach = max(1, math.ceil(3 * deviation))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel = picture.new_tensor(taps / taps.sum(), dtype=picture.float().dtype)
    padded = F.pad(picture.float()[None], (reach,) * 4, mode="replicate")[0]
    rows = (padded.unfold(2, len(kernel), 1) * kernel).sum(-1)
    return (rows.unfold(1, len(kernel), 1) * kernel).sum(-1).round().clamp(0, 255).byte()
