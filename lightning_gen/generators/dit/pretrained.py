"""Weights of a generator on disk: ``model.safetensors``, and ``config.json``: what they mean, and how they are used.

Such a folder may come from a stranger: tensors are read from safetensors only, and classes that it names are taken from
this package or from what other installed packages declare, never from anywhere else.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

import lightning_gen
from lightning_gen.backbones.shipped import shipped_or_given
from lightning_gen.backbones.weights import fetch_weights, read_config
from lightning_gen.training.classes import GROUP, class_named

__all__ = ["USAGE", "built", "named", "read_folder", "write_folder"]

USAGE: Final = "usage"
"""Key of ``config.json`` under which stands what may be changed without changing what the weights mean."""

_PLAIN = (bool, int, float, str, type(None))


def named(component: object) -> dict[str, Any] | None:
    """A component as a configuration names it, so that :func:`built` makes it again.

    Args:
        component: an object that keeps its constructor's arguments under their names.

    Returns:
        ``class_path`` (a short name) and ``init_args``; None where the class has no short name, or an argument was
        not kept or is no plain value: such a component must be given when the weights are loaded.
    """
    name = type(component).__name__
    if lightning_gen.COMPONENTS.get(name) != type(component).__module__:
        return None
    arguments = {key: getattr(component, key, ...) for key in inspect.signature(type(component)).parameters}
    if not all(isinstance(value, _PLAIN) for value in arguments.values()):
        return None
    return {"class_path": name, "init_args": arguments}


def built(record: Any, what: str, folder: str | Path) -> Any:
    """Make a component that :func:`named` described.

    Args:
        record: what stands in ``config.json``.
        what: the key it stands under, which is also the argument that takes its place.
        folder: of the weights, for messages.

    Returns:
        The component.

    Raises:
        ValueError: there is no record, it names no component of an installed package, or does not fit it.
    """
    if record is None:
        raise ValueError(f"{folder}/config.json does not say which {what} the weights need: give one ({what}=...)")
    name = record.get("class_path") if isinstance(record, Mapping) else None
    known = name in lightning_gen.COMPONENTS or name in {entry.name for entry in entry_points(group=GROUP)}
    if not isinstance(name, str) or not known:
        raise ValueError(
            f"{folder}/config.json: the {what} {name!r} is no component of this or another installed package; classes "
            f"from elsewhere are not imported on a file's word: give one ({what}=...)"
        )
    try:
        return class_named(name, what)(**record.get("init_args", {}))
    except TypeError as error:
        raise ValueError(f"{folder}/config.json: the {what} {name} cannot be made: {error}") from None


def read_folder(source: str | Path) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    """Read what :func:`write_folder` wrote.

    Args:
        source: folder, hub id, or name of shipped weights.

    Returns:
        The configuration; the tensors in float32 or better, whatever precision they are stored in; the folder.

    Raises:
        MissingWeightsError: the files are absent or damaged, or the weights are no safetensors.
    """
    from safetensors.torch import load_file

    folder = fetch_weights(shipped_or_given(source))
    state = load_file(folder / "model.safetensors")
    exact = {name: value.to(_at_least_float32(value)) for name, value in state.items()}
    return read_config(folder), exact, folder


def write_folder(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write weights and what they mean.

    Args:
        folder: made if it does not exist.
        config: plain JSON values.
        state: the network's tensors.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _at_least_float32(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
