"""Pictures of the embedded world that claims train on, and how well unseen ones come back.

Shape letters: B images, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import torch
from claim import Budget
from torch import Tensor

from lightning_gen.metrics.reconstruction import PeakSignalToNoise, StructuralSimilarity
from lightning_gen.shapes.module import ShapesDataModule

__all__ = ["SCENES", "Reconstruct", "Size", "quality", "scenes"]

Size = tuple[int, int]
"""Height and width in pixels."""

Reconstruct = Callable[[Tensor], Tensor]
"""Pictures (B, 3, H, W) in [-1, 1] to their reconstructions."""

SCENES: Final = 1 << 17
"""Training scenes of a pass; no run may be long enough to see one twice."""


def scenes(size: Iterable[Size], budget: Budget, seed: int) -> ShapesDataModule:
    """Pictures of the embedded world.

    Args:
        size: heights and widths in pixels; validation takes the first.
        budget: batch and number of pictures to measure on.
        seed: of the scenes.

    Returns:
        The data.
    """
    return ShapesDataModule(
        train="even",
        val="even",
        size=list(size),
        global_batch_size=budget.batch,
        samples=SCENES,
        val_samples=budget.measured_on,
        val_batch_size=32,
        seed=seed,
    )


def quality(reconstruct: Reconstruct, size: Size, budget: Budget, seed: int) -> tuple[float, float]:
    """How well unseen pictures of a size come back.

    Args:
        reconstruct: pictures (B, 3, H, W) in [-1, 1] to their reconstructions.
        size: height and width.
        budget: number of pictures.
        seed: of the scenes.

    Returns:
        Mean PSNR in decibel and mean SSIM.
    """
    psnr, ssim = PeakSignalToNoise(), StructuralSimilarity()
    data = scenes([size], budget, seed)
    data.setup("validate")
    with torch.inference_mode():
        for batch in data.evaluation_loader("val"):
            made = reconstruct(batch.images)
            psnr.update(made, batch.images, batch.valid)
            ssim.update(made, batch.images, batch.valid)
    return float(psnr.compute()), float(ssim.compute())
