"""Edits change what they speak of and nothing else, and fit other scenes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lightning_gen.shapes.detector import find_objects
from lightning_gen.shapes.edits import EDITS, Edit, EditError, apply_edit, draw_edit, fitting_scene
from lightning_gen.shapes.layout import is_clear
from lightning_gen.shapes.render import render
from lightning_gen.shapes.scene import Scene, SceneObject
from tests.shapes.worlds import scenes


def drawn(kind: str, count: int = 40) -> list[Edit]:
    """So many edits of a kind."""
    found = []
    for number, (_, scene) in enumerate(scenes(400)):
        try:
            found.append(draw_edit(scene, np.random.default_rng(number), (kind,)))
        except EditError:
            continue
    return found[:count]


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_changes_its_object_and_no_other_pixel(kind: str) -> None:
    edits = drawn(kind)
    assert len(edits) == 40
    for edit in edits:
        before, after = set(edit.before.objects), set(edit.after.objects)
        gone, new = before - after, after - before
        assert (len(gone), len(new)) == {"add": (0, 1), "remove": (1, 0)}.get(kind, (1, 1))
        assert is_clear(edit.after)
        pictures = [render(scene, (64, 64)).int() for scene in (edit.before, edit.after)]
        changed = (pictures[0] != pictures[1]).any(0)
        assert changed.sum() >= 8
        rows, columns = torch.meshgrid(*[torch.arange(64) + 0.5] * 2, indexing="ij")
        touched = torch.zeros(64, 64, dtype=torch.bool)
        for one in gone | new:
            touched |= torch.maximum((columns - one.x * 64).abs(), (rows - one.y * 64).abs()) < one.radius * 64 + 1.5
        assert not (changed & ~touched).any()


@pytest.mark.parametrize("kind", EDITS)
def test_the_answer_can_be_read_in_the_picture(kind: str) -> None:
    for edit in drawn(kind, 20):
        (found,) = find_objects(render(edit.after, (64, 64))[None].float() / 255)
        assert sorted((one.kind, one.color) for one in found) == sorted((o.kind, o.color) for o in edit.after.objects)


@pytest.mark.parametrize("kind", EDITS)
def test_the_same_edit_fits_other_scenes(kind: str) -> None:
    for number, edit in enumerate(drawn(kind, 20)):
        parameters = json.loads(json.dumps(edit.parameters, sort_keys=True))
        assert apply_edit(parameters, edit.before) == edit.after
        other = fitting_scene(parameters, np.random.default_rng(number))
        answer = apply_edit(parameters, other)
        assert other != edit.before
        assert answer != other
        assert (answer.background, answer.word) == (other.background, other.word)


def test_instructions_say_what_is_done() -> None:
    scene = Scene((SceneObject("star", "red", 0.27, 0.27, 0.18), SceneObject("moon", "blue", 0.78, 0.78, 0.18)), "sand")
    seen = {draw_edit(scene, np.random.default_rng(n)).instruction for n in range(400)}
    for part in (
        "paint the red star", "paint the leftmost object", "turn the blue moon into a circle", "remove the lowest",
        "make the red star larger", "move the red star", "add a",
    ):  # fmt: skip
        assert any(text.startswith(part) for text in seen), part
    assert any(text.startswith("add an ") and text.endswith("in the upper right") for text in seen)
    target = {"role": "rightmost"}
    painted = apply_edit({"kind": "recolour", "target": target, "color": "green"}, scene)
    assert [one.color for one in painted.objects] == ["red", "green"]
    moved = apply_edit({"kind": "move", "target": target, "to": "up", "by": 0.25}, scene)
    assert moved.objects[1].y == pytest.approx(0.53)


def test_edits_that_cannot_be_done_are_refused() -> None:
    star = SceneObject("star", "red", 0.3, 0.3, 0.18)
    alone, twins = Scene((star,)), Scene((star, SceneObject("star", "red", 0.72, 0.3, 0.18)))
    red = {"color": "red", "kind": "star"}
    for parameters, scene, message in (
        ({"kind": "fold"}, alone, "there is no edit 'fold'"),
        ({"kind": "recolour", "target": red, "color": "red"}, alone, "changes nothing"),
        ({"kind": "recolour", "target": red, "color": "blue"}, twins, "there are 2 objects"),
        ({"kind": "remove", "target": red}, alone, "leaves 0 objects"),
        ({"kind": "remove", "target": {"role": "highest"}}, twins, "no object is clearly the highest"),
        ({"kind": "move", "target": red, "to": "left", "by": 0.25}, alone, "would leave the picture"),
        ({"kind": "move", "target": red, "to": "left", "by": 0.4}, alone, "would leave the picture"),
        ({"kind": "resize", "target": red, "factor": 0.5}, alone, "too small"),
        ({"kind": "add", "object": {**red, "x": 0.4, "y": 0.3, "radius": 0.16}}, alone, "touch another"),
    ):
        with pytest.raises(EditError, match=message):
            apply_edit(parameters, scene)
    with pytest.raises(EditError, match="can be done to"):
        draw_edit(Scene((), word="CAT"), np.random.default_rng(0))
