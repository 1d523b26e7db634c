"""Encoded bytes to an upright RGB picture, whatever they are.

EXIF orientation is applied; CMYK, grey, palette and 16-bit pictures become 8-bit RGB; alpha is laid over white; colour
profiles are ignored. PIL is the reference; simplejpeg, where installed, decodes plain colour JPEGs faster.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from lightning_gen.data.quarantine import SampleError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Decoder", "MAX_PIXELS", "decode", "picture_size", "to_rgb", "upright"]

Decoder = Literal["auto", "pil", "simplejpeg"]

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded by default: a quarter of a gigabyte as RGB. Beyond it lies a decompression bomb."""

# Only raster formats that PIL decodes by itself: PostScript, for one, would start another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_ORIENTATION = 0x0112
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


def decode(data: bytes, max_pixels: int = MAX_PIXELS, decoder: Decoder = "auto") -> Image.Image:
    """Decode a picture.

    Args:
        data: the file's bytes; the format is told by the content, not by a name.
        max_pixels: refuse larger pictures before any pixel is decoded.
        decoder: ``pil``; ``simplejpeg`` (plain colour JPEGs, PIL for the rest); ``auto`` = simplejpeg if installed.

    Returns:
        An upright picture, mode RGB.

    Raises:
        SampleError: no bytes, not a picture, cut short, too large, or a mode without a meaning as RGB.
    """
    if decoder == "simplejpeg" and not _has_simplejpeg():
        raise ModuleNotFoundError("decoder: simplejpeg needs the package: pip install simplejpeg, or use decoder: pil")
    picture = _open(io.BytesIO(data), len(data), max_pixels)
    try:
        plain = decoder != "pil" and picture.format == "JPEG" and picture.mode == "RGB" and _has_simplejpeg()
        rgb = _simplejpeg(data) if plain else None
        if rgb is None:
            picture.load()
            rgb = to_rgb(picture)
    except SampleError:
        raise
    except Exception as error:
        # PIL's plug-ins raise whatever they like (SyntaxError, struct.error, ...) on damaged files.
        raise SampleError(f"the picture cannot be decoded: {type(error).__name__}: {error}") from None
    return _turned(rgb, _orientation(picture))


def upright(picture: Image.Image) -> Image.Image:
    """An opened picture of any mode as ``decode`` would give it.

    Args:
        picture: for instance from ``PIL.Image.open``.

    Returns:
        Its pixels turned as its EXIF block says, mode RGB.

    Raises:
        SampleError: floating-point or 32-bit pixels, whose range nobody knows.
    """
    picture.load()
    return _turned(to_rgb(picture), _orientation(picture))


def picture_size(file: bytes | BinaryIO, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Size of a picture from its header, after its EXIF rotation.

    Args:
        file: the file's bytes, or the file open for reading, of which no more than the header is read.
        max_pixels: refuse larger pictures.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: the header is not one of a picture that could be used.
    """
    try:
        if isinstance(file, bytes):
            picture = _open(io.BytesIO(file), len(file), max_pixels)
        else:
            picture = _open(file, file.seek(0, io.SEEK_END), max_pixels)
        turned = _orientation(picture) in (5, 6, 7, 8)
    except SampleError as error:
        raise ValueError(str(error)) from None
    return picture.size if turned else (picture.height, picture.width)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB.

    16-bit grey keeps its high byte; alpha, also that of a palette or of a transparent colour, is laid over white.

    Args:
        picture: a loaded picture of any mode.

    Returns:
        The same pixels as RGB.

    Raises:
        SampleError: floating-point or 32-bit pixels, whose range nobody knows.
    """
    from PIL import Image

    if picture.mode in _SIXTEEN_BIT or (picture.mode == "I" and picture.format == "PPM"):
        values = np.asarray(picture)
        grey = (values.astype(np.uint16) >> 8).astype(np.uint8)
        if "transparency" in picture.info:
            grey[values == picture.info["transparency"]] = 255
        return Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))
    if picture.mode in ("F", "I"):
        raise SampleError(f"a picture of mode {picture.mode} has no defined range: save it with 8 or 16 bits")
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        rgba = np.asarray(picture.convert("RGBA"), dtype=np.uint32)
        alpha = rgba[:, :, 3:]
        white = (rgba[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
        return Image.fromarray(white.astype(np.uint8))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _open(file: BinaryIO, size: int, max_pixels: int) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if size == 0:
        raise SampleError("the picture has 0 bytes")
    try:
        with warnings.catch_warnings():
            # The size is checked below against max_pixels, before a pixel is decoded; PIL's own limit stood in its way.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(file, formats=_FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except UnidentifiedImageError:
        raise SampleError(f"these {size} bytes are not a picture ({_start(file)})") from None
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise SampleError(f"the picture's header is damaged: {type(error).__name__}: {error}") from None
    if picture.width * picture.height > max_pixels:
        raise SampleError(
            f"the picture has {picture.width} x {picture.height} pixels, more than max_pixels={max_pixels}: "
            "a decompression bomb, or raise the limit"
        )
    if min(picture.size) < 1:
        raise SampleError(f"the picture has {picture.width} x {picture.height} pixels")
    return picture


def _orientation(picture: Image.Image) -> int:
    from PIL import Image

    if picture.format == "TIFF":
        return 1  # PIL turns these itself
    try:
        # Not the PNG plug-in's method: it decodes the whole picture, and a damaged one would look sound afterwards.
        return int(Image.Image.getexif(picture).get(_ORIENTATION, 1))
    except Exception:
        # A damaged EXIF block says nothing about the pixels: the picture is taken as upright.
        return 1


def _start(file: BinaryIO) -> str:
    file.seek(0)
    data = file.read(64)
    if data.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page, probably an error message saved by a download"
    return f"they start with {data[:8].hex()}"


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image

    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _has_simplejpeg() -> bool:
    return importlib.util.find_spec("simplejpeg") is not None


def _simplejpeg(data: bytes) -> Image.Image | None:
    """The picture, or None where the data is not faultless.

    Whether a faulty picture can be used is PIL's word alone, so that it does not depend on what is installed.
    """
    import simplejpeg
    from PIL import Image

    try:
        return Image.fromarray(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True))
    except ValueError:
        return None
