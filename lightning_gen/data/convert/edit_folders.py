"""Edit pairs as two folders with the same file names, and a text beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gen.data.convert.columns import path_key
from lightning_gen.data.convert.image_folder import file_parts
from lightning_gen.data.convert.records import Part, Record, Skipped
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.writing import list_pictures

__all__ = ["EditFoldersSource", "edit_folders"]

_NAMES = (("source", "target"), ("src", "tgt"), ("input", "output"), ("before", "after"), ("A", "B"))


@dataclasses.dataclass(frozen=True)
class EditFoldersSource:
    """Pictures before and after under the same name; a ``.txt`` beside either is the instruction.

    Attributes:
        root: the folder that holds both.
        folders: names of the two.
        files: stem -> file before and file after, below their folders; an empty name = there is none.
        title: where the pictures come from, for people.
    """

    root: Path
    folders: tuple[str, str]
    files: tuple[tuple[str, str, str], ...]
    title: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the records."""
        return {"rows": "edit folders", "folders": self.folders}

    @property
    def place(self) -> str:
        """Where the files lie."""
        return str(self.root.resolve())

    def parts(self) -> Sequence[Part]:
        """Cut the list of files.

        Returns:
            Pieces of 1024 pairs.
        """
        return file_parts([stem for stem, _, _ in self.files])

    def read(self, part: Part) -> Iterator[Record | Skipped]:
        """Read some pairs.

        Args:
            part: one of :meth:`parts`.

        Yields:
            One item per name; the task is the folder inside ``source`` in which the file lies.
        """
        for row in range(part.first, part.first + part.count):
            stem, *names = self.files[row]
            try:
                data = [self._data(folder, name) for folder, name in zip(self.folders, names, strict=True)]
            except OSError as error:
                yield Skipped(row, "missing", error.strerror or str(error), stem)
                continue
            instruction = self._instruction(stem)
            task = Path(stem).parent.as_posix()
            meta = {"task": "" if task == "." else task, "source_set": self.title, "file": stem}
            meta |= {"edit_type": meta["task"], "instruction": instruction}
            yield Record(row, path_key(stem), {"src": data[0], "tgt": data[1]}, {}, meta, name=stem)

    def _data(self, folder: str, name: str) -> bytes:
        if not name:
            raise FileNotFoundError(f"there is no such file in {folder}")
        return (self.root / folder / name).read_bytes()

    def _instruction(self, stem: str) -> str:
        for folder in reversed(self.folders):
            path = self.root / folder / f"{stem}.txt"
            if path.is_file():
                return path.read_text(encoding="utf-8").strip()
        return ""


def edit_folders(root: Path, title: str = "") -> EditFoldersSource:
    """Look for pairs of pictures.

    Args:
        root: folder with two folders: source and target, src and tgt, input and output, before and after, or A and B.
        title: where the pictures come from; default the folder's name.

    Returns:
        The source.

    Raises:
        DataError: no such two folders, or two files with one stem in a folder.
        FileNotFoundError: no picture in one of them.
    """
    folders = next((pair for pair in _NAMES if all((root / name).is_dir() for name in pair)), None)
    if folders is None:
        raise DataError(f"{root} holds no two folders {', '.join(' and '.join(pair) for pair in _NAMES)}")
    before, after = (dict(_stems(root / folder)) for folder in folders)
    files = tuple((stem, before.get(stem, ""), after.get(stem, "")) for stem in sorted({*before, *after}))
    return EditFoldersSource(root, folders, files, title or root.resolve().name)


def _stems(folder: Path) -> Iterator[tuple[str, str]]:
    seen = set[str]()
    for path in list_pictures(folder):
        name = path.relative_to(folder)
        stem = name.with_suffix("").as_posix()
        if stem in seen:
            raise DataError(f"{path}: another picture in {folder} has the same name with another ending")
        seen.add(stem)
        yield stem, name.as_posix()
