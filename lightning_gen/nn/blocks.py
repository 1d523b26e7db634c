"""The transformer block of the house.

Shape letters: B rows, L tokens, W width, M hidden width of the feed-forward part.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.nn.attention import Attention, AttentionPlan
from lightning_gen.nn.norms import LayerScale, RMSNorm
from lightning_gen.nn.rope import Rotary

__all__ = ["ParallelBlock", "SwiGLU", "swiglu_hidden"]


def swiglu_hidden(width: int, factor: float) -> int:
    """Hidden width of a gated feed-forward part: factor * W rounded to a multiple of 16.

    M = 16 * floor((int(factor * W) + 8) / 16)

    Args:
        width: W.
        factor: expansion; 2.67 gives as many parameters as an ungated part of factor 4.

    Returns:
        M.

    Source: arXiv:2605.05331, published weights.
    """
    return 16 * ((int(factor * width) + 8) // 16)


class SwiGLU(nn.Module):
    """Gated feed-forward part.

    [v, g] = W_1 u;  out = W_2 (silu(g) * v)

    Args:
        width: W.
        hidden: M.

    Source: arXiv:2002.05202 eq. 6; the value half comes first, as in the published ViTok-v2 weights.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """Transform every token by itself.

        Args:
            u: (B, L, W).

        Returns:
            (B, L, W).
        """
        value, gate = self.fc1(u).chunk(2, dim=-1)
        out: Tensor = self.fc2(F.silu(gate) * value)
        return out


class ParallelBlock(nn.Module):
    """Attention and feed-forward side by side on one normalised input.

    u = RMSNorm(x);  x <- x + keep * gamma * (Attention(u) + SwiGLU(u))

    Args:
        width: W.
        heads: number of heads.
        hidden: M.
        layer_scale: gamma at the start.

    Source: arXiv:2605.05331 (block of the auto-encoder); one norm and one LayerScale, as the published weights have.
    """

    def __init__(self, width: int, heads: int, hidden: int, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, heads)
        self.ffn = SwiGLU(width, hidden)
        self.layer_scale = LayerScale(width, layer_scale)

    def forward(self, x: Tensor, rotary: Rotary, attend: AttentionPlan, keep: Tensor | None = None) -> Tensor:
        """One residual step.

        Args:
            x: states, (B, L, W).
            rotary: angles of the tokens.
            attend: which pairs see each other.
            keep: stochastic depth per token, (B, L, 1), 0 or 1 / (1 - rate); None = always 1.

        Returns:
            (B, L, W).
        """
        u = self.norm1(x)
        branch: Tensor = self.layer_scale(self.attn(u, rotary, attend) + self.ffn(u))
        return x + (branch if keep is None else keep * branch)
