"""What ``lightning predict`` leaves behind: reconstructed pictures, their latents and a table of errors."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.metrics.reconstruction import psnr_per_image, ssim_per_image
from lightning_gen.nn.tokens import Tokens, split_images

__all__ = ["ReconstructionWriter", "Reconstructions"]


class _Row(NamedTuple):
    key: str
    height: int
    width: int
    tokens: int
    psnr: float
    ssim: float


class Reconstructions(NamedTuple):
    """One batch of predictions of an auto-encoder.

    Attributes:
        key: name of every picture.
        valid: bool, (B,), False = a repeated sample that fills the batch.
        originals: (3, H, W) each, in [-1, 1].
        latents: latents of the B pictures.
        images: reconstructions, as the originals.
    """

    key: tuple[str, ...]
    valid: Tensor
    originals: list[Tensor]
    latents: Tokens
    images: list[Tensor]


class ReconstructionWriter(BasePredictionWriter):
    """Writes ``<run>/predictions/``: KEY.png, KEY.safetensors and ``psnr.csv``, and prints the table at the end.

    A latent file holds ``latent`` (tokens, c), ``row``, ``col`` and ``size`` (height, width in pixels). All of it, and
    the lines of the table too, is on disk when a batch is done: a run that ends early loses nothing that was finished.

    Args:
        folder: where to; None = ``predictions`` in the run folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self._folder = folder
        self._rows: list[_Row] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a new table."""
        self._rows = []

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the pictures and latents of one batch."""
        if not isinstance(prediction, Reconstructions):
            return
        folder = self._target(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        psnr = psnr_per_image(prediction.images, prediction.originals).tolist()
        ssim = ssim_per_image(prediction.images, prediction.originals).tolist()
        done = len(self._rows)
        for i, latent in enumerate(split_images(prediction.latents)):
            if bool(prediction.valid[i]):
                self._write(folder, prediction.key[i], prediction.images[i], latent)
                height, width = prediction.originals[i].shape[1:]
                count = latent.values.shape[1]
                self._rows.append(_Row(prediction.key[i], height, width, count, psnr[i], ssim[i]))
        if len(self._rows) == done:
            return
        with self._table(trainer).open("a" if done else "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(self._rows[done:] if done else [_Row._fields, *self._rows])

    @staticmethod
    def _write(folder: Path, key: str, image: Tensor, latent: Tokens) -> None:
        from PIL import Image
        from safetensors.torch import save_file

        # A key may hold the folders of a picture below the one that was given.
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(signed_to_uint8(image.cpu()).permute(1, 2, 0).numpy()).save(folder / f"{key}.png")
        parts = {"latent": latent.values[0], "row": latent.row[0], "col": latent.col[0], "size": latent.sizes[0]}
        save_file({name: part.cpu().contiguous() for name, part in parts.items()}, folder / f"{key}.safetensors")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table."""
        if self._rows:
            self._print(self._table(trainer))

    def _table(self, trainer: pl.Trainer) -> Path:
        suffix = "" if trainer.world_size == 1 else f"-{trainer.global_rank}"
        return self._target(trainer) / f"psnr{suffix}.csv"

    def _print(self, path: Path) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(*_Row._fields, title=f"{len(self._rows)} reconstructions in {path.parent}")
        for row in self._rows:
            table.add_row(row.key, *map(str, row[1:4]), f"{row.psnr:.2f}", f"{row.ssim:.4f}")
        psnr, ssim = fmean(row.psnr for row in self._rows), fmean(row.ssim for row in self._rows)
        table.add_row("mean", "", "", "", f"{psnr:.2f}", f"{ssim:.4f}")
        Console().print(table)

    def _target(self, trainer: pl.Trainer) -> Path:
        return Path(self._folder) if self._folder else Path(trainer.default_root_dir) / "predictions"
