"""A live picture of gradient conflict: which loss reaches which parameters, and how losses agree."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gen.nn.routing import GradientRouter, RoutesGradients, RoutingMatrix

__all__ = ["GradientRouting", "draw_routing"]


class GradientRouting(Callback):
    """Measures the gradients of the module's losses every so many steps, before the training step of that batch.

    It costs one forward pass and one backward pass per loss. Numbers are logged as ``routing/norm/<loss>/<group>``,
    ``routing/cos_shared/<a>-<b>`` (over parameters that both reach) and ``routing/cos_full/<a>-<b>`` (missing = 0); the
    picture goes to ``<run>/routing/step_00001000.png``. Every rank takes part, rank 0 writes.

    Args:
        every_n_steps: optimiser steps between two measurements, >= 1.
        picture: whether to draw.

    Raises:
        ValueError: ``every_n_steps`` below 1.
    """

    def __init__(self, every_n_steps: int = 500, picture: bool = True) -> None:
        if every_n_steps < 1:
            raise ValueError(f"GradientRouting needs every_n_steps >= 1, got {every_n_steps}")
        self.every_n_steps, self.picture = every_n_steps, picture
        self.last: RoutingMatrix | None = None
        self._measured = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module whose losses cannot be told apart."""
        if not isinstance(pl_module, RoutesGradients):
            raise TypeError(
                f"GradientRouting calls routing_losses(batch) and routing_groups() of the model, which "
                f"{type(pl_module).__name__} does not have (lightning_gen.nn.routing.RoutesGradients)"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure, log and draw."""
        step = trainer.global_step
        if step % self.every_n_steps or step == self._measured or not isinstance(pl_module, RoutesGradients):
            return
        self._measured = step
        with torch.enable_grad(), trainer.precision_plugin.forward_context():
            losses = pl_module.routing_losses(batch)
        self.last = GradientRouter(pl_module.routing_groups()).measure(losses)
        for name, value in self.last.scalars().items():
            pl_module.log(f"routing/{name}", value.float(), batch_size=len(batch))
        if self.picture and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "routing" / f"step_{step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_routing(self.last, path, f"step {step}")


def draw_routing(matrix: RoutingMatrix, path: str | Path, title: str = "") -> None:
    """Draw norms by loss and group, and both cosine matrices.

    Args:
        matrix: what was measured.
        path: PNG file; it appears whole or not at all.
        title: above the picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("the picture of gradients needs matplotlib: pip install matplotlib") from None

    figure = Figure(figsize=(5 + 0.55 * len(matrix.groups), 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[max(3, len(matrix.groups)), 3, 3])
    logs = matrix.norms.double().clamp(min=1e-12).log10().masked_fill(matrix.norms == 0, float("nan")).cpu()
    shown = left.imshow(logs.numpy(), aspect="auto", cmap="viridis")
    figure.colorbar(shown, ax=left, label="log10 of the gradient norm")
    _label(left, matrix.groups, matrix.losses, "norm (white = does not arrive)")
    _write_values(left, matrix.norms, "{:.0e}")
    for axes, values, name in ((middle, matrix.cos_shared, "cos_shared"), (right, matrix.cos_full, "cos_full")):
        axes.imshow(values.double().cpu().numpy(), vmin=-1, vmax=1, cmap="coolwarm")
        _label(axes, matrix.losses, matrix.losses, name)
        _write_values(axes, values, "{:.2f}")
    figure.suptitle(title)
    partial = Path(path).with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=110)
    os.replace(partial, path)


def _label(axes: Any, columns: tuple[str, ...], rows: tuple[str, ...], title: str) -> None:
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(title, fontsize=9)


def _write_values(axes: Any, values: torch.Tensor, form: str) -> None:
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            if value == value and (value != 0 or form == "{:.2f}"):
                axes.text(j, i, form.format(value), ha="center", va="center", fontsize=6, color="black")
