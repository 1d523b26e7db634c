"""Sample files in the layout of the ADM evaluator: one npz whose ``arr_0`` is uint8 (N, H, W, 3).

Both ways go picture by picture, so that memory does not grow with N. A file has a temporary name until it is complete,
and equal pictures give equal bytes.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.data.decode import MAX_PIXELS
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.metrics.image_sets import ImageSet

__all__ = ["AdmNpzWriter", "NpzImages", "write_adm_npz"]

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can name."""

_CONVERTERS: Final = (
    "convert before saving with signed_to_uint8 (range [-1, 1]) or unit_to_uint8 (range [0, 1]) of "
    "lightning_gen.data.transforms"
)


class NpzImages(ImageSet):
    """The array ``arr_0`` of an npz, uint8 (N, H, W, 3), as the ADM evaluator takes it; the name is the row's number.

    Rows of an array that is stored without compression are read where they lie; a compressed one is unpacked row by row
    from the front, so that memory does not grow with N.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an npz, no ``arr_0``, or an array of another kind; says what to do.
    """

    rule = "rows of arr_0"

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._stream: IO[bytes] | None = None
        self._next = 0
        if not self._path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            with zipfile.ZipFile(self._path) as archive:
                info = _member(archive, path)
                with archive.open(info) as member:
                    self._shape = _uint8_shape(member, path)
                    self._start = member.tell()
                self._offset = None if info.compress_type else _offset(self._path, info) + self._start
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise DataError(f"{path} is not a readable npz ({error}): copy or write it again") from None
        self._row = int(np.prod(self._shape[1:]))
        if info.file_size != self._start + self._shape[0] * self._row:
            raise DataError(f"{path}: arr_0 is said to be {self._shape} but has {info.file_size} bytes: write it again")
        self._in_order_only = self._offset is None
        super().__init__(path, [f"{number:06d}" for number in range(self._shape[0])])

    def _content(self, index: int) -> bytes:
        try:
            row = self._in_place(index) if self._offset is not None else self._unpacked(index)
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise SampleError(f"{self.where}: arr_0[{index}] cannot be read: {error}") from None
        if len(row) != self._row:
            raise SampleError(f"{self.where} ends before arr_0[{index}]: copy or write it again")
        return row

    def _in_place(self, index: int) -> bytes:
        with open(self._path, "rb") as file:
            return os.pread(file.fileno(), self._row, (self._offset or 0) + index * self._row)

    def _unpacked(self, index: int) -> bytes:
        if self._stream is None or index < self._next:
            if self._stream is not None:
                self._stream.close()
            # The member keeps the archive's file open after the archive itself is closed.
            with zipfile.ZipFile(self._path) as archive:
                self._stream = archive.open(_member(archive, self.where))
            self._stream.read(self._start)
            self._next = 0
        while self._next < index:
            self._stream.read(self._row)
            self._next += 1
        self._next += 1
        return self._stream.read(self._row)

    def _pixels(self, content: bytes) -> npt.NDArray[np.uint8]:
        return np.frombuffer(bytearray(content), np.uint8).reshape(self._shape[1:])

    def first(self, count: int) -> Self:
        """The first pictures of the set, see :meth:`ImageSet.first`.

        Args:
            count: how many.

        Returns:
            A set with a stream of its own.
        """
        some = super().first(count)
        some._stream, some._next = None, 0
        return some


class AdmNpzWriter:
    """Writes ``arr_0`` as pictures come.

    Used as a context: the file gets its name when N pictures were added, and is thrown away after an error.

    Args:
        path: the npz; its folder is made.
        count: N, how many pictures will come.
        size: height and width of every picture.

    Raises:
        ValueError: N or an edge below 1, or a name without ``.npz``.

    Source: github.com/openai/guided-diffusion, evaluations: sample npz.
    """

    def __init__(self, path: str | os.PathLike[str], count: int, size: tuple[int, int]) -> None:
        self.path, self.count, self.size = Path(path), count, size
        if min(count, *size) < 1:
            raise ValueError(f"{count} pictures of {size[0]} x {size[1]} pixels are none")
        if self.path.suffix != ".npz":
            raise ValueError(f"{path}: the evaluator reads files that end in .npz")
        self.written = 0
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._archive: zipfile.ZipFile | None = None
        self._member: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Begin the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        info = zipfile.ZipInfo("arr_0.npy", _EPOCH)
        # Written on any system, the same bytes: 3 = Unix, a plain file that all may read.
        info.create_system, info.external_attr = 3, 0o100644 << 16
        self._archive = zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_STORED)
        self._member = self._archive.open(info, "w", force_zip64=True)
        head: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.size, 3)}
        np.lib.format.write_array_header_1_0(self._member, head)
        return self

    def add(self, image: Tensor, name: str = "") -> None:
        """Append a picture.

        Args:
            image: uint8, (3, H, W).
            name: what to call it in a message.

        Raises:
            ValueError: another size or dtype than said, or one picture too many.
            RuntimeError: the writer is not open.
        """
        if self._member is None:
            raise RuntimeError("open the writer with `with` before adding pictures")
        what = name or f"picture {self.written}"
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"{what} is {image.dtype} {list(image.shape)}, expected uint8 (3, H, W)")
        if tuple(image.shape[1:]) != self.size:
            height, width = image.shape[1:]
            raise ValueError(
                f"{what} has {height} x {width} pixels, the first one {self.size[0]} x {self.size[1]}: an npz holds "
                "pictures of one size; resize them, or evaluate the folder as it is"
            )
        if self.written == self.count:
            raise ValueError(f"{what} is one more than the {self.count} pictures that were announced")
        self._member.write(image.permute(1, 2, 0).contiguous().cpu().numpy().tobytes())
        self.written += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Finish the file, or throw it away."""
        if self._member is not None:
            self._member.close()
        if self._archive is not None:
            self._archive.close()
        self._member = self._archive = None
        if kind is None and self.written == self.count:
            os.replace(self._temporary, self.path)
            return
        self._temporary.unlink(missing_ok=True)
        if kind is None:
            raise ValueError(
                f"{self.path}: {self.written} pictures came, {self.count} were announced; nothing is written"
            )


def write_adm_npz(
    images: ImageSet, path: str | os.PathLike[str], watch: Callable[[str, int, int], None] | None = None
) -> tuple[int, int, int, int]:
    """Write a set of pictures for the ADM evaluator.

    Args:
        images: pictures of one size.
        path: the npz.
        watch: called with what is done, how far, and of how much.

    Returns:
        The shape (N, H, W, 3).

    Raises:
        ValueError: pictures of several sizes; names the first that differs.
    """
    height, width = images.read(0).shape[1:]
    with AdmNpzWriter(path, len(images), (height, width)) as writer:
        for index, name in enumerate(images.names):
            writer.add(images.read(index), f"{images.where}: {name}")
            if watch is not None:
                watch("pictures", index + 1, len(images))
    return len(images), height, width, 3


def _member(archive: zipfile.ZipFile, path: str) -> zipfile.ZipInfo:
    names = archive.namelist()
    if "arr_0.npy" not in names:
        arrays = [name.removesuffix(".npy") for name in names]
        hint = ", which are statistics: give it as the reference" if "mu" in arrays else ""
        listed = ", ".join(arrays[:8]) or "nothing"
        raise DataError(f"{path} has no arr_0, from which pictures are read, but {listed}{hint}")
    return archive.getinfo("arr_0.npy")


def _uint8_shape(member: IO[bytes], path: str) -> tuple[int, ...]:
    """Read the header of an array; its shape (N, H, W, 3)."""
    shape, is_columns_first, dtype = _header(member, path)
    if dtype.kind == "f":
        raise DataError(f"{path}: arr_0 is {dtype}; metrics look at 8-bit pictures, {_CONVERTERS}")
    if dtype != np.uint8:
        raise DataError(f"{path}: arr_0 is {dtype}, expected uint8 of shape (N, H, W, 3)")
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4):
        raise DataError(f"{path}: arr_0 has shape {shape}, channels first: save arr_0.transpose(0, 2, 3, 1)")
    if len(shape) != 4 or shape[3] != 3:
        raise DataError(f"{path}: arr_0 has shape {shape}, expected (N, H, W, 3): RGB, without alpha, channels last")
    if is_columns_first:
        raise DataError(f"{path}: arr_0 is stored column by column: save numpy.ascontiguousarray(arr_0)")
    if 0 in shape or shape[1] * shape[2] > MAX_PIXELS:
        raise DataError(f"{path}: arr_0 has shape {shape}: no picture, or pictures too large to be any")
    return shape


def _header(member: IO[bytes], path: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with contextlib.suppress(ValueError, KeyError):
        return readers[np.lib.format.read_magic(member)](member)
    raise DataError(f"{path}: the header of arr_0 cannot be read: write the file again with numpy.savez")


def _offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: behind a local header whose extra field the directory does not tell."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
    if local[:4] != b"PK\x03\x04":
        raise DataError(f"{path} is not a readable npz (no header where arr_0 should begin): copy it again")
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
