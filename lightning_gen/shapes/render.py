"""Scenes to pictures: anti-aliased, a pure function of the scene and the size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.shapes.figures import QUARTERS, stamp
from lightning_gen.shapes.glyphs import write_word
from lightning_gen.shapes.scene import Scene, SceneObject
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS

__all__ = ["SMALLEST", "compress", "noisy", "render", "render_pixels"]

Pixels = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SMALLEST = 32
"""Pixels of the smallest picture whose scenes can be told apart."""


def render(scene: Scene, size: tuple[int, int]) -> Tensor:
    """Draw a scene.

    Args:
        scene: what to draw.
        size: height and width in pixels, each at least ``SMALLEST``.

    Returns:
        uint8, (3, H, W).

    Raises:
        ValueError: a canvas that is too small, or a word that does not fit on it.
    """
    return torch.from_numpy(render_pixels(scene, size)).permute(2, 0, 1).contiguous()


def render_pixels(scene: Scene, size: tuple[int, int]) -> Bytes:
    """The same with the colours last, as decoded files have them.

    Args:
        scene: what to draw.
        size: height and width in pixels, each at least ``SMALLEST``.

    Returns:
        uint8, (H, W, 3).

    Raises:
        ValueError: see :func:`render`.
    """
    height, width = size
    if min(size) < SMALLEST:
        raise ValueError(f"scenes are drawn on {SMALLEST} x {SMALLEST} pixels or more, got {height} x {width}")
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:] = BACKGROUNDS[scene.background]
    for figure in scene.objects:
        _paste(pixels, figure)
    if scene.word:
        write_word(pixels, scene.word, COLORS[scene.word_color])
    return (pixels + 0.5).astype(np.uint8)


def noisy(picture: Tensor, generator: np.random.Generator, strength: float = 4.0) -> Tensor:
    """Add the noise of a cheap camera.

    Args:
        picture: uint8, (3, H, W).
        generator: draws it.
        strength: its standard deviation in levels of 0..255.

    Returns:
        uint8, (3, H, W).
    """
    noise = torch.from_numpy(generator.standard_normal(picture.shape, dtype=np.float32))
    return (picture.float() + strength * noise).round().clamp(0, 255).to(torch.uint8)


def compress(picture: Tensor, quality: int = 90) -> Tensor:
    """What JPEG leaves of a picture.

    Args:
        picture: uint8, (3, H, W).
        quality: 1 to 95.

    Returns:
        uint8, (3, H, W).
    """
    import io

    from PIL import Image

    buffer = io.BytesIO()
    # Colour at full resolution: at 32 pixels half of it would smear every object.
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality, subsampling=0)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).contiguous()


def _paste(pixels: Pixels, figure: SceneObject) -> None:
    height, width, _ = pixels.shape
    x, y = (round(part * side * QUARTERS) for part, side in ((figure.x, width), (figure.y, height)))
    radius = max(1, round(figure.radius * min(height, width) * QUARTERS))
    mask = stamp(figure.kind, x % QUARTERS, y % QUARTERS, radius)
    reach = len(mask) // 2
    left, top = x // QUARTERS - reach, y // QUARTERS - reach
    rows = slice(max(top, 0), min(top + len(mask), height))
    columns = slice(max(left, 0), min(left + len(mask), width))
    part = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None]
    region = pixels[rows, columns]
    region += part * (np.array(COLORS[figure.color], np.float32) - region)
