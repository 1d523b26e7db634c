"""The text-conditional transformer inside a small U-Net of convolutions, for generators that work on pixels.

Patches of raw pixels meet at hard edges, and a shape must be learned anew for every place in them. Convolutions before
and after the transformer, with connections past it, draw the same shape everywhere; the transformer says what goes
where.

Shape letters: B images, L tokens, p patch edge, W width, C channels of a level, f fold, H and V height and width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.generators.dit.text_network import TextDiT, WordEncoder
from lightning_gen.generators.dit.variants import dit_shape
from lightning_gen.interfaces import Conditioning
from lightning_gen.nn.tokens import Tokens

__all__ = ["ConditionedConvolution", "PixelTextDiT", "Stem"]


@dataclasses.dataclass(frozen=True)
class Stem:
    """Size of the convolutions around a transformer.

    Attributes:
        channels: C of every level, from fine to coarse; each level has half the height and width of the one before.
        depths: residual convolutions of every level on each side of the transformer, >= 1.
        fold: f x f pixels become channels before the first convolution: the same work at a quarter of the places and
            twice the channels is half as slow on CPUs.

    Raises:
        ValueError: no level, not one depth per level, or a number below 1.
    """

    channels: tuple[int, ...] = (32, 64)
    depths: tuple[int, ...] = (2, 3)
    fold: int = 2

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.depths):
            raise ValueError(f"a stem has levels, and as many depths as channels, got {self}")
        if min(*self.channels, *self.depths, self.fold) < 1:
            raise ValueError(f"channels, depths and fold of the stem are at least 1, got {self}")

    def steps(self, patch: int) -> list[int]:
        """How much coarser every level's successor is; the last one's is the grid of tokens.

        Args:
            patch: p.

        Returns:
            2 for every level but the last, and what is left of the patch.

        Raises:
            ValueError: the patch is not made of whole places of the last level.
        """
        place = self.fold * 2 ** (len(self.channels) - 1)
        if patch % place:
            raise ValueError(f"patches of {patch} pixels are not made of whole places of {place} pixels: {self}")
        return [2] * (len(self.channels) - 1) + [patch // place]

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"channels": list(self.channels), "depths": list(self.depths), "fold": self.fold}


class ConditionedConvolution(nn.Module):
    """A residual convolution that is scaled and shifted by a condition.

    y = h + silu((1 + a) conv(h) + b);  a, b = W c

    Args:
        channels: C.
        width: of the condition.

    Source: arXiv:1709.07871 (scale and shift).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(width, 2 * channels)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """One residual step.

        Args:
            features: h, (B, C, H, V).
            condition: c, (B, width).

        Returns:
            y, (B, C, H, V).
        """
        scale, shift = self.film(condition)[..., None, None].chunk(2, 1)
        return features + F.silu((1 + scale) * self.conv(features) + shift)


class PixelTextDiT(nn.Module):
    """A ``TextDiT`` on features of pixels instead of the pixels themselves.

    h_1 = convs(conv(fold(x_t)));  h_(i+1) = convs(down(h_i));  z = TextDiT(down(h_n))
    y_n = convs(join[h_n, up(z)]);  y_i = convs(join[h_i, up(y_(i+1))]);  output = unfold(conv(silu(y_1)))

    Every residual convolution is scaled and shifted by time + mean of the prompt. All pictures of a batch have one
    size.

    Args:
        variant: size of the transformer, see ``variants.dit_shape``.
        patch: p.
        stem: the convolutions.
        text_width: of ``Conditioning.sequence``.
        pooled_width: of ``Conditioning.pooled``.
        text_encoder: see ``TextDiT``.
        layer_scale: gamma of every block at the start.
        rope_theta: base of the rotary frequencies.

    Raises:
        ValueError: the patch is not made of whole places of the coarsest level.
    """

    def __init__(
        self,
        variant: str,
        patch: int,
        stem: Stem,
        text_width: int,
        pooled_width: int,
        text_encoder: WordEncoder | None = None,
        *,
        layer_scale: float = 1e-4,
        rope_theta: float = 10000.0,
    ) -> None:
        super().__init__()
        width, pixels = dit_shape(variant).width, 3 * stem.fold**2
        self.patch, self.fold = patch, stem.fold
        self.body = TextDiT(
            variant, width, text_width, pooled_width, text_encoder, layer_scale=layer_scale, rope_theta=rope_theta
        )
        self.condition = nn.Linear(width, width)
        channels, steps = [*stem.channels, width], stem.steps(patch)
        levels = list(zip(channels, channels[1:], steps, strict=False))
        self.stem_in = nn.Conv2d(pixels, channels[0], 3, padding=1)
        self.stem, self.tail = (
            nn.ModuleList(_level(c, depth, width) for c, depth in zip(stem.channels, stem.depths, strict=True))
            for _ in range(2)
        )
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, step, step) for fine, coarse, step in levels)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, step, step) for fine, coarse, step in levels)
        self.join = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in stem.channels)
        self.tail_out = nn.Conv2d(channels[0], pixels, 3, padding=1)

    def blocks(self) -> Iterable[nn.Module]:
        """The units that checkpointing, compilation and sharding wrap.

        Returns:
            The transformer blocks in order.
        """
        return self.body.blocks()

    def encode_words(self, words: Tensor, mask: Tensor) -> Conditioning:
        """Encode prompts by the encoder inside.

        Args:
            words: int64, (B, T).
            mask: bool, (B, T).

        Returns:
            Their conditioning.
        """
        return self.body.encode_words(words, mask)

    def forward(self, tokens: Tokens, time: Tensor, text: Conditioning) -> Tensor:
        """Predict at noised pixels.

        Args:
            tokens: x_t, one picture per row, patches of pixels (B, L, 3 p p), all of one size in whole patches.
            time: t in [0, 1], float, (B,).
            text: encoded prompts, B of them.

        Returns:
            (B, L, 3 p p).

        Raises:
            ValueError: pictures of different sizes, or sizes that are not whole patches; see also ``TextDiT``.
        """
        rows, columns = (int(part) for part in tokens.grid[0])
        if not bool(tokens.mask.all()) or rows * columns != tokens.mask.shape[1]:
            raise ValueError("the convolutions take pictures of one size, made of whole patches, one per row")
        condition = F.silu(self.condition(F.silu(self.body.condition(time, text))))
        h = self.stem_in(F.pixel_unshuffle(self._pixels(tokens.values, rows, columns), self.fold))
        passed = []
        for convolutions, down in zip(self.stem, self.down, strict=True):
            passed.append(_refined(h, convolutions, condition))
            h = down(passed[-1])
        z = self.body(tokens.with_values(h.flatten(2).transpose(1, 2)), time, text)
        y = z.transpose(1, 2).unflatten(2, (rows, columns))
        for level in reversed(range(len(passed))):
            y = self.join[level](torch.cat([passed[level], self.up[level](y).to(h.dtype)], 1))
            y = _refined(y, self.tail[level], condition)
        return self._patches(F.pixel_shuffle(self.tail_out(F.silu(y)), self.fold), rows, columns)

    def _pixels(self, values: Tensor, rows: int, columns: int) -> Tensor:
        """(B, L, 3 p p) to (B, 3, H, V); patch vectors are channel, row, column."""
        p = self.patch
        grid = values.to(self.stem_in.weight.dtype).view(len(values), rows, columns, 3, p, p).permute(0, 3, 1, 4, 2, 5)
        return grid.reshape(len(values), 3, rows * p, columns * p)

    def _patches(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        p = self.patch
        grid = pixels.view(len(pixels), 3, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        return grid.reshape(len(pixels), rows * columns, 3 * p * p)


def _level(channels: int, depth: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(ConditionedConvolution(channels, width) for _ in range(depth))


def _refined(features: Tensor, convolutions: nn.Module, condition: Tensor) -> Tensor:
    for convolution in convolutions.children():
        features = convolution(features, condition)
    return features
