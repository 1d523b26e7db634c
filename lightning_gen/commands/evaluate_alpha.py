"""What becomes of transparent pictures, and how the verbs of `lightning evaluate` say so."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gen.metrics.image_sets import ImageSet
    from lightning_gen.metrics.protocol import Measurement

__all__ = ["add_alpha", "transparency", "with_alpha"]


def add_alpha(parser: argparse.ArgumentParser) -> None:
    """Add what becomes of transparent pictures.

    Args:
        parser: of the verb.
    """
    parser.add_argument(
        "--alpha",
        choices=("white", "drop"),
        default="white",
        help="transparent pictures: laid over white, or alpha dropped, as pytorch-fid and clean-fid do (%(default)s)",
    )


def transparency(sets: Mapping[str, ImageSet], alpha: str) -> list[str]:
    """What must be said where pictures are transparent.

    Args:
        sets: what people call the pictures -> the pictures, read.
        alpha: what became of it.

    Returns:
        One warning with their numbers, or nothing.
    """
    found = ", ".join(f"{images.num_transparent:,} of {len(images):,} {what}" for what, images in sets.items())
    if not any(images.num_transparent for images in sets.values()):
        return []
    done = {
        "white": "laid over white, as in training; pytorch-fid and clean-fid drop alpha, which gives another number: "
        "--alpha drop",
        "drop": "taken without their alpha: the hidden colours count",
    }
    return [f"transparent pictures ({found}) were {done[alpha]}"]


def with_alpha(measurements: Sequence[Measurement], sets: Mapping[str, ImageSet], alpha: str) -> list[Measurement]:
    """Say on every card what became of transparent pictures, if there are any.

    Args:
        measurements: the numbers.
        sets: as in :func:`transparency`.
        alpha: what became of it.

    Returns:
        The numbers.
    """
    if not any(images.num_transparent for images in sets.values()):
        return list(measurements)
    counts = ", ".join(f"{images.num_transparent} {what}" for what, images in sets.items())
    more = {"alpha": f"{'laid over white' if alpha == 'white' else 'dropped'}: {counts}"}
    return [
        dataclasses.replace(one, protocol=dataclasses.replace(one.protocol, details={**one.protocol.details, **more}))
        for one in measurements
    ]
