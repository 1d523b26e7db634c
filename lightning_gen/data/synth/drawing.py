"""Small pictures: smooth random fields and scenes of coloured shapes."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["COLOURS", "SHAPES", "Scene", "Shape", "draw_scene", "encode", "frame", "random_scene", "smooth"]

COLOURS: Final = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 119, 180),
    "yellow": (240, 210, 40),
    "purple": (148, 103, 189),
    "white": (240, 240, 240),
}
"""Name -> RGB."""

SHAPES: Final = ("circle", "square", "triangle")
"""What a scene is made of."""

_RATIOS = (1.0, 4 / 3, 3 / 4, 16 / 9, 3 / 2)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A coloured shape.

    Attributes:
        kind: one of :data:`SHAPES`.
        colour: one of :data:`COLOURS`.
        x: centre, as a fraction of the width.
        y: centre, as a fraction of the height.
        radius: half its extent, as a fraction of the shorter side.
    """

    kind: str
    colour: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """Shapes before a smooth background; the first one is what an edit is about.

    Attributes:
        height: pixels.
        width: pixels.
        background: number of the background.
        shapes: drawn in this order.
    """

    height: int
    width: int
    background: int
    shapes: tuple[Shape, ...]

    def to_json(self) -> dict[str, Any]:
        """The scene as plain JSON values.

        Returns:
            A dictionary for :meth:`from_json`.
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        """Read what :meth:`to_json` gave.

        Args:
            data: its value.

        Returns:
            The scene.
        """
        return cls(**{**data, "shapes": tuple(Shape(**shape) for shape in data["shapes"])})


def frame(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Height and width of a picture.

    Args:
        rng: draws the aspect ratio.
        size: the shorter side in pixels.

    Returns:
        Both, in pixels.
    """
    ratio = float(rng.choice(_RATIOS))
    return (size, round(size * ratio)) if ratio >= 1 else (round(size / ratio), size)


def smooth(rng: np.random.Generator, height: int, width: int, cells: int = 4) -> Image.Image:
    """A smooth random picture: a few random colours, interpolated.

    Args:
        rng: draws the colours.
        height: pixels.
        width: pixels.
        cells: colours along each side; more = rougher.

    Returns:
        The picture, RGB.
    """
    from PIL import Image

    colours = rng.integers(40, 216, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def random_scene(rng: np.random.Generator, size: int) -> Scene:
    """A scene of one to three shapes that do not hide the first one.

    Args:
        rng: draws everything.
        size: the shorter side in pixels.

    Returns:
        The scene.
    """
    height, width = frame(rng, size)
    corners = [(0.5, 0.5), (0.17, 0.2), (0.83, 0.8)][: int(rng.integers(1, 4))]
    shapes = tuple(
        Shape(str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), x, y, 0.22 if number == 0 else 0.12)
        for number, (x, y) in enumerate(corners)
    )
    return Scene(height, width, int(rng.integers(1 << 31)), shapes)


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene.

    Args:
        scene: what to draw.

    Returns:
        The picture, RGB; a pure function of the scene.
    """
    from PIL import ImageDraw

    picture = smooth(np.random.Generator(np.random.Philox(scene.background)), scene.height, scene.width)
    pen = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        x, y, r = shape.x * scene.width, shape.y * scene.height, shape.radius * min(scene.height, scene.width)
        colour = COLOURS[shape.colour]
        if shape.kind == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif shape.kind == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        else:
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    return picture


def encode(picture: Image.Image, kind: str = "JPEG") -> bytes:
    """A picture as a file's bytes.

    Args:
        picture: RGB.
        kind: ``JPEG`` (quality 92) or ``PNG``.

    Returns:
        The bytes.
    """
    buffer = io.BytesIO()
    if kind == "JPEG":
        picture.save(buffer, "JPEG", quality=92)
    else:
        picture.save(buffer, kind)
    return buffer.getvalue()
