"""The text-conditional transformer between convolutions, for generators that work on pixels.

Patches of raw pixels meet at hard edges: what one token says about its border its neighbour does not know. A few
convolutions at full resolution before and after the transformer, with a connection past it, mend that.

Shape letters: B images, L tokens, p patch edge, W width, C channels of the convolutions, H and V height and width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.generators.dit.text_network import TextDiT, WordEncoder
from lightning_gen.generators.dit.variants import dit_shape
from lightning_gen.interfaces import Conditioning
from lightning_gen.nn.tokens import Tokens

__all__ = ["PixelTextDiT"]


class PixelTextDiT(nn.Module):
    """A ``TextDiT`` on features of pixels instead of the pixels themselves.

    h = conv(x_t);  z = TextDiT(patches of h);  output = conv([h, pixels of z])

    All pictures of a batch have one size.

    Args:
        variant: size of the transformer, see ``variants.dit_shape``.
        patch: p.
        stem_channels: C.
        text_width: of ``Conditioning.sequence``.
        pooled_width: of ``Conditioning.pooled``.
        text_encoder: see ``TextDiT``.
        layer_scale: gamma of every block at the start.
        rope_theta: base of the rotary frequencies.
    """

    def __init__(
        self,
        variant: str,
        patch: int,
        stem_channels: int,
        text_width: int,
        pooled_width: int,
        text_encoder: WordEncoder | None = None,
        *,
        layer_scale: float = 1e-4,
        rope_theta: float = 10000.0,
    ) -> None:
        super().__init__()
        width, c = dit_shape(variant).width, stem_channels
        self.patch = patch
        self.body = TextDiT(
            variant, width, text_width, pooled_width, text_encoder, layer_scale=layer_scale, rope_theta=rope_theta
        )
        self.stem_in, self.stem = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.down, self.up = nn.Conv2d(c, width, patch, patch), nn.ConvTranspose2d(width, c, patch, patch)
        self.join, self.tail = nn.Conv2d(2 * c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.tail_out = nn.Conv2d(c, 3, 3, padding=1)

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
        h = F.silu(self.stem_in(pixels))
        h = h + F.silu(self.stem(h))
        z = self.down(h).flatten(2).transpose(1, 2)
        z = self.body(tokens.with_values(z), time, text)
        y = self.up(z.transpose(1, 2).unflatten(2, (rows, columns)))
        y = F.silu(self.join(torch.cat([h, y.to(h.dtype)], 1)))
        y = y + F.silu(self.tail(y))
        return self._patches(self.tail_out(y), rows, columns)

    def _pixels(self, values: Tensor, rows: int, columns: int) -> Tensor:
        """(B, L, 3 p p) to (B, 3, H, V); patch vectors are channel, row, column."""
        p = self.patch
        grid = values.view(len(values), rows, columns, 3, p, p).permute(0, 3, 1, 4, 2, 5)
        return grid.reshape(len(values), 3, rows * p, columns * p)

    def _patches(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        p = self.patch
        grid = pixels.view(len(pixels), 3, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        return grid.reshape(len(pixels), rows * columns, 3 * p * p)
