"""Pico-Banana-400K: JSON lines of edits of Open Images photographs.

Only the single-turn lines for fine-tuning are read. Lines of the preference list hold failed edits, lines of the
multi-turn list several edits; both are left out and counted, and a list of nothing else is refused by its name.

Source: repository apple/pico-banana-400k.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from lightning_gen.data.convert.columns import picture_bytes, plain, text
from lightning_gen.data.convert.records import Record, Unusable
from lightning_gen.data.convert.tables import Row, RowReader
from lightning_gen.data.quarantine import DataError

__all__ = ["PICO_NEEDED", "PICO_OPTIONAL", "PicoBananaRows", "refuse_other_lists"]

PICO_NEEDED: Final = {"target": ("output_image",), "instruction": ("text",)}
"""Field -> usual names of its column."""

PICO_OPTIONAL: Final = {
    "source": ("local_input_image",),
    "summary": ("summarized_text",),
    "edit_type": ("edit_type",),
    "url": ("open_image_input_url",),
}
"""Likewise, for columns that may be absent."""


@dataclasses.dataclass(frozen=True)
class PicoBananaRows(RowReader):
    """Rows with a local input picture and the path of an edited one.

    Attributes:
        columns: field -> column, see :data:`PICO_NEEDED` and :data:`PICO_OPTIONAL`.
    """

    kind: ClassVar[str] = "pico_banana"

    def record(self, row: Row, number: int, root: Path) -> Record:
        """Make a sample of a row.

        Args:
            row: column -> value.
            number: number of the row.
            root: folder with the pictures.

        Returns:
            Key = the row's number, pictures ``src`` and ``tgt``.

        Raises:
            Unusable: the row is of another list (``multi_turn``, ``preference``), was not mapped to a local file or
                its file is not there (``missing``).
        """
        values = self.values(row)
        if row.get("files"):
            raise Unusable("multi_turn", "the row holds several edits")
        target = text(values["target"], "output_image")
        if "negative" in target or "preference" in target:
            raise Unusable("preference", f"{target} is a failed edit")
        if not values.get("source"):
            raise Unusable("missing", "local_input_image is null: the input was not found when the set was mapped")
        meta: dict[str, Any] = {"instruction": text(values["instruction"], "text")}
        meta |= {field: plain(values[field]) for field in ("summary", "edit_type", "url") if values.get(field)}
        meta |= {"task": meta.get("edit_type", ""), "source_set": "pico_banana"}
        pictures = {
            "src": picture_bytes(values["source"], root, "local_input_image"),
            "tgt": picture_bytes(target, root, "output_image"),
        }
        return Record(number, f"{number:09d}", pictures, {}, meta, target)


def refuse_other_lists(file: str, columns: Mapping[str, str]) -> None:
    """Refuse the lists that hold no single edits, and one that was not mapped to local files.

    Args:
        file: name of the list.
        columns: field -> column, as found in its first line.

    Raises:
        DataError: it is another list, or no line can have a local input.
    """
    if any(word in Path(file).stem.lower() for word in ("preference", "multi")):
        raise DataError(f"{file} holds failed edits or several turns: the list for fine-tuning is sft.jsonl")
    if "source" not in columns:
        raise DataError(
            f"{file} has no local_input_image: run the set's own mapping script, it writes a list with the column"
        )
