"""The patch discriminator with blurred downsampling of the TiTok recipe.

Shape letters: B images, H and W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BlurDownsample", "PatchDiscriminator", "pad_same"]

_SLOPE = 0.1
_POOLED = 16
_GROUPS = 32


class PatchDiscriminator(nn.Module):
    """Logits of 16 x 16 overlapping patches: positive = real.

    conv 5x5, LeakyReLU 0.1; three stages of conv 3x3, blurred halving, GroupNorm, LeakyReLU; adaptive max pool to
    16 x 16; conv 1x1, LeakyReLU, conv 5x5 to one channel. Zero padding so that sides are ceil(side / stride).

    Args:
        width: channels of the first stage, a multiple of 32; those after it have 1, 2 and 4 times as many.
        stages: number of stages.

    Raises:
        ValueError: a width that GroupNorm cannot divide, or no stage.

    Source: code of arXiv:2605.05646, which is that of arXiv:2406.07550.
    """

    def __init__(self, width: int = 128, stages: int = 3) -> None:
        super().__init__()
        if width < 1 or width % _GROUPS or stages < 1:
            raise ValueError(f"the discriminator's width is a multiple of {_GROUPS}, got {width} ({stages} stages)")
        widths = [width] + [width * 2**number for number in range(stages)]
        self.enter = nn.Conv2d(3, width, 5)
        self.stages = nn.ModuleList(_Stage(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.mix = nn.Conv2d(widths[-1], widths[-1], 1)
        self.leave = nn.Conv2d(widths[-1], 1, 5)

    def blocks(self) -> Iterator[nn.Module]:
        """The stages: units of checkpointing, compilation and sharding."""
        yield from self.stages

    def forward(self, images: Tensor) -> Tensor:
        """Judge.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            (B, 1, 16, 16).
        """
        x = F.leaky_relu(self.enter(pad_same(images, 5, 1)), _SLOPE)
        for stage in self.stages:
            x = stage(x)
        x = F.adaptive_max_pool2d(x, _POOLED)
        x = F.leaky_relu(self.mix(x), _SLOPE)
        logits: Tensor = self.leave(pad_same(x, 5, 1))
        return logits


class BlurDownsample(nn.Module):
    """Half the size after a (1, 3, 3, 1) x (1, 3, 3, 1) / 64 filter, without parameters.

    Source: arXiv:1904.11486.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Blur and keep every second place.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, ceil(H / 2), ceil(W / 2)).
        """
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
        channels = x.shape[1]
        kernel = (taps[:, None] * taps).expand(channels, 1, 4, 4)
        return F.conv2d(pad_same(x, 4, 2), kernel, stride=2, groups=channels)


class _Stage(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3)
        self.blur = BlurDownsample()
        self.norm = nn.GroupNorm(_GROUPS, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.blur(self.conv(pad_same(x, 3, 1)))), _SLOPE)


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around a map so that a convolution gives ceil(side / stride) places; the odd one lies below and right.

    Args:
        x: (B, C, H, W).
        kernel: edge of the kernel.
        stride: of the convolution.

    Returns:
        The filled map.
    """
    totals = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[-2:]]
    (top, left) = (total // 2 for total in totals)
    return F.pad(x, (left, totals[1] - left, top, totals[0] - top))
