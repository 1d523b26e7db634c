"""ViTok-v2 as a LightningModule: trained on pictures of any size, used through ``encode`` and ``decode``.

Shape letters: B rows, L tokens, I images, c latent channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_gen.autoencoders.reconstructions import Reconstructions, ReconstructionWriter
from lightning_gen.autoencoders.vitok_v2.bands import decode_in_bands, encode_in_bands
from lightning_gen.autoencoders.vitok_v2.bottleneck import BottleneckName
from lightning_gen.autoencoders.vitok_v2.convert import Settings, locate, read_folder, write_folder
from lightning_gen.autoencoders.vitok_v2.cost import activation_bytes_per_token, forward_flops
from lightning_gen.autoencoders.vitok_v2.network import Reconstruction, ViTokV2Network
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
from lightning_gen.data.decode import upright
from lightning_gen.data.transforms import from_picture
from lightning_gen.interfaces import Pictures
from lightning_gen.metrics.reconstruction import PeakSignalToNoise, StructuralSimilarity
from lightning_gen.nn.tokens import Tokens, join_images, pack, patchify, split_images, unpatchify
from lightning_gen.training.needs import ModelNeeds
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.randomness import normal, uniform
from lightning_gen.training.strategies import prepare
from lightning_gen.training.weights import load_matching, read_training_state, require_fit

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from PIL.Image import Image

__all__ = ["ViTokV2"]

_PAPER_OPTIMIZER = AdamW(learning_rate=5e-4, betas=(0.9, 0.95), weight_decay=0.05)
_PAPER_SCHEDULE = WarmupCosine(warmup_fraction=0.05, final_learning_rate=1e-5, start_learning_rate=1e-7)


class ViTokV2(pl.LightningModule):
    """Native-resolution auto-encoder made of transformer blocks only.

    z = LayerNorm(encoder(patches));  y = decoder(z)
    L = w_c charbonnier(y, x) + w_s (1 - SSIM(tiles)) + w_d DINO distance(tiles) + penalty of the bottleneck

    The constructor allocates nothing: weights live on the meta device until ``configure_model`` (called by the Trainer
    and by the ways of loading) shards and fills them.

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
        tile_size: tile edge in pixels.
        tiles_per_image: tiles drawn per image and step.
        train_encoder: False = fine-tune the decoder on latents that stay as they are.
        optimizer: AdamW with its hyper-parameters.
        schedule: warm-up and cosine.
        activation_checkpointing: recompute blocks in the backward pass to save memory.
        compile_blocks: torch.compile every block.
        init_from: start from these weights (published name, hub id, folder, checkpoint file or sharded checkpoint
            folder); tensors whose name or shape does not fit are reported and left at their start. Another thing than
            ``ckpt_path``, which resumes a run.
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
        tile_size: int = 224,
        tiles_per_image: int = 1,
        train_encoder: bool = True,
        optimizer: AdamW = _PAPER_OPTIMIZER,
        schedule: WarmupCosine = _PAPER_SCHEDULE,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require_sense(drop_path, charbonnier_eps, (charbonnier_weight, ssim_weight, dino_weight))
        if band_rows is not None and window_radius is None:
            raise ValueError("band_rows needs a window_radius: without a window every band would see the whole image")
        if layout == "packed" and not mask_padding:
            raise ValueError("mask_padding: false is a property of padded rows: set layout: padded")
        self.variant = Variant.parse(variant)
        self.settings = Settings(self.variant.name, bottleneck, rope_theta, mask_padding)
        # Plain values only: they must load with weights_only=True. What concerns training stands in the run's config.
        self.save_hyperparameters({**dataclasses.asdict(self.settings), "variant": variant}, logger=False)
        with torch.device("meta"):
            self.network = ViTokV2Network(self.variant, bottleneck, layer_scale, rope_theta, mask_padding)
        self.drop_path, self.layout = drop_path, layout
        self.window_radius, self.band_rows = window_radius, band_rows
        self.charbonnier_eps, self.pixel_mask = charbonnier_eps, pixel_mask
        self.weights = {
            "charbonnier": charbonnier_weight,
            "ssim": ssim_weight,
            "dino": dino_weight,
            "bottleneck": 1.0,
        }
        self.dino_model, self.dino_source, self.dino_backend = dino_model, dino_source, dino_backend
        self.tile_size, self.tiles_per_image = tile_size, tiles_per_image
        self.train_encoder = train_encoder
        self.optimizer, self.schedule = optimizer, schedule
        self.activation_checkpointing, self.compile_blocks = activation_checkpointing, compile_blocks
        self.init_from, self.seed = init_from, seed
        self.dino: DINOv3Encoder | None = None
        self._filled = False
        metrics = MetricCollection({"psnr": PeakSignalToNoise(), "ssim": StructuralSimilarity()}, prefix="val/")
        self.val_metrics, self.test_metrics = metrics, metrics.clone(prefix="test/")

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
        )

    def configure_model(self) -> None:
        """Shard, materialise and fill the network; does nothing the second time."""
        if next(self.network.parameters()).device.type != "meta":
            return
        prepare(
            self.network,
            device_mesh=self.device_mesh,
            seed=self.seed,
            activation_checkpointing=self.activation_checkpointing and self._fitting,
            compile_blocks=self.compile_blocks,
            compute_dtype=self._compute_dtype(),
        )
        if self.device_mesh is not None:
            from torch.distributed.fsdp import register_fsdp_forward_method

            # Prediction enters the network by these doors; FSDP gathers weights only at doors that it knows.
            for door in ("encode", "decode"):
                register_fsdp_forward_method(self.network, door)
        if self.init_from is not None:
            self._start_from(self.init_from)
        self.network.encoder.requires_grad_(self.train_encoder)

    def _start_from(self, source: str) -> None:
        state = read_training_state(source) or read_folder(locate(source))[1]
        if self._trainer is not None and not self._fitting:
            # A model that is only used must be the whole model.
            require_fit(self.network, {key.removeprefix("network."): x for key, x in state.items()}, source)
        load_matching(self.network, state, source, prefix="network.")

    @property
    def _fitting(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def _compute_dtype(self) -> torch.dtype | None:
        precision = str(self._trainer.precision) if self._trainer is not None else "32-true"
        return torch.bfloat16 if precision == "bf16-mixed" else None

    def cpu(self) -> Self:
        """Move to the CPU; on the meta device there is nothing to move (Lightning does this after any failure)."""
        on_meta = next(self.network.parameters()).device.type == "meta"
        return self if on_meta else super().cpu()

    def setup(self, stage: str) -> None:
        """Load the frozen perceptual network where training needs it, and refuse what cannot work."""
        if "true" in str(self.trainer.precision) and str(self.trainer.precision) != "32-true":
            raise ValueError(
                f"trainer.precision {self.trainer.precision} would cast batches, which are frozen: use bf16-mixed "
                "(weights stay float32), or in Python model.to(torch.bfloat16), then encode and decode"
            )
        if stage != "fit" and self.init_from is None and self.trainer.ckpt_path is None and not self._filled:
            rank_zero_warn(
                f"{stage.lower()} runs on random weights: name a checkpoint (--ckpt_path last) or weights "
                "(--model.init_from ...)"
            )
        if stage == "fit" and self.weights["dino"] > 0 and self.dino is None:
            self.dino = DINOv3Encoder(self.dino_source, self.dino_model, self.dino_backend, max(self.tile_size, 16))

    def on_fit_start(self) -> None:
        """From here on the weights are no longer random."""
        self._filled = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that a checkpoint alone can be exported."""
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model before a single tensor is copied.

        Args:
            checkpoint: what is about to be loaded.

        Raises:
            ValueError: its variant or bottleneck is another one.
        """
        stored = checkpoint.get("hyper_parameters", {})
        then = (Variant.parse(stored.get("variant", self.settings.variant)), stored.get("bottleneck", "layernorm"))
        if then != (self.variant, self.settings.bottleneck):
            raise ValueError(
                f"the checkpoint holds variant {stored.get('variant')} with bottleneck {then[1]}, the model is "
                f"{self.settings.variant} with {self.settings.bottleneck}: set model.init_args.variant and bottleneck "
                "to the checkpoint's, or start from its weights with init_from"
            )
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
        pixels = self._arranged(batch.images)
        reconstruction = self.network(pixels, self._keep(batch, pixels), self._noise(batch, pixels))
        terms = self._terms(reconstruction, pixels, batch)
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        for name, term in terms.items():
            self.log(f"train/{name}", term.detach(), batch_size=len(batch))
            self.log(f"train/{name}_weighted", self.weights[name] * term.detach(), batch_size=len(batch))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def _terms(self, reconstruction: Reconstruction, pixels: Tokens, batch: ImageBatch) -> dict[str, Tensor]:
        terms = {"charbonnier": charbonnier(reconstruction.pixels, pixels, self.charbonnier_eps, self.pixel_mask)}
        if self.weights["ssim"] > 0 or self.dino is not None:
            tiles = self._tiles(reconstruction.pixels, pixels, batch)
            if self.weights["ssim"] > 0:
                terms["ssim"] = ssim_loss(tiles)
            if self.dino is not None:
                terms["dino"] = dino_distance(self.dino, tiles.prediction, tiles.target).mean()
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

    def _arranged(self, images: Tokens | Tensor) -> Tokens:
        tokens = images if isinstance(images, Tokens) else patchify(images, self.variant.patch)
        if tokens.patch != self.variant.patch:
            raise ValueError(
                f"the data comes in patches of {tokens.patch} pixels, variant {self.settings.variant} takes "
                f"{self.variant.patch}: set data.init_args.patch_size to {self.variant.patch}"
            )
        return pack(tokens) if self.layout == "packed" else tokens

    def _keep(self, batch: ImageBatch, pixels: Tokens) -> Tensor | None:
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
        """PSNR and SSIM of every valid image of the batch.

        Args:
            batch: images as unpacked tokens.
            batch_idx: not used.
        """
        self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """PSNR and SSIM of every valid image of the batch.

        Args:
            batch: images as unpacked tokens.
            batch_idx: not used.
        """
        self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: ImageBatch, metrics: MetricCollection) -> None:
        pixels = self._arranged(batch.images)
        decoded = self.network(pixels, window_radius=self.window_radius).pixels
        metrics.update(unpatchify(decoded), unpatchify(pixels), batch.valid)
        self.log_dict(metrics, prog_bar=True, batch_size=len(batch))

    @torch.no_grad()
    def pictures(self, batch: ImageBatch) -> list[Pictures]:
        """Originals above reconstructions, for the sample grid.

        Args:
            batch: images as unpacked tokens.

        Returns:
            Two rows.
        """
        pixels = self._arranged(batch.images)
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
        pixels = self._arranged(batch.images)
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

    # ------------------------------------------------------------------ use

    def encode(self, images: Tokens | Tensor | Image | Sequence[Tensor | Image]) -> Tokens:
        """Latents of pictures of any sizes.

        Args:
            images: tokens of patches; or float (3, H, W), (B, 3, H, W) or a sequence of (3, H, W) in [-1, 1]; or PIL
                pictures of any mode.

        Returns:
            Latents, values (B, L, c), with the places and sizes that ``decode`` needs.

        Raises:
            RuntimeError: the weights were never loaded or initialised.
        """
        self._require_weights()
        if not isinstance(images, Tokens):
            images = patchify(_as_images(images), self.variant.patch)
        images = images.to(self.device)
        if self.band_rows is None or self.window_radius is None:
            return self.network.encode(images, self.window_radius)
        single = split_images(images)
        return join_images([encode_in_bands(self.network, one, self.window_radius, self.band_rows) for one in single])

    def decode(self, latents: Tokens) -> Tensor | list[Tensor]:
        """Pictures of latents.

        Args:
            latents: what ``encode`` gave, or a generator made.

        Returns:
            (B, 3, H, W) in [-1, 1] when all sizes are equal, else a list of (3, H, W).

        Raises:
            RuntimeError: the weights were never loaded or initialised.
        """
        self._require_weights()
        latents = latents.to(self.device)
        if self.band_rows is None or self.window_radius is None:
            images = unpatchify(self.network.decode(latents, self.window_radius))
        else:
            bands = (
                decode_in_bands(self.network, one, self.window_radius, self.band_rows) for one in split_images(latents)
            )
            images = [torch.cat(list(strips), dim=1) for strips in bands]
        images = [image.clamp(-1, 1) for image in images]
        return torch.stack(images) if len({image.shape for image in images}) == 1 else images

    def _require_weights(self) -> None:
        if next(self.network.parameters()).device.type == "meta":
            raise RuntimeError(
                "this model has no weights yet: use ViTokV2.from_pretrained(...) or ViTokV2.load_from_checkpoint(...), "
                "or call configure_model() to start from random ones"
            )

    @classmethod
    def from_pretrained(cls, source: str, window_radius: int | None = None, band_rows: int | None = None) -> Self:
        """A model ready to encode and decode, in eval mode, gradients off.

        Args:
            source: published name (``5B-f16x64``), hub id, or a folder that ``save_pretrained`` wrote.
            window_radius: see the constructor; 8 for pictures much larger than 512 pixels.
            band_rows: see the constructor.

        Returns:
            The model on the CPU.

        Raises:
            MissingWeightsError: the weights cannot be found or fetched.
            ValueError: the files are damaged or belong to another kind of model.
        """
        settings, state = read_folder(locate(source))
        layout: Literal["packed", "padded"] = "packed" if settings.mask_padding else "padded"
        model = cls(**dataclasses.asdict(settings), layout=layout, window_radius=window_radius, band_rows=band_rows)
        require_fit(model.network, state, source)
        model.network.load_state_dict(state, assign=True)
        model._filled = True
        return model.requires_grad_(False).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights as safetensors under the published key names, with a ``config.json``.

        Args:
            folder: made if it does not exist.

        Raises:
            RuntimeError: the weights were never loaded or initialised.
        """
        self._require_weights()
        write_folder(Path(folder), self.settings, self.network.state_dict())


def _as_images(images: Tensor | Image | Sequence[Tensor | Image]) -> Tensor | list[Tensor]:
    if isinstance(images, Tensor):
        return images[None] if images.ndim == 3 else images
    several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    return [image if isinstance(image, Tensor) else _from_pil(image) for image in several]


def _from_pil(image: Image) -> Tensor:
    if not hasattr(image, "getexif"):
        raise TypeError(
            f"encode takes tensors in [-1, 1], PIL pictures or Tokens, got {type(image).__name__}: open files with "
            "PIL.Image.open"
        )
    return from_picture(upright(image))


def _require_sense(drop_path: float, eps: float, weights: tuple[float, float, float]) -> None:
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path is a probability below 1, got {drop_path}")
    if eps <= 0:
        raise ValueError(f"charbonnier_eps must be above 0 (its gradient at 0 would be infinite), got {eps}")
    if min(weights) < 0:
        raise ValueError(f"weights of the loss must be 0 (off) or more, got {min(weights)}")
