"""Labelled pictures: every class has a pattern of its own, every picture its own colours, grain and frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from lightning_gen.data.synth.drawing import encode, frame
from lightning_gen.data.synth.options import Sample, SynthOptions

__all__ = ["class_name", "class_samples", "class_truth"]


def class_samples(options: SynthOptions) -> Iterator[Sample]:
    """Pictures with labels, in random order of the classes.

    Args:
        options: number of classes and size.

    Yields:
        ``jpg``, ``cls`` and ``json`` as timm's ImageNet shards have them.
    """
    from lightning_gen.training.randomness import numpy_generator

    for number in range(options.count):
        rng = numpy_generator(options.seed, "synth class", number)
        label = int(rng.integers(options.classes))
        height, width = frame(rng, options.size)
        name = class_name(label)
        record = {"filename": f"{name}/{name}_{number}.jpg", "label": label, "height": height, "width": width}
        fields = {"jpg": _pattern(rng, label, height, width), "cls": str(label).encode()}
        yield f"{name}_{number}", {**fields, "json": json.dumps(record, sort_keys=True).encode()}


def class_truth(options: SynthOptions) -> dict[str, Any]:
    """What is true of the set.

    Args:
        options: those of the set.

    Returns:
        Names of the classes.
    """
    return {"classes": [class_name(label) for label in range(options.classes)]}


def class_name(label: int) -> str:
    """Name of a class, in the manner of a WordNet id.

    Args:
        label: its number.

    Returns:
        The name; names sort like numbers.
    """
    return f"n{label:08d}"


def _pattern(rng: np.random.Generator, label: int, height: int, width: int) -> bytes:
    """Stripes whose direction and spacing the class decides."""
    from PIL import Image

    angle, spacing = np.pi * (label * 0.618 % 1), 6 + 2 * (label % 5)
    y, x = np.mgrid[:height, :width]
    wave = 0.5 + 0.5 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / spacing + rng.uniform(0, 6.28))
    dark, light = rng.integers(0, 100, 3), rng.integers(150, 256, 3)
    values = dark + (light - dark) * wave[:, :, None] + rng.normal(0, 6, (height, width, 3))
    return encode(Image.fromarray(values.clip(0, 255).astype(np.uint8)))
