"""Classes by name: components of this package, of other distributions, or anything that can be imported."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import entry_points
from typing import Any, Final

import lightning_gen

__all__ = ["GROUP", "class_named"]

GROUP: Final = "lightning_gen.components"
"""Entry-point group under which other distributions declare their classes."""


def class_named(name: str, asked_by: str) -> Any:
    """Find a class or function.

    Args:
        name: a component (``ViTokV2``), a name that another distribution declares, or ``package.module.Name``; a
            module of the current folder will do.
        asked_by: option or argument that the name was given to, for messages.

    Returns:
        The class or function.

    Raises:
        ValueError: there is nothing of this name.
    """
    if name in lightning_gen.COMPONENTS:
        return getattr(lightning_gen, name)
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return entry.load()
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"{asked_by} {name}: no such class here; name others as package.module.Class")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{asked_by} {name}: {error}") from None
    if not callable(found):
        raise ValueError(f"{asked_by} {name}: the module {module} has no class or function {attribute}")
    return found
