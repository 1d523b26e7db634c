"""Relation252K: one file holds the pair side by side, left before and right after.

Source: dataset card of handsomeWilliam/Relation252K, arXiv:2506.02528.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from lightning_gen.data.convert.columns import picture_bytes, plain, text
from lightning_gen.data.convert.records import Record, Unusable
from lightning_gen.data.convert.tables import Row, RowReader
from lightning_gen.data.decode import decode
from lightning_gen.data.quarantine import SampleError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["RELATION_NEEDED", "RELATION_OPTIONAL", "RelationRows", "split_halves"]

RELATION_NEEDED: Final = {"image": ("img_name",), "instruction": ("edit_instruction",)}
"""Field -> usual names of its column."""

RELATION_OPTIONAL: Final = {
    "source_caption": ("left_image_description",),
    "target_caption": ("right_image_description",),
    "task": ("task", "task_name"),
}
"""Likewise, for columns that may be absent."""


@dataclasses.dataclass(frozen=True)
class RelationRows(RowReader):
    """Rows whose picture is two pictures.

    The halves must be encoded again: without loss (PNG) unless ``--reencode`` says otherwise.

    Attributes:
        columns: field -> column, see :data:`RELATION_NEEDED` and :data:`RELATION_OPTIONAL`.
    """

    kind: ClassVar[str] = "relation252k"

    def record(self, row: Row, number: int, root: Path) -> Record:
        """Make a sample of a row.

        Args:
            row: column -> value.
            number: number of the row.
            root: folder with the pictures.

        Returns:
            Key = the row's number, pictures ``src`` and ``tgt``. The task is the column of that name, else the folder
            in which the picture lies.

        Raises:
            Unusable: no file, no instruction, or not a picture (``undecodable``).
        """
        values = self.values(row)
        name = text(values["image"], "img_name")
        meta: dict[str, Any] = {"instruction": text(values["instruction"], "edit_instruction")}
        captions = ("source_caption", "target_caption")
        meta |= {field: plain(values[field]) for field in captions if values.get(field) is not None}
        meta |= {"task": str(plain(values.get("task")) or Path(name).parent.name), "source_set": "relation252k"}
        meta |= {"edit_type": meta["task"], "file": name}
        try:
            left, right = split_halves(decode(picture_bytes(name, root, "img_name"), decoder="pil"))
        except SampleError as error:
            raise Unusable("undecodable", f"{name}: {error}") from None
        return Record(number, f"{number:09d}", {"src": left, "tgt": right}, {}, meta, name)


def split_halves(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Cut a picture at half its width.

    Args:
        picture: at least 2 pixels wide. Of an odd width the middle column belongs to neither half, so that both have
            one size.

    Returns:
        Left and right half, floor(width / 2) wide.

    Raises:
        SampleError: it is one pixel wide.
    """
    width, height = picture.size
    half = width // 2
    if half == 0:
        raise SampleError("the picture is one pixel wide, it cannot hold two pictures")
    return picture.crop((0, 0, half, height)), picture.crop((width - half, 0, width, height))
