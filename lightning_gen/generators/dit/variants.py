"""Sizes of the diffusion transformer by name, and what they cost in parameters.

Letters: w width, d depth, h heads, m factor of the feed-forward part, c channels of a latent token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lightning_gen.nn.blocks import swiglu_hidden

__all__ = ["PRESETS", "DiTShape", "dit_shape"]

TIME_DIM = 256
"""Numbers in the sinusoidal embedding of a time."""


@dataclass(frozen=True)
class DiTShape:
    """Size of a diffusion transformer.

    Args:
        width: w.
        depth: d, number of blocks.
        heads: h; w / h must be a multiple of 4 (2-D rotary embedding).
        mlp_factor: m; the feed-forward part is about m times as wide as the model.

    Raises:
        ValueError: a size is not positive, the heads do not divide the width, or w / h is not a multiple of 4.
    """

    width: int
    depth: int
    heads: int
    mlp_factor: float = 2.67

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.mlp_factor <= 0:
            raise ValueError(f"width, depth, heads and mlp factor must be positive, got {self}")
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(
                f"width {self.width} with {self.heads} heads: heads must divide the width, and width / heads must be a "
                f"multiple of 4"
            )

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward part."""
        return swiglu_hidden(self.width, self.mlp_factor)

    @property
    def block_parameters(self) -> int:
        """Parameters of one block.

        4 w^2 (attention) + 3 w hidden + 2 w / h (norms of q and k) + 4 w (table) + w (gamma)
        """
        w = self.width
        return 4 * w * w + 3 * w * self.hidden + 2 * (w // self.heads) + 5 * w

    def parameters(self, channels: int, num_classes: int) -> int:
        """Parameters of the whole network, without building it.

        d block + (w c) + (257 w + w^2 + w) + (K + 1) w + 4 w^2 + 2 w^2 + (w c + c)

        Args:
            channels: c, channels of a latent token.
            num_classes: K; the null class comes on top.

        Returns:
            The number of parameters.
        """
        w = self.width
        time = (TIME_DIM + 1) * w + (w + 1) * w
        head = 2 * w * w + (w + 1) * channels
        return self.depth * self.block_parameters + channels * w + time + (num_classes + 1) * w + 4 * w * w + head


PRESETS = {
    "B": DiTShape(768, 12, 12),
    "L": DiTShape(1024, 24, 16),
    "G": DiTShape(1728, 32, 24),
}
"""G is the paper's "1.2B"; its "450M" is ``w1152_d28_h16``."""

_NAME = re.compile(r"([A-Z]?)((?:_?[wdhm][0-9]+(?:\.[0-9]+)?)*)")
_PART = re.compile(r"([wdhm])([0-9]+(?:\.[0-9]+)?)")


def dit_shape(name: str) -> DiTShape:
    """Read a size from its name.

    ``L`` is a preset, ``Ld12`` a preset with another depth, ``w1152_d28_h16`` (and ``_m4`` for the feed-forward part)
    spells everything out: w width, d depth, h heads, m mlp factor.

    Args:
        name: a preset, a preset with changes, or a size spelled out.

    Returns:
        The size.

    Raises:
        ValueError: the name is none of the three, or says one thing twice.
    """
    match = _NAME.fullmatch(name)
    preset = match.group(1) if match else ""
    parts = _PART.findall(match.group(2)) if match else []
    given = dict(parts)
    whole = all(given.get(letter, "0").isdigit() for letter in "wdh")
    named = preset in PRESETS if preset else set("wdh") <= set(given)
    if match is None or not named or not whole or len(given) < len(parts):
        raise ValueError(
            f"unknown size {name!r} of a diffusion transformer: use one of {', '.join(PRESETS)}, a preset with changes "
            f"such as 'Ld12', or 'w<width>_d<depth>_h<heads>[_m<mlp factor>]' such as 'w1152_d28_h16'"
        )
    base = PRESETS.get(preset)
    width, depth, heads = (
        int(given[letter]) if letter in given else size
        for letter, size in zip("wdh", (base.width, base.depth, base.heads) if base else (0, 0, 0), strict=True)
    )
    return DiTShape(width, depth, heads, float(given.get("m", base.mlp_factor if base else 2.67)))
