"""The ViTok-v2 auto-encoder: two plain stacks of transformer blocks with a normalised latent between them.

Shape letters: B rows, L tokens, W width, P = 3 p^2 pixel numbers per patch, c latent channels, I images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gen.autoencoders.vitok_v2.bottleneck import BottleneckName, build_bottleneck
from lightning_gen.autoencoders.vitok_v2.variants import Stack, Variant
from lightning_gen.nn.attention import PaddedAttention, plan_attention
from lightning_gen.nn.blocks import ParallelBlock
from lightning_gen.nn.rope import rotary_2d
from lightning_gen.nn.tokens import Tokens

__all__ = ["Reconstruction", "TransformerStack", "ViTokV2Network"]


class Reconstruction(NamedTuple):
    """What a pass through the auto-encoder gives.

    Attributes:
        pixels: decoded patches, values (B, L, P), not clamped.
        latents: values (B, L, c).
        penalty: loss of the bottleneck per token, (B, L).
    """

    pixels: Tokens
    latents: Tokens
    penalty: Tensor


class TransformerStack(nn.Module):
    """Linear in, blocks, linear out; no norm before the output layer and no activation behind it.

    Args:
        shape: width, depth, heads.
        inputs: numbers per token that come in.
        outputs: numbers per token that go out.
        layer_scale: gamma of every block at the start.
        rope_theta: base of the rotary frequencies.

    Source: arXiv:2605.05331 (architecture of the auto-encoder).
    """

    def __init__(self, shape: Stack, inputs: int, outputs: int, layer_scale: float, rope_theta: float) -> None:
        super().__init__()
        self.head_dim = shape.width // shape.heads
        self.rope_theta = rope_theta
        self.embed = nn.Linear(inputs, shape.width)
        self.blocks = nn.ModuleList(
            ParallelBlock(shape.width, shape.heads, shape.hidden, layer_scale) for _ in range(shape.depth)
        )
        self.head = nn.Linear(shape.width, outputs)

    def forward(
        self, tokens: Tokens, window_radius: int | None = None, keep: Tensor | None = None, mask_padding: bool = True
    ) -> Tensor:
        """Transform every token, seeing the others of its image.

        Args:
            tokens: values (B, L, inputs), packed or unpacked.
            window_radius: patches that attention reaches along each axis; None = the whole image.
            keep: stochastic depth per image, (I, depth), 0 or 1 / (1 - rate); None = keep all.
            mask_padding: False lets unpacked images see their padding, as the published training code did.

        Returns:
            (B, L, outputs).
        """
        x = self.embed(tokens.values.to(self.embed.weight.dtype))
        rotary = rotary_2d(tokens.row, tokens.col, self.head_dim, self.rope_theta, _activation_dtype(x))
        attend = plan_attention(tokens, window_radius, rotary.cos.dtype) if mask_padding else PaddedAttention(None)
        for depth, block in enumerate(self.blocks):
            x = block(x, rotary, attend, None if keep is None else _per_token(keep[:, depth], tokens).to(x.dtype))
        out: Tensor = self.head(x)
        return out


class ViTokV2Network(nn.Module):
    """Encoder, bottleneck, decoder.

    z = bottleneck(encoder(patches));  y = decoder(z)

    Args:
        variant: shapes of both halves, patch and channels.
        bottleneck: how the latent is normalised.
        layer_scale: gamma of every block at the start.
        rope_theta: base of the rotary frequencies.
        mask_padding: False only for parity with the published training code, which attended to padding.

    Source: arXiv:2605.05331 (architecture).
    """

    def __init__(
        self,
        variant: Variant,
        bottleneck: BottleneckName = "layernorm",
        layer_scale: float = 1e-4,
        rope_theta: float = 10000.0,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.mask_padding = mask_padding
        self.bottleneck = build_bottleneck(bottleneck)
        codes = variant.channels * self.bottleneck.expansion
        self.encoder = TransformerStack(variant.encoder, variant.pixels, codes, layer_scale, rope_theta)
        self.decoder = TransformerStack(variant.decoder, variant.channels, variant.pixels, layer_scale, rope_theta)

    def blocks(self) -> Iterator[nn.Module]:
        """The transformer blocks: units of checkpointing, compilation and sharding."""
        yield from self.encoder.blocks
        yield from self.decoder.blocks

    def encode(self, pixels: Tokens, window_radius: int | None = None) -> Tokens:
        """Latents of images.

        Args:
            pixels: patch vectors, values (B, L, P) in [-1, 1].
            window_radius: see ``TransformerStack.forward``.

        Returns:
            Latents with the same mask, coordinates and sizes, values (B, L, c), float32.
        """
        return pixels.with_values(self.bottleneck(self._codes(pixels, window_radius), None).latent)

    def decode(self, latents: Tokens, window_radius: int | None = None, keep: Tensor | None = None) -> Tokens:
        """Images of latents.

        Args:
            latents: values (B, L, c).
            window_radius: see ``TransformerStack.forward``.
            keep: stochastic depth of the decoder, see ``TransformerStack.forward``.

        Returns:
            Patch vectors, values (B, L, P), not clamped.
        """
        return latents.with_values(self.decoder(latents, window_radius, keep, self.mask_padding))

    def forward(
        self,
        pixels: Tokens,
        keep: Tensor | None = None,
        noise: Tensor | None = None,
        window_radius: int | None = None,
    ) -> Reconstruction:
        """Encode and decode, as in training.

        Args:
            pixels: patch vectors, values (B, L, P) in [-1, 1].
            keep: stochastic depth of the decoder, see ``TransformerStack.forward``.
            noise: standard normal numbers for the bottleneck, (B, L, c), or None.
            window_radius: see ``TransformerStack.forward``; None in training.

        Returns:
            Decoded patches, latents and the bottleneck's penalty.
        """
        code = self.bottleneck(self._codes(pixels, window_radius), noise)
        latents = pixels.with_values(code.latent)
        return Reconstruction(self.decode(latents, window_radius, keep), latents, code.penalty)

    def _codes(self, pixels: Tokens, window_radius: int | None) -> Tensor:
        codes: Tensor = self.encoder(pixels, window_radius, mask_padding=self.mask_padding)
        return codes


def _per_token(value: Tensor, tokens: Tokens) -> Tensor:
    """Spread one number per image over its tokens, (B, L, 1)."""
    return value[tokens.image.clamp(min=0)].unsqueeze(-1)


def _activation_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which attention will run: autocast's where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
