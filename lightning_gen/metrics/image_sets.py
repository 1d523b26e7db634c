"""Pictures that somebody's code produced: named, in a fixed order, read one at a time.

The order matters, because the Inception score is taken over splits in order: picture files by their path as text
(``10.png`` comes before ``9.png``: write numbers with leading zeros), members of a tar as they lie in the archive, tars
as they are listed, rows of an npz by number. Whatever is stored becomes upright 8-bit RGB by the rules of
data/decode.py: EXIF orientation is applied, alpha is laid over white (or dropped, which is asked for; see
transparency.py), grey is repeated, 16 bits keep their high byte.
PIL decodes, so that the pixels do not depend on which faster decoder is installed. An npz must hold 8-bit RGB itself.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.data.decode import decode_pixels
from lightning_gen.data.finding import list_shards
from lightning_gen.data.index import PICTURE_FIELDS
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.remote.urls import is_remote, shown
from lightning_gen.data.tarfiles import Member, split_name, walk
from lightning_gen.data.writing import list_pictures
from lightning_gen.metrics.transparency import Alpha, is_transparent, without_alpha

__all__ = ["ImageSet", "PictureFolder", "TarPictures", "open_images"]

_ENDINGS: Final = tuple(f".{field}" for field in PICTURE_FIELDS)
_LOSSY: Final = (".jpg", ".jpeg")


class ImageSet(ABC):
    """Named pictures in a fixed order.

    Attributes:
        where: what the user wrote, for messages.
        names: one name per picture, in order.
        rule: what the order and the names are, in a few words, for the protocol card.
        alpha: what becomes of an alpha channel, see ``transparency.Alpha``.

    Args:
        where: see above.
        names: see above.
    """

    rule: str
    _in_order_only = False

    def __init__(self, where: str, names: Sequence[str]) -> None:
        self.where = where
        self.names = list(names)
        self.alpha: Alpha = "white"
        self._digests: dict[int, bytes] = {}
        self._transparent: set[int] = set()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    @property
    def is_lossy(self) -> bool:
        """Whether a picture is stored as JPEG, which moves FID by itself."""
        return any(name.lower().endswith(_LOSSY) for name in self.names)

    @property
    def num_transparent(self) -> int:
        """Of the pictures that were read, how many have pixels that are not opaque, so that ``alpha`` matters."""
        return sum(index < len(self) for index in self._transparent)

    @property
    def fingerprint(self) -> str:
        """sha256 over the names and the stored bytes, in order: of a file its bytes, of an npz row its pixels.

        Of pictures whose alpha was dropped it is another one. What was read before is not read again.
        """
        total = hashlib.sha256(json.dumps(self.names).encode())
        for index in range(len(self)):
            if index not in self._digests:
                self._remember(index, self._content(index))
            total.update(self._digests[index])
        if self.alpha != "white" and self.num_transparent:
            total.update(f"alpha: {self.alpha}".encode())
        return total.hexdigest()

    def read(self, index: int) -> Tensor:
        """One picture.

        Args:
            index: its number, from 0.

        Returns:
            uint8, (3, H, W).

        Raises:
            IndexError: there is no such picture.
            SampleError: it cannot be used; names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {self.where}, which has {len(self)}")
        content = self._content(index)
        self._remember(index, content)
        try:
            pixels = self._pixels(content)
            if self._has_alpha(content):
                self._transparent.add(index)
                pixels = without_alpha(content) if self.alpha == "drop" else pixels
        except SampleError as error:
            raise SampleError(f"{self.where}: {self.names[index]}: {error}") from None
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def batches(self, size: int, threads: int = 0) -> Iterator[list[Tensor]]:
        """All pictures, in order.

        Args:
            size: pictures per batch; the last batch may be smaller.
            threads: how many threads decode ahead; 0 = none. A compressed npz is always read by one.

        Yields:
            uint8 images (3, H, W), of any sizes.

        Raises:
            ValueError: a size below 1.
        """
        if size < 1:
            raise ValueError(f"a batch holds at least 1 picture, got {size}")
        starts = range(0, len(self), size)
        if threads < 1 or self._in_order_only:
            for start in starts:
                yield [self.read(index) for index in range(start, min(start + size, len(self)))]
            return
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque[list[Future[Tensor]]] = deque()
            for start in starts:
                ahead.append([pool.submit(self.read, index) for index in range(start, min(start + size, len(self)))])
                if len(ahead) > 1:
                    yield [one.result() for one in ahead.popleft()]
            while ahead:
                yield [one.result() for one in ahead.popleft()]

    def select(self, indices: Sequence[int]) -> list[Tensor]:
        """Some pictures, read in the order of the set and returned in the order asked for.

        Args:
            indices: numbers of pictures.

        Returns:
            uint8 images (3, H, W).
        """
        found = {index: self.read(index) for index in sorted(set(indices))}
        return [found[index] for index in indices]

    def first(self, count: int) -> Self:
        """The first pictures of the set.

        Args:
            count: how many.

        Returns:
            A set of exactly that many.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"{self.where} has {len(self):,} pictures, {count:,} are asked for")
        some = copy.copy(self)
        some.names = self.names[:count]
        return some

    def with_alpha(self, alpha: Alpha) -> Self:
        """The same pictures with another rule for alpha.

        Args:
            alpha: what becomes of it.

        Returns:
            A set of which nothing is read yet.

        Raises:
            ValueError: an unknown rule.
        """
        if alpha not in get_args(Alpha):
            raise ValueError(f"alpha is one of {', '.join(get_args(Alpha))}, got {alpha!r}")
        same = copy.copy(self)
        same.alpha, same._transparent = alpha, set()
        return same

    def check_count(self, expected: int) -> None:
        """Insist on a number of pictures.

        Args:
            expected: how many there must be.

        Raises:
            ValueError: another number.
        """
        if len(self) != expected:
            raise ValueError(
                f"{self.where} has {len(self):,} pictures, expected {expected:,}: "
                + ("some are missing" if len(self) < expected else "are there others between them?")
            )

    def _remember(self, index: int, content: bytes) -> None:
        if index not in self._digests:
            self._digests[index] = hashlib.sha256(content).digest()

    @abstractmethod
    def _content(self, index: int) -> bytes:
        """The stored bytes of one picture."""

    def _pixels(self, content: bytes) -> npt.NDArray[np.uint8]:
        """The pixels of one picture, (H, W, 3), alpha over white."""
        return decode_pixels(content, decoder="pil").pixels

    def _has_alpha(self, content: bytes) -> bool:
        """Whether a picture is not opaque everywhere."""
        return False


class _PictureFiles(ImageSet):
    """Pictures in formats that may have an alpha channel."""

    def _has_alpha(self, content: bytes) -> bool:
        return is_transparent(content)


class PictureFolder(_PictureFiles):
    """The picture files below a folder, folders inside it too; the name is the path inside the folder.

    Args:
        folder: the folder.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
    """

    rule = "files, sorted by path as text"

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        super().__init__(folder, [path.relative_to(folder).as_posix() for path in list_pictures(folder)])

    def _content(self, index: int) -> bytes:
        path = self._folder / self.names[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise SampleError(f"{path} cannot be read: {error.strerror or error}") from None


class TarPictures(_PictureFiles):
    """Every picture of one or more tars; the name is the path inside the archive. No index is needed or written.

    Args:
        where: what the user wrote.
        tars: the archives in order.

    Raises:
        ShardError: an archive is damaged or compressed.
        DataError: no picture in them, or samples with several pictures each.
    """

    rule = "tar members, in the order of the archives"

    def __init__(self, where: str, tars: Sequence[Path]) -> None:
        self._places: list[tuple[Path, Member]] = []
        for tar in tars:
            found = [member for member in walk(tar) if _is_picture(member.name)]
            _check_one_picture_each(tar, found)
            self._places += [(tar, member) for member in found]
        if not self._places:
            raise DataError(f"{where}: there is no picture in it (looked for {', '.join(_ENDINGS)})")
        several = len(tars) > 1
        names = [f"{tar.name}/{member.name}" if several else member.name for tar, member in self._places]
        super().__init__(where, names)

    def _content(self, index: int) -> bytes:
        tar, member = self._places[index]
        try:
            with open(tar, "rb") as file:
                content = os.pread(file.fileno(), member.size, member.offset)
        except OSError as error:
            raise SampleError(f"{tar}: {member.name} cannot be read: {error.strerror or error}") from None
        if len(content) != member.size:
            raise SampleError(f"{tar} was cut short while it was read: {member.name} is not there")
        return content


def open_images(where: str | os.PathLike[str]) -> ImageSet:
    """Pictures from whatever holds them.

    Args:
        where: a folder of picture files; an npz with ``arr_0``; a tar; a folder of tars, a manifest.json, or a pattern
            ``name-{0000..0003}.tar``.

    Returns:
        The set; no picture is read yet.

    Raises:
        FileNotFoundError: nothing of this name, or a folder without a picture.
        DataError: it holds no pictures, or pictures of a kind that has no meaning here; says what to do.
    """
    text = os.fspath(where)
    path = Path(text)
    if is_remote(text):
        raise DataError(f"{shown(text)} is remote: copy the pictures to a local disk")
    if path.suffix == ".npz":
        from lightning_gen.metrics.adm_npz import NpzImages

        return NpzImages(text)
    if path.suffix == ".npy":
        raise DataError(
            f"{text}: a single array is not read; save it with numpy.savez(PATH, ARRAY), which names it arr_0"
        )
    if path.is_dir() and not _holds_shards(path):
        return PictureFolder(text)
    if path.is_file() and path.suffix.lower() in _ENDINGS:
        raise DataError(f"{text} is one picture: give the folder that holds all of them")
    if not path.exists() and not any(mark in text for mark in "{#|"):
        raise FileNotFoundError(f"there is no file or folder {text}")
    return TarPictures(text, _tars(text))


def _holds_shards(folder: Path) -> bool:
    tars = any(folder.glob("*.tar"))
    if tars and any(path.suffix.lower() in _ENDINGS for path in folder.iterdir()):
        raise DataError(f"{folder} holds tars and pictures side by side: which are meant? Move one kind away")
    return tars or (folder / "manifest.json").is_file() or (folder / "_info.json").is_file()


def _tars(text: str) -> list[Path]:
    found = list_shards(text)
    if isinstance(found, Manifest):
        return [found.tar_path(number) for number in range(len(found.shards))]
    return [Path(tar) for tar in found.locations]


def _is_picture(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.lower().endswith(_ENDINGS) and not base.startswith(".")


def _check_one_picture_each(tar: Path, members: Sequence[Member]) -> None:
    """Refuse ``photo.jpg`` beside ``photo.mask.png``: one of them is the picture, the other one would count as well."""
    fields: dict[str, list[str]] = {}
    for member in members:
        if (split := split_name(member.name)) is not None:
            fields.setdefault(split[0], []).append(split[1])
    for key, found in fields.items():
        if len(found) > 1 and any(field.lower() in PICTURE_FIELDS for field in found):
            raise DataError(
                f"{tar}: sample {key} has the pictures {', '.join(found)}: which one counts? Keep one with "
                "`lightning data repack --only FIELD`"
            )
