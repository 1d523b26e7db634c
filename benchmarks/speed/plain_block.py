"""The block of the auto-encoder as one would write it with plain PyTorch, to measure ours against.

``PlainBlock`` computes the same numbers from the same weights: one input projection, torch's RMSNorm, complex rotary
factors, ``scaled_dot_product_attention`` with a boolean key mask, SwiGLU, one LayerScale. ``MultiheadBlock`` holds
``nn.MultiheadAttention`` at its best settings (no weights returned, no bias, batch first); that layer has no place for
normalised and rotated queries and keys, so it does less work.

Shape letters: B rows, L tokens, W width, H heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.nn.blocks import ParallelBlock

__all__ = ["MultiheadBlock", "PlainBlock"]


class PlainBlock(nn.Module):
    """x + gamma * (attention(norm(x)) + swiglu(norm(x))), with the weights of one of our blocks."""

    def __init__(self, block: ParallelBlock) -> None:
        super().__init__()
        width = block.norm1.weight.numel()
        self.heads = block.attn.heads
        self.norm = nn.RMSNorm(width, eps=block.norm1.eps)
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = nn.RMSNorm(width // self.heads, eps=block.attn.norm_q.eps)
        self.norm_k = nn.RMSNorm(width // self.heads, eps=block.attn.norm_k.eps)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.value_gate = nn.Linear(width, block.ffn.fc1.out_features, bias=False)
        self.down = nn.Linear(block.ffn.fc2.in_features, width, bias=False)
        self.gamma = nn.Parameter(torch.empty(width))
        for mine, theirs in zip(self.parameters(), _weights(block), strict=True):
            mine.data.copy_(theirs)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        """One residual step.

        Args:
            x: (B, L, W).
            turns: complex unit numbers, (B, 1, L, d/2).
            mask: bool, (B, L), True = real.
        """
        u = self.norm(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.in_proj(u).chunk(3, dim=-1))
        q, k = _turned(self.norm_q(q), turns), _turned(self.norm_k(k), turns)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        value, gate = self.value_gate(u).chunk(2, dim=-1)
        branch = self.out_proj(mixed.transpose(1, 2).flatten(2)) + self.down(F.silu(gate) * value)
        return x + self.gamma * branch


class MultiheadBlock(nn.Module):
    """The same block around ``nn.MultiheadAttention``: queries and keys are neither normalised nor rotated."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.value_gate = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """One residual step.

        Args:
            x: (B, L, W).
            padding: bool, (B, L), True = padding.
        """
        u = self.norm(x)
        mixed, _ = self.attention(u, u, u, key_padding_mask=padding, need_weights=False)
        value, gate = self.value_gate(u).chunk(2, dim=-1)
        return x + self.gamma * (mixed + self.down(F.silu(gate) * value))


def _weights(block: ParallelBlock) -> list[Tensor]:
    attention, ffn = block.attn, block.ffn
    return [
        block.layer_scale.gamma,
        block.norm1.weight,
        attention.qkv_proj.weight,
        attention.norm_q.weight,
        attention.norm_k.weight,
        attention.out_proj.weight,
        ffn.fc1.weight,
        ffn.fc2.weight,
    ]


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)
