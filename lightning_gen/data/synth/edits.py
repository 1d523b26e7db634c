"""Edit pairs with exact answers: the edit is a record that can be applied to any other scene.

Samples 2 k and 2 k + 1 are two scenes under the same edit: one serves as the example, the other as the question whose
answer is known.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lightning_gen.data.synth.drawing import COLOURS, SHAPES, Scene, Shape, draw_scene, encode, random_scene
from lightning_gen.data.synth.options import Sample, SynthOptions

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["EDITS", "apply_edit", "edit_samples", "edit_truth"]

EDITS: Final = ("recolour", "move", "blur", "invert", "add")
"""What can be done to a scene."""

_SIDES = (("h", "height"), ("w", "width"))
_MOVES = {"left": (-0.2, 0.0), "right": (0.2, 0.0), "up": (0.0, -0.2), "down": (0.0, 0.2)}


def apply_edit(scene: Scene, edit: dict[str, Any]) -> Image.Image:
    """The exact answer: a scene after an edit.

    Args:
        scene: before the edit.
        edit: ``kind`` and what belongs to it, as a sample's JSON has it under ``edit``: ``colour`` (recolour), ``to``
            (move), ``radius`` in pixels (blur), ``shape`` and ``colour`` (add).

    Returns:
        The picture, RGB.

    Raises:
        ValueError: an unknown kind.
    """
    from PIL import ImageFilter, ImageOps

    kind, first = edit["kind"], scene.shapes[0]
    if kind == "recolour":
        return _with_first(scene, dataclasses.replace(first, colour=edit["colour"]))
    if kind == "move":
        right, down = _MOVES[edit["to"]]
        return _with_first(scene, dataclasses.replace(first, x=first.x + right, y=first.y + down))
    if kind == "add":
        added = Shape(edit["shape"], edit["colour"], 0.17, 0.8, 0.12)
        return draw_scene(dataclasses.replace(scene, shapes=(*scene.shapes, added)))
    if kind == "blur":
        return draw_scene(scene).filter(ImageFilter.GaussianBlur(edit["radius"]))
    if kind == "invert":
        return ImageOps.invert(draw_scene(scene))
    raise ValueError(f"there is no edit {kind!r}: known are {', '.join(EDITS)}")


def _with_first(scene: Scene, first: Shape) -> Image.Image:
    return draw_scene(dataclasses.replace(scene, shapes=(first, *scene.shapes[1:])))


def edit_samples(options: SynthOptions) -> Iterator[Sample]:
    """Scenes before and after an edit.

    Args:
        options: size.

    Yields:
        ``src.png``, ``tgt.png`` and ``json`` with ``task``, ``edit_type``, ``source_set``, ``instruction``, the
        ``edit`` and the ``scene``; ``partner`` is the key of the other scene under the same edit.
    """
    from lightning_gen.training.randomness import numpy_generator

    for number in range(options.count):
        rng = numpy_generator(options.seed, "synth edit", number // 2)
        edit, instruction = _random_edit(rng)
        scene = _repainted(random_scene(numpy_generator(options.seed, "synth scene", number), options.size), edit)
        partner = number ^ 1
        record: dict[str, Any] = {"task": edit["kind"], "edit_type": edit["kind"], "source_set": "synth"}
        record |= {"instruction": instruction, "edit": edit, "scene": scene.to_json()}
        record |= {"partner": f"{partner:09d}" if partner < options.count else None}
        record |= {f"{side}_{stem}": getattr(scene, name) for stem in ("src", "tgt") for side, name in _SIDES}
        fields = {
            "src.png": encode(draw_scene(scene), "PNG"),
            "tgt.png": encode(apply_edit(scene, edit), "PNG"),
            "json": json.dumps(record, sort_keys=True).encode(),
        }
        yield f"{number:09d}", fields


def _repainted(scene: Scene, edit: dict[str, Any]) -> Scene:
    """Nobody paints a shape in the colour that it has."""
    names = list(COLOURS)
    if scene.shapes[0].colour != edit.get("colour"):
        return scene
    other = names[(names.index(edit["colour"]) + 1) % len(names)]
    return dataclasses.replace(scene, shapes=(dataclasses.replace(scene.shapes[0], colour=other), *scene.shapes[1:]))


def edit_truth(options: SynthOptions) -> dict[str, Any]:
    """What is true of the set.

    Args:
        options: those of the set.

    Returns:
        The edits, and how to compute the answer for any scene.
    """
    del options
    return {"edits": list(EDITS), "answer": "lightning_gen.data.synth.edits.apply_edit(Scene.from_json(scene), edit)"}


def _random_edit(rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    kind = str(rng.choice(EDITS))
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
    to, radius = str(rng.choice(list(_MOVES))), int(rng.integers(1, 4))
    if kind == "recolour":
        return {"kind": kind, "colour": colour}, f"paint the shape in the middle {colour}"
    if kind == "move":
        return {"kind": kind, "to": to}, f"move the shape in the middle {to}"
    if kind == "blur":
        return {"kind": kind, "radius": radius}, "blur the picture"
    if kind == "invert":
        return {"kind": kind}, "invert all colours"
    return {"kind": kind, "shape": shape, "colour": colour}, f"add a {colour} {shape} in the lower left corner"
