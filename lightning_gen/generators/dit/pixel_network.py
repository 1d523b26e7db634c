"""The text-conditional transformer between convolutions, for generators that work on pixels.

Patches of raw pixels meet at hard edges: what one token says about its border its neighbour does not know. A few
convolutions before and after the transformer, with a connection past it, mend that.

Shape letters: B images, L tokens, p patch edge, W width, C channels of the convolutions, f fold, H and V height and
width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.generators.dit.text_network import TextDiT, WordEncoder
from lightning_gen.generators.dit.variants import dit_shape
from lightning_gen.interfaces import Conditioning
from lightning_gen.nn.tokens import Tokens

__all__ = ["PixelTextDiT", "Stem"]


@dataclasses.dataclass(frozen=True)
class Stem:
    """Size of the convolutions around a transformer.

    Attributes:
        channels: C.
        depth: residual convolutions on each side, >= 1.
        fold: f x f pixels become channels before the first convolution: the same work at a quarter of the places and
            twice the channels is half as slow on CPUs.

    Raises:
        ValueError: a number below 1.
    """

    channels: int = 32
    depth: int = 2
    fold: int = 2

    def __post_init__(self) -> None:
        if min(self.channels, self.depth, self.fold) < 1:
            raise ValueError(f"channels, depth and fold of the stem are at least 1, got {self}")


class PixelTextDiT(nn.Module):
    """A ``TextDiT`` on features of pixels instead of the pixels themselves.

    h = convs(fold(x_t));  z = TextDiT(patches of h);  output = unfold(convs([h, places of z]))

    The first convolution on either side is scaled and shifted by the time.

    All pictures of a batch have one size.

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
        ValueError: the patch is not made of whole folds.
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
        if patch % stem.fold:
            raise ValueError(f"patches of {patch} pixels are not made of folds of {stem.fold}")
        width, c, pixels, places = dit_shape(variant).width, stem.channels, 3 * stem.fold**2, patch // stem.fold
        self.patch, self.fold = patch, stem.fold
        self.body = TextDiT(
            variant, width, text_width, pooled_width, text_encoder, layer_scale=layer_scale, rope_theta=rope_theta
        )
        self.stem_in, self.stem = nn.Conv2d(pixels, c, 3, padding=1), _convolutions(c, stem.depth)
        self.down, self.up = nn.Conv2d(c, width, places, places), nn.ConvTranspose2d(width, c, places, places)
        self.join, self.tail = nn.Conv2d(2 * c, c, 3, padding=1), _convolutions(c, stem.depth)
        self.tail_out = nn.Conv2d(c, pixels, 3, padding=1)
        self.film = nn.Linear(width, 4 * c)

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
            ValueError: pictures of different sizes, or sizes that are not whole patches.
        """
        rows, columns = (int(part) for part in tokens.grid[0])
        if not bool(tokens.mask.all()) or rows * columns != tokens.mask.shape[1]:
            raise ValueError("the convolutions take pictures of one size, made of whole patches, one per row")
        pixels = self._pixels(tokens.values, rows, columns).to(self.stem_in.weight.dtype)
        film = self.film(F.silu(self.body.time_embedding(time)))[..., None, None].chunk(4, 1)
        h = self.stem_in(F.pixel_unshuffle(pixels, self.fold))
        h = _refined(F.silu((1 + film[0]) * h + film[1]), self.stem)
        z = self.down(h).flatten(2).transpose(1, 2)
        z = self.body(tokens.with_values(z), time, text)
        y = self.up(z.transpose(1, 2).unflatten(2, (rows, columns)))
        y = self.join(torch.cat([h, y.to(h.dtype)], 1))
        y = _refined(F.silu((1 + film[2]) * y + film[3]), self.tail)
        return self._patches(F.pixel_shuffle(self.tail_out(y), self.fold), rows, columns)

    def _pixels(self, values: Tensor, rows: int, columns: int) -> Tensor:
        """(B, L, 3 p p) to (B, 3, H, V); patch vectors are channel, row, column."""
        p = self.patch
        grid = values.view(len(values), rows, columns, 3, p, p).permute(0, 3, 1, 4, 2, 5)
        return grid.reshape(len(values), 3, rows * p, columns * p)

    def _patches(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        p = self.patch
        grid = pixels.view(len(pixels), 3, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        return grid.reshape(len(pixels), rows * columns, 3 * p * p)


def _convolutions(channels: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))


def _refined(features: Tensor, convolutions: nn.ModuleList) -> Tensor:
    for convolution in convolutions:
        features = features + F.silu(convolution(features))
    return features
