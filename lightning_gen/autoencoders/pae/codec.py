"""PAE in use: weights on disk, encoding and decoding.

Shape letters: B images, N tokens in a row, d latent channels, H and W height and width in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_gen.autoencoders.pae.convert import read_folder, write_folder
from lightning_gen.autoencoders.pae.network import PAENetwork
from lightning_gen.autoencoders.pae.prior import grid_of, look, require_prior
from lightning_gen.autoencoders.pae.variants import PAEShape, Stack
from lightning_gen.backbones.patch_encoders import patch_encoder_named
from lightning_gen.backbones.patch_features import PatchEncoder
from lightning_gen.nn.latent_maps import fill_up, latents_of_pictures, pictures_of_latents, require_latents
from lightning_gen.nn.tokens import Tokens, unpack, unpatchify
from lightning_gen.training.meta_module import MetaModule
from lightning_gen.training.needs import ModelNeeds
from lightning_gen.training.weights import load_matching, read_training_state, require_fit

__all__ = ["Building", "PAECodec", "as_pictures", "encoder_of", "needs_of_network", "plain_arguments"]


@dataclasses.dataclass(frozen=True)
class Building:
    """How a network is made ready; the arguments of ``PAE`` of the same names.

    Attributes:
        activation_checkpointing: recompute blocks in the backward pass.
        compile_blocks: torch.compile every block.
        init_from: start from these weights.
        seed: seed of the initial weights.
    """

    activation_checkpointing: bool = False
    compile_blocks: bool = False
    init_from: str | None = None
    seed: int = 0


class PAECodec(MetaModule):
    """Builds, loads, uses and writes the auto-encoder.

    The constructor allocates nothing: weights live on the meta device until ``configure_model``, the frozen prior is
    read when it is needed first.

    Args:
        encoder: the frozen prior.
        shape: sizes and choices of the networks.
        alignment: also builds the linear layer of the VF loss.
        building: how the network is made ready.
    """

    network: PAENetwork
    training_only = ("discriminator.", "network.alignment.")

    def __init__(self, encoder: PatchEncoder, shape: PAEShape, alignment: bool, building: Building) -> None:
        super().__init__()
        # Plain values only: they must load with weights_only=True. What concerns training stands in the run's config.
        self.save_hyperparameters(plain_arguments(shape, encoder), logger=False)
        self.encoder, self.shape, self.building = encoder, shape, building
        with torch.device("meta"):
            self.network = PAENetwork(shape, alignment)
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
            doors=("encode", "decode"),
            activation_checkpointing=build.activation_checkpointing,
            compile_blocks=build.compile_blocks,
        )
        if build.init_from is not None:
            state = read_training_state(build.init_from)
            load_matching(
                self.network,
                read_folder(Path(build.init_from).expanduser())[1] if state is None else state,
                build.init_from,
                prefix="network.",
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that a checkpoint alone can be exported."""
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model before a single tensor is copied.

        Args:
            checkpoint: what is about to be loaded.

        Raises:
            ValueError: its shape is another one.
        """
        stored = checkpoint.get("hyper_parameters", {}).get("shape", {})
        mine = plain_arguments(self.shape, self.encoder)["shape"]
        other = [
            f"{name} {stored[name]} for {mine[name]}" for name in mine if stored.get(name, mine[name]) != mine[name]
        ]
        if other:
            raise ValueError(
                f"the checkpoint holds another PAE: {', '.join(other)}. Set model.init_args.shape to the checkpoint's, "
                "or start from its weights with init_from"
            )
        self._filled = True

    @classmethod
    def from_pretrained(cls, source: str, encoder: PatchEncoder | None = None) -> Self:
        """A model ready to encode and decode, in eval mode, gradients off.

        Args:
            source: folder that ``save_pretrained`` or ``convert.import_published`` wrote.
            encoder: the frozen prior; None = the one that was saved beside the weights.

        Returns:
            The model on the CPU.

        Raises:
            MissingWeightsError: the weights, or those of the prior, cannot be found.
            ValueError: the files are damaged or belong to another kind of model.
        """
        folder = Path(source).expanduser()
        settings, state = read_folder(folder)
        if encoder is None:
            encoder = patch_encoder_named(settings.encoder, settings.encoder_arguments, folder / "prior")
        kind: Any = cls
        model: Self = kind(encoder=encoder, shape=settings.shape)
        require_fit(model.network, state, source)
        model.network.load_state_dict(state, assign=True)
        require_prior(encoder, settings.shape)
        model._filled = True
        return model.requires_grad_(False).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights as safetensors with a ``config.json``, and the frozen prior beside them in ``prior``.

        Args:
            folder: made if it does not exist.

        Raises:
            RuntimeError: the weights were never loaded or initialised.
        """
        self.require_weights()
        write_folder(Path(folder), self.shape, self.encoder, self.network.state_dict())

    # ------------------------------------------------------------------ use

    def encode(self, images: Tokens | Tensor | Sequence[Tensor]) -> Tokens:
        """Latents of pictures.

        Args:
            images: tokens of patches; or float (3, H, W), (B, 3, H, W) or a sequence of (3, H, W) in [-1, 1]. Sides
                that are no multiple of the patch are filled up with mid grey.

        Returns:
            Unpacked latents, row i is picture i, values (B, N, d), float32; for ``latent: kl`` the means.

        Raises:
            RuntimeError: the weights were never loaded or initialised.
        """
        self.require_weights()
        pictures = _as_list(images)
        patch = self.shape.patch

        def maps(batch: Tensor, places: Tensor) -> Tensor:
            filled = fill_up(batch, patch)
            prior = look(self.encoder, filled.to(self.device), grid_of(filled, patch))
            z: Tensor = self.network.encode(prior.pixels, prior.features, prior.grid)
            return z.transpose(1, 2).reshape(len(batch), -1, *prior.grid)

        return latents_of_pictures(pictures, patch, maps)

    def decode(self, latents: Tokens) -> Tensor | list[Tensor]:
        """Pictures of latents.

        Args:
            latents: what ``encode`` gave, or a generator made.

        Returns:
            (B, 3, H, W) in [-1, 1] when all sizes are equal, else a list of (3, H, W).

        Raises:
            RuntimeError: the weights were never loaded or initialised.
            ValueError: the latents have another patch or another number of channels.
        """
        self.require_weights()
        require_latents(latents, self.shape.patch, self.shape.channels, "this PAE")

        def pictures(batch: Tensor) -> Tensor:
            pixels = self.network.decode(batch.flatten(2).transpose(1, 2), (batch.shape[-2], batch.shape[-1]))
            return (2 * pixels - 1).clamp(-1, 1)

        return pictures_of_latents(unpack(latents.to(self.device)), pictures)


def as_pictures(images: Tokens | Tensor) -> Tensor:
    """The pictures of a training batch.

    Args:
        images: (B, 3, H, W) in [-1, 1], or tokens of patches of pictures of one size.

    Returns:
        (B, 3, H, W).

    Raises:
        ValueError: the sizes differ.
    """
    if isinstance(images, Tensor):
        return images
    if bool((images.sizes != images.sizes[0]).any()):
        raise ValueError(
            "PAE trains on pictures of one size per batch: take a data module with `resolution` (ImageDataModule, "
            "ImageFolderDataModule) or the embedded world's"
        )
    return torch.stack(unpatchify(images))


def plain_arguments(shape: PAEShape, encoder: PatchEncoder, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Constructor arguments as plain values, for checkpoints.

    Args:
        shape: sizes.
        encoder: the prior.
        more: what else to keep.

    Returns:
        A mapping that jsonargparse turns back into objects.
    """
    kind = type(encoder)
    named = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": encoder.arguments()}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(shape).items()}
    return {"shape": plain, "encoder": named, **(more or {})}


def needs_of_network(init_args: Mapping[str, Any], build: Callable[[PAEShape], nn.Module]) -> ModelNeeds:
    """What a run with these arguments needs, counted on the meta device, where nothing is allocated.

    Args:
        init_args: constructor arguments, as parsed from a config; ``shape`` and ``encoder`` are read.
        build: makes the trained network.

    Returns:
        Parameters, activations and the weights of the prior.
    """
    given = init_args.get("shape") or {}
    shape = given if isinstance(given, PAEShape) else PAEShape(**dict(given))
    with torch.device("meta"):
        network: Any = build(shape)
    sizes = [sum(p.numel() for p in block.parameters()) for block in network.blocks()]
    need = encoder_of(init_args["encoder"]).need()
    stack = Stack.parse(shape.decoder)
    checkpointing = bool(init_args.get("activation_checkpointing", False))
    return ModelNeeds(
        trainable=sum(p.numel() for p in network.parameters()),
        largest_block=max(sizes, default=0),
        activation_bytes_per_token=_activation_bytes(shape, stack, checkpointing) / shape.patch**2,
        weights=() if need is None else (need,),
    )


def encoder_of(given: Any) -> PatchEncoder:
    """The encoder of parsed arguments.

    Args:
        given: an encoder, or its ``class_path`` and ``init_args``.

    Returns:
        The encoder, not loaded.
    """
    if isinstance(given, PatchEncoder):
        return given
    from lightning_gen.training.classes import class_named

    built: PatchEncoder = class_named(str(given["class_path"]), "encoder")(**dict(given.get("init_args") or {}))
    return built


def _activation_bytes(shape: PAEShape, stack: Stack, checkpointing: bool) -> float:
    """Of one latent token: the modulator once, the decoder three times (MCR)."""

    def inside(width: int, hidden: int) -> float:
        return 4.0 * (8 * width + 3 * hidden)

    modulator, decoder = inside(shape.prior_width, 4 * shape.prior_width), inside(stack.width, stack.hidden)
    if checkpointing:
        kept = 4.0 * (shape.prior_width * shape.modulator_depth + 3 * stack.width * stack.depth)
        return kept + max(modulator, 3 * decoder)
    return modulator * shape.modulator_depth * 2 + 3 * decoder * stack.depth


def _as_list(images: Tokens | Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(images, Tokens):
        return unpatchify(images)
    if isinstance(images, Tensor) and images.ndim == 3:
        return [images]
    return list(images)
