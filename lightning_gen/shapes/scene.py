"""What is to be seen, before it is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS, KINDS

__all__ = ["Scene", "SceneObject"]


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """A coloured shape.

    Attributes:
        kind: one of ``KINDS``.
        color: one of ``COLORS``.
        x: centre, as a fraction of the width.
        y: centre, as a fraction of the height.
        radius: half its extent, as a fraction of the shorter side.

    Raises:
        ValueError: an unknown kind or colour, or an object that leaves the picture with its centre.
    """

    kind: str
    color: str
    x: float
    y: float
    radius: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.color not in COLORS:
            raise ValueError(f"unknown colour {self.color!r}: choose one of {', '.join(COLORS)}")
        if not (0 <= self.x <= 1 and 0 <= self.y <= 1 and 0 < self.radius <= 0.5):
            raise ValueError(f"an object has its centre in [0, 1] and its radius in (0, 0.5], got {self}")


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in front of a plain background.

    Attributes:
        objects: drawn in this order.
        background: one of ``BACKGROUNDS``.
        word: a short word in capital letters, or empty.
        word_color: its colour.

    Raises:
        ValueError: an unknown background or colour of the word.
    """

    objects: tuple[SceneObject, ...]
    background: str = "gray"
    word: str = ""
    word_color: str = "black"

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"unknown background {self.background!r}: choose one of {', '.join(BACKGROUNDS)}")
        if self.word_color not in COLORS:
            raise ValueError(f"unknown colour {self.word_color!r} of the word: choose one of {', '.join(COLORS)}")

    def to_json(self) -> dict[str, Any]:
        """The scene as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` gave.

        Args:
            data: its value.

        Returns:
            The scene.
        """
        return cls(**{**data, "objects": tuple(SceneObject(**one) for one in data["objects"])})
