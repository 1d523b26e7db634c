"""How the latent of a picture lies in a shard, written and read.

``npy`` holds the tokens of the picture row by row, (rows * cols, c), in float16 or float32; ``mirror.npy`` those of its
mirror image, if they were asked for; ``json`` the numbers that a batch needs besides them. ``cls`` and ``txt`` are the
picture's own.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gen.data.quarantine import SampleError
from lightning_gen.data.sources import PictureFields, json_record

__all__ = ["CARRIED", "MIRRORED", "PLAIN", "LatentFields", "StoredLatent", "array_bytes", "latent_sample", "read_array"]

PLAIN, MIRRORED = "npy", "mirror.npy"
"""Fields of a picture's latent and of its mirror image's."""

CARRIED = ("cls", "txt")
"""Fields of a picture's own sample that are carried over as they are."""

_KINDS = ("<f2", "<f4")
_VERSION = (1, 0)
_LONGEST_HEADER = 1024

Array = npt.NDArray[np.generic]


class StoredLatent(NamedTuple):
    """A latent as it is stored.

    Attributes:
        plain: .npy file of the picture's tokens.
        mirrored: .npy file of the mirror image's, None = there is none.
        grid: rows and columns of tokens.
        size: height and width in pixels of the picture that was encoded.
        original_size: height and width of the stored picture after its EXIF rotation.
        crop_top_left: row and column of its first pixel that was kept, in the resized picture.
        label: class, -1 = none.
        caption: text, empty = none.
    """

    plain: bytes
    mirrored: bytes | None
    grid: tuple[int, int]
    size: tuple[int, int]
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    label: int = -1
    caption: str = ""


def array_bytes(array: Array) -> bytes:
    """A .npy file, the same bytes for the same array.

    Args:
        array: any numbers, in C order.

    Returns:
        The file's bytes.
    """
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=_VERSION, allow_pickle=False)
    return out.getvalue()


def read_array(data: bytes, shape: tuple[int, int]) -> Array:
    """The tokens of a .npy file.

    The header is believed in nothing: kind and shape must be those that are expected, the bytes must be exactly those
    of the array, and the numbers must be finite.

    Args:
        data: the file's bytes.
        shape: tokens and channels that it must hold.

    Returns:
        float16 or float32, of that shape, read-only.

    Raises:
        SampleError: it is something else.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != _VERSION:
            raise ValueError(f"version {version} of the format")
        found, by_columns, kind = np.lib.format.read_array_header_1_0(file, max_header_size=_LONGEST_HEADER)
    except ValueError as error:
        raise SampleError(f"the latent is not a .npy file: {str(error).splitlines()[0][:200]}") from None
    if kind.str not in _KINDS or by_columns:
        raise SampleError(f"the latent holds {kind}{' by columns' if by_columns else ''}, not float16 or float32")
    if found != shape:
        raise SampleError(f"the latent has the shape {found}, the sample's json and latents.json say {shape}")
    size = shape[0] * shape[1] * kind.itemsize
    if len(data) - file.tell() != size:
        raise SampleError(f"the latent has {len(data) - file.tell()} bytes of numbers instead of {size}")
    array: Array = np.frombuffer(data, kind, offset=file.tell()).reshape(shape)
    if not np.isfinite(array).all():
        raise SampleError("the latent holds numbers that are not finite")
    return array


def latent_sample(latent: StoredLatent, picture: Mapping[str, bytes]) -> dict[str, bytes]:
    """The fields that :class:`LatentFields` reads.

    Args:
        latent: what is to be stored.
        picture: fields of the picture's own sample; ``cls`` and ``txt`` are carried over as they are.

    Returns:
        Field -> bytes.
    """
    record: dict[str, Any] = {
        "rows": latent.grid[0],
        "cols": latent.grid[1],
        "height": latent.size[0],
        "width": latent.size[1],
        "original_size": list(latent.original_size),
        "crop_top_left": list(latent.crop_top_left),
    }
    carried = {name: picture[name] for name in CARRIED if name in picture}
    # Whatever a field of its own does not say.
    if latent.label != -1 and "cls" not in carried:
        record["label"] = latent.label
    if latent.caption and "txt" not in carried:
        record["caption"] = latent.caption
    fields = {PLAIN: latent.plain, **carried, "json": json.dumps(record, sort_keys=True).encode()}
    return fields if latent.mirrored is None else {**fields, MIRRORED: latent.mirrored}


@dataclasses.dataclass(frozen=True)
class LatentFields:
    """The latent of a picture, with its class or its caption.

    Attributes:
        patch: pixels that a token stands for along each side.
        pictures: what a picture's sample must say about it.
    """

    patch: int
    pictures: PictureFields

    def __call__(self, fields: Mapping[str, bytes]) -> StoredLatent:
        """Read the fields of a sample; the arrays stay as they are.

        Args:
            fields: name -> bytes.

        Returns:
            The stored latent.

        Raises:
            SampleError: something is missing, or the numbers contradict each other.
        """
        if PLAIN not in fields:
            raise SampleError(f"the sample has no latent ({PLAIN}), only {', '.join(sorted(fields))}")
        record = json_record(fields)
        grid = _numbers(record, "rows", "cols")
        size = _numbers(record, "height", "width")
        if grid != (-(-size[0] // self.patch), -(-size[1] // self.patch)):
            raise SampleError(
                f"{grid[0]} x {grid[1]} tokens of {self.patch} pixels do not make a picture of {size[0]} x {size[1]}"
            )
        return StoredLatent(
            fields[PLAIN],
            fields.get(MIRRORED),
            grid,
            size,
            _pair(record, "original_size", 1),
            _pair(record, "crop_top_left", 0),
            *self.pictures.described(fields),
        )


def _numbers(record: Mapping[str, Any], first: str, second: str) -> tuple[int, int]:
    return _checked([record.get(first), record.get(second)], f"{first} and {second}", 1)


def _pair(record: Mapping[str, Any], name: str, least: int) -> tuple[int, int]:
    return _checked(record.get(name), name, least)


def _checked(value: Any, name: str, least: int) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(x) is int and x >= least for x in value):
        raise SampleError(f"{name} in json should be two whole numbers of at least {least}, found {value!r:.60}")
    return value[0], value[1]
