"""What all synthetic sets have in common."""

from __future__ import annotations

import dataclasses

__all__ = ["Sample", "SynthOptions"]

Sample = tuple[str, dict[str, bytes]]
"""Key, and field -> bytes."""


@dataclasses.dataclass(frozen=True)
class SynthOptions:
    """Size and difficulty of a synthetic set.

    Attributes:
        count: samples.
        seed: decides everything that is drawn.
        size: length of a picture's shorter side, in pixels; at least 16.
        classes: number of classes (imagenet), at least 2.
        ties: share of pairs without a winner, in [0, 1).
        noise: how often the weaker picture wins: P(0 beats 1) = sigmoid((s_0 - s_1) / noise), s = strength of the
            picture's model; 0 = never.

    Raises:
        ValueError: a number outside its range.
    """

    count: int = 256
    seed: int = 0
    size: int = 64
    classes: int = 10
    ties: float = 0.1
    noise: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 16 or self.classes < 2:
            raise ValueError(
                f"a synthetic set has at least 1 sample, 16 pixels and 2 classes, got {self.count}, {self.size} and "
                f"{self.classes}"
            )
        if not 0 <= self.ties < 1 or self.noise < 0:
            raise ValueError(f"--ties lies in [0, 1) and --noise is not negative, got {self.ties} and {self.noise}")
