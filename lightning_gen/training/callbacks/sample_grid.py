"""A picture of what the model does, after every validation, on disk and in any logger that shows images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_gen.interfaces import Pictures, ShowsPictures

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SampleGrid", "draw_grid"]

_STRIP = 16
_GAP = 2
_BACKGROUND = (24, 24, 24)
_INK = (235, 235, 235)


class SampleGrid(Callback):
    """Draws ``module.pictures(batch)`` of one fixed validation batch at the end of every validation.

    The batch is the first that validation yields in this run. The grid goes to ``<run>/samples/step_00001000.png``,
    named by the optimiser step, and to every logger that can show an image. Where there are averaged weights, they are
    in the module when it is drawn. Every rank takes part, rank 0 writes.

    Args:
        max_images: number of columns, >= 1.
        max_edge: pictures with a longer edge are reduced to it, in pixels, >= 1.
        tag: name of the picture in loggers.

    Raises:
        ValueError: an argument below 1.
    """

    def __init__(self, max_images: int = 8, max_edge: int = 512, tag: str = "samples") -> None:
        if max_images < 1 or max_edge < 1:
            raise ValueError(f"SampleGrid needs max_images and max_edge >= 1, got {max_images} and {max_edge}")
        self.max_images = max_images
        self.max_edge = max_edge
        self.tag = tag
        self._batch: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot show pictures."""
        if not isinstance(pl_module, ShowsPictures):
            raise TypeError(
                f"SampleGrid calls pictures(batch) of the model, which {type(pl_module).__name__} does not have "
                "(lightning_gen.interfaces.ShowsPictures); write it or remove the callback"
            )

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first batch."""
        if self._batch is None:
            # In host memory between validations: it may be large, and it is needed for a moment.
            self._batch = batch.to("cpu")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the grid."""
        if self._batch is None or not isinstance(pl_module, ShowsPictures):
            return
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            rows = pl_module.pictures(self._batch.to(pl_module.device))
        if trainer.is_global_zero:
            step = trainer.global_step
            image = draw_grid(rows, self.max_images, self.max_edge)
            _write(image, Path(trainer.default_root_dir) / "samples" / f"step_{step:08d}.png")
            for logger in trainer.loggers:
                _show(logger, self.tag, image, step)


def draw_grid(rows: Sequence[Pictures], max_images: int, max_edge: int) -> Image:
    """Lay pictures of any sizes out in captioned rows.

    Args:
        rows: one row per entry, its caption above it.
        max_images: number of columns.
        max_edge: longest edge of a picture, in pixels; longer ones are reduced, none is enlarged.

    Returns:
        An RGB picture. Every column is as wide as its widest picture or note, every row as high as its highest.

    Raises:
        ValueError: there is no picture.
    """
    from PIL import Image, ImageDraw

    cells = [[_to_pil(picture, max_edge) for picture in row.images[:max_images]] for row in rows]
    if not any(cells):
        raise ValueError("pictures() returned no picture to draw")
    columns = max(len(row) for row in cells)
    notes = [_note_sizes(row.notes[:max_images]) for row in rows]
    spans = [[cell.width for cell in row] for row in cells] + [[width for width, _ in row] for row in notes]
    widths = [max(row[k] for row in spans if k < len(row)) for k in range(columns)]
    heights = [max((cell.height for cell in row), default=0) for row in cells]
    below = [max((height for _, height in row), default=0) for row in notes]
    size = (sum(widths) + _GAP * (columns + 1), sum(heights) + sum(below) + (_STRIP + _GAP) * len(cells) + _GAP)
    grid = Image.new("RGB", size, _BACKGROUND)
    pen = ImageDraw.Draw(grid)
    top = 0
    for row, images, height, under in zip(rows, cells, heights, below, strict=True):
        pen.text((_GAP, top + 2), row.caption, fill=_INK)
        left, top = _GAP, top + _STRIP
        for number, (image, width) in enumerate(zip(images, widths, strict=False)):
            grid.paste(image, (left, top))
            if number < len(row.notes):
                pen.text((left, top + height), row.notes[number], fill=_INK)
            left += width + _GAP
        top += height + under + _GAP
    return grid


def _note_sizes(notes: Sequence[str]) -> list[tuple[int, int]]:
    """Width and height of every note in pixels."""
    from PIL import Image, ImageDraw

    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [pen.textbbox((0, 0), note) for note in notes]
    return [(math.ceil(right), math.ceil(bottom) + _GAP) for _, _, right, bottom in boxes]


def _to_pil(picture: Tensor, max_edge: int) -> Image:
    """[-1, 1] float (3, H, W) to 8 bits, reduced if it is too large."""
    from PIL import Image

    pixels = ((picture.detach().float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().contiguous().numpy())
    scale = max_edge / max(image.size)
    if scale < 1.0:
        width, height = (max(1, round(edge * scale)) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return image


def _write(image: Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    image.save(partial, format="PNG")
    os.replace(partial, path)


def _show(logger: Any, tag: str, image: Image, step: int) -> None:
    """Hand the picture to a logger by what it can do, so that no logging library has to be imported."""
    if hasattr(logger, "log_image"):  # Weights & Biases
        logger.log_image(key=tag, images=[image], step=step)
    elif hasattr(logger.experiment, "add_image"):  # TensorBoard
        import numpy as np

        logger.experiment.add_image(tag, np.asarray(image), step, dataformats="HWC")
