"""The card of exported weights: ``README.md`` beside them, made of sections.

A section is made by a function that looks at what was exported and at the files of its run, and has nothing to say
where it finds nothing. Files that a card shows are copied to ``card/`` beside it::

    weights/mine/
        model.safetensors
        README.md
        card/routing.png
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lightning_gen.data.index import replace_file

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

__all__ = ["CARD", "FILES", "Exported", "Section", "SectionMaker", "run_of", "write_card"]

CARD: Final = "README.md"
"""Name of the card."""

FILES: Final = "card"
"""Folder beside it with what it shows."""

_MARK: Final = "<!-- Made by `lightning export`, which replaces this file as long as nobody has changed it: {} -->"
_MARKED: Final = re.compile(re.escape(_MARK).replace(re.escape("{}"), "([0-9a-f]{64})") + r"\n(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was exported, for whoever writes about it.

    Attributes:
        model: holds the weights that were written.
        output: the folder that was written.
        checkpoint: file or folder that the weights came from.
        state: what the checkpoint holds beside tensors of the model.
        weights: ``raw`` or ``ema <decay>``.
        dtype: type of the numbers in the files; None = as trained.
        run: folder of the run; None = the checkpoint lies in none.
    """

    model: LightningModule
    output: Path
    checkpoint: Path
    state: Mapping[str, Any]
    weights: str
    dtype: str | None = None
    run: Path | None = None

    @property
    def step(self) -> int:
        """Optimiser steps behind the weights; what a run left after them is not about these weights."""
        return int(self.state.get("global_step") or 0)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a card.

    Attributes:
        title: its heading.
        text: Markdown; shows a file as ``![what it is](card/<name>)``.
        files: name in ``card/`` -> the file that is copied there.
    """

    title: str
    text: str
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)


SectionMaker = Callable[[Exported], Section | None]
"""Looks at what was exported; None = nothing to say."""


def run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in.

    Args:
        checkpoint: file or folder of shards.

    Returns:
        The folder with its ``checkpoints/``; None = the checkpoint was moved elsewhere.
    """
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else None


def write_card(exported: Exported, makers: Iterable[SectionMaker]) -> bool:
    """Write the card, unless another one is there.

    Args:
        exported: what it is about.
        makers: of its sections, in order.

    Returns:
        Whether it was written: a card that somebody wrote, or changed, stays as it is.
    """
    path = exported.output / CARD
    if path.exists() and not _is_own(path):
        return False
    sections = [section for make in makers if (section := make(exported)) is not None]
    parts = [f"# {exported.output.resolve().name}"]
    parts += [f"## {section.title}\n\n{section.text.strip()}" for section in sections]
    text = "\n\n".join(parts) + "\n"
    for section in sections:
        for name, source in section.files.items():
            (exported.output / FILES).mkdir(exist_ok=True)
            shutil.copyfile(source, exported.output / FILES / name)
    replace_file(path, f"{_MARK.format(_digest(text))}\n{text}".encode())
    return True


def _is_own(path: Path) -> bool:
    """Whether a file is a card of this command that nobody has changed."""
    found = _MARKED.fullmatch(path.read_bytes().decode("utf-8", "replace"))
    return found is not None and found[1] == _digest(found[2])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
