"""Single pictures with what belongs to them: a caption, a class, both or neither."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Final

from lightning_gen.data.convert.columns import picture_bytes, plain, text
from lightning_gen.data.convert.records import Record, Unusable
from lightning_gen.data.convert.tables import Row, RowReader

__all__ = ["PICTURE_NEEDED", "PICTURE_OPTIONAL", "PictureRows", "class_number"]

PICTURE_NEEDED: Final = {"image": ("image", "jpg", "png", "webp", "img", "picture", "file_name", "path", "image_path")}
"""Field -> usual names of its column."""

PICTURE_OPTIONAL: Final = {
    "caption": ("caption", "text", "prompt", "txt"),
    "label": ("label", "cls", "class"),
    "uid": ("uid", "id", "key"),
}
"""Likewise, for columns that may be absent."""


@dataclasses.dataclass(frozen=True)
class PictureRows(RowReader):
    """Rows with one picture.

    Attributes:
        columns: field -> column, see :data:`PICTURE_NEEDED` and :data:`PICTURE_OPTIONAL`.
    """

    kind: ClassVar[str] = "pictures"

    def record(self, row: Row, number: int, root: Path) -> Record:
        """Make a sample of a row.

        Args:
            row: column -> value.
            number: number of the row.
            root: where paths of pictures start.

        Returns:
            Key = the row's number; the caption in ``txt``, the class in ``cls``.

        Raises:
            Unusable: no picture, no caption where the table has captions, a class that is none.
        """
        values = self.values(row)
        fields, meta = dict[str, bytes](), dict[str, Any]()
        if "caption" in values:
            meta["caption"] = text(values["caption"], "caption")
            fields["txt"] = meta["caption"].encode("utf-8", "replace")
        if "label" in values:
            meta["label"] = class_number(values["label"])
            fields["cls"] = str(meta["label"]).encode()
        if values.get("uid") is not None:
            meta["uid"] = plain(values["uid"])
        picture = picture_bytes(values["image"], root, "image")
        return Record(number, f"{number:09d}", {"": picture}, fields, meta, str(meta.get("uid", "")))


def class_number(value: Any) -> int:
    """A class as it stands in a table.

    Args:
        value: a whole number, or its text.

    Returns:
        The class, at least 0.

    Raises:
        Unusable: it is none (``bad_label``).
    """
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0 or number != float(value):
        raise Unusable("bad_label", f"label is {value!r}; a class is a whole number, 0 or more")
    return number
