"""Sizes of PAE's networks, and the names that decoders have.

Shape letters: D width of the prior's tokens, d latent channels, W width of the decoder, p patch edge of the decoder.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final, Literal

__all__ = ["DECODERS", "Fusion", "Latent", "NormAxis", "PAEShape", "Projection", "Stack"]

Fusion = Literal["sft", "add", "concat", "none"]
"""How the pixel branch enters the prior's tokens."""
Projection = Literal["attention", "conv"]
"""What stands before the convolution to d channels, and behind the one from them."""
NormAxis = Literal["token", "sample"]
"""What lies on one sphere: every token, or the whole latent of a picture."""
Latent = Literal["sphere", "plain", "kl"]
"""What the latent is after the convolution: RMS-normalised, as it comes, or drawn from a Gaussian."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """A plain vision transformer.

    Attributes:
        width: of its tokens.
        depth: number of blocks.
        heads: attention heads.
        hidden: width of the feed-forward layers.
    """

    width: int
    depth: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1 or self.width % self.heads or self.width % 4:
            raise ValueError(
                f"a transformer needs positive sizes, a width that its heads divide and that is a multiple of 4; got "
                f"{self}"
            )

    @classmethod
    def parse(cls, name: str) -> Stack:
        """Read ``L`` or ``w64_d2_h4``.

        Args:
            name: published name, or width, depth and heads; the hidden width is then four times the width.

        Returns:
            The sizes.

        Raises:
            ValueError: neither.
        """
        if name in DECODERS:
            return DECODERS[name]
        found = re.fullmatch(r"w(\d+)_d(\d+)_h(\d+)", name)
        if found is None:
            raise ValueError(f"unknown decoder {name!r}: {', '.join(DECODERS)}, or width, depth and heads as w64_d2_h4")
        width, depth, heads = map(int, found.groups())
        return cls(width, depth, heads, 4 * width)

    @property
    def block_parameters(self) -> int:
        """Parameters of a block: two norms, attention with biases, feed-forward part."""
        attention = 4 * (self.width * self.width + self.width)
        return attention + 2 * self.width * self.hidden + self.hidden + self.width + 4 * self.width


DECODERS: Final = {
    "B": Stack(768, 12, 12, 3072),
    "L": Stack(1024, 24, 16, 4096),
    "XL": Stack(1152, 28, 16, 4096),
}
"""Published decoders; the hidden width of XL is that of the public code that PAE's decoder comes from."""


@dataclasses.dataclass(frozen=True)
class PAEShape:
    """What the auto-encoder is made of; the defaults are the published DINOv2-L, d = 32, 256 px.

    Attributes:
        channels: d.
        prior_width: D, width of the prior's tokens.
        prior_heads: heads of the modulator and of the projectors.
        prior_patch: pixels of the prior's own input per token along a side.
        grid: tokens along a side of a picture of the size that is trained on.
        patch: p, pixels of the decoder's output per token along a side.
        modulator_depth: layers K of the pixel branch.
        fusion: ``sft`` (paper), ``add``, ``concat``; ``none`` = no pixel branch.
        projection: ``attention`` (paper) or ``conv``, what stands beside the convolutions.
        latent: ``sphere`` (paper), ``plain`` or ``kl``.
        norm_axis: of the sphere, ``token`` (paper) or ``sample``.
        zero_mean: also subtract the mean over what is normalised.
        decoder: ``B``, ``L``, ``XL``, or ``w64_d2_h4``.
        mean: of the decoder's output per channel, for pixels in [0, 1]: that of the prior's input.
        std: the same.

    Source: arXiv:2605.07915, released tokenizer.
    """

    channels: int = 32
    prior_width: int = 1024
    prior_heads: int = 16
    prior_patch: int = 14
    grid: int = 16
    patch: int = 16
    modulator_depth: int = 6
    fusion: Fusion = "sft"
    projection: Projection = "attention"
    latent: Latent = "sphere"
    norm_axis: NormAxis = "token"
    zero_mean: bool = False
    decoder: str = "L"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        Stack.parse(self.decoder)
        sizes = (self.channels, self.prior_width, self.prior_heads, self.prior_patch, self.grid, self.patch)
        if min(sizes) < 1 or self.modulator_depth < 0:
            raise ValueError(f"sizes of a PAE must be positive, got {self}")
        if self.prior_width % self.prior_heads or self.prior_width % 4:
            raise ValueError(
                f"prior_width {self.prior_width} must be a multiple of 4 and of prior_heads {self.prior_heads}"
            )
        choices = {
            "fusion": ("sft", "add", "concat", "none"),
            "projection": ("attention", "conv"),
            "latent": ("sphere", "plain", "kl"),
            "norm_axis": ("token", "sample"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {' or '.join(known)}, got {getattr(self, name)!r}")

    @property
    def resolution(self) -> int:
        """Edge in pixels of the pictures that are trained on."""
        return self.grid * self.patch
