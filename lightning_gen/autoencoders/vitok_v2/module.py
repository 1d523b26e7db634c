"""ViTok-v2 in training: the algorithm, what it is measured by, and what it costs. Its use stands in ``codec.py``.

Shape letters: B rows, L tokens, I images, c latent channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_gen.autoencoders.reconstruction_metrics import ReconstructionMetrics
from lightning_gen.autoencoders.reconstructions import Reconstructions, ReconstructionWriter
from lightning_gen.autoencoders.vitok_v2.bottleneck import BottleneckName
from lightning_gen.autoencoders.vitok_v2.codec import Building, ViTokV2Codec
from lightning_gen.autoencoders.vitok_v2.convert import Settings
from lightning_gen.autoencoders.vitok_v2.cost import activation_bytes_per_token, forward_flops, use_bytes_per_token
from lightning_gen.autoencoders.vitok_v2.network import Reconstruction
from lightning_gen.autoencoders.vitok_v2.objective import (
    Tiles,
    charbonnier,
    mean_of_images,
    sample_tiles,
    ssim_loss,
    tile_corners,
)
from lightning_gen.autoencoders.vitok_v2.perceptual import dino_distance
from lightning_gen.autoencoders.vitok_v2.variants import Variant
from lightning_gen.backbones.vision import Backend, DINOv3Encoder, Size, dinov3_parameters, weight_need
from lightning_gen.data.batches import ImageBatch
from lightning_gen.interfaces import Pictures
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.lpips import LPIPS
from lightning_gen.nn.tokens import Tokens, unpatchify
from lightning_gen.training.needs import ModelNeeds
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.randomness import normal, uniform

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["ViTokV2"]

_PAPER_OPTIMIZER = AdamW(learning_rate=5e-4, betas=(0.9, 0.95), weight_decay=0.05)
_PAPER_SCHEDULE = WarmupCosine(warmup_fraction=0.05, final_learning_rate=1e-5, start_learning_rate=1e-7)


class ViTokV2(ViTokV2Codec):
    """Native-resolution auto-encoder made of transformer blocks only.

    z = LayerNorm(encoder(patches));  y = decoder(z)
    L = w_c charbonnier(y, x) + w_s (1 - SSIM(tiles)) + w_d DINO distance(tiles) + penalty of the bottleneck

    Args:
        variant: ``5B-f16x64``, ``350M-f16x64``, ... or ``Ld4-Ld24/1x16x64``, ``w192_d2_h3-w192_d4_h3/1x16x64``.
        bottleneck: latent normalisation: ``layernorm`` (paper), ``tanh`` with noise 0.01, ``kl`` with weight 0.01.
        layer_scale: gamma of every block at the start.
        rope_theta: base of the rotary frequencies.
        drop_path: stochastic depth of the last decoder block, rising linearly from 0 at the first; 0 = off.
        mask_padding: False = images see their padding, only for parity with the published training code.
        layout: ``packed`` lays the images of a batch one after another without padding, ``padded`` keeps a row each.
        window_radius: patches that attention reaches in encode, decode, evaluation and prediction; None = everything;
            paper: 8 at high resolution. Training always sees everything.
        band_rows: encode and decode image by image in row bands of that many patches; needs ``window_radius``; None =
            whole batches.
        charbonnier_weight: weight of the pixel loss.
        charbonnier_eps: error in [-1, 1] units below which it is quadratic.
        pixel_mask: leave the grey filling of edge patches out of the pixel loss.
        ssim_weight: weight of 1 - SSIM on tiles; 0 = off.
        dino_weight: weight of the DINOv3 feature distance on tiles; 0 = off.
        dino_model: published DINOv3 size.
        dino_source: folder or hub id of DINOv3 weights; None = the published repository of ``dino_model``.
        dino_backend: library that builds DINOv3.
        dino_chunk: tiles that go through DINOv3 at a time; fewer need less memory, and one more forward pass of DINOv3;
            None = all of a batch.
        tile_size: tile edge in pixels.
        tiles_per_image: tiles drawn per image and step.
        train_encoder: False = fine-tune the decoder on latents that stay as they are.
        optimizer: AdamW with its hyper-parameters.
        schedule: warm-up and cosine.
        activation_checkpointing: recompute blocks in the backward pass to save memory.
        compile_blocks: torch.compile every block.
        float8: multiply in float8 inside the blocks (torchao; CUDA compute capability 8.9 or newer). In training,
            factors are rounded for each product and weights stay in float32, worth it with ``compile_blocks`` only; in
            validate, test and predict the weights are rounded once.
        init_from: start from these weights (published name, hub id, folder, checkpoint file or sharded checkpoint
            folder); tensors whose name or shape does not fit are reported and left at their start. Another thing than
            ``ckpt_path``, which resumes a run.
        extractors: networks for rFID and rFDD in validation and test: ``FIDInceptionV3``, ``DINOv3Extractor``, any
            ``FeatureExtractor``. Each sees every picture twice, the original and its reconstruction.
        lpips: the learned distance in validation and test, from local weights of its trunk; None = not measured.
        seed: seed of the initial weights and of every keyed draw.

    Raises:
        ValueError: an unknown variant, or settings that exclude each other.

    Source: arXiv:2605.05331.
    """

    def __init__(
        self,
        variant: str = "350M-f16x64",
        bottleneck: BottleneckName = "layernorm",
        layer_scale: float = 1e-4,
        rope_theta: float = 10000.0,
        drop_path: float = 0.0,
        mask_padding: bool = True,
        layout: Literal["packed", "padded"] = "packed",
        window_radius: int | None = None,
        band_rows: int | None = None,
        charbonnier_weight: float = 1.0,
        charbonnier_eps: float = 1e-3,
        pixel_mask: bool = False,
        ssim_weight: float = 0.1,
        dino_weight: float = 500.0,
        dino_model: Size = "S",
        dino_source: str | None = None,
        dino_backend: Backend = "auto",
        dino_chunk: int | None = None,
        tile_size: int = 224,
        tiles_per_image: int = 1,
        train_encoder: bool = True,
        optimizer: AdamW = _PAPER_OPTIMIZER,
        schedule: WarmupCosine = _PAPER_SCHEDULE,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        float8: bool = False,
        init_from: str | None = None,
        extractors: Sequence[FeatureExtractor] = (),
        lpips: LPIPS | None = None,
        seed: int = 0,
    ) -> None:
        _require_sense(drop_path, charbonnier_eps, (charbonnier_weight, ssim_weight, dino_weight), dino_chunk)
        settings = Settings(variant, bottleneck, rope_theta, mask_padding)
        building = Building(activation_checkpointing, compile_blocks, float8, init_from, train_encoder, seed)
        super().__init__(settings, layer_scale, layout, window_radius, band_rows, building)
        self.drop_path = drop_path
        self.charbonnier_eps, self.pixel_mask = charbonnier_eps, pixel_mask
        self.loss_weights = {"charbonnier": charbonnier_weight, "ssim": ssim_weight, "dino": dino_weight}
        self.dino_model, self.dino_source, self.dino_backend = dino_model, dino_source, dino_backend
        self.dino_chunk = dino_chunk
        self.tile_size, self.tiles_per_image = tile_size, tiles_per_image
        self.optimizer, self.schedule = optimizer, schedule
        self.seed = seed
        self.dino: DINOv3Encoder | None = None
        self.val_metrics = ReconstructionMetrics("val/", extractors, lpips)
        self.test_metrics = ReconstructionMetrics("test/", extractors, lpips)

    # ------------------------------------------------------------------ building

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """What a run with these arguments needs; nothing is built.

        Args:
            init_args: constructor arguments, as parsed from a config.

        Returns:
            Parameters, activations and weights.
        """
        variant = Variant.parse(init_args.get("variant", "350M-f16x64"))
        dino = init_args.get("dino_weight", 500.0) > 0
        size, source = init_args.get("dino_model", "S"), init_args.get("dino_source")
        need = weight_need(source, size, init_args.get("dino_backend", "auto")) if dino else None
        return ModelNeeds(
            trainable=variant.encoder_parameters + variant.decoder_parameters,
            frozen=dinov3_parameters(size) if dino else 0,
            largest_block=max(variant.encoder.block_parameters, variant.decoder.block_parameters),
            activation_bytes_per_token=activation_bytes_per_token(
                variant, bool(init_args.get("activation_checkpointing", False))
            ),
            weights=(need,) if need else (),
            float8=bool(init_args.get("float8", False)),
            use_bytes_per_token=use_bytes_per_token(variant) if init_args.get("band_rows") is None else 0.0,
        )

    def setup(self, stage: str) -> None:
        """Load the frozen perceptual network where training needs it, and refuse what cannot work."""
        if "true" in str(self.trainer.precision) and str(self.trainer.precision) != "32-true":
            raise ValueError(
                f"trainer.precision {self.trainer.precision} would cast batches, which are frozen: use bf16-mixed "
                "(weights stay float32), or in Python model.to(torch.bfloat16), then encode and decode"
            )
        if stage != "fit" and self.building.init_from is None and self.trainer.ckpt_path is None and not self._filled:
            rank_zero_warn(
                f"{stage.lower()} runs on random weights: name a checkpoint (--ckpt_path last) or weights "
                "(--model.init_from ...)"
            )
        if stage != "fit":
            return
        self._require_unrounded("train")
        if self.loss_weights["dino"] > 0 and self.dino is None:
            self.dino = DINOv3Encoder(self.dino_source, self.dino_model, self.dino_backend, max(self.tile_size, 16))

    def on_fit_start(self) -> None:
        """From here on the weights are no longer random."""
        self._filled = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW under a warm-up cosine, stepped with the optimiser."""
        optimizer = self.optimizer.build(self.network)
        scheduler = self.schedule.build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[pl.Callback]:
        """``predict`` writes what it reconstructs."""
        return [ReconstructionWriter()]

    # ------------------------------------------------------------------ training

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """One step of the paper's algorithm.

        Args:
            batch: images as unpacked tokens.
            batch_idx: not used: every draw is keyed by the samples.

        Returns:
            The weighted loss.

        Source: arXiv:2605.05331 (training of the auto-encoder).
        """
        pixels = self.arrange(batch.images)
        reconstruction = self.network(pixels, self._keep(batch), self._noise(batch, pixels))
        terms = self.loss_terms(reconstruction, pixels, batch)
        weighted = {name: self.loss_weights.get(name, 1.0) * term for name, term in terms.items()}
        loss = torch.stack(list(weighted.values())).sum()
        for name, term in terms.items():
            self.log(f"train/{name}", term.detach(), batch_size=len(batch))
            self.log(f"train/{name}_weighted", weighted[name].detach(), batch_size=len(batch))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def loss_terms(self, reconstruction: Reconstruction, pixels: Tokens, batch: ImageBatch) -> dict[str, Tensor]:
        """The terms of the loss, unweighted; override it to add, change or leave out some.

        Args:
            reconstruction: what the network made of the batch.
            pixels: the originals, in the same layout.
            batch: keys of the random draws.

        Returns:
            Scalars by name. ``loss_weights`` holds the factors, 1 for a name that it does not have; both are logged.

        Source: arXiv:2605.05331 (losses).
        """
        terms = {"charbonnier": charbonnier(reconstruction.pixels, pixels, self.charbonnier_eps, self.pixel_mask)}
        if self.loss_weights["ssim"] > 0 or self.dino is not None:
            tiles = self._tiles(reconstruction.pixels, pixels, batch)
            if self.loss_weights["ssim"] > 0:
                terms["ssim"] = ssim_loss(tiles)
            if self.dino is not None:
                terms["dino"] = dino_distance(self.dino, tiles.prediction, tiles.target, self.dino_chunk).mean()
        if self.network.bottleneck.has_penalty:
            weight = pixels.mask.to(reconstruction.penalty.dtype)
            terms["bottleneck"] = mean_of_images(reconstruction.penalty * weight, weight, pixels)
        return terms

    def _tiles(self, decoded: Tokens, pixels: Tokens, batch: ImageBatch) -> Tiles:
        shape = (self.tiles_per_image, 2)
        corners = tile_corners(
            pixels.sizes, uniform(self.seed, "tiles", batch.epoch, batch.index, shape), self.tile_size
        )
        return sample_tiles(unpatchify(decoded), unpatchify(pixels), corners, self.tile_size)

    def _keep(self, batch: ImageBatch) -> Tensor | None:
        depth = self.variant.decoder.depth
        if self.drop_path == 0 or not self.training:
            return None
        rate = torch.linspace(0, self.drop_path, depth, device=batch.index.device)
        u = uniform(self.seed, "drop_path", batch.epoch, batch.index, (depth,))
        return (u >= rate) / (1 - rate)

    def _noise(self, batch: ImageBatch, pixels: Tokens) -> Tensor | None:
        if not self.network.bottleneck.noisy or not self.training:
            return None
        cells, cols = pixels.grid.prod(1).max(), pixels.grid[:, 1]
        noise = normal(self.seed, "bottleneck", batch.epoch, batch.index, (int(cells), self.variant.channels))
        image = pixels.image.clamp(min=0)
        return noise[image, pixels.row * cols[image] + pixels.col]

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """PSNR and SSIM of every valid image of the batch, and features for the distances.

        Args:
            batch: images as unpacked tokens.
            batch_idx: not used.
        """
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Distances over the whole set."""
        self.val_metrics.log_distances(self)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """PSNR and SSIM of every valid image of the batch, and features for the distances.

        Args:
            batch: images as unpacked tokens.
            batch_idx: not used.
        """
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Distances over the whole set."""
        self.test_metrics.log_distances(self)

    def _evaluate(self, batch: ImageBatch, metrics: ReconstructionMetrics) -> None:
        pixels = self.arrange(batch.images)
        decoded = self.network(pixels, window_radius=self.window_radius).pixels
        metrics.update(unpatchify(decoded), unpatchify(pixels), batch.valid, batch.index)
        metrics.log(self, len(batch))

    @torch.no_grad()
    def pictures(self, batch: ImageBatch) -> list[Pictures]:
        """Originals above reconstructions, for the sample grid.

        Args:
            batch: images as unpacked tokens.

        Returns:
            Two rows.
        """
        pixels = self.arrange(batch.images)
        decoded = self.network(pixels, window_radius=self.window_radius).pixels
        images = [image.clamp(-1, 1).float() for image in unpatchify(decoded)]
        return [Pictures("original", unpatchify(pixels)), Pictures("reconstruction", images)]

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Reconstructions:
        """Reconstruct pictures; ``ReconstructionWriter`` puts them on disk.

        Args:
            batch: images as unpacked tokens.
            batch_idx: not used.

        Returns:
            Originals, latents and reconstructions.
        """
        pixels = self.arrange(batch.images)
        latents = self.encode(pixels)
        return Reconstructions(batch.key, batch.valid, unpatchify(pixels), latents, list(self.decode(latents)))

    def flops_per_step(self, batch: ImageBatch) -> float:
        """Model operations of one training step: three forward passes, and as many of DINOv3 per tile.

        Args:
            batch: images as unpacked tokens.

        Returns:
            Floating-point operations of the matrix products; recomputation is not counted.
        """
        counts = batch.images.mask.sum(1).tolist() if isinstance(batch.images, Tokens) else []
        total = 3 * forward_flops(self.variant, counts)
        if self.dino is not None:
            tokens = (self.tile_size // self.dino.patch_size) ** 2 * self.tiles_per_image * len(counts)
            total += 3 * 2 * self.dino.num_parameters * tokens
        return total


def _require_sense(drop_path: float, eps: float, weights: tuple[float, float, float], dino_chunk: int | None) -> None:
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path is a probability below 1, got {drop_path}")
    if eps <= 0:
        raise ValueError(f"charbonnier_eps must be above 0 (its gradient at 0 would be infinite), got {eps}")
    if min(weights) < 0:
        raise ValueError(f"weights of the loss must be 0 (off) or more, got {min(weights)}")
    if dino_chunk is not None and dino_chunk < 1:
        raise ValueError(f"dino_chunk is a number of tiles, at least 1 (null for all at once), got {dino_chunk}")
