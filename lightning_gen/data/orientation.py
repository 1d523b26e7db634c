"""How a picture must be turned to stand upright: its EXIF orientation, 1 to 8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Box", "is_turned", "orientation", "turned", "turned_extent"]

Box = tuple[float, float, float, float]
_TAG = 0x0112


def orientation(picture: Image.Image) -> int:
    """The orientation that a file asks for.

    Args:
        picture: opened.

    Returns:
        1 to 8, 1 = upright as it is stored.
    """
    from PIL import Image

    if picture.format == "TIFF":
        return 1  # PIL turns these itself
    try:
        # Not the PNG plug-in's method: it decodes the whole picture, and a damaged one would look sound afterwards.
        found = int(Image.Image.getexif(picture).get(_TAG, 1))
    except Exception:
        return 1  # a damaged EXIF block says nothing about the pixels: the picture is taken as upright
    return found if 1 <= found <= 8 else 1


def is_turned(number: int) -> bool:
    """Whether height and width change places.

    Args:
        number: the orientation.

    Returns:
        True for 5 to 8.
    """
    return number >= 5


def turned(pixels: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.uint8]:
    """Turn stored pixels upright.

    Args:
        pixels: uint8, (h, w, 3).
        number: the orientation.

    Returns:
        uint8, contiguous; the same array where nothing is to be done.
    """
    if number == 1:
        return pixels
    if is_turned(number):
        pixels = pixels.transpose(1, 0, 2)
    down, across = _mirrored(number)
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])


def turned_extent(shape: tuple[int, int], extent: tuple[float, float], number: int) -> Box:
    """Where the stored picture lies in upright pixels whose last stored row and column are there in part only.

    Args:
        shape: height and width of the upright pixels.
        extent: height and width that the picture fills, at most one pixel less.
        number: the orientation: what was last when stored may be first now.

    Returns:
        Left, upper, right, lower.
    """
    down, across = _mirrored(number)
    top, left = shape[0] - extent[0] if down else 0.0, shape[1] - extent[1] if across else 0.0
    return left, top, left + extent[1], top + extent[0]


def _mirrored(number: int) -> tuple[bool, bool]:
    """Whether rows and columns run backwards, after height and width have changed places."""
    return number in (3, 4, 7, 8), number in (2, 3, 6, 7)
