"""What ``lightning predict`` leaves behind for a generator: pictures in GenEval's folder layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lightning_gen.data.index import replace_file
from lightning_gen.data.transforms import signed_to_uint8

__all__ = ["Generated", "GeneratedWriter"]


class Generated(NamedTuple):
    """One batch of pictures that were made for prompts.

    Attributes:
        prompt: the texts.
        metadata: what stands beside each prompt in its file, as JSON text; empty where nothing does.
        number: number of each prompt in its file.
        valid: bool, (B,), False = a repeated prompt that fills the batch.
        images: B times ``pictures`` pictures (3, H, W) in [-1, 1], prompt by prompt.
        pictures: per prompt.
    """

    prompt: tuple[str, ...]
    metadata: tuple[str, ...]
    number: list[int]
    valid: Tensor
    images: Tensor | Sequence[Tensor]
    pictures: int


class GeneratedWriter(BasePredictionWriter):
    """Writes ``<run>/predictions/NNNNN/metadata.jsonl`` and ``NNNNN/samples/0000.png``, where NNNNN is the prompt.

    It is what `lightning evaluate geneval --samples` reads; other metrics take every picture below the folder. A prompt
    is on disk when its batch is done. Without prompts NNNNN is the number of the image whose condition was taken.

    Args:
        folder: where to; None = ``predictions`` in the run folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self._folder = folder

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
        """Write the pictures of one batch."""
        if not isinstance(prediction, Generated):
            return
        from PIL import Image

        target = Path(self._folder) if self._folder else Path(trainer.default_root_dir) / "predictions"
        for row, number in enumerate(prediction.number):
            if not prediction.valid[row]:
                continue
            samples = target / f"{number:05d}" / "samples"
            samples.mkdir(parents=True, exist_ok=True)
            record = prediction.metadata[row] or json.dumps({"prompt": prediction.prompt[row]})
            replace_file(samples.parent / "metadata.jsonl", (record.strip() + "\n").encode())
            for picture in range(prediction.pictures):
                image = signed_to_uint8(prediction.images[row * prediction.pictures + picture].cpu())
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(samples / f"{picture:04d}.png")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where the pictures are."""
        if trainer.is_global_zero:
            target = Path(self._folder) if self._folder else Path(trainer.default_root_dir) / "predictions"
            print(f"pictures in {target}, one folder per prompt")
