"""Edits of scenes whose answers are known: what to do, in words and as a record that fits other scenes too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from lightning_gen.shapes.grammar import Phrase, Request
from lightning_gen.shapes.layout import draw_scene, is_clear
from lightning_gen.shapes.mixture import choose
from lightning_gen.shapes.scene import Scene, SceneObject
from lightning_gen.shapes.vocabulary import COLORS, KINDS

__all__ = ["EDITS", "Edit", "EditError", "apply_edit", "draw_edit", "fitting_scene"]

EDITS: Final = ("recolour", "move", "add", "remove", "resize", "reshape")
"""What can be done to a scene."""

_ROLES: Final[dict[str, Callable[[SceneObject], float]]] = {
    "leftmost": lambda one: one.x,
    "rightmost": lambda one: -one.x,
    "highest": lambda one: one.y,
    "lowest": lambda one: -one.y,
}
_LEAD: Final = 0.05
"""How far the object of a role is ahead of the next one."""
_STEPS: Final = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_DISTANCES: Final = (0.15, 0.25)
_FACTORS: Final = {"larger": 1.25, "smaller": 0.8}
_SMALLEST: Final = 0.15
_CORNERS: Final = {
    "upper left": (0.23, 0.23),
    "upper right": (0.77, 0.23),
    "lower left": (0.23, 0.77),
    "lower right": (0.77, 0.77),
}
_ADDED: Final = 0.16
_TRIES: Final = 200


class EditError(ValueError):
    """An edit that cannot be done to a scene."""


@dataclasses.dataclass(frozen=True)
class Edit:
    """A scene before and after an edit.

    Attributes:
        kind: one of ``EDITS``.
        instruction: what to do, in words.
        before: the scene.
        after: the answer; objects that the edit does not speak of, and the background, are the same.
        parameters: the edit as plain JSON values, for :func:`apply_edit`.
    """

    kind: str
    instruction: str
    before: Scene
    after: Scene
    parameters: dict[str, Any]


def draw_edit(scene: Scene, generator: np.random.Generator, kinds: tuple[str, ...] = EDITS) -> Edit:
    """Draw an edit that a scene allows.

    Args:
        scene: has objects, no word.
        generator: draws kind, target and the rest.
        kinds: those that may come.

    Returns:
        The edit with its answer.

    Raises:
        EditError: the scene allows none of them.
    """
    targets = _targets(scene)
    for _ in range(_TRIES if targets else 0):
        parameters = _draw_parameters(choose(generator, kinds), choose(generator, targets), generator)
        try:
            after = apply_edit(parameters, scene)
        except EditError:
            continue
        return Edit(parameters["kind"], _instruction(parameters), scene, after, parameters)
    raise EditError(f"none of {', '.join(kinds)} can be done to {scene}")


def apply_edit(parameters: Mapping[str, Any], scene: Scene) -> Scene:
    """Do an edit to a scene: the true answer, also for scenes that it was not drawn for.

    Args:
        parameters: ``kind`` and what belongs to it: ``target`` ({color, kind} or {role}), ``color`` (recolour),
            ``to`` and ``by`` (move), ``factor`` (resize), ``into`` (reshape), ``object`` (add).
        scene: any.

    Returns:
        The scene after the edit.

    Raises:
        EditError: an unknown kind; the scene has no such object or several, the edit changes nothing, or objects would
            leave the picture or touch.
    """
    kind = parameters["kind"]
    if kind not in EDITS:
        raise EditError(f"there is no edit {kind!r}: known are {', '.join(EDITS)}")
    objects = list(scene.objects)
    if kind == "add":
        objects.append(SceneObject(**parameters["object"]))
    else:
        place = _find(parameters["target"], scene)
        if kind == "remove":
            del objects[place]
        else:
            objects[place] = _changed(parameters, objects[place])
    if not 0 < len(objects) <= 4 or tuple(objects) == scene.objects:
        raise EditError(f"{kind} leaves {len(objects)} objects, or changes nothing, in {scene}")
    after = dataclasses.replace(scene, objects=tuple(objects))
    if not is_clear(after):
        raise EditError(f"after {kind} an object would leave the picture or touch another one in {scene}")
    return after


def fitting_scene(parameters: Mapping[str, Any], generator: np.random.Generator) -> Scene:
    """Draw another scene for an edit, for pairs of an example and a question.

    Args:
        parameters: of the edit.
        generator: draws it.

    Returns:
        A scene that :func:`apply_edit` takes.

    Raises:
        EditError: none was found.
    """
    target = parameters.get("target", {})
    for _ in range(_TRIES):
        phrases = [Phrase(choose(generator, KINDS), choose(generator, tuple(COLORS))) for _ in range(3)]
        if "kind" in target:
            phrases[0] = Phrase(target["kind"], target["color"])
        scene = draw_scene(Request(tuple(phrases[: choose(generator, (2, 3))])), generator)
        try:
            apply_edit(parameters, scene)
        except EditError:
            continue
        return scene
    raise EditError(f"no scene was found for {dict(parameters)}")


def _targets(scene: Scene) -> list[dict[str, str]]:
    """What objects of a scene can be called."""
    pairs = [(one.color, one.kind) for one in scene.objects]
    named = [{"color": color, "kind": kind} for color, kind in pairs if pairs.count((color, kind)) == 1]
    return named + [{"role": role} for role in _ROLES if len(pairs) > 1 and _leads(role, scene)]


def _leads(role: str, scene: Scene) -> bool:
    values = sorted(_ROLES[role](one) for one in scene.objects)
    return len(values) == 1 or values[1] - values[0] >= _LEAD


def _find(target: Mapping[str, str], scene: Scene) -> int:
    if "role" in target:
        if not scene.objects or not _leads(target["role"], scene):
            raise EditError(f"no object is clearly the {target['role']} one in {scene}")
        values = [_ROLES[target["role"]](one) for one in scene.objects]
        return values.index(min(values))
    found = [n for n, one in enumerate(scene.objects) if (one.color, one.kind) == (target["color"], target["kind"])]
    if len(found) != 1:
        raise EditError(f"there are {len(found)} objects that are a {target['color']} {target['kind']} in {scene}")
    return found[0]


def _changed(parameters: Mapping[str, Any], one: SceneObject) -> SceneObject:
    match parameters["kind"]:
        case "recolour":
            return dataclasses.replace(one, color=parameters["color"])
        case "reshape":
            return dataclasses.replace(one, kind=parameters["into"])
        case "resize":
            radius = one.radius * parameters["factor"]
            if not _SMALLEST <= radius <= 0.5:
                raise EditError(f"a radius of {radius:.3f} is too small or too large")
            return dataclasses.replace(one, radius=radius)
    across, down = _STEPS[parameters["to"]]
    x, y = one.x + across * parameters["by"], one.y + down * parameters["by"]
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise EditError("the object would leave the picture")
    return dataclasses.replace(one, x=x, y=y)


def _draw_parameters(kind: str, target: dict[str, str], generator: np.random.Generator) -> dict[str, Any]:
    color, into = choose(generator, tuple(COLORS)), choose(generator, KINDS)
    match kind:
        case "recolour":
            return {"kind": kind, "target": target, "color": color}
        case "reshape":
            return {"kind": kind, "target": target, "into": into}
        case "remove":
            return {"kind": kind, "target": target}
        case "resize":
            return {"kind": kind, "target": target, "factor": choose(generator, tuple(_FACTORS.values()))}
        case "move":
            to, by = choose(generator, tuple(_STEPS)), choose(generator, _DISTANCES)
            return {"kind": kind, "target": target, "to": to, "by": by}
    x, y = choose(generator, tuple(_CORNERS.values()))
    return {"kind": kind, "object": {"kind": into, "color": color, "x": x, "y": y, "radius": _ADDED}}


def _instruction(parameters: Mapping[str, Any]) -> str:
    target = parameters.get("target", {})
    name = f"the {target['role']} object" if "role" in target else " ".join(("the", *target.values()))
    match parameters["kind"]:
        case "recolour":
            return f"paint {name} {parameters['color']}"
        case "reshape":
            return f"turn {name} into a {parameters['into']}"
        case "remove":
            return f"remove {name}"
        case "resize":
            size = next(word for word, factor in _FACTORS.items() if factor == parameters["factor"])
            return f"make {name} {size}"
        case "move":
            far = " a little" if parameters["by"] == _DISTANCES[0] else ""
            return f"move {name} {parameters['to']}{far}"
    added = parameters["object"]
    corner = next(word for word, place in _CORNERS.items() if place == (added["x"], added["y"]))
    return f"add {Phrase(added['kind'], added['color']).text()} in the {corner}"
