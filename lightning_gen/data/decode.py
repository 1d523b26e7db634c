"""Encoded bytes to upright RGB pixels, whatever they are.

EXIF orientation is applied; CMYK, grey, palette and 16-bit pictures become 8-bit RGB; alpha is laid over white; colour
profiles are ignored. PIL is the reference and decides alone what cannot be used; plain colour JPEGs are decoded faster
where a faster decoder is installed (data/jpeg.py).
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gen.data.jpeg import Decoder, fast_pixels, reduction
from lightning_gen.data.orientation import Box, is_turned, orientation, turned, turned_extent
from lightning_gen.data.quarantine import SampleError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DecodedPicture",
    "Decoder",
    "MAX_PIXELS",
    "PictureHeader",
    "decode",
    "decode_pixels",
    "picture_header",
    "picture_size",
    "to_rgb",
    "upright",
]

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded by default: a quarter of a gigabyte as RGB. Beyond it lies a decompression bomb."""

# Only raster formats that PIL decodes by itself: PostScript, for one, would start another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


class DecodedPicture(NamedTuple):
    """Pixels and where they come from.

    Attributes:
        pixels: uint8, (h, w, 3), upright.
        original_size: height and width of the stored picture after its EXIF rotation.
        extent: left, upper, right, lower of the box that the stored picture fills in the pixels: all of them, but where
            it was decoded at a fraction of its size, the outermost row and column may be there in part only.
    """

    pixels: npt.NDArray[np.uint8]
    original_size: tuple[int, int]
    extent: Box


def decode_pixels(
    data: bytes, max_pixels: int = MAX_PIXELS, decoder: Decoder = "auto", at_least: tuple[int, int] | None = None
) -> DecodedPicture:
    """Decode a picture.

    Args:
        data: the file's bytes; the format is told by the content, not by a name.
        max_pixels: refuse larger pictures before any pixel is decoded.
        decoder: ``pil``; ``simplejpeg`` or ``torchvision`` for plain colour JPEGs (PIL for the rest); ``auto`` =
            simplejpeg if installed. With libjpeg-turbo underneath, as in their wheels, all give the same pixels.
        at_least: the smallest height and width (after the EXIF rotation) that are good enough. A JPEG at least twice
            as large in both sides is then decoded at 1/2, 1/4 or 1/8 of its size, but never below this; other formats,
            and JPEGs by torchvision, are decoded in full. None = all pixels.

    Returns:
        The pixels and the size of the stored picture.

    Raises:
        SampleError: no bytes, not a picture, cut short, too large, or a mode without a meaning as RGB.
        ModuleNotFoundError: the decoder that was asked for is not installed or does not work.
    """
    picture = _open(io.BytesIO(data), len(data), max_pixels)
    size, factor = (picture.height, picture.width), 1
    if at_least is not None and picture.format == "JPEG":
        factor = reduction(size, at_least[::-1] if is_turned(orientation(picture)) else at_least)
    pixels = None
    if picture.format == "JPEG" and picture.mode == "RGB":
        pixels = fast_pixels(data, size, factor, decoder)
    if pixels is None:
        pixels = _by_pil(picture, factor)
    turn = orientation(picture)
    upright_size = size[::-1] if is_turned(turn) else size
    factor = 1 if pixels.shape[:2] == size else factor
    pixels = turned(pixels, turn)
    extent = (upright_size[0] / factor, upright_size[1] / factor)
    return DecodedPicture(pixels, upright_size, turned_extent(pixels.shape[:2], extent, turn))


def decode(data: bytes, max_pixels: int = MAX_PIXELS, decoder: Decoder = "auto") -> Image.Image:
    """The same as a PIL picture, see :func:`decode_pixels`.

    Args:
        data: the file's bytes.
        max_pixels: refuse larger pictures.
        decoder: which one.

    Returns:
        An upright picture, mode RGB.

    Raises:
        SampleError: it cannot be used.
    """
    from PIL import Image

    return Image.fromarray(decode_pixels(data, max_pixels, decoder).pixels)


def upright(picture: Image.Image) -> Image.Image:
    """An opened picture of any mode as ``decode`` would give it.

    Args:
        picture: for instance from ``PIL.Image.open``.

    Returns:
        Its pixels turned as its EXIF block says, mode RGB.

    Raises:
        SampleError: floating-point or 32-bit pixels, whose range nobody knows.
    """
    from PIL import Image

    picture.load()
    return Image.fromarray(turned(np.array(to_rgb(picture)), orientation(picture)))


class PictureHeader(NamedTuple):
    """What a picture's first bytes say about it.

    Attributes:
        height: pixels, after the EXIF rotation.
        width: pixels, after the EXIF rotation.
        mode: PIL's name of the pixel format, for instance ``RGB``, ``L`` or ``CMYK``.
        format: PIL's name of the file format, for instance ``JPEG``.
    """

    height: int
    width: int
    mode: str
    format: str


def picture_header(file: bytes | BinaryIO, max_pixels: int = MAX_PIXELS) -> PictureHeader:
    """Size, mode and format of a picture, without decoding a pixel.

    Args:
        file: the file's bytes, or the file open for reading, of which no more than the header is read.
        max_pixels: refuse larger pictures.

    Returns:
        The header.

    Raises:
        SampleError: the header is not one of a picture that could be used.
    """
    if isinstance(file, bytes):
        picture = _open(io.BytesIO(file), len(file), max_pixels)
    else:
        picture = _open(file, file.seek(0, io.SEEK_END), max_pixels)
    size = picture.size if is_turned(orientation(picture)) else (picture.height, picture.width)
    return PictureHeader(*size, picture.mode, picture.format or "")


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
        header = picture_header(file, max_pixels)
    except SampleError as error:
        raise ValueError(str(error)) from None
    return header.height, header.width


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


def _start(file: BinaryIO) -> str:
    file.seek(0)
    data = file.read(64)
    if data.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page, probably an error message saved by a download"
    return f"they start with {data[:8].hex()}"


def _by_pil(picture: Image.Image, factor: int) -> npt.NDArray[np.uint8]:
    """Pixels as they are stored, before their EXIF rotation."""
    try:
        if factor > 1:
            picture.draft(None, (picture.width // factor, picture.height // factor))
        picture.load()
        return np.array(to_rgb(picture))
    except SampleError:
        raise
    except Exception as error:
        # PIL's plug-ins raise whatever they like (SyntaxError, struct.error, ...) on damaged files.
        raise SampleError(f"the picture cannot be decoded: {type(error).__name__}: {error}") from None
