"""torch's fused attention in the house's layout.

Shape letters: G groups (rows, images or tiles), L queries, M keys, H heads, d head width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["dot_product_attention"]


def dot_product_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in every group.

    Args:
        query: (G, L, H, d).
        key: (G, M, H, d).
        value: (G, M, H, d).
        mask: bool, broadcastable to (G, H, L, M), True = visible; every query must see at least one key.

    Returns:
        (G, L, H, d).
    """
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
