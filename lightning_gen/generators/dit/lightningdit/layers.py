"""Layers of LightningDiT. Every layer that owns parameters fills them itself, as the published code does.

Shape letters: B rows, L tokens, C channels of a latent token, W width, M hidden width, H heads, I images, G edge of the
grid of positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.flow import paths
from lightning_gen.generators.dit.layers import per_token, sinusoid
from lightning_gen.generators.dit.variants import TIME_DIM
from lightning_gen.nn.attention import AttentionPlan
from lightning_gen.nn.norms import RMSNorm
from lightning_gen.nn.rope import Rotary, rotate

__all__ = [
    "FixedPositions",
    "GatedFeedForward",
    "LightningAttention",
    "LightningDiTBlock",
    "LightningHead",
    "NormalEmbedding",
    "NormalLinear",
    "ReversedTimeEmbedding",
    "XavierLinear",
    "ZeroLinear",
    "sincos_positions",
]


class XavierLinear(nn.Linear):
    """Linear layer that starts uniform in +-sqrt(6 / (in + out)), its bias at 0."""

    def reset_parameters(self) -> None:
        """Set the start values."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class NormalLinear(nn.Linear):
    """Linear layer that starts normal with a spread of 0.02, its bias at 0."""

    def reset_parameters(self) -> None:
        """Set the start values."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class ZeroLinear(nn.Linear):
    """Linear layer that starts at 0."""

    def reset_parameters(self) -> None:
        """Set the start values."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class NormalEmbedding(nn.Embedding):
    """Table that starts normal with a spread of 0.02."""

    def reset_parameters(self) -> None:
        """Set the start values."""
        nn.init.normal_(self.weight, std=0.02)


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed positions of a square grid, the column first.

    p(row, col) = [sin(col f), cos(col f), sin(row f), cos(row f)],  f_i = 10000^(-4 i / W), i = 0..W/4-1

    Args:
        grid: G.
        width: W, a multiple of 4.

    Returns:
        float32, (G^2, W), row by row.

    Source: arXiv:2212.09748, published code.
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    col, row = axis[None].expand(grid, -1, -1), axis[:, None].expand(-1, grid, -1)
    return torch.cat([col, row], dim=-1).flatten(0, 1).float()


class FixedPositions(nn.Module):
    """A table of positions that counts among the parameters, as in the published weights, and is never trained.

    Args:
        grid: G.
        width: W.
    """

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty(grid * grid, width), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Compute the table."""
        with torch.no_grad():
            self.table.copy_(sincos_positions(self.grid, self.table.shape[1]))

    def forward(self, row: Tensor, col: Tensor) -> Tensor:
        """Look positions up.

        Args:
            row: int64, (B, L), in [0, G).
            col: int64, (B, L), in [0, G).

        Returns:
            (B, L, W).

        Raises:
            ValueError: a token lies outside the grid.
        """
        if int(torch.stack([row.max(), col.max()]).max()) >= self.grid:
            raise ValueError(
                f"a token at row {int(row.max())} or column {int(col.max())} has no position: this network knows "
                f"{self.grid} x {self.grid}; build it with _g<edge> in the name of its size, or make smaller pictures"
            )
        return self.table[row * self.grid + col]


class ReversedTimeEmbedding(nn.Module):
    """Vector of a time: sinusoid of the unscaled reversed time, Linear, SiLU, Linear.

    Args:
        width: W.

    Source: arXiv:2605.07915, published generator: cosines first, t' in [0, 1] with 1 = data.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = NormalLinear(TIME_DIM, width)
        self.fc2 = NormalLinear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Embed.

        Args:
            time: t in [0, 1], 0 = clean, 1 = noise, float, (I,).

        Returns:
            (I, W).
        """
        wave = sinusoid(paths.reversed_time(time))
        embedded: Tensor = self.fc2(F.silu(self.fc1(wave.to(self.fc1.weight.dtype))))
        return embedded


class LightningAttention(nn.Module):
    """Multi-head self-attention with biases, rotary positions and, where wanted, normalised queries and keys.

    q, k, v = split(W_qkv u + b);  q, k <- rope(norm(q)), rope(norm(k));  out = W attention(q, k, v) + b

    Args:
        width: W.
        heads: H.
        qk_norm: RMSNorm of every query and key, one weight per number of a head.

    Source: arXiv:2605.07915, published generator.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = XavierLinear(width, 3 * width)
        self.norm_q: nn.Module = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.norm_k: nn.Module = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.out_proj = XavierLinear(width, width)

    def forward(self, u: Tensor, rotary: Rotary, attend: AttentionPlan) -> Tensor:
        """Mix the tokens of each image.

        Args:
            u: normalised states, (B, L, W).
            rotary: angles of the tokens.
            attend: which pairs see each other.

        Returns:
            (B, L, W).
        """
        qkv: Tensor = self.qkv(u)
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.heads, -1).unbind(2)
        mixed = attend(rotate(self.norm_q(q), rotary), rotate(self.norm_k(k), rotary), v)
        out: Tensor = self.out_proj(mixed.flatten(2))
        return out


class GatedFeedForward(nn.Module):
    """Gated feed-forward part with biases; the gate half comes first.

    [g, v] = W_12 u + b;  out = W_3 (silu(g) * v) + b

    Args:
        width: W.
        hidden: M.

    Source: arXiv:2002.05202 eq. 6; order of the published weights.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = XavierLinear(width, 2 * hidden)
        self.w3 = XavierLinear(hidden, width)

    def forward(self, u: Tensor) -> Tensor:
        """Transform every token by itself.

        Args:
            u: (B, L, W).

        Returns:
            (B, L, W).
        """
        gate, value = self.w12(u).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


class LightningDiTBlock(nn.Module):
    """Attention, then feed-forward, each steered by the condition (adaLN-zero).

    x <- x + gate_a Attention((1 + scale_a) RMSNorm(x) + shift_a)
    x <- x + gate_f FeedForward((1 + scale_f) RMSNorm(x) + shift_f)

    Args:
        width: W.
        heads: H.
        hidden: M.
        qk_norm: see ``LightningAttention``.

    Source: arXiv:2605.07915, published generator; arXiv:2212.09748 section 3.2.
    """

    def __init__(self, width: int, heads: int, hidden: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = LightningAttention(width, heads, qk_norm)
        self.ffn = GatedFeedForward(width, hidden)
        self.modulation = ZeroLinear(width, 6 * width)

    def forward(
        self, x: Tensor, condition: Tensor, image: Tensor | None, rotary: Rotary, attend: AttentionPlan
    ) -> Tensor:
        """Two residual steps.

        Args:
            x: states, (B, L, W).
            condition: silu of the condition, (I, W).
            image: int64, (B, L), image of every token; None = row b is image b.
            rotary: angles of the tokens.
            attend: which pairs see each other.

        Returns:
            (B, L, W).
        """
        parts = (per_token(part, image) for part in self.modulation(condition).chunk(6, dim=-1))
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = parts
        x = x + gate_a * self.attn((1 + scale_a) * self.norm1(x) + shift_a, rotary, attend)
        out: Tensor = x + gate_f * self.ffn((1 + scale_f) * self.norm2(x) + shift_f)
        return out


class LightningHead(nn.Module):
    """From states to velocities, steered by the condition; 0 at the start.

    shift, scale = W_mod condition + b;  v = W ((1 + scale) RMSNorm(x) + shift) + b

    Args:
        width: W.
        channels: C.

    Source: arXiv:2605.07915, published generator.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.modulation = ZeroLinear(width, 2 * width)
        self.out_proj = ZeroLinear(width, channels)

    def forward(self, x: Tensor, condition: Tensor, image: Tensor | None) -> Tensor:
        """Predict.

        Args:
            x: states, (B, L, W).
            condition: silu of the condition, (I, W).
            image: as in ``LightningDiTBlock``.

        Returns:
            (B, L, C).
        """
        shift, scale = (per_token(part, image) for part in self.modulation(condition).chunk(2, dim=-1))
        out: Tensor = self.out_proj((1 + scale) * self.norm(x) + shift)
        return out
