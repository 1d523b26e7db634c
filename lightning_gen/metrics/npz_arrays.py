"""Arrays of an npz that came from elsewhere: no pickles, and no more memory than allowed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from lightning_gen.data.index import replace_file
from lightning_gen.data.quarantine import DataError

__all__ = ["MAX_BYTES", "read_npz", "write_npz"]

MAX_BYTES: Final = 1 << 30
"""1 GiB: statistics of two features of 2048 values take 67 MB, 10,000 kept features 80 MB."""

Array = npt.NDArray[Any]


def read_npz(
    path: str | Path, skip: Sequence[str] = (), max_bytes: int = MAX_BYTES, needed: Sequence[str] = ()
) -> tuple[dict[str, Array], list[str]]:
    """Read the arrays of an npz.

    What the archive says about sizes is checked before anything is unpacked, and an array whose own header promises
    more than the archive holds is refused: a few kilobytes can otherwise unpack to any amount.

    Args:
        path: the file.
        skip: names of arrays that are not read.
        max_bytes: largest sum of the sizes of those that are read.
        needed: names that must be there.

    Returns:
        The arrays that were read, and the names of all arrays.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an npz, a name is missing, a pickled or damaged array, or too large.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in needed if name not in members]
            if missing:
                found = ", ".join(sorted(members)[:8]) or "nothing"
                raise DataError(
                    f"{path}: there is no {' and no '.join(missing)} in it, only {found}. Reference "
                    "statistics of the ADM evaluator hold mu and sigma"
                )
            wanted = {name: info for name, info in members.items() if name not in skip}
            total = sum(info.file_size for info in wanted.values())
            if total > max_bytes:
                raise DataError(
                    f"{path}: its arrays take {total:,} bytes unpacked, more than max_bytes = {max_bytes:,}"
                )
            arrays = {}
            for name, info in wanted.items():
                with archive.open(info) as member:
                    arrays[name] = _array(member, info.file_size, f"{path}: {name}")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        raise DataError(f"{path} is not a readable npz ({error}): copy or write it again") from None
    return arrays, sorted(members)


def write_npz(path: str | Path, arrays: Mapping[str, Array], card: str) -> None:
    """Write arrays and a text; the file appears complete or not at all.

    Args:
        path: the file.
        arrays: name -> array.
        card: text, stored as the array ``card``.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, card=np.array(card), **arrays)
    replace_file(Path(path), buffer.getvalue())


def _array(member: IO[bytes], size: int, where: str) -> Array:
    try:
        version = np.lib.format.read_magic(member)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = reader(member)
    except ValueError as error:
        raise DataError(f"{where} has no readable header ({error}): write the file again with numpy.savez") from None
    if dtype.hasobject:
        raise DataError(f"{where} is pickled, which could run any code: save plain arrays")
    count = int(np.prod(shape, dtype=object))
    if count * dtype.itemsize != size - member.tell():
        raise DataError(f"{where} is said to be {shape} of {dtype}, but has {size - member.tell()} bytes")
    flat = np.frombuffer(bytearray(member.read()), dtype, count)
    return flat.reshape(shape, order="F" if by_columns else "C")
