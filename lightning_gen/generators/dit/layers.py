"""Layers of the diffusion transformer: embedding of time, modulation by a condition, block and head.

Nothing here knows what the condition is: a class, a text or anything else that is one vector per image.

Shape letters: B rows, L tokens, C channels of a latent token, W width, I images.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.flow import paths
from lightning_gen.generators.dit.variants import TIME_DIM
from lightning_gen.nn.attention import Attention, AttentionPlan
from lightning_gen.nn.blocks import SwiGLU
from lightning_gen.nn.norms import LayerScale, layer_norm
from lightning_gen.nn.rope import Rotary

__all__ = [
    "DiTBlock",
    "ModulationTable",
    "TimeEmbedding",
    "VelocityHead",
    "bounded",
    "modulate",
    "per_token",
    "sinusoid",
]


def sinusoid(step: Tensor, dim: int = TIME_DIM, max_period: float = 10000.0) -> Tensor:
    """Cosines and sines of a time at geometric frequencies.

    [cos(k f_i), sin(k f_i)],  f_i = max_period^(-2 i / dim),  i = 0..dim/2-1

    Args:
        step: k, what ``paths.timestep`` makes of t, float, (I,).
        dim: how many numbers, even.
        max_period: the longest period over 2 pi.

    Returns:
        float32 (float64 for float64), (I, dim).

    Source: arXiv:2212.09748, arXiv:1706.03762 section 3.5.
    """
    step = step.to(torch.promote_types(step.dtype, torch.float32))
    exponent = torch.arange(dim // 2, device=step.device, dtype=step.dtype) / (dim // 2)
    angle = step[:, None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def bounded(x: Tensor) -> Tensor:
    """Keep scales and gates in (-3, 3).

    y = 3 tanh(x)

    Args:
        x: any shape.

    Returns:
        y, same shape.

    Source: arXiv:2605.05331, published DiT.
    """
    return 3 * torch.tanh(x)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise, then scale and shift by the condition.

    u = (1 + scale) LayerNorm(x) + shift, the norm without learned parameters

    Args:
        x: states, (B, L, W).
        shift: (B, L, W) or (B, 1, W).
        scale: same shape.

    Returns:
        u, (B, L, W), dtype of ``x``.

    Source: arXiv:2212.09748 section 3.2 (adaLN).
    """
    return ((1 + scale) * layer_norm(x) + shift).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Vector of a time: sinusoid, Linear, SiLU, Linear.

    Args:
        width: W.
        steps: what the sinusoid gets: ``house`` 1000 t; ``vitok_release`` the release's step 1000 t / 0.999 - 1.

    Source: arXiv:2212.09748; arXiv:2605.05331, published DiT.
    """

    def __init__(self, width: int, steps: Literal["house", "vitok_release"] = "house") -> None:
        super().__init__()
        if steps not in ("house", "vitok_release"):
            raise ValueError(f"steps must be 'house' or 'vitok_release', got {steps!r}")
        self.steps = steps
        self.fc1 = nn.Linear(TIME_DIM, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Embed.

        Args:
            time: t in [0, 1], 0 = clean, 1 = noise, float, (I,).

        Returns:
            (I, W).
        """
        step = paths.timestep(time) if self.steps == "house" else paths.release_timestep(time)
        embedded: Tensor = self.fc2(F.silu(self.fc1(sinusoid(step).to(self.fc1.weight.dtype))))
        return embedded


class ModulationTable(nn.Module):
    """What one block adds to the modulation that all blocks share: shift, scale and the two gates, 0 at the start.

    Args:
        width: W.

    Source: arXiv:2310.00426 section 2.3 (adaLN-single).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 4, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the table to 0."""
        nn.init.zeros_(self.weight)

    def forward(self, shared: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Modulation of one block.

        shift = s_0 + T_0;  scale, gate_attn, gate_mlp = 3 tanh(s_i + T_i)

        Args:
            shared: s, (I, 4 W).

        Returns:
            shift, scale, gate of the attention, gate of the feed-forward part, (I, W) each.
        """
        shift, scale, gate_attn, gate_mlp = (shared.view(len(shared), 4, -1) + self.weight).unbind(1)
        return shift, bounded(scale), bounded(gate_attn), bounded(gate_mlp)


class DiTBlock(nn.Module):
    """Attention and feed-forward side by side, both steered by the condition.

    u = (1 + scale) LN(x) + shift;  x <- x + gamma (gate_attn Attention(u) + gate_mlp SwiGLU(u))

    Args:
        width: W.
        heads: number of heads.
        hidden: hidden width of the feed-forward part.
        layer_scale: gamma at the start.

    Source: arXiv:2605.05331, published DiT.
    """

    def __init__(self, width: int, heads: int, hidden: int, layer_scale: float) -> None:
        super().__init__()
        self.table = ModulationTable(width)
        self.attn = Attention(width, heads)
        self.ffn = SwiGLU(width, hidden)
        self.layer_scale = LayerScale(width, layer_scale)

    def forward(self, x: Tensor, shared: Tensor, image: Tensor | None, rotary: Rotary, attend: AttentionPlan) -> Tensor:
        """One residual step.

        Args:
            x: states, (B, L, W).
            shared: modulation of every image, (I, 4 W).
            image: int64, (B, L), image of every token; None = row b is image b.
            rotary: angles of the tokens.
            attend: which pairs see each other.

        Returns:
            (B, L, W).
        """
        shift, scale, gate_attn, gate_mlp = (per_token(part, image) for part in self.table(shared))
        u = modulate(x, shift, scale)
        branch: Tensor = self.layer_scale(gate_attn * self.attn(u, rotary, attend) + gate_mlp * self.ffn(u))
        return x + branch


class VelocityHead(nn.Module):
    """From states to velocities, steered by the condition.

    shift, scale = W_mod silu(condition);  v = W ((1 + 3 tanh(scale)) LN(x) + shift) + b

    Args:
        width: W.
        channels: C.

    Source: arXiv:2605.05331, published DiT.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width, bias=False)
        self.out_proj = nn.Linear(width, channels)

    def forward(self, x: Tensor, condition: Tensor, image: Tensor | None) -> Tensor:
        """Predict.

        Args:
            x: states, (B, L, W).
            condition: (I, W).
            image: as in ``DiTBlock``.

        Returns:
            v, (B, L, C).
        """
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        v: Tensor = self.out_proj(modulate(x, per_token(shift, image), per_token(bounded(scale), image)))
        return v


def per_token(per_image: Tensor, image: Tensor | None) -> Tensor:
    """Hand every token the row of its image.

    Args:
        per_image: (I, W).
        image: int64, (B, L), image of every token; None = row b is image b.

    Returns:
        (B, L, W), or (B, 1, W) where row b is image b.
    """
    return per_image[:, None] if image is None else per_image[image]
