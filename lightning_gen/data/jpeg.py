"""Fast decoders of plain colour JPEGs, and decoding at a fraction of the size.

They decode sound files only. Whatever else may be wrong with a picture is PIL's word alone (data/decode.py), so that it
does not depend on what is installed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Decoder", "fast_pixels", "reduction"]

Decoder = Literal["auto", "pil", "simplejpeg", "torchvision"]


def reduction(size: tuple[int, int], at_least: tuple[int, int] | None) -> int:
    """How many times smaller a JPEG may be decoded: by fewer coefficients of its cosine transform.

    r = max {1, 2, 4, 8} with r at_least <= size in both sides; the decoded picture has ceil(size / r) pixels

    Args:
        size: stored height and width.
        at_least: the smallest height and width that are good enough, None = nothing less than all.

    Returns:
        1, 2, 4 or 8.
    """
    if at_least is None or max(size) < 8:
        return 1  # libjpeg has several fractions that give a picture smaller than a block the same size
    room = min(size[0] // max(1, at_least[0]), size[1] // max(1, at_least[1]))
    return next((factor for factor in (8, 4, 2) if room >= factor), 1)


def fast_pixels(data: bytes, size: tuple[int, int], factor: int, decoder: Decoder) -> npt.NDArray[np.uint8] | None:
    """Decode a plain colour JPEG without PIL.

    Args:
        data: the file's bytes.
        size: stored height and width.
        factor: from :func:`reduction`; torchvision decodes at full size whatever it is.
        decoder: which one; ``auto`` = simplejpeg where it is installed.

    Returns:
        Stored pixels, (h, w, 3); None = PIL must look at the file.

    Raises:
        ModuleNotFoundError: the decoder that was asked for is not installed or does not work.
    """
    if decoder == "torchvision":
        return _by_torchvision(data)
    if decoder == "pil" or (decoder == "auto" and _simplejpeg() is None):
        return None
    return _by_simplejpeg(data, size, factor)


def _by_simplejpeg(data: bytes, size: tuple[int, int], factor: int) -> npt.NDArray[np.uint8] | None:
    decode = _simplejpeg()
    if decode is None:
        raise ModuleNotFoundError("decoder: simplejpeg needs the package: pip install simplejpeg, or use decoder: pil")
    try:
        pixels: npt.NDArray[np.uint8] = decode(
            data,
            colorspace="RGB",
            strict=True,  # damage that libjpeg would paper over is an error here
            min_height=-(-size[0] // factor) if factor > 1 else 0,
            min_width=-(-size[1] // factor) if factor > 1 else 0,
        )
    except ValueError:
        return None
    return pixels


@functools.cache
def _simplejpeg() -> Callable[..., Any] | None:
    try:
        import simplejpeg
    except ImportError:
        return None
    decode: Callable[..., Any] = simplejpeg.decode_jpeg
    return decode


def _by_torchvision(data: bytes) -> npt.NDArray[np.uint8] | None:
    import torch

    decode = _torchvision()
    try:
        planes = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None
    pixels: npt.NDArray[np.uint8] = planes.permute(1, 2, 0).numpy()
    return pixels


@functools.cache
def _torchvision() -> Callable[..., Any]:
    try:
        import torch
        from torchvision.io import ImageReadMode

        # The operator itself: its wrapper warns at every picture that it is going to move to another package.
        return functools.partial(torch.ops.image.decode_jpeg, mode=ImageReadMode.RGB.value)
    except Exception as error:
        # A torchvision made for another torch fails in many ways, with RuntimeError and AttributeError among them.
        raise ModuleNotFoundError(
            "decoder: torchvision needs a torchvision that was made for the installed torch "
            f"({type(error).__name__}: {error}). Install it, or use decoder: auto"
        ) from None
