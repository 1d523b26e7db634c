"""What a model card says must be there: the functions it names, and examples that run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

_FUNCTION = re.compile(r"`([\w/]+)\.py:([\w.]+)`")


def card_of(room: ModuleType) -> str:
    """The text of a room's README.md."""
    return (Path(room.__path__[0]) / "README.md").read_text(encoding="utf-8")


def named_functions(card: str) -> list[tuple[str, str]]:
    """All ``file.py:name`` of a card, as (file without ending, name)."""
    return _FUNCTION.findall(card)


def missing_functions(card: str, room: ModuleType) -> list[str]:
    """Names of a card that do not exist; a file with a folder is looked for in the package, others in the room."""
    return [f"{file}.py:{name}" for file, name in named_functions(card) if not _exists(file, name, room)]


def _exists(file: str, name: str, room: ModuleType) -> bool:
    package = "lightning_gen" if "/" in file else room.__name__
    try:
        found: Any = importlib.import_module(f"{package}.{file.replace('/', '.')}")
    except ModuleNotFoundError:
        return False
    for part in name.split("."):
        if not hasattr(found, part):
            # Fields of a dataclass without a default are no attributes of the class.
            return part in getattr(found, "__dataclass_fields__", {})
        found = getattr(found, part)
    return True


def python_blocks(text: str) -> list[str]:
    """Contents of the ```python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
