"""The words of the embedded world and what they look like."""

from __future__ import annotations

from typing import Final

__all__ = ["BACKGROUNDS", "COLORS", "KINDS", "NUMBERS", "OPENINGS", "OPPOSITE", "PLURALS", "RELATIONS"]

COLORS: Final = {
    "red": (220, 30, 35),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 40),
    "green": (25, 150, 50),
    "blue": (30, 70, 225),
    "purple": (140, 40, 175),
    "pink": (255, 130, 195),
    "brown": (110, 60, 25),
    "black": (12, 12, 12),
    "white": (250, 250, 250),
}
"""Name -> RGB. The ten names are those of GenEval."""

BACKGROUNDS: Final = {
    "gray": (128, 128, 128),
    "mist": (185, 200, 205),
    "slate": (90, 102, 120),
    "sand": (205, 188, 150),
}
"""Name -> RGB; every one is at least 75 levels from every colour of an object."""

KINDS: Final = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "moon")
"""The classes of objects."""

PLURALS: Final = {kind: "crosses" if kind == "cross" else f"{kind}s" for kind in KINDS}
"""Class -> its plural."""

NUMBERS: Final = {1: "one", 2: "two", 3: "three", 4: "four"}
"""Count -> word."""

RELATIONS: Final = ("left of", "right of", "above", "below")
"""Where an object stands, seen from another one."""

OPPOSITE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""The same, seen from the first one."""

OPENINGS: Final = ("a photo of", "a picture of", "an image of", "a drawing of", "a painting of")
"""How a prompt begins."""
