"""A folder of pictures; the first folder below it may be the class."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gen.data.convert.columns import path_key
from lightning_gen.data.convert.packing import Packing
from lightning_gen.data.convert.pipeline import convert
from lightning_gen.data.convert.records import Part, Record, Skipped
from lightning_gen.data.decode import picture_size
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.writing import list_pictures

__all__ = ["ImageFolderSource", "file_parts", "image_folder", "write_image_folder"]

_PART_FILES = 1024


@dataclasses.dataclass(frozen=True)
class ImageFolderSource:
    """Files below a folder, in the order of their paths.

    Attributes:
        root: the folder.
        files: paths below it.
        classes: names of the classes in the order of their numbers; None = no labels.
        title: where the pictures come from, for people.
    """

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...] | None
    title: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the records."""
        return {"rows": "image folder", "classes": self.classes}

    @property
    def place(self) -> str:
        """Where the files lie."""
        return str(self.root.resolve())

    def parts(self) -> Sequence[Part]:
        """Cut the list of files.

        Returns:
            Pieces of 1024 files.
        """
        return file_parts(self.files)

    def read(self, part: Part) -> Iterator[Record | Skipped]:
        """Read some files.

        Args:
            part: one of :meth:`parts`.

        Yields:
            One item per file; the key is the path, with _ for what no key may hold.
        """
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        for row in range(part.first, part.first + part.count):
            name = self.files[row]
            path = self.root / name
            try:
                data = path.read_bytes()
                height, width = picture_size(data)
            except OSError as error:
                yield Skipped(row, "missing", error.strerror or str(error), str(path))
                continue
            except ValueError as error:
                yield Skipped(row, "undecodable", str(error), str(path))
                continue
            # The names that timm's shards have.
            meta: dict[str, Any] = {"filename": name, "height": height, "width": width}
            fields = dict[str, bytes]()
            if self.classes is not None:
                meta["label"] = numbers[name.partition("/")[0]]
                fields["cls"] = str(meta["label"]).encode()
            yield Record(row, path_key(Path(name).with_suffix("").as_posix()), {"": data}, fields, meta, name=str(path))


def file_parts(files: Sequence[str]) -> list[Part]:
    """Cut a list of files.

    Args:
        files: paths.

    Returns:
        Pieces of 1024 files; they are stamped with the names, not with what the files hold.
    """
    parts = []
    for first in range(0, len(files), _PART_FILES):
        names = files[first : first + _PART_FILES]
        stamp = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
        parts.append(Part(f"{names[0]} to {names[-1]}", first, len(names), stamp, ()))
    return parts


def image_folder(
    root: Path,
    classes: bool | Sequence[str] = False,
    keep: Callable[[Path], bool] | None = None,
    title: str = "",
) -> ImageFolderSource:
    """Look for the pictures of a folder.

    Args:
        root: the folder; folders inside it too, hidden names left out.
        classes: True = the first folder below ``root`` is the class, numbered in order of names; a list = these names
            are the classes, in this order; False = no labels.
        keep: which files to take, given their paths below ``root``; default all.
        title: where the pictures come from; default the folder's name.

    Returns:
        The source.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        ValueError: a picture lies outside every class folder.
    """
    paths = [path.relative_to(root) for path in list_pictures(root)]
    paths = [path for path in paths if keep is None or keep(path)]
    names: tuple[str, ...] | None = None
    if classes:
        found = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
        names = tuple(found if classes is True else classes)
        outside = next((path for path in paths if len(path.parts) < 2 or path.parts[0] not in names), None)
        if outside is not None:
            raise ValueError(f"{root / outside} lies in no class folder: the classes are {', '.join(names)}")
    return ImageFolderSource(root, tuple(path.as_posix() for path in paths), names, title or root.resolve().name)


def write_image_folder(
    pictures: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str = "train",
    keep: Callable[[Path], bool] | None = None,
    classes: bool | Sequence[str] = False,
    shuffle_seed: int | None = None,
    max_bytes: int = 512 << 20,
    max_samples: int | None = None,
    source: str = "",
    overwrite: bool = False,
) -> Manifest:
    """Pack a folder of pictures into shards; the files' bytes pass through unchanged.

    The same as ``lightning data convert --from imagefolder --strict``, from Python.

    Args:
        pictures: folder with jpg, png, webp, tif, bmp, gif or ppm files, at any depth.
        folder: where the shards go, see :func:`lightning_gen.data.writing.write_shards`.
        name: name of the split.
        keep: which files to take, given their paths relative to ``pictures``; default all.
        classes: True = the first folder below ``pictures`` is the class, numbered in order of names; a list = these
            names are the classes, in this order; False = no labels.
        shuffle_seed: pack the files in a random order that this number decides; None = in order of their paths.
        max_bytes: largest shard.
        max_samples: samples per shard at most.
        source: where the pictures came from, for people.
        overwrite: replace a data set that is already there.

    Returns:
        The manifest, already on disk.

    Raises:
        FileExistsError: the folder has a manifest and ``overwrite`` is off.
        SampleError: a file that ends like a picture is none.
        DataError: two files lead to the same key.
        ValueError: a file lies outside every class folder.
    """
    packing = Packing(name, max_bytes, max_samples, shuffle_seed, strict=True)
    found = image_folder(Path(pictures), classes, keep, source)
    return convert(found, folder, packing, overwrite=overwrite, fresh=True).manifest
