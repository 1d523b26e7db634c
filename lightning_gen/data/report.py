"""What the data cost, in the run's log."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_gen.data.planned import PlannedDataModule
from lightning_gen.nn.tokens import Tokens

__all__ = ["DataReport"]


class DataReport(pl.Callback):
    """Logs bad samples, reads tried again, bytes read and seconds waited over all ranks, and the share of padding.

    Args:
        every: batches between two lines of the log.
    """

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counters of the training loader.

        Args:
            trainer: the trainer.
            pl_module: the model, which does the logging.
            outputs: not used.
            batch: the batch; its rows of tokens tell how much of them is padding.
            batch_idx: number of the batch in its epoch.
        """
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, PlannedDataModule) and (batch_idx + 1) % self.every == 0:
            values = {f"data/{name}": value for name, value in data.counters().items()}
            pl_module.log_dict(values, on_step=True, on_epoch=False, sync_dist=True, reduce_fx="sum", batch_size=1)
            images = getattr(batch, "images", None)
            if isinstance(images, Tokens):
                padding = 1 - images.mask.float().mean()
                pl_module.log("data/padding", padding, on_step=True, on_epoch=False, sync_dist=True, batch_size=1)
