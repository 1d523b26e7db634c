"""One picture to look at before a number is believed: the best, the median and the worst cases, with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

__all__ = ["Cell", "Chosen", "best_median_worst", "draw_contact_sheet"]

_GAP: Final = 12
_LINE: Final = 18
_LINES: Final = 3
_FONT_SIZE: Final = 13
_PAPER: Final = (255, 255, 255)
_INK: Final = (30, 30, 30)


class Cell(NamedTuple):
    """One case on the sheet.

    Attributes:
        images: uint8 pictures (3, H, W) that belong together, side by side: one, or an original and what became of it.
        caption: score, and name or prompt; long ones are broken into three lines and cut.
    """

    images: Sequence[Tensor]
    caption: str


class Chosen(NamedTuple):
    """Numbers of cases.

    Attributes:
        best: from the best one on.
        median: around the middle of the order.
        worst: from the worst one on.
    """

    best: list[int]
    median: list[int]
    worst: list[int]


def best_median_worst(scores: Sequence[float], higher_is_better: bool, count: int = 6) -> Chosen:
    """Choose the cases that are shown.

    Args:
        scores: one per case; cases of equal score keep their order.
        higher_is_better: which end is the best.
        count: how many of each kind at most; fewer where the same case would be shown twice.

    Returns:
        Their numbers.

    Raises:
        ValueError: no case, or a score that is not a number.
    """
    if not scores:
        raise ValueError("there is no case to show")
    if bad := [number for number, score in enumerate(scores) if math.isnan(score)]:
        raise ValueError(f"the score of case {bad[0]} is not a number")
    order = sorted(range(len(scores)), key=lambda number: -scores[number] if higher_is_better else scores[number])
    count = max(1, min(count, len(order) // 3))
    start = (len(order) - count) // 2
    if len(order) < 3:
        return Chosen(order[:1], [], order[1:])
    return Chosen(order[:count], order[start : start + count], order[::-1][:count])


def draw_contact_sheet(title: str, rows: Sequence[tuple[str, Sequence[Cell]]], tile: int = 192) -> Image:
    """Lay the cases out, one row per kind.

    Args:
        title: first line: what is measured and what the score is; broken into lines where it is long.
        rows: heading of a row and its cases; rows without a case are left out.
        tile: longer side of a picture in pixels; larger ones are shrunk, smaller ones enlarged by a whole factor.

    Returns:
        An RGB picture.

    Raises:
        ValueError: there is no case.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = [row for row in rows if row[1]]
    if not rows:
        raise ValueError("there is no case to show")
    font = ImageFont.load_default(_FONT_SIZE)
    columns = max(len(cells) for _, cells in rows)
    per_cell = max(len(cell.images) for _, cells in rows for cell in cells)
    cell_width = per_cell * tile + (per_cell - 1) * 2
    row_height = _LINE + tile + _LINES * _LINE + _GAP
    width = max(columns * (cell_width + _GAP) + _GAP, 3 * tile)
    title_lines = _broken(title, width - 2 * _GAP, font, 4)
    top = _GAP + len(title_lines) * _LINE + _GAP
    paper = Image.new("RGB", (width, top + len(rows) * row_height), _PAPER)
    pen = ImageDraw.Draw(paper)
    for number, line in enumerate(title_lines):
        pen.text((_GAP, _GAP + number * _LINE), line, _INK, font)
    for heading, cells in rows:
        pen.text((_GAP, top), heading, _INK, font)
        for column, cell in enumerate(cells):
            left = _GAP + column * (cell_width + _GAP)
            for place, image in enumerate(cell.images):
                paper.paste(_fitted(image, tile), (left + place * (tile + 2), top + _LINE))
            for number, line in enumerate(_broken(cell.caption, cell_width, font, _LINES)):
                pen.text((left, top + _LINE + tile + 2 + number * _LINE), line, _INK, font)
        top += row_height
    return paper


def _fitted(image: Tensor, tile: int) -> Image:
    from PIL import Image

    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"a contact sheet shows uint8 images (3, H, W), got {image.dtype} {list(image.shape)}")
    picture = Image.fromarray(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()))
    longer = max(picture.size)
    if longer > tile:
        size = max(1, round(picture.width * tile / longer)), max(1, round(picture.height * tile / longer))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = tile // longer
    # Whole pixels, so that a small picture shows what it is.
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _broken(text: str, width: int, font: Font, most: int) -> list[str]:
    """Lines that fit; names without spaces are cut anywhere."""
    lines, line = list[str](), ""
    for word in text.split():
        while word:
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line, word = joined, ""
            elif line:
                lines.append(line)
                line = ""
            else:
                fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                lines.append(word[:fits])
                word = word[fits:]
    lines += [line] if line else []
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last}..."]
    return lines
