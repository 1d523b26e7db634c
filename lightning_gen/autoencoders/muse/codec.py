"""MUSE in use: a network that gets its weights from somewhere, pictures in, latents and features out, and back.

What it takes to train one stands in ``module.py``.

Shape letters: B images, H and W height and width in pixels, h and w rows and columns of latent tokens, C latent
channels, D width of the stream, E width of the text embedding.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Self

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_gen.autoencoders.muse.convert import Settings, read_model, write_folder
from lightning_gen.autoencoders.muse.decoder import read_dcae_decoder
from lightning_gen.autoencoders.muse.network import MuseNetwork
from lightning_gen.backbones.intern_vit import read_intern_vit
from lightning_gen.nn.latent_maps import fill_up, latents_of_pictures, pictures_of_latents, require_latents
from lightning_gen.nn.tokens import Tokens, unpatchify
from lightning_gen.training.averages import read_weights
from lightning_gen.training.meta_module import MetaModule
from lightning_gen.training.weights import load_matching, read_training_state, require_fit

__all__ = ["RANDOM", "Building", "MuseCodec", "imagenet_pixels"]

RANDOM = "random"
"""Where a folder of weights is expected: start from random weights, and mean it."""

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Building:
    """How a network is made ready; the arguments of ``Muse`` of the same names.

    Attributes:
        encoder_source: weights of the InternViT.
        decoder_source: weights of the DC-AE decoder.
        init_from: start from these weights.
        activation_checkpointing: recompute blocks in the backward pass.
        compile_blocks: torch.compile every block.
        seed: seed of the initial weights.
    """

    encoder_source: str | None = None
    decoder_source: str | None = None
    init_from: str | None = None
    activation_checkpointing: bool = False
    compile_blocks: bool = False
    seed: int = 0


class MuseCodec(MetaModule):
    """Builds, loads, uses and writes the tokenizer.

    The constructor allocates nothing: weights live on the meta device until ``configure_model``.

    Args:
        settings: what the weights mean.
        building: how the network is made ready.
    """

    network: MuseNetwork

    def __init__(self, settings: Settings, building: Building) -> None:
        super().__init__()
        self.settings, self.building = settings, building
        with torch.device("meta"):
            self.network = MuseNetwork(settings.shape, settings.routing, settings.topo_layers, settings.itc_layers)
        self._filled = False

    # ------------------------------------------------------------------ weights

    def configure_model(self) -> None:
        """Shard, materialise and fill the network; does nothing the second time."""
        if not self.on_meta:
            return
        build = self.building
        self.prepare_network(
            self.network,
            build.seed,
            doors=("encode", "decode", "understand", "embed"),
            activation_checkpointing=build.activation_checkpointing,
            compile_blocks=build.compile_blocks,
        )
        if build.init_from is not None:
            self._start_from(build.init_from)
            return
        if build.encoder_source not in (None, RANDOM):
            self._start_encoder(str(build.encoder_source))
        if build.decoder_source not in (None, RANDOM):
            self._start_decoder(str(build.decoder_source))

    def _start_from(self, source: str) -> None:
        state = _averaged(source) or _read(source)[1]
        plain = {key.removeprefix("network."): x for key, x in state.items()}
        if self._trainer is not None and not self.fitting:
            # A model that is only used must be the whole model.
            require_fit(self.network, {key: x for key, x in plain.items() if not _of_training(key)}, source)
        load_matching(self.network, state, source, prefix="network.")
        self._filled = True

    def _start_encoder(self, source: str) -> None:
        shape, state = read_intern_vit(source)
        if (
            dataclasses.replace(shape, layer_scale=self.settings.shape.encoder.layer_scale)
            != self.settings.shape.encoder
        ):
            raise ValueError(
                f"{source} holds an InternViT of other sizes ({shape}) than the model's "
                f"({self.settings.shape.encoder}): set model.shape.encoder to the former"
            )
        load_matching(self.network.encoder.model, state, source)

    def _start_decoder(self, source: str) -> None:
        shape, state = read_dcae_decoder(source)
        if shape != self.settings.shape.decoder:
            raise ValueError(
                f"{source} holds a DC-AE decoder of other sizes ({shape}) than the model's "
                f"({self.settings.shape.decoder}): set model.shape.decoder to the former"
            )
        load_matching(self.network.decoder.model, state, source)

    @classmethod
    def from_pretrained(cls, source: str) -> Self:
        """A model ready to encode and decode, in eval mode, gradients off.

        Args:
            source: folder that ``save_pretrained`` wrote, a published ``pytorch_model.bin``, or a hub id. What is dead
                or not wanted in published weights is logged.

        Returns:
            The model on the CPU.

        Raises:
            MissingWeightsError: the weights cannot be found or fetched.
            ValueError: the files are damaged or belong to another kind of model.
        """
        settings, state = _read(source)
        model = cls._of(settings)
        model.settings = settings
        require_fit(model.network, state, source)
        model.network.load_state_dict(state, assign=True)
        model._filled = True
        return model.requires_grad_(False).eval()

    @classmethod
    def _of(cls, settings: Settings) -> Self:
        return cls(settings, Building())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights as safetensors under the published key names, with a ``config.json``.

        Args:
            folder: made if it does not exist.

        Raises:
            RuntimeError: the weights were never loaded or initialised.
        """
        self.require_weights()
        write_folder(Path(folder), self.settings, self.network.state_dict())

    # ------------------------------------------------------------------ use

    def encode(self, images: Tensor | Tokens) -> Tokens:
        """Latents of pictures of any sizes; sides are filled up with mid grey to multiples of two patches.

        Args:
            images: float, (B, 3, H, W) in [-1, 1], or pixels as tokens.

        Returns:
            Unpacked latents, row i is image i, values (B, h w, C), float32; a token stands for two patches.

        Raises:
            RuntimeError: the weights were never loaded or initialised.
        """
        self.require_weights()
        pictures = [picture.to(self.device) for picture in _as_pictures(images)]
        patch = self.settings.shape.patch

        def maps(batch: Tensor, places: Tensor) -> Tensor:
            pixels = imagenet_pixels(fill_up(batch, patch))
            grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
            return self.network.encode(pixels).transpose(1, 2).reshape(len(batch), -1, *grid)

        return latents_of_pictures(pictures, patch, maps)

    def decode(self, latents: Tokens) -> Tensor | list[Tensor]:
        """Pictures of latents.

        Args:
            latents: what ``encode`` gave, or a generator made.

        Returns:
            (B, 3, H, W) in [-1, 1] when all sizes are equal, else a list of (3, H, W).

        Raises:
            RuntimeError: the weights were never loaded or initialised.
            ValueError: latents of another model.
        """
        self.require_weights()
        shape = self.settings.shape
        require_latents(latents, shape.patch, shape.latent_channels, "this MUSE")

        def pictures(batch: Tensor) -> Tensor:
            h, w = batch.shape[-2:]
            size = (h * shape.patch, w * shape.patch)
            return self.network.decode(batch.flatten(2).transpose(1, 2), (h, w), size).clamp(-1, 1)

        return pictures_of_latents(latents.to(self.device), pictures)

    def probe_features(self, images: Tensor) -> Tensor:
        """What a linear probe reads: the mean over the tokens of F_sem.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].

        Returns:
            (B, D).

        Source: arXiv:2605.05646 (linear probe).
        """
        return self._understand(images)[0].mean(1)

    def image_embedding(self, images: Tensor) -> Tensor:
        """What zero-shot classification compares with texts.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].

        Returns:
            Unit vectors, (B, E).
        """
        return self._understand(images)[1]

    def dense_features(self, images: Tensor) -> Tensor:
        """What a segmentation probe reads: the last block's stream as a map.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].

        Returns:
            (B, D, h, w).
        """
        return self._understand(images)[2]

    def _understand(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.require_weights()
        return self.network.understand(imagenet_pixels(fill_up(images.to(self.device), self.settings.shape.patch)))


def imagenet_pixels(images: Tensor) -> Tensor:
    """[-1, 1] to ImageNet's mean 0 and deviation 1.

    Args:
        images: float, (B, 3, H, W).

    Returns:
        The same shape.
    """
    mean, std = (images.new_tensor(value)[:, None, None] for value in (_MEAN, _STD))
    return ((images + 1) / 2 - mean) / std


def _as_pictures(images: Tensor | Tokens) -> list[Tensor]:
    return unpatchify(images) if isinstance(images, Tokens) else list(images)


def _read(source: str) -> tuple[Settings, dict[str, Tensor]]:
    settings, state, report = read_model(source)
    if report is not None:
        rank_zero_info(f"{source}: published weights\n{report}")
    return settings, state


def _averaged(source: str) -> dict[str, Tensor] | None:
    """The averaged weights of a training run where it has one average, else the raw ones; None = no training run."""
    path = Path(source)
    if path.is_file() and path.suffix != ".ckpt":  # published weights
        return None
    state = read_training_state(source)
    if state is None:
        return None
    try:
        return read_weights(source, average=True)
    except ValueError:  # no average, or several
        return state


def _of_training(key: str) -> bool:
    return key.startswith(("discriminator.", "lecam."))
