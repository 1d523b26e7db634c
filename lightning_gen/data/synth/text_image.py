"""Pictures of coloured shapes with captions that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lightning_gen.data.synth.drawing import COLOURS, SHAPES, draw_scene, encode, random_scene
from lightning_gen.data.synth.options import Sample, SynthOptions

__all__ = ["caption_samples", "caption_truth"]


def caption_samples(options: SynthOptions) -> Iterator[Sample]:
    """Pictures with captions.

    Args:
        options: size.

    Yields:
        ``jpg``, ``txt`` and ``json``, which holds the scene.
    """
    from lightning_gen.training.randomness import numpy_generator

    for number in range(options.count):
        scene = random_scene(numpy_generator(options.seed, "synth caption", number), options.size)
        caption = " and ".join(f"a {shape.colour} {shape.kind}" for shape in scene.shapes)
        record = {"caption": caption, "h": scene.height, "w": scene.width, "scene": scene.to_json()}
        fields = {"jpg": encode(draw_scene(scene)), "txt": caption.encode()}
        yield f"{number:09d}", {**fields, "json": json.dumps(record, sort_keys=True).encode()}


def caption_truth(options: SynthOptions) -> dict[str, Any]:
    """What is true of the set.

    Args:
        options: those of the set.

    Returns:
        The words of the captions.
    """
    del options
    return {"colours": list(COLOURS), "shapes": list(SHAPES)}
