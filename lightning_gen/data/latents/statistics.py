"""Mean and standard deviation per channel of numbers that pass by once.

Plain sums of squares lose digits where a mean is large; these moments do not, and those of parts can be merged.
Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance, The American Statistician 37 (1983).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, Self

import numpy as np
import numpy.typing as npt

__all__ = ["ChannelMoments"]

Vector = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelMoments:
    """What is known about the channels of some tokens.

    Attributes:
        count: number of tokens.
        mean: float64, (c,), mean of each channel.
        squares: float64, (c,), sum of squared distances from that mean.
    """

    count: int
    mean: Vector
    squares: Vector

    @classmethod
    def none(cls, channels: int) -> Self:
        """Moments of no token.

        Args:
            channels: number of channels c.

        Returns:
            The neutral element of :meth:`merged`.
        """
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, tokens: npt.NDArray[np.generic]) -> Self:
        """Moments of some tokens.

        Args:
            tokens: (n, c), at least one token.

        Returns:
            Their moments.
        """
        exact = tokens.astype(np.float64)
        mean = exact.mean(0)
        return cls(len(exact), mean, np.square(exact - mean).sum(0))

    def merged(self, other: ChannelMoments) -> ChannelMoments:
        """Moments of both sets of tokens together.

        d = mean_b - mean_a;  mean = mean_a + d n_b / n;  squares = squares_a + squares_b + d^2 n_a n_b / n

        Args:
            other: moments of other tokens of as many channels.

        Returns:
            The moments of all of them.
        """
        count = self.count + other.count
        if count == 0:
            return self
        distance = other.mean - self.mean
        mean = self.mean + distance * (other.count / count)
        squares = self.squares + other.squares + np.square(distance) * (self.count * other.count / count)
        return ChannelMoments(count, mean, squares)

    @staticmethod
    def total(parts: Iterable[ChannelMoments]) -> ChannelMoments:
        """Moments of several sets of tokens together.

        Args:
            parts: at least one; their order decides the last digits.

        Returns:
            The moments of all of them.
        """
        return reduce(ChannelMoments.merged, parts)

    @property
    def std(self) -> Vector:
        """Standard deviation of each channel, (c,), over all tokens (divided by n)."""
        std: Vector = np.sqrt(self.squares / max(1, self.count))
        return std

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, from which :meth:`from_json` makes the same moments again, to the last bit.

        Returns:
            A JSON object.
        """
        return {"count": self.count, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` gave.

        Args:
            data: the JSON object.

        Returns:
            The moments.
        """
        return cls(int(data["count"]), np.array(data["mean"], np.float64), np.array(data["squares"], np.float64))
