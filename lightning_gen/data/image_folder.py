"""A folder of pictures as training data, without packing it into shards first."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from lightning_gen.data.decode import picture_size
from lightning_gen.data.images import ImageDataModule
from lightning_gen.data.picture_files import PictureFiles
from lightning_gen.data.planned import Opened, Split
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.sources import Stored

__all__ = ["ImageFolderDataModule", "LabelledFolder"]


class LabelledFolder(PictureFiles):
    """Picture files; the first folder below the root is the class, a ``.txt`` file beside a picture its caption.

    Args:
        folder: the root.
        classes: names of the classes in the order of their numbers; None = those of the folder, in order of names.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        DataError: a class folder that is not in ``classes``.
    """

    def __init__(self, folder: str, classes: tuple[str, ...] | None = None) -> None:
        super().__init__(folder)
        parents = [path.split("/", 1)[0] if "/" in path else "" for path in self.paths]
        self.classes = tuple(sorted({name for name in parents if name})) if classes is None else classes
        table = {name: number for number, name in enumerate(self.classes)} | {"": -1}
        if strange := sorted(set(parents) - set(table)):
            raise DataError(f"{folder} has the class folders {', '.join(strange[:8])}, which training does not have")
        self.labels = [table[name] for name in parents]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the files' names, sizes (-1 = not there) and classes; their content is not read."""
        rows = [(path, self._bytes(path), label) for path, label in zip(self.paths, self.labels, strict=True)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _bytes(self, path: str) -> int:
        try:
            return (self.folder / path).stat().st_size
        except OSError:
            return -1  # For instance a link that leads nowhere: judged, and counted, when it is read.

    def read(self, index: int) -> Stored:
        """Read a file.

        Args:
            index: its number.

        Returns:
            Its bytes, class and caption.

        Raises:
            SampleError: it cannot be read any more.
        """
        path = self.folder / self.paths[index]
        text = path.with_suffix(".txt")
        try:
            caption = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
            return Stored(path.read_bytes(), self.labels[index], caption)
        except (OSError, UnicodeDecodeError) as error:
            raise SampleError(f"the file cannot be read: {error}") from None

    def sizes(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Heights and widths from the files' headers.

        Args:
            indices: numbers of files.

        Returns:
            int64, (n, 2), 0 = the header cannot be read.
        """
        return np.array([self._size(int(index)) for index in indices], np.int64).reshape(-1, 2)

    def _size(self, index: int) -> tuple[int, int]:
        try:
            with open(self.folder / self.paths[index], "rb") as file:
                return picture_size(file)
        except (OSError, ValueError):
            return 0, 0  # Judged, and counted, when it is decoded.


@dataclass(eq=False, repr=False, kw_only=True)
class ImageFolderDataModule(ImageDataModule):
    """A folder per split, a folder per class below it, pictures at any depth below that.

    Pictures in the root itself have no label (-1). A ``.txt`` file beside a picture is its caption. A link that leads
    nowhere is a bad sample. The classes are those of ``train``, in order of their names. For more than some ten
    thousand files pack shards instead (``lightning data convert --from imagefolder``): they are read faster, and their
    index knows every picture's size.
    """

    def _open(self, split: Split) -> Opened:
        where = getattr(self, split)
        if not isinstance(where, str):
            raise DataError(f"data.{split} of a picture folder is one folder; pack shards to mix several sets")
        training = cast("LabelledFolder", self._set("train").source) if split != "train" and self.train else None
        source = LabelledFolder(where, training.classes if training is not None else None)
        if self.num_classes is not None and len(source.classes) != self.num_classes:
            raise DataError(f"{where} has {len(source.classes)} class folders, data.num_classes={self.num_classes}")
        return Opened(source, [len(source)], source.fingerprint)

    def _places(self) -> list[str]:
        return []

    @classmethod
    def _missing(cls, name: str, where: Any, streamed: bool) -> list[str]:
        del streamed
        if where is None or Path(str(where)).is_dir():
            return []
        return [f"data.{name}: there is no folder {where}"]
