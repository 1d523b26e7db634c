"""The fixed-size baseline of native resolution: ViTok-v2's network with learned absolute positions for rotary ones.

Positions are one vector per patch of the size that is trained at, added to what enters the first block of either half,
as in the first vision transformers. On another grid they are resized bicubically, as is usual for such models.

Shape letters: B rows, L tokens, W width, R and K rows and columns of patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.autoencoders.vitok_v2.network import TransformerStack, ViTokV2Network
from lightning_gen.autoencoders.vitok_v2.variants import Stack, Variant
from lightning_gen.nn.attention import plan_attention
from lightning_gen.nn.rope import rotary_2d
from lightning_gen.nn.tokens import Tokens

__all__ = ["AbsoluteNetwork", "AbsoluteStack", "LearnedPositions"]


class LearnedPositions(nn.Module):
    """One vector per patch of a fixed grid.

    Args:
        grid: rows R and columns K of patches of the size that is trained at.
        width: W.

    Source: arXiv:2010.11929 section 3.1 and appendix D.4 (1-D table, resized for other resolutions).
    """

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, width, *grid))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal numbers, the usual start of vision transformers."""
        nn.init.normal_(self.table, std=0.02)

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors of tokens.

        Args:
            tokens: pictures of one size; where its grid is not the trained one, the table is resized to it.

        Returns:
            (B, L, W).

        Raises:
            ValueError: pictures of several sizes in one batch.
        """
        if not bool((tokens.grid == tokens.grid[0]).all()):
            raise ValueError("learned absolute positions belong to one size: batch pictures of one size")
        rows, cols = tokens.grid[0].tolist()
        table: Tensor = self.table
        if table.shape[2:] != (rows, cols):
            table = F.interpolate(table, (rows, cols), mode="bicubic", antialias=True, align_corners=False)
        return table[0].flatten(1).T[tokens.row * cols + tokens.col]


class AbsoluteStack(TransformerStack):
    """One half of the auto-encoder, which knows places from what is added to its input.

    Args:
        shape: width, depth, heads.
        inputs: numbers per token that come in.
        outputs: numbers per token that go out.
        layer_scale: gamma of every block at the start.
        grid: rows and columns of patches of the size that is trained at.
    """

    def __init__(self, shape: Stack, inputs: int, outputs: int, layer_scale: float, grid: tuple[int, int]) -> None:
        super().__init__(shape, inputs, outputs, layer_scale, rope_theta=10000.0)
        self.positions = LearnedPositions(grid, shape.width)

    def forward(
        self, tokens: Tokens, window_radius: int | None = None, keep: Tensor | None = None, mask_padding: bool = True
    ) -> Tensor:
        """Transform every token, seeing the others of its image.

        Args:
            tokens: values (B, L, inputs), pictures of one size.
            window_radius: see ``TransformerStack``.
            keep: must be None: the baseline has no stochastic depth.
            mask_padding: must be True.

        Returns:
            (B, L, outputs).

        Raises:
            ValueError: stochastic depth or visible padding was asked for.
        """
        if keep is not None or not mask_padding:
            raise ValueError("the baseline with absolute positions has neither stochastic depth nor visible padding")
        x = self.embed(tokens.values.to(self.embed.weight.dtype)) + self.positions(tokens)
        nowhere = torch.zeros_like(tokens.row)  # at coordinate 0 nothing is turned
        rotary = rotary_2d(nowhere, nowhere, self.head_dim, self.rope_theta)
        attend = plan_attention(tokens, window_radius)
        for block in self.blocks:
            x = block(x, rotary, attend)
        out: Tensor = self.head(x)
        return out


class AbsoluteNetwork(ViTokV2Network):
    """The auto-encoder with absolute positions in both halves; everything else is ViTok-v2's.

    Args:
        variant: shapes of both halves, patch and channels.
        grid: rows and columns of patches of the size that is trained at.
        layer_scale: gamma of every block at the start.
    """

    def __init__(self, variant: Variant, grid: tuple[int, int], layer_scale: float) -> None:
        super().__init__(variant, layer_scale=layer_scale)
        codes = variant.channels * self.bottleneck.expansion
        self.encoder = AbsoluteStack(variant.encoder, variant.pixels, codes, layer_scale, grid)
        self.decoder = AbsoluteStack(variant.decoder, variant.channels, variant.pixels, layer_scale, grid)
