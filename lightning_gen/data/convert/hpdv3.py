"""HPDv3 and HPDv2: JSON lists of preference pairs beside a folder of pictures.

Source: dataset cards of MizzenAI/HPDv3 and ymhao/HPDv2, and the readers of the HPSv3 and LightRFT repositories.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Final

from lightning_gen.data.convert.columns import confidence, inside, picture_bytes, plain, text
from lightning_gen.data.convert.records import Record, Unusable
from lightning_gen.data.convert.tables import Row, RowReader

__all__ = ["HPDV2_NEEDED", "HPDV3_NEEDED", "HPDV3_OPTIONAL", "HPDv2Rows", "HPDv3Rows"]

HPDV3_NEEDED: Final = {"caption": ("prompt",), "path_0": ("path1",), "path_1": ("path2",)}
"""Field -> usual names of its column."""

HPDV3_OPTIONAL: Final = {
    "model_0": ("model1",),
    "model_1": ("model2",),
    "confidence": ("confidence",),
    "choice_dist": ("choice_dist",),
}
"""Likewise, for columns that older versions of the set lack."""

HPDV2_NEEDED: Final = {"caption": ("prompt",), "paths": ("file_path",), "preference": ("human_preference",)}
"""The same for HPDv2's ``train.json``."""


@dataclasses.dataclass(frozen=True)
class HPDv3Rows(RowReader):
    """Rows whose first picture won, always: ``label_0`` is 1.

    The order of the two is that of the row. A model that sees pairs in this order learns that the first one wins, so
    whoever trains on them presents them in random order.

    Attributes:
        columns: field -> column, see :data:`HPDV3_NEEDED` and :data:`HPDV3_OPTIONAL`.
    """

    kind: ClassVar[str] = "hpdv3"

    def record(self, row: Row, number: int, root: Path) -> Record:
        """Make a sample of a row.

        Args:
            row: column -> value.
            number: number of the row.
            root: folder with the pictures; also its subfolder ``images`` is looked into.

        Returns:
            Key = the row's number, pictures ``0`` (won) and ``1``; the paths are the pictures' uids.

        Raises:
            Unusable: no prompt (``no_value``), a confidence that is none (``bad_label``), or a file is not there
                (``missing``).
        """
        values = self.values(row)
        paths = [text(values[f"path_{stem}"], f"path{stem + 1}") for stem in (0, 1)]
        meta: dict[str, Any] = {"caption": text(values["caption"], "prompt"), "label_0": 1.0}
        meta |= {name: plain(values[name]) for name in HPDV3_OPTIONAL if values.get(name) is not None}
        if "confidence" in meta:
            meta["confidence"] = confidence(values["confidence"])
        return _pair(number, paths, root, meta)


@dataclasses.dataclass(frozen=True)
class HPDv2Rows(RowReader):
    """Rows of HPDv2's training list: two files, and for each of them 1 or 0.

    Attributes:
        columns: field -> column, see :data:`HPDV2_NEEDED`.
    """

    kind: ClassVar[str] = "hpdv2"

    def record(self, row: Row, number: int, root: Path) -> Record:
        """Make a sample of a row.

        Args:
            row: column -> value.
            number: number of the row.
            root: folder with the pictures; also its subfolders ``images`` and ``train`` are looked into.

        Returns:
            Key = the row's number, pictures ``0`` and ``1`` in the order of the row.

        Raises:
            Unusable: no prompt, no two files, a preference that is none (``bad_label``), a missing file.
        """
        values = self.values(row)
        paths, chosen = values["paths"], values["preference"]
        if not isinstance(paths, list) or len(paths) != 2:
            raise Unusable("no_value", f"file_path is {paths!r}, not two files")
        if chosen not in ([1, 0], [0, 1]):
            raise Unusable("bad_label", f"human_preference is {chosen!r}; known are [1, 0] and [0, 1]")
        meta = {"caption": text(values["caption"], "prompt"), "label_0": float(chosen[0])}
        return _pair(number, [text(path, "file_path") for path in paths], root, meta)


def _pair(number: int, paths: list[str], root: Path, meta: dict[str, Any]) -> Record:
    places = [_place(root, path) for path in paths]
    pictures = {str(stem): picture_bytes(place, root, f"picture {stem}") for stem, place in enumerate(places)}
    uids = {f"uid_{stem}": path for stem, path in enumerate(paths)}
    return Record(number, f"{number:09d}", pictures, {}, {**meta, **uids}, " ".join(sorted(paths)))


def _place(root: Path, path: str) -> str:
    """Some archives unpack into a folder that the list does not name."""
    choices = [path, f"images/{path}", f"train/{path}"]
    return next((choice for choice in choices if inside(root, choice).is_file()), path)
