"""LightningDiT on the tokens of an image: one latent token is one token of the transformer (patch 1).

t = 0 is clean, t = 1 is noise, and the network predicts eps - x_0, like every network of this room. Inside it thinks in
reversed time, as the published weights do; the two conversions stand in ``ReversedTimeEmbedding`` and at the end of
``LightningDiT.forward``.

Shape letters: B rows, L tokens, C channels of a latent token, W width, I images.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.flow import paths
from lightning_gen.generators.dit.lightningdit.layers import (
    FixedPositions,
    LightningDiTBlock,
    LightningHead,
    NormalEmbedding,
    ReversedTimeEmbedding,
    XavierLinear,
)
from lightning_gen.generators.dit.lightningdit.variants import lightningdit_shape
from lightning_gen.generators.dit.network import ClassConditional, activation_dtype
from lightning_gen.nn.attention import plan_attention
from lightning_gen.nn.rope import rotary_2d
from lightning_gen.nn.tokens import Tokens

__all__ = ["LightningDiT"]


class LightningDiT(ClassConditional):
    """Class-conditional diffusion transformer of LightningDiT and PAE.

    Padding is never attended to and tokens of different images never meet. Grids need not be square: every one that
    fits into the table of positions works, packed or padded. The null class that guidance needs is ``num_classes``.

    Args:
        variant: size by name: ``lightningdit_xl_1``, ... (``variants.lightningdit_shape``).
        channels: C, channels of a latent token.
        num_classes: number of classes without the null class.
        rope_theta: base of the rotary frequencies.

    Raises:
        ValueError: unknown variant.

    Source: arXiv:2501.01423; arXiv:2605.07915, published generator.
    """

    def __init__(self, variant: str, channels: int, num_classes: int, *, rope_theta: float = 10000.0) -> None:
        super().__init__()
        shape = lightningdit_shape(variant)
        self.shape, self.channels, self.num_classes, self.rope_theta = shape, channels, num_classes, rope_theta
        width = shape.width
        self.in_proj = XavierLinear(channels, width)
        self.positions = FixedPositions(shape.grid, width)
        self.time_embedding = ReversedTimeEmbedding(width)
        self.class_embedding = NormalEmbedding(num_classes + 1, width)
        self.dit_blocks = nn.ModuleList(
            LightningDiTBlock(width, shape.heads, shape.hidden, shape.qk_norm) for _ in range(shape.depth)
        )
        self.head = LightningHead(width, channels)

    def forward(self, tokens: Tokens, time: Tensor, label: Tensor) -> Tensor:
        """Predict the velocity of noised latents.

        Args:
            tokens: x_t, packed or unpacked, values (B, L, C).
            time: t in [0, 1], 0 = clean, 1 = noise, float, (I,).
            label: class in [0, num_classes], int64, (I,); num_classes = null class.

        Returns:
            v = eps - x_0, (B, L, C); what stands at padding means nothing. Exactly 0 at the start.

        Raises:
            ValueError: not one time and one class per image, a class outside the range, or a token outside the grid.
        """
        vector, image = self.conditions(tokens, time, label)
        condition = F.silu(vector)
        row, col = (part.masked_fill(~tokens.mask, 0) for part in (tokens.row, tokens.col))
        x = self.in_proj(tokens.values.to(self.in_proj.weight.dtype)) + self.positions(row, col)
        rotary = rotary_2d(row, col, self.shape.head_width, self.rope_theta, activation_dtype(x))
        attend = plan_attention(tokens, None, rotary.cos.dtype)
        for block in self.dit_blocks:
            x = block(x, condition, image, rotary, attend)
        return paths.reversed_velocity(self.head(x, condition, image))
