"""The decoder of DC-AE through diffusers: from sizes alone, or with the weights of a folder.

Shape letters: B images, C latent channels, h and w latent rows and columns, f pixels per latent cell along a side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.backbones.adopted import adopt
from lightning_gen.backbones.frozen import ordinary_construction
from lightning_gen.backbones.weights import MissingWeightsError, fetch_files, read_config

__all__ = ["DCAEDecoder", "DCAEShape", "read_dcae_decoder"]

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PREFIX = "decoder."


@dataclasses.dataclass(frozen=True)
class DCAEShape:
    """Sizes of a DC-AE decoder; the defaults are those of SANA's f32c32 (159.2 million parameters).

    Attributes:
        latent_channels: C.
        widths: channels of the stages, from full resolution to the latent; f = 2^(stages - 1).
        layers: blocks of every stage.
        attention_from: number of the first stage with linear attention (EfficientViT blocks); before it ResBlocks.
        head_dim: width of an attention head.
        upsample: ``interpolate`` then convolve, or ``pixel_shuffle``.
    """

    latent_channels: int = 32
    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    layers: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    attention_from: int = 3
    head_dim: int = 32
    upsample: str = "interpolate"

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.layers) or not self.widths:
            raise ValueError(f"a DC-AE decoder needs as many widths as layers, got {self.widths} and {self.layers}")
        if self.widths[-1] % self.latent_channels:
            raise ValueError(
                f"the last width of a DC-AE decoder is a multiple of its latent channels, got {self.widths[-1]} and "
                f"{self.latent_channels}"
            )
        if self.upsample not in ("interpolate", "pixel_shuffle"):
            raise ValueError(f"upsample is 'interpolate' or 'pixel_shuffle', got {self.upsample!r}")

    @property
    def factor(self) -> int:
        """Pixels f of a latent cell along a side."""
        return int(2 ** (len(self.widths) - 1))


class DCAEDecoder(nn.Module):
    """Latent maps to pictures; no scaling factor, no clamp.

    Args:
        shape: sizes.

    Raises:
        ModuleNotFoundError: diffusers is not installed.

    Source: arXiv:2410.10733; the sizes of SANA's auto-encoder arXiv:2410.10629.
    """

    def __init__(self, shape: DCAEShape = DCAEShape()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.shape = shape
        self.model: Any = _build(shape)
        adopt(self.model, _fill)

    def blocks(self) -> Iterator[nn.Module]:
        """Its blocks and upsamplers: units of checkpointing, compilation and sharding."""
        for stage in self.model.up_blocks:
            yield from stage

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the last convolution, for adaptive weights of an adversarial loss."""
        weight: nn.Parameter = self.model.conv_out.weight
        return weight

    def forward(self, latents: Tensor) -> Tensor:
        """Decode.

        Args:
            latents: (B, C, h, w).

        Returns:
            (B, 3, f h, f w), about [-1, 1].
        """
        images: Tensor = self.model(latents)
        return images


def read_dcae_decoder(source: str, revision: str | None = None) -> tuple[DCAEShape, dict[str, Tensor]]:
    """Sizes and tensors of the decoder of an ``AutoencoderDC`` folder; the encoder is not read.

    Args:
        source: folder with ``config.json`` and ``diffusion_pytorch_model.safetensors`` (the ``vae`` folder of a SANA
            pipeline), or a hub id.
        revision: branch, tag or commit of the hub repository.

    Returns:
        Sizes, and tensors under the names of ``DCAEDecoder.model``.

    Raises:
        MissingWeightsError: the files are absent, damaged, or those of another auto-encoder.
    """
    from safetensors import safe_open

    folder = fetch_files(source, ["config.json", _WEIGHTS], revision=revision)
    config = read_config(folder)
    if config.get("_class_name") != "AutoencoderDC":
        raise MissingWeightsError(
            f"{folder / 'config.json'} describes {config.get('_class_name')!r}, not an AutoencoderDC of diffusers: "
            "give the vae folder of a SANA pipeline, or a DC-AE"
        )
    shape = _shape(config, str(folder))
    with safe_open(str(folder / _WEIGHTS), framework="pt") as file:
        names: list[str] = [name for name in file.keys() if name.startswith(_PREFIX)]  # noqa: SIM118 (no mapping)
        state = {name.removeprefix(_PREFIX): file.get_tensor(name).float() for name in names}
    return shape, state


def _shape(config: dict[str, Any], folder: str) -> DCAEShape:
    try:
        kinds = config.get("decoder_block_types", "ResBlock")
        widths = tuple(config["decoder_block_out_channels"])
        kinds = [kinds] * len(widths) if isinstance(kinds, str) else list(kinds)
        first = kinds.index("EfficientViTBlock") if "EfficientViTBlock" in kinds else len(kinds)
        return DCAEShape(
            latent_channels=int(config["latent_channels"]),
            widths=widths,
            layers=tuple(config["decoder_layers_per_block"]),
            attention_from=first,
            head_dim=int(config.get("attention_head_dim", 32)),
            upsample=str(config.get("upsample_block_type", "pixel_shuffle")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MissingWeightsError(
            f"{folder}/config.json does not say the sizes of a DC-AE decoder ({type(error).__name__}: {error}): copy "
            "it again from its source"
        ) from None


def _build(shape: DCAEShape) -> nn.Module:
    try:
        from diffusers import AutoencoderDC
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the decoder of DC-AE needs the package diffusers: pip install diffusers") from None
    number = len(shape.widths)
    before = min(shape.attention_from, number)
    kinds = ["ResBlock"] * before + ["EfficientViTBlock"] * (number - before)
    scales = [()] * before + [(5,)] * (number - before)

    kind: Any = AutoencoderDC

    def construct() -> nn.Module:
        whole = kind(
            latent_channels=shape.latent_channels,
            attention_head_dim=shape.head_dim,
            # The encoder is thrown away: the cheapest one that diffusers builds.
            encoder_block_types="ResBlock",
            encoder_block_out_channels=(shape.latent_channels,) * number,
            encoder_layers_per_block=(1,) * number,
            encoder_qkv_multiscales=((),) * number,
            downsample_block_type="conv",
            decoder_block_types=tuple(kinds),
            decoder_block_out_channels=shape.widths,
            decoder_layers_per_block=shape.layers,
            decoder_qkv_multiscales=tuple(scales),
            upsample_block_type=shape.upsample,
        )
        decoder: nn.Module = whole.decoder
        return decoder

    if torch.get_default_device().type == "meta":
        return construct()
    with ordinary_construction():
        return construct()


def _fill(module: nn.Module) -> None:
    """torch's rule for the layers that have one; norms start as the identity."""
    # Called by their names: the modules' own method is this function.
    if isinstance(module, nn.Conv2d):
        nn.Conv2d.reset_parameters(module)
        return
    if isinstance(module, nn.Linear):
        nn.Linear.reset_parameters(module)
        return
    for name, parameter in module.named_parameters(recurse=False):
        nn.init.zeros_(parameter) if name == "bias" else nn.init.ones_(parameter)
