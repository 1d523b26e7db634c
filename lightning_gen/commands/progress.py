"""The progress bar of the Trainer's verbs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

__all__ = ["RunProgressBar", "with_progress_bar"]


class RunProgressBar(RichProgressBar):
    """Lightning's bar, without a last epoch where the run has none."""

    def _get_train_description(self, current_epoch: int) -> str:
        described = super()._get_train_description(current_epoch)
        # Under max_steps the number of epochs is -1, of which Lightning makes "Epoch 0/-2".
        return described.replace(f"{current_epoch}/-2", str(current_epoch))


def with_progress_bar(callbacks: Any) -> list[Any]:
    """Add the bar to the callbacks of a configuration, unless one of them is a bar.

    Args:
        callbacks: None, a callback or a list of callbacks.

    Returns:
        A new list.
    """
    given = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
    return given if any(isinstance(one, ProgressBar) for one in given) else [*given, RunProgressBar()]
