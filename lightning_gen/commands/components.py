"""Short class names: which module to import before a configuration can name a class.

jsonargparse resolves ``class_path: ViTokV2`` among the classes that are already imported. Importing every room for
every run would be slow, and one broken optional package would break all runs; so only the names that the arguments or
the configuration files mention are imported.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from lightning_gen import COMPONENTS
from lightning_gen.training.classes import GROUP

__all__ = ["import_mentioned"]

_WORD = re.compile(r"\w+")
_CONFIG_FILE = re.compile(r"[^\s'\"=:,\[\]{}]+\.(?:yaml|yml|json|jsonnet)\b")


def import_mentioned(texts: Iterable[str]) -> None:
    """Import the module of every component that is mentioned.

    Args:
        texts: command-line arguments; configuration files named in them are read too.

    Raises:
        ImportError: if a mentioned component cannot be imported.
    """
    words = {word for text in _with_files(texts) for word in _WORD.findall(text)}
    for name, module in COMPONENTS.items():
        if name in words:
            importlib.import_module(module)
    for entry in entry_points(group=GROUP):
        if entry.name in words:
            _load(entry)


def _load(entry: EntryPoint) -> None:
    try:
        entry.load()
    except Exception as error:
        owner = entry.dist.name if entry.dist else "an unknown distribution"
        raise ImportError(
            f"component {entry.name!r} ({entry.value}) of {owner} could not be imported: {error}"
        ) from error


def _with_files(texts: Iterable[str]) -> Iterator[str]:
    """The texts themselves and the contents of all configuration files they lead to."""
    seen: set[Path] = set()
    queue = [(text, Path()) for text in texts]
    while queue:
        text, folder = queue.pop()
        yield text
        for name in {text, *_CONFIG_FILE.findall(text)} if "\n" not in text else _CONFIG_FILE.findall(text):
            file = folder / name
            if len(name) < 4096 and file not in seen and file.is_file():
                seen.add(file)
                queue.append((file.read_text(encoding="utf-8", errors="replace"), file.parent))
