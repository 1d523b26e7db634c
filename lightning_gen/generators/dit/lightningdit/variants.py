"""Sizes of LightningDiT by name, and what they cost in parameters.

Letters: w width, d depth, h heads, g edge of the grid of positions, M hidden width of the feed-forward part, c channels
of a latent token, K classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lightning_gen.generators.dit.variants import TIME_DIM

__all__ = ["PREFIX", "LightningDiTShape", "lightningdit_shape"]

PREFIX = "lightningdit_"
"""How the names of these sizes begin, and no other's."""


@dataclass(frozen=True)
class LightningDiTShape:
    """Size of a LightningDiT with a patch of one latent token.

    Args:
        width: w, a multiple of 4 (positions).
        depth: d, number of blocks.
        heads: h; w / h must be a multiple of 4 (2-D rotary embedding).
        grid: g; rows and columns that have a position.
        qk_norm: whether queries and keys are normalised.

    Raises:
        ValueError: a size is not positive, the heads do not divide the width, or w / h is not a multiple of 4.
    """

    width: int
    depth: int
    heads: int
    grid: int = 16
    qk_norm: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.grid) < 1:
            raise ValueError(f"width, depth, heads and grid must be positive, got {self}")
        if self.width % self.heads or self.head_width % 4:
            raise ValueError(
                f"width {self.width} with {self.heads} heads: heads must divide the width, and width / heads must be a "
                f"multiple of 4"
            )

    @property
    def head_width(self) -> int:
        """Numbers of a head, w / h."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward part, M = int(2/3 * 4 w)."""
        return int(2 / 3 * (4 * self.width))

    @property
    def block_parameters(self) -> int:
        """Parameters of one block.

        2 w (norms) + (4 w^2 + 4 w) (attention) + 2 w / h (QK-norm) + (3 w M + 2 M + w) (feed-forward)
        + (6 w^2 + 6 w) (modulation)
        """
        w, hidden = self.width, self.hidden
        attention = 4 * w * w + 4 * w + (2 * self.head_width if self.qk_norm else 0)
        return 2 * w + attention + 3 * w * hidden + 2 * hidden + w + 6 * (w + 1) * w

    @property
    def frozen_parameters(self) -> int:
        """Numbers of the fixed positions, which count as parameters but are not trained: g^2 w."""
        return self.grid**2 * self.width

    def parameters(self, channels: int, num_classes: int) -> int:
        """Parameters of the whole network, the fixed positions included, without building it.

        d block + (w c + w) + g^2 w + (257 w + w^2 + w) + (K + 1) w + w + (2 w^2 + 2 w) + (w c + c)

        Args:
            channels: c, channels of a latent token.
            num_classes: K; the null class comes on top.

        Returns:
            The number of parameters.
        """
        w = self.width
        inputs = (channels + 1) * w + self.frozen_parameters
        time = (TIME_DIM + 1) * w + (w + 1) * w
        head = w + 2 * (w + 1) * w + (w + 1) * channels
        return self.depth * self.block_parameters + inputs + time + (num_classes + 1) * w + head


PRESETS = {"xl": (1152, 28, 16), "l": (1024, 24, 16), "b": (768, 12, 12)}
"""Width, depth, heads."""

_NAME = re.compile(
    rf"{PREFIX}(?:(?P<preset>{'|'.join(PRESETS)})_1|w(?P<w>\d+)_d(?P<d>\d+)_h(?P<h>\d+))"
    r"(?:_g(?P<grid>\d+))?(?P<qk_norm>_qknorm)?"
)


def lightningdit_shape(name: str) -> LightningDiTShape:
    """Read a size from its name.

    ``lightningdit_xl_1`` is XL with a patch of 1; ``_g32`` gives positions for 32 x 32 tokens in place of 16 x 16,
    ``_qknorm`` normalises queries and keys; ``lightningdit_w64_d2_h2`` spells the size out.

    Args:
        name: a preset or a size spelled out, with its endings.

    Returns:
        The size.

    Raises:
        ValueError: the name is none of these.

    Source: arXiv:2605.07915, published generator: XL/1 without QK-norm for 80 epochs, with it for 800.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"unknown size {name!r} of a LightningDiT: use {', '.join(f'{PREFIX}{size}_1' for size in PRESETS)} or "
            f"{PREFIX}w<width>_d<depth>_h<heads>, then _g<edge of the grid> and _qknorm where they are wanted"
        )
    preset = match["preset"]
    width, depth, heads = PRESETS[preset] if preset else (int(match[letter]) for letter in "wdh")
    return LightningDiTShape(width, depth, heads, int(match["grid"] or 16), match["qk_norm"] is not None)
