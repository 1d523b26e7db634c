"""A small InternViT that has learned to see the embedded world, as MUSE's own encoder has learned to see photographs.

Shape letters: B images, H and W height and width in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from pictures import scenes
from torch import Tensor, nn
from torch.nn import functional as F
from training import train

from lightning_gen.autoencoders.muse.codec import imagenet_pixels
from lightning_gen.autoencoders.muse.network import space_to_depth
from lightning_gen.backbones.frozen import FrozenModule
from lightning_gen.backbones.intern_vit import InternViT, InternViTShape
from lightning_gen.data.batches import ImageBatch
from lightning_gen.shapes.encoder import ShapesEncoder
from lightning_gen.training.initialisation import initialise
from lightning_gen.training.optim import AdamW, WarmupCosine

if TYPE_CHECKING:
    from claim import Budget
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["Distillation", "pretrained_encoder"]


class Distillation(pl.LightningModule):
    """Trains an InternViT to give the features of a frozen encoder at the same places.

    L = 1 - mean over places of cos(W t, f),  t the four tokens of a place, f the frozen encoder's last map

    Args:
        shape: sizes of the InternViT; two of its patches are as wide as a place of the frozen encoder's map.
        frozen: gives f.
        seed: of the weights.
    """

    def __init__(self, shape: InternViTShape, frozen: ShapesEncoder, seed: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.student = InternViT(shape)
            self.map = nn.Linear(4 * shape.width, frozen.num_features)
        self.frozen, self.patch, self.seed = FrozenModule(frozen), shape.patch, seed

    def configure_model(self) -> None:
        """Fill the networks; does nothing the second time."""
        if next(self.student.parameters()).device.type == "meta":
            for part in (self.student, self.map):
                part.to_empty(device="cpu")
                initialise(part, self.seed)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW under a warm-up cosine, stepped with the optimiser."""
        optimizer = AdamW(learning_rate=2e-3, fused=True).build(self)
        scheduler = WarmupCosine().build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """One step.

        Args:
            batch: pictures of the embedded world.
            batch_idx: not used.

        Returns:
            The loss.
        """
        images = batch.images
        assert isinstance(images, Tensor)
        network: Any = self.frozen.network
        with torch.no_grad():
            wanted = network.features(images)[-1].flatten(2).transpose(1, 2)
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        tokens, _ = space_to_depth(self.student(imagenet_pixels(images))[:, 1:], grid)
        return 1 - F.cosine_similarity(self.map(tokens), wanted, dim=-1).mean()


def pretrained_encoder(
    shape: InternViTShape, weights: str, size: int, steps: int, budget: Budget, seed: int, folder: Path
) -> str:
    """Train one and write it to disk. The same arguments give the same weights.

    Args:
        shape: its sizes.
        weights: of the frozen encoder: folder, hub id or shipped name.
        size: edge of the pictures in pixels.
        steps: optimiser steps.
        budget: batch.
        seed: of weights and scenes.
        folder: of checkpoints and of what is written.

    Returns:
        A folder that ``Muse(encoder_source=...)`` reads.

    Raises:
        MissingWeightsError: the frozen encoder is not there.
    """
    model = Distillation(shape, ShapesEncoder.from_pretrained(weights), seed)
    train(model, scenes([(size, size)], budget, seed), steps, folder)
    model.student.model.save_pretrained(folder / "encoder")
    return str(folder / "encoder")
