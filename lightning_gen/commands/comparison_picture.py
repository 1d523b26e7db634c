"""One picture: originals beside reconstructions, at several resolutions, pixel for pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from lightning_gen.data.transforms import signed_to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image

    from .reconstruction_report import Measured

__all__ = ["draw_comparison"]

_GAP = 12
_LINE = 20
_FONT_SIZE = 14
_PAPER = (255, 255, 255)
_INK = (30, 30, 30)


class _Cell(NamedTuple):
    image: Image
    caption: str


def draw_comparison(measured: Sequence[Measured], title: str) -> Image:
    """Lay out one row per photograph; for every resolution the original and, beside it, the reconstruction.

    Nothing is resized: a picture at a larger token budget is larger on paper.

    Args:
        measured: photographs with their reconstructions, in any order.
        title: first line of the picture.

    Returns:
        An RGB picture with the sizes under the originals and the PSNR under the reconstructions.

    Raises:
        ValueError: there is nothing to show.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = _rows(measured)
    if not rows:
        raise ValueError("there is no photograph to show")
    widths = [max(row[k].image.width for row in rows if k < len(row)) for k in range(max(map(len, rows)))]
    heights = [max(cell.image.height for cell in row) + _LINE + _GAP for row in rows]
    paper = Image.new("RGB", (sum(widths) + _GAP * (len(widths) + 1), sum(heights) + _LINE + 2 * _GAP), _PAPER)
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(_FONT_SIZE)
    pen.text((_GAP, _GAP), title, _INK, font)
    top = _LINE + 2 * _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for cell, width in zip(row, widths, strict=False):
            paper.paste(cell.image, (left, top))
            pen.text((left, top + cell.image.height + 2), cell.caption, _INK, font)
            left += width + _GAP
        top += height
    return paper


def _rows(measured: Sequence[Measured]) -> list[list[_Cell]]:
    keys = dict.fromkeys(one.key for one in measured)
    ordered = sorted(measured, key=lambda one: one.budget)
    return [[cell for one in ordered if one.key == key for cell in _pair(one)] for key in keys]


def _pair(one: Measured) -> tuple[_Cell, _Cell]:
    height, width = one.original.shape[1:]
    score = one.scores["trained"]
    return (
        _Cell(_to_pil(one.original), f"{one.key}, {height} x {width}, {one.tokens} tokens"),
        _Cell(_to_pil(one.trained), f"{score.psnr:.2f} dB, SSIM {score.ssim:.3f}"),
    )


def _to_pil(image: Tensor) -> Image:
    from PIL import Image

    return Image.fromarray(signed_to_uint8(image).permute(1, 2, 0).contiguous().numpy())
