"""ViTok-v2 in use: a network that gets its weights from somewhere, pictures in, latents out, and back.

What it takes to train one stands in ``module.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_gen.autoencoders.vitok_v2.bands import decode_in_bands, encode_in_bands
from lightning_gen.autoencoders.vitok_v2.convert import Settings, locate, read_folder, write_folder
from lightning_gen.autoencoders.vitok_v2.network import ViTokV2Network
from lightning_gen.autoencoders.vitok_v2.variants import Variant
from lightning_gen.data.decode import upright
from lightning_gen.data.transforms import from_picture
from lightning_gen.nn.tokens import Tokens, join_images, pack, patchify, split_images, unpatchify
from lightning_gen.training.float8 import quantise_blocks, require_float8
from lightning_gen.training.meta_module import MetaModule
from lightning_gen.training.weights import load_matching, read_training_state, require_fit

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Building", "ViTokV2Codec"]

_MANY_TOKENS = 16_384
"""A picture of 2048 x 2048 pixels in patches of 16: from here on full attention takes most of the time."""


@dataclasses.dataclass(frozen=True)
class Building:
    """How a network is made ready; the arguments of ``ViTokV2`` of the same names.

    Attributes:
        activation_checkpointing: recompute blocks in the backward pass.
        compile_blocks: torch.compile every block.
        float8: multiply in float8 inside the blocks.
        init_from: start from these weights.
        train_encoder: whether the encoder learns too.
        seed: seed of the initial weights.
    """

    activation_checkpointing: bool = False
    compile_blocks: bool = False
    float8: bool = False
    init_from: str | None = None
    train_encoder: bool = True
    seed: int = 0


class ViTokV2Codec(MetaModule):
    """Builds, loads, uses and writes the auto-encoder.

    The constructor allocates nothing: weights live on the meta device until ``configure_model`` (called by the Trainer
    and by the ways of loading) shards and fills them.

    Args:
        settings: what the weights mean.
        layer_scale: gamma of every block at the start.
        layout: ``packed`` or ``padded``, how the pictures of a batch lie in memory.
        window_radius: patches that attention reaches outside training; None = everything.
        band_rows: rows of patches per band in ``encode`` and ``decode``; None = whole batches.
        building: how the network is made ready.

    Raises:
        ValueError: an unknown variant, or settings that exclude each other.
    """

    network: ViTokV2Network

    def __init__(
        self,
        settings: Settings,
        layer_scale: float,
        layout: Literal["packed", "padded"],
        window_radius: int | None,
        band_rows: int | None,
        building: Building,
    ) -> None:
        super().__init__()
        if band_rows is not None and window_radius is None:
            raise ValueError("band_rows needs a window_radius: without a window every band would see the whole image")
        if layout == "packed" and not settings.mask_padding:
            raise ValueError("mask_padding: false is a property of padded rows: set layout: padded")
        self.variant = Variant.parse(settings.variant)
        self.settings = dataclasses.replace(settings, variant=self.variant.name)
        # Plain values only: they must load with weights_only=True. What concerns training stands in the run's config.
        self.save_hyperparameters(dataclasses.asdict(settings), logger=False)
        with torch.device("meta"):
            self.network = ViTokV2Network(
                self.variant, settings.bottleneck, layer_scale, settings.rope_theta, settings.mask_padding
            )
        self.layout, self.window_radius, self.band_rows = layout, window_radius, band_rows
        self.building = building
        self._filled = self._float8_products = self._rounded = False

    # ------------------------------------------------------------------ weights

    def configure_model(self) -> None:
        """Shard, materialise and fill the network; does nothing the second time."""
        if not self.on_meta:
            return
        build = self.building
        # Weights that one device holds whole are rounded for good instead, once they are there.
        self._float8_products = build.float8 and (self.fitting or self.device_mesh is not None)
        self.prepare_network(
            self.network,
            build.seed,
            doors=("encode", "decode"),
            activation_checkpointing=build.activation_checkpointing,
            compile_blocks=build.compile_blocks,
            float8=self._float8_products,
        )
        if build.init_from is not None:
            self._start_from(build.init_from)
        self.network.encoder.requires_grad_(build.train_encoder)

    def _start_from(self, source: str) -> None:
        state = read_training_state(source) or read_folder(locate(source))[1]
        if self._trainer is not None and not self.fitting:
            # A model that is only used must be the whole model.
            require_fit(self.network, {key.removeprefix("network."): x for key, x in state.items()}, source)
        load_matching(self.network, state, source, prefix="network.")

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

    @classmethod
    def from_pretrained(cls, source: str, window_radius: int | None = None, band_rows: int | None = None) -> Self:
        """A model ready to encode and decode, in eval mode, gradients off.

        Args:
            source: published name (``5B-f16x64``), hub id, or a folder that ``save_pretrained`` wrote.
            window_radius: see ``ViTokV2``; 8 for pictures much larger than 512 pixels.
            band_rows: see ``ViTokV2``.

        Returns:
            The model on the CPU.

        Raises:
            MissingWeightsError: the weights cannot be found or fetched.
            ValueError: the files are damaged or belong to another kind of model.
        """
        settings, state = read_folder(locate(source))
        model = cls(
            **dataclasses.asdict(settings),
            layout="packed" if settings.mask_padding else "padded",
            window_radius=window_radius,
            band_rows=band_rows,
        )
        require_fit(model.network, state, source)
        model.network.load_state_dict(state, assign=True)
        model._filled = True
        return model.requires_grad_(False).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights as safetensors under the published key names, with a ``config.json``.

        Args:
            folder: made if it does not exist.

        Raises:
            RuntimeError: the weights were never loaded or initialised, or were rounded by ``to_float8``.
        """
        self.require_weights()
        self._require_unrounded("save")
        write_folder(Path(folder), self.settings, self.network.state_dict())

    def _require_unrounded(self, purpose: str) -> None:
        if self._rounded:
            raise RuntimeError(f"these weights were rounded to float8 for use: load the model again to {purpose} it")

    # ------------------------------------------------------------------ use

    def arrange(self, images: Tokens | Tensor) -> Tokens:
        """Lay the pictures of a batch out as the network is to see them.

        Args:
            images: tokens of patches, or float (B, 3, H, W) in [-1, 1].

        Returns:
            Tokens, one picture after another or a row each (``layout``).

        Raises:
            ValueError: the patches are not those of the variant.
        """
        tokens = images if isinstance(images, Tokens) else patchify(images, self.variant.patch)
        if tokens.patch != self.variant.patch:
            raise ValueError(
                f"the data comes in patches of {tokens.patch} pixels, variant {self.settings.variant} takes "
                f"{self.variant.patch}: set data.init_args.patch_size to {self.variant.patch}"
            )
        return pack(tokens) if self.layout == "packed" else tokens

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
        self.require_weights()
        if not isinstance(images, Tokens):
            images = patchify(_as_images(images), self.variant.patch)
        images = images.to(self.device)
        if self.window_radius is None:
            _warn_of_many_tokens(int(images.grid.prod(1).max()))
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
        self.require_weights()
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

    def to_float8(self) -> Self:
        """Round the weights of the blocks to float8 and multiply in float8 from now on; for use, not for training.

        Call it on the device that the model runs on. One scale serves a whole batch (or a whole row band), so a picture
        comes out a little differently in other company.

        Returns:
            The model itself.

        Raises:
            RuntimeError: the weights were never loaded or initialised.
            ValueError: the device has no float8 products.
            ModuleNotFoundError: torchao is not installed.
        """
        self.require_weights()
        if not self._rounded and not self._float8_products:
            require_float8(self.device)
            quantise_blocks(self.network, self.network.blocks())
            self._rounded = True
        return self

    def on_validation_start(self) -> None:
        """Round the weights where the run only uses them."""
        self._round_for_use()

    def on_test_start(self) -> None:
        """Round the weights."""
        self._round_for_use()

    def on_predict_start(self) -> None:
        """Round the weights."""
        self._round_for_use()

    def _round_for_use(self) -> None:
        # By now a checkpoint has filled the weights.
        if self.building.float8 and not self.fitting:
            self.to_float8()


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


def _warn_of_many_tokens(count: int) -> None:
    if count > _MANY_TOKENS:
        rank_zero_warn(
            f"a picture of {count} tokens without a window: each of them sees all others, so the time grows with the "
            "square. Set window_radius (paper: 8 at high resolution), with band_rows to bound the memory, or reduce "
            "the picture (data.init_args.tokens)"
        )
