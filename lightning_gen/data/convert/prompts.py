"""Prompts without pictures: a line each, or JSON lines with what a reward needs to know."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Final

from lightning_gen.data.convert.columns import plain, text
from lightning_gen.data.convert.records import Record
from lightning_gen.data.convert.tables import Row, RowReader

__all__ = ["PROMPT_NEEDED", "PromptRows"]

PROMPT_NEEDED: Final = {"prompt": ("prompt", "caption", "text")}
"""Field -> usual names of its column."""


@dataclasses.dataclass(frozen=True)
class PromptRows(RowReader):
    """Rows with a prompt; everything else in the row goes into the metadata (GenEval's ``tag``, ``include``, ...).

    Attributes:
        columns: field -> column, see :data:`PROMPT_NEEDED`.
    """

    kind: ClassVar[str] = "prompts"

    def record(self, row: Row, number: int, root: Path) -> Record:
        """Make a sample of a row.

        Args:
            row: column -> value.
            number: number of the row.
            root: not used.

        Returns:
            Key = the row's number, the prompt in ``txt``, the row in ``json``.

        Raises:
            Unusable: no prompt.
        """
        del root
        prompt = text(row.get(self.columns["prompt"]), "prompt")
        meta = {**{name: plain(value) for name, value in row.items()}, "prompt": prompt}
        return Record(number, f"{number:09d}", {}, {"txt": prompt.encode("utf-8", "replace")}, meta, prompt)
