"""Sets of the embedded world for `lightning data synth`; importing this file adds them to the table of kinds.

Nothing heavy is imported before a set is made: the command line reads this file for its help.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from lightning_gen.data.synth.kinds import Kind, register
from lightning_gen.data.synth.options import Sample, SynthOptions

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SETS", "edit_samples", "pair_samples", "picture_samples"]

_USERS: Final = 8


def picture_samples(options: SynthOptions) -> Iterator[Sample]:
    """Scenes of the skewed mixture with captions.

    Args:
        options: size.

    Yields:
        ``jpg``, ``txt``, ``cls`` (kind of the first object, left out for words) and ``json`` with ``caption``,
        ``label``, GenEval's ``metadata``, the ``scene``, and EGIP's ``specification``.
    """
    from lightning_gen.shapes.layout import draw_scene
    from lightning_gen.shapes.mixture import draw_request
    from lightning_gen.shapes.render import render
    from lightning_gen.shapes.specifications import specification
    from lightning_gen.shapes.vocabulary import KINDS
    from lightning_gen.training.randomness import numpy_generator

    size = options.size, options.size
    for number in range(options.count):
        generator = numpy_generator(options.seed, "shapes set", number)
        request = draw_request(generator)
        scene, key = draw_scene(request, generator), f"{number:09d}"
        picture, caption = render(scene, size), request.prompt()
        record = {"caption": caption, "h": size[0], "w": size[1], "scene": scene.to_json()}
        record |= {"metadata": request.metadata(), "specification": specification(request, key)}
        fields = {"jpg": _file(picture, "JPEG"), "txt": caption.encode()}
        if scene.objects:
            record["label"] = KINDS.index(scene.objects[0].kind)
            fields["cls"] = str(record["label"]).encode()
        yield key, {**fields, "json": _json(record)}


def pair_samples(options: SynthOptions) -> Iterator[Sample]:
    """Pairs of pictures by painters of known strength.

    Args:
        options: size, ties and noise.

    Yields:
        ``0.jpg``, ``1.jpg`` and ``json`` in the package's pair format, with GenEval's ``metadata``.
    """
    from lightning_gen.shapes.degraded import draw_preference
    from lightning_gen.training.randomness import numpy_generator

    size = options.size, options.size
    for number in range(options.count):
        generator = numpy_generator(options.seed, "shapes pair", number)
        pair = draw_preference(generator, size, options.noise, options.ties)
        record: dict[str, Any] = {"caption": pair.request.prompt(), "label_0": pair.label}
        record |= {"metadata": pair.request.metadata(), "source": "synth", "split": "train", "row": number}
        record["user"] = f"{int(generator.random() * _USERS):016x}"
        fields = dict[str, bytes]()
        for stem, (model, picture) in enumerate(zip(pair.models, pair.pictures, strict=True)):
            fields[f"{stem}.jpg"] = _file(picture, "JPEG")
            name = hashlib.blake2b(f"{options.seed} {number} {stem}".encode(), digest_size=16).hexdigest()
            record |= {f"model_{stem}": model, f"uid_{stem}": name, f"h_{stem}": size[0], f"w_{stem}": size[1]}
        yield f"{number:09d}", {**fields, "json": _json(record)}


def edit_samples(options: SynthOptions) -> Iterator[Sample]:
    """Edits with true answers; samples 2 k and 2 k + 1 are two scenes under the same edit.

    Args:
        options: size.

    Yields:
        ``src.png``, ``tgt.png`` and ``json`` with ``task``, ``edit_type``, ``instruction``, the ``edit``, the ``scene``
        and the ``answer``; ``partner`` is the key of the other scene under the same edit.
    """
    from lightning_gen.shapes.edits import apply_edit
    from lightning_gen.shapes.render import render

    size = options.size, options.size
    for number in range(options.count):
        edit, scenes = _edit_pair(options.seed, number // 2)
        scene, partner = scenes[number % 2], number ^ 1
        answer = apply_edit(edit.parameters, scene)
        record: dict[str, Any] = {"task": edit.kind, "edit_type": edit.kind, "source_set": "shapes"}
        record |= {"instruction": edit.instruction, "edit": edit.parameters}
        record |= {"scene": scene.to_json(), "answer": answer.to_json()}
        record["partner"] = f"{partner:09d}" if partner < options.count else None
        record |= {f"{side}_{stem}": options.size for stem in ("src", "tgt") for side in "hw"}
        fields = {"src.png": _file(render(scene, size), "PNG"), "tgt.png": _file(render(answer, size), "PNG")}
        yield f"{number:09d}", {**fields, "json": _json(record)}


def _edit_pair(seed: int, number: int) -> tuple[Any, tuple[Any, Any]]:
    """An edit, the scene that it was drawn for, and another one that it fits."""
    from lightning_gen.shapes.edits import EDITS, EditError, draw_edit, fitting_scene
    from lightning_gen.shapes.grammar import Request
    from lightning_gen.shapes.layout import draw_scene
    from lightning_gen.shapes.mixture import choose, draw_request
    from lightning_gen.training.randomness import numpy_generator

    generator = numpy_generator(seed, "shapes edit", number)
    kind = choose(generator, EDITS)
    while True:
        request: Request = draw_request(generator)
        if request.word:
            continue
        try:
            edit = draw_edit(draw_scene(request, generator), generator, (kind,))
            return edit, (edit.before, fitting_scene(edit.parameters, generator))
        except EditError:
            continue


def _picture_truth(options: SynthOptions) -> dict[str, Any]:
    from lightning_gen.shapes.mixture import RARE, RARITY, TAG_SHARES
    from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS, KINDS

    del options
    rare = {"pairs": [list(pair) for pair in RARE], "frequency_of_a_common_pair": RARITY}
    words = {"colors": list(COLORS), "kinds": list(KINDS), "backgrounds": list(BACKGROUNDS)}
    return {**words, "tags": TAG_SHARES, "rare": rare}


def _pair_truth(options: SynthOptions) -> dict[str, Any]:
    from lightning_gen.data.synth.preference import pair_truth
    from lightning_gen.shapes.degraded import Degraded

    truth = pair_truth(options)
    faults = {name: Degraded(strength).fault_probability for name, strength in truth["strengths"].items()}
    return {**truth, "fault_probability": faults}


def _edit_truth(options: SynthOptions) -> dict[str, Any]:
    from lightning_gen.shapes.edits import EDITS

    del options
    return {"edits": list(EDITS), "answer": "lightning_gen.shapes.edits.apply_edit(edit, Scene.from_json(scene))"}


def _file(picture: Tensor, kind: str) -> bytes:
    """JPEG of quality 95 with full colour, or PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, kind, **options)
    return buffer.getvalue()


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True).encode()


SETS: Final = {
    "shapes": Kind(
        "the embedded world: scenes with captions, GenEval and EGIP records", picture_samples, _picture_truth
    ),
    "shapes_preference": Kind("pairs of its pictures by painters of known strength", pair_samples, _pair_truth),
    "shapes_edits": Kind("its scenes before and after an edit with a true answer", edit_samples, _edit_truth),
}
"""Name -> kind."""

for _name, _kind in SETS.items():
    register(_name, _kind)
