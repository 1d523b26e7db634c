"""What the data cost, in the run's log."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_gen.data.planned import PlannedDataModule
from lightning_gen.nn.tokens import Tokens

__all__ = ["DataReport"]


class DataReport(pl.Callback):
    """Logs bad samples, reads tried again, bytes read and seconds waited over all ranks, and the share of padding.

    In the steps in which the trainer writes its log, and at the end of every epoch. The ranks keep one account of bad
    samples, in which each counts once: it is logged as it is and not summed up.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counters of the training loader.

        Args:
            trainer: the trainer.
            pl_module: the model, which does the logging.
            outputs: not used.
            batch: the batch; its rows of tokens tell how much of them is padding.
            batch_idx: not used.
        """
        if not trainer._logger_connector.should_update_logs:
            return
        self._log(trainer, pl_module, on_step=True)
        images = getattr(batch, "images", None)
        if isinstance(images, Tokens):
            padding = 1 - images.mask.float().mean()
            pl_module.log("data/padding", padding, on_step=True, on_epoch=False, sync_dist=True, batch_size=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the counters once more.

        Args:
            trainer: the trainer.
            pl_module: the model, which does the logging.
        """
        self._log(trainer, pl_module, on_step=False)

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, on_step: bool) -> None:
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, PlannedDataModule):
            # Two names, since Lightning keeps values of steps and of epochs apart.
            place = "data" if on_step else "data_epoch"
            values = {f"{place}/{name}": value for name, value in data.counters().items()}
            options: dict[str, Any] = {"on_step": on_step, "on_epoch": not on_step, "sync_dist": True, "batch_size": 1}
            pl_module.log(f"{place}/bad", values.pop(f"{place}/bad"), reduce_fx="max", **options)
            pl_module.log_dict(values, reduce_fx="sum", **options)
