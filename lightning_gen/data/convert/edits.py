"""Edit pairs: a picture before and after, and what was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Final

from lightning_gen.data.convert.columns import picture_bytes, plain, text
from lightning_gen.data.convert.records import Record
from lightning_gen.data.convert.tables import Row, RowReader

__all__ = ["EDIT_NEEDED", "EDIT_OPTIONAL", "EditRows"]

EDIT_NEEDED: Final = {
    "source": ("original_image", "source_image", "source", "src", "input_image", "INPUT_IMG"),
    "target": ("edited_image", "target_image", "target", "tgt", "output_image", "OUTPUT_IMG"),
    "instruction": ("edit_prompt", "instruction", "edit_instruction", "EDITING_INSTRUCTION", "prompt", "text"),
}
"""Field -> usual names of its column."""

EDIT_OPTIONAL: Final = {
    "edit_type": ("edit_type", "EDITING_TYPE", "type"),
    "task": ("task",),
    "uid": ("uid", "id"),
}
"""Likewise, for columns that may be absent."""


@dataclasses.dataclass(frozen=True)
class EditRows(RowReader):
    """Rows with a picture before and after.

    Attributes:
        columns: field -> column, see :data:`EDIT_NEEDED` and :data:`EDIT_OPTIONAL`.
        source_set: name of the set, goes into every sample.
    """

    source_set: str

    kind: ClassVar[str] = "edits"

    def record(self, row: Row, number: int, root: Path) -> Record:
        """Make a sample of a row.

        Args:
            row: column -> value.
            number: number of the row.
            root: where paths of pictures start.

        Returns:
            Key = the row's number, pictures ``src`` and ``tgt``; ``task`` is the edit type where there is no task.

        Raises:
            Unusable: no picture, no instruction.
        """
        values = self.values(row)
        meta: dict[str, Any] = {"instruction": text(values["instruction"], "instruction")}
        meta |= {name: plain(values[name]) for name in ("edit_type", "uid") if values.get(name) is not None}
        meta["task"] = plain(values.get("task")) or meta.get("edit_type", "")
        meta["source_set"] = self.source_set
        pictures = {
            "src": picture_bytes(values["source"], root, "source"),
            "tgt": picture_bytes(values["target"], root, "target"),
        }
        return Record(number, f"{number:09d}", pictures, {}, meta, str(meta.get("uid", "")))
