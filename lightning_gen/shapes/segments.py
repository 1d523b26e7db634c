"""Pictures of the embedded world with the map of their objects, which is exact because they are drawn.

Shape letters: H and W height and width in pixels, S edge of a square.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_gen.data.transforms import uint8_to_signed
from lightning_gen.shapes.figures import QUARTERS, coverage
from lightning_gen.shapes.layout import draw_scene
from lightning_gen.shapes.mixture import TAG_SHARES
from lightning_gen.shapes.module import SceneSource
from lightning_gen.shapes.render import render
from lightning_gen.shapes.scene import Scene
from lightning_gen.shapes.vocabulary import KINDS

__all__ = ["ShapesSegments", "segment_map"]

_BACKGROUND: Final = 1
_HALF: Final = 0.5


def segment_map(scene: Scene, size: tuple[int, int], numbered: Literal["objects", "kinds"] = "objects") -> Tensor:
    """Which pixel belongs to which object, at least half of it.

    Args:
        scene: without a word.
        size: height and width in pixels.
        numbered: what a number stands for: an object, or its kind.

    Returns:
        int64, (H, W): 1 = background, 2 and more = the objects in their order, or the kinds in that of ``KINDS``.

    Raises:
        ValueError: a scene that shows a word, whose letters are no segments.
    """
    if scene.word:
        raise ValueError(f"the scene shows the word {scene.word!r}: only objects have segments")
    height, width = size
    segments = np.full(size, _BACKGROUND, np.int64)
    columns, rows = (np.arange(side, dtype=np.float32) + 0.5 for side in (width, height))
    for number, figure in enumerate(scene.objects, start=_BACKGROUND + 1):
        # In quarters of a pixel, where the figure is drawn.
        x, y = (round(part * side * QUARTERS) / QUARTERS for part, side in ((figure.x, width), (figure.y, height)))
        radius = max(1, round(figure.radius * min(size) * QUARTERS)) / QUARTERS
        across, down = np.meshgrid(columns - np.float32(x), rows - np.float32(y))
        label = number if numbered == "objects" else _BACKGROUND + 1 + tuple(KINDS).index(figure.kind)
        segments[coverage(figure.kind, across, down, radius) >= _HALF] = label
    return torch.from_numpy(segments)


class ShapesSegments:
    """Scenes without words, by number, with their maps.

    Args:
        count: how many there are.
        seed: decides all of them.
        skewed: whether rare pairs of colour and kind are rare.
        numbered: what the numbers of a map stand for: ``objects`` (segments, for SSC) or ``kinds`` (classes, for a
            segmentation probe: 9 with the background).

    Raises:
        ValueError: another ``numbered``.
    """

    def __init__(
        self,
        count: int = 256,
        seed: int = 0,
        skewed: bool = False,
        numbered: Literal["objects", "kinds"] = "objects",
    ) -> None:
        if numbered not in ("objects", "kinds"):
            raise ValueError(f"maps are numbered by objects or kinds, got {numbered!r}")
        tags = tuple(tag for tag in TAG_SHARES if tag != "word")
        self.skewed, self.numbered = skewed, numbered
        self.source = SceneSource(seed, "segments", count, skewed, tags, [(1, 1)])

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.source)

    def read(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """One picture as a square.

        Args:
            index: its number, from 0.
            size: S in pixels.

        Returns:
            Float image (3, S, S) in [-1, 1], and its map, int64, (S, S).

        Raises:
            IndexError: there is no such picture.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)} scenes")
        stored = self.source.read(index)
        scene = draw_scene(stored.request, stored.generator, self.skewed)
        return uint8_to_signed(render(scene, (size, size))), segment_map(scene, (size, size), self.numbered)
