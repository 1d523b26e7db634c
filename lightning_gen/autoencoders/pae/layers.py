"""Layers of PAE: attention in timm's form, pre-norm blocks, sincos positions, the sphere.

Shape letters: B images, N tokens, M keys, W width, H heads, C channels, h and w rows and columns of the grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.autoencoders.pae.variants import NormAxis, Stack
from lightning_gen.nn.sdpa import dot_product_attention

__all__ = [
    "CrossAttention",
    "SelfAttention",
    "SmallLinear",
    "TransformerBlock",
    "ZeroLinear",
    "grid_convolution",
    "sincos_positions",
    "to_sphere",
]


class SmallLinear(nn.Linear):
    """A linear layer that starts with truncated normal weights and no bias.

    Their deviation is 0.02, as in masked auto-encoders of the paper's width, 1024, and larger where there are fewer
    inputs, so that outputs are as large as there: with 0.02 a decoder 64 wide was still at the mean colour after 900
    steps, in one run of three.
    """

    def reset_parameters(self) -> None:
        """Fill both."""
        nn.init.trunc_normal_(self.weight, std=0.02 * math.sqrt(1024 / min(self.in_features, 1024)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at 0."""

    def reset_parameters(self) -> None:
        """Fill weight and bias with 0."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values.

    Args:
        width: W.
        heads: H.
        qkv_bias: whether queries, keys and values have biases.
        linear: kind of both layers, which decides how they start.
    """

    def __init__(self, width: int, heads: int, qkv_bias: bool, linear: type[nn.Linear] = SmallLinear) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width, bias=qkv_bias)
        self.proj = linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens.

        Args:
            x: (B, N, W).

        Returns:
            (B, N, W).
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed: Tensor = self.proj(dot_product_attention(q, k, v).flatten(2))
        return mixed


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another.

    Args:
        width: W of both.
        heads: H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (SmallLinear(width, width) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Read from the context.

        Args:
            x: (B, N, W), asks.
            context: (B, M, W), answers.

        Returns:
            (B, N, W).
        """
        q, k, v = (
            layer(given).unflatten(-1, (self.heads, -1))
            for layer, given in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        mixed: Tensor = self.proj(dot_product_attention(q, k, v).flatten(2))
        return mixed


class TransformerBlock(nn.Module):
    """x <- x + Attention(LN(x));  x <- x + W_2 GELU(W_1 LN(x)).

    Args:
        shape: width, heads, hidden width.
        eps: of the norms.

    Source: arXiv:2010.11929 eqs. 2 and 3.
    """

    def __init__(self, shape: Stack, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps)
        self.attention = SelfAttention(shape.width, shape.heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(shape.width, eps)
        self.fc1 = SmallLinear(shape.width, shape.hidden)
        self.fc2 = SmallLinear(shape.hidden, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """One residual step.

        Args:
            x: (B, N, W).

        Returns:
            (B, N, W).
        """
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


def sincos_positions(rows: int, cols: int, width: int) -> Tensor:
    """Fixed positions on a grid, the column first.

    p(r, k) = [sin(k f), cos(k f), sin(r f), cos(r f)],  f_i = 10000^(-4 i / W),  i = 0..W/4-1

    Args:
        rows: of the grid.
        cols: of the grid.
        width: W, a multiple of 4.

    Returns:
        float32, (1, rows * cols, W), row by row, on the default device.

    Source: arXiv:2111.06377 (published code, which puts the column first).
    """
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, col = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(cols, dtype=torch.float64), indexing="ij"
    )
    angles = [place.reshape(-1, 1) * frequency for place in (col, row)]
    parts = [part for angle in angles for part in (angle.sin(), angle.cos())]
    return torch.cat(parts, dim=1).float()[None]


def grid_convolution(convolution: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Apply a convolution to tokens that stand on a grid.

    Args:
        convolution: keeps height and width.
        tokens: (B, N, C), row by row.
        grid: rows and columns, N = rows x columns.

    Returns:
        (B, N, C').
    """
    maps = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
    out: Tensor = convolution(maps).flatten(2).transpose(1, 2)
    return out


def to_sphere(z: Tensor, axis: NormAxis = "token", zero_mean: bool = False, eps: float = 1e-6) -> Tensor:
    """Scale latents to unit root mean square.

    z / sqrt(mean(z^2) + eps), the mean over the channels of a token or over a whole picture; |z_token| = sqrt(d)

    Args:
        z: (B, N, d).
        axis: what lies on one sphere.
        zero_mean: subtract the mean over the same numbers first.
        eps: added to the mean square.

    Returns:
        The same shape, float32 (float64 for float64).

    Source: arXiv:2605.07915, released tokenizer (per token; the paper's notes call the per-sample one a unit sphere,
    its radius is sqrt(N d)).
    """
    exact = z.to(torch.promote_types(z.dtype, torch.float32))
    over = (-1,) if axis == "token" else (-2, -1)
    if zero_mean:
        exact = exact - exact.mean(over, keepdim=True)
    return exact * torch.rsqrt(exact.square().mean(over, keepdim=True) + eps)
