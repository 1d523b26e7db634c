"""Stage 0 of PAE in training: a projector that refines the frozen prior to a few channels.

Shape letters: B images, N tokens, D width of the prior, d latent channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_gen.autoencoders.pae.codec import as_pictures, needs_of_network, plain_arguments
from lightning_gen.autoencoders.pae.network import RefineNetwork
from lightning_gen.autoencoders.pae.objective import refine_loss
from lightning_gen.autoencoders.pae.prior import grid_of, look, require_prior, write_refined
from lightning_gen.autoencoders.pae.upsampling import FeatureUpsampler, JointBilateral, structural_reference
from lightning_gen.autoencoders.pae.variants import PAEShape, Stack
from lightning_gen.backbones.patch_features import PatchEncoder
from lightning_gen.data.batches import ImageBatch
from lightning_gen.nn.latent_maps import fill_up
from lightning_gen.training.meta_module import MetaModule
from lightning_gen.training.needs import ModelNeeds
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.randomness import key_seed

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["PAERefine"]


class PAERefine(MetaModule):
    """Refines a frozen prior: few channels, the features can be restored from them, their structure is smooth.

    Z_T = P^t(H), H^ = Q^t(Z_T);  L = w_rep mean (H^ - H)^2 + w_gram mean (G(Z_T) - G(H_ref))^2

    Args:
        encoder: the prior.
        shape: sizes; the projector is that of the auto-encoder with the same shape.
        restorer: blocks of Q^t; paper: 4 of width 1024.
        reference: ``refined`` = upsampled, smoothed and brought back (paper); ``raw`` = the features themselves.
        upsampler: how features are made fine; paper: AnyUp.
        fine_size: edge of the fine maps; paper: 256.
        strength: of the low pass; paper: 0.4.
        sigma: of its Gaussian, in places of the fine map; not stated.
        representation_weight: w_rep; not stated.
        gram_weight: w_gram; not stated.
        optimizer: AdamW with its hyper-parameters; not stated, the nearest public recipe.
        schedule: warm-up and cosine; the same.
        activation_checkpointing: recompute blocks in the backward pass to save memory.
        compile_blocks: torch.compile every block.
        seed: seed of the initial weights.

    Raises:
        ValueError: an unknown reference, or a latent without a sphere.

    Source: arXiv:2605.07915 section 3.3.
    """

    network: RefineNetwork

    def __init__(
        self,
        encoder: PatchEncoder,
        shape: PAEShape = PAEShape(),  # noqa: B008 (frozen)
        restorer: str = "w1024_d4_h16",
        reference: Literal["refined", "raw"] = "refined",
        upsampler: FeatureUpsampler = JointBilateral(),  # noqa: B008 (frozen)
        fine_size: int = 256,
        strength: float = 0.4,
        sigma: float = 8.0,
        representation_weight: float = 1.0,
        gram_weight: float = 1.0,
        optimizer: AdamW = AdamW(learning_rate=1e-4, betas=(0.9, 0.98), weight_decay=0.05),  # noqa: B008 (frozen)
        schedule: WarmupCosine = WarmupCosine(0.05, 1e-5, 0.0),  # noqa: B008 (frozen)
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if reference not in ("refined", "raw"):
            raise ValueError(f"reference is refined or raw, got {reference!r}")
        if shape.latent == "kl":
            raise ValueError("stage 0 has no Gaussian latent: set shape.latent to sphere or plain")
        self.save_hyperparameters(plain_arguments(shape, encoder, {"restorer": restorer}), logger=False)
        self.encoder, self.shape = encoder, shape
        with torch.device("meta"):
            self.network = RefineNetwork(shape, Stack.parse(restorer))
        self.reference, self.upsampler, self.fine_size = reference, upsampler, fine_size
        self.strength, self.sigma = strength, sigma
        self.representation_weight, self.gram_weight = representation_weight, gram_weight
        self.optimizer, self.schedule = optimizer, schedule
        self.activation_checkpointing, self.compile_blocks = activation_checkpointing, compile_blocks
        self.seed = seed

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """What a run with these arguments needs.

        Args:
            init_args: constructor arguments, as parsed from a config.

        Returns:
            Parameters, activations and weights.
        """
        return needs_of_network(
            init_args, lambda shape: RefineNetwork(shape, Stack.parse(init_args.get("restorer", "w1024_d4_h16")))
        )

    def configure_model(self) -> None:
        """Shard, materialise and fill the network; does nothing the second time."""
        if not self.on_meta:
            return
        # Weights are keyed by name and seed: the auto-encoder's projector of the same names starts elsewhere.
        self.prepare_network(
            self.network,
            key_seed(self.seed, "stage 0"),
            activation_checkpointing=self.activation_checkpointing,
            compile_blocks=self.compile_blocks,
        )

    def setup(self, stage: str) -> None:
        """Load the prior and refuse one that does not fit."""
        require_prior(self.encoder, self.shape)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW under a warm-up cosine, stepped with the optimiser."""
        optimizer = self.optimizer.build(self.network)
        scheduler = self.schedule.build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """One step of stage 0.

        Args:
            batch: pictures of one size.
            batch_idx: not used.

        Returns:
            The loss.

        Source: arXiv:2605.07915 section 3.3.
        """
        return self._loss(batch, "train")

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """The same loss on held-out pictures.

        Args:
            batch: pictures of one size.
            batch_idx: not used.
        """
        self._loss(batch, "val")

    def _loss(self, batch: ImageBatch, prefix: str) -> Tensor:
        images = as_pictures(batch.images)
        prior = look(self.encoder, fill_up(images, self.shape.patch), grid_of(images, self.shape.patch))
        reference = prior.features
        if self.reference == "refined":
            size = (self.fine_size, self.fine_size)
            reference = structural_reference(
                prior.features, images, prior.grid, self.upsampler, size, self.strength, self.sigma
            )
        latents, restored = self.network(prior.features, prior.grid)
        terms = refine_loss(restored, prior.features, latents, reference, self.representation_weight, self.gram_weight)
        loss = torch.stack(list(terms.values())).sum()
        for name, term in terms.items():
            self.log(f"{prefix}/{name}", term.detach(), batch_size=len(batch), sync_dist=prefix == "val")
        self.log(f"{prefix}/loss", loss.detach(), prog_bar=True, batch_size=len(batch), sync_dist=prefix == "val")
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that a checkpoint alone can be exported."""
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights as safetensors with a ``config.json``: what stage 1 takes as ``refined``.

        Args:
            folder: made if it does not exist.
        """
        write_refined(Path(folder), self.shape, self.encoder, self.network.state_dict())
