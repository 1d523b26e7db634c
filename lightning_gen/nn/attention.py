"""Attention over tokens: who may see whom, and which kernel computes it.

The question "who sees whom" depends only on a batch's masks and coordinates, so it is answered once per forward pass
by ``plan_attention`` and the answer is handed to every block.

Shape letters: B rows, L tokens, W width, H heads, d head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.nn.norms import RMSNorm
from lightning_gen.nn.packed import BucketedAttention
from lightning_gen.nn.rope import Rotary, rotate
from lightning_gen.nn.sdpa import dot_product_attention
from lightning_gen.nn.tokens import Tokens
from lightning_gen.nn.windowed import WindowedAttention

__all__ = [
    "Attention",
    "AttentionPlan",
    "FlexAttention",
    "PaddedAttention",
    "VarlenAttention",
    "plan_attention",
]


class AttentionPlan(Protocol):
    """softmax(q k^T / sqrt(d)) v over the pairs that a batch allows."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend.

        Args:
            query: (B, L, H, d).
            key: (B, L, H, d).
            value: (B, L, H, d).

        Returns:
            (B, L, H, d).
        """
        ...


class PaddedAttention:
    """Full attention in rows that hold one image each; padding is never a key.

    Only keys are masked: a padding query sees the image like any other, so no softmax is empty and no kernel gives NaN.

    Args:
        mask: bool, (B, L), True = real; None = no padding anywhere.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self._mask = None if mask is None else mask[:, None, None, :]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; shapes as in ``AttentionPlan``."""
        return dot_product_attention(query, key, value, self._mask)


class VarlenAttention:
    """Full attention inside every image of a packed batch through torch's variable-length kernel (CUDA, 16 bit).

    Args:
        tokens: packed tokens whose images are contiguous in a row, as ``pack`` lays them.
    """

    def __init__(self, tokens: Tokens) -> None:
        image = torch.where(tokens.mask, tokens.image, tokens.num_images).flatten()
        _, counts = torch.unique_consecutive(image, return_counts=True)
        self._ends = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
        # The kernel only needs an upper bound; powers of two keep compiled blocks from being compiled for every batch.
        self._longest = 1 << (int(counts.max()) - 1).bit_length()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; shapes as in ``AttentionPlan``. Padding attends to padding."""
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        out = varlen_attn(q, k, v, self._ends, self._ends, self._longest, self._longest)
        return cast(Tensor, out).view(query.shape)


class FlexAttention:
    """Attention inside images, and inside a window if one is given, through torch's block-sparse kernel (CUDA).

    Args:
        tokens: packed or unpacked tokens.
        radius: window radius in patches; None = the whole image.
    """

    def __init__(self, tokens: Tokens, radius: int | None) -> None:
        image = torch.where(tokens.mask, tokens.image, -1)
        row, col = tokens.row, tokens.col

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            # Padding shares image -1 and sees itself, so that no softmax is empty.
            near = image[b, i] == image[b, j]
            if radius is not None:
                near = near & ((row[b, i] - row[b, j]).abs() <= radius) & ((col[b, i] - col[b, j]).abs() <= radius)
            return near | (i == j)

        rows, length = tokens.mask.shape
        device = str(tokens.mask.device)
        make = _block_mask_maker(tokens.mask.is_cuda)
        self._block_mask = make(visible, rows, None, length, length, device=device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; shapes as in ``AttentionPlan``."""
        q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        return _flex_kernel(query.is_cuda)(q, k, v, block_mask=self._block_mask).transpose(1, 2)


@functools.cache
def _block_mask_maker(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    # Uncompiled, the (L, L) mask is made in full before it is cut into blocks: 69 GB for a picture of 8192 x 8192.
    return torch.compile(create_block_mask) if compiled else create_block_mask


@functools.cache
def _flex_kernel(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    kernel = cast(Callable[..., Tensor], flex_attention)
    return torch.compile(kernel, dynamic=True) if compiled else kernel


def plan_attention(tokens: Tokens, radius: int | None = None, dtype: torch.dtype = torch.float32) -> AttentionPlan:
    """Choose the kernel for a batch, once per forward pass.

    | batch | CPU | CUDA |
    | --- | --- | --- |
    | one image per row | SDPA, key mask where there is padding | the same |
    | several images per row | SDPA per bucket of similar lengths | variable-length kernel in 16 bit, else flex |
    | window | SDPA per tile with its halo | flex |

    Args:
        tokens: the batch; values are not read.
        radius: window radius in patches, None = every image sees itself whole.
        dtype: in which attention will run.

    Returns:
        A function of queries, keys and values.
    """
    if radius is not None and radius >= _extent(tokens):
        radius = None
    cuda = tokens.mask.is_cuda
    if radius is not None:
        return FlexAttention(tokens, radius) if cuda else WindowedAttention(tokens, radius)
    if tokens.mask.shape[0] == tokens.num_images:
        return PaddedAttention(None if bool(tokens.mask.all()) else tokens.mask)
    if not cuda:
        return BucketedAttention(tokens)
    sixteen_bit = dtype in (torch.float16, torch.bfloat16)
    return VarlenAttention(tokens) if sixteen_bit and _has_varlen() else FlexAttention(tokens, None)


def _extent(tokens: Tokens) -> int:
    """Largest distance along one axis between two tokens of a batch; a window at least this wide is no window."""
    spans = [x[tokens.mask].max() - x[tokens.mask].min() for x in (tokens.row, tokens.col)]
    return int(torch.stack(spans).max())


def _has_varlen() -> bool:
    from importlib.util import find_spec

    return find_spec("torch.nn.attention.varlen") is not None


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys and rotary positions.

    q, k, v = split(W_qkv u);  q, k <- rope(RMSNorm_d(q)), rope(RMSNorm_d(k));  out = W_out attention(q, k, v)

    Args:
        width: W.
        heads: H; W / H is the head width d, a multiple of 4.

    Raises:
        ValueError: H does not divide W.

    Source: arXiv:2605.05331 (block of the auto-encoder).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = RMSNorm(width // heads)
        self.norm_k = RMSNorm(width // heads)
        self.out_proj = nn.Linear(width, width, bias=False)

    def project(self, u: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values.

        Args:
            u: normalised states, (B, L, W).
            rotary: angles of the tokens.

        Returns:
            Three tensors (B, L, H, d).
        """
        qkv: Tensor = self.qkv_proj(u)
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.heads, -1).unbind(2)
        return rotate(self.norm_q(q), rotary), rotate(self.norm_k(k), rotary), v

    def forward(self, u: Tensor, rotary: Rotary, attend: AttentionPlan) -> Tensor:
        """Mix the tokens of each image.

        Args:
            u: normalised states, (B, L, W).
            rotary: angles of the tokens.
            attend: which pairs see each other.

        Returns:
            (B, L, W).
        """
        mixed: Tensor = self.out_proj(attend(*self.project(u, rotary)).flatten(2))
        return mixed
