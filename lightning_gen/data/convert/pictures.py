"""What happens to a picture between its source and its shard: by default nothing, its bytes pass through."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from typing import TYPE_CHECKING, Any

from lightning_gen.data.decode import decode, picture_header

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PictureRule", "StoredPicture"]

_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}
_KINDS = re.compile(r"never|png|webp|(?:webp|jpeg)(100|[1-9]?[0-9])")
# A picture that must be encoded again and whose own encoding was to be kept: 4:4:4 JPEG of this quality, else lossless.
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class StoredPicture:
    """A picture as it goes into a shard.

    Attributes:
        data: its bytes.
        ending: the field's ending, told by the content.
        meta: height ``h`` and width ``w`` after the EXIF rotation, ``mode``, ``sha1`` of the bytes that were read (of
            the pixels, for a picture that was made), and ``original_h``, ``original_w`` where it was made smaller.
    """

    data: bytes
    ending: str
    meta: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PictureRule:
    """Resizing and encoding.

    Attributes:
        resize_short: the shorter side is made this long, in pixels; smaller pictures stay as they are. None = no
            picture is resized.
        reencode: ``never`` = bytes pass through, and a picture that had to be resized is encoded like its source (JPEG
            of quality 95 with full colour resolution, everything else without loss); ``png`` and ``webp`` = without
            loss; ``webpQ`` and ``jpegQ`` = with quality Q in 0 .. 100.

    Raises:
        ValueError: a side below 1, or an unknown encoding.
    """

    resize_short: int | None = None
    reencode: str = "never"

    def __post_init__(self) -> None:
        if self.resize_short is not None and self.resize_short < 1:
            raise ValueError(f"--resize-short is a number of pixels, got {self.resize_short}")
        if not _KINDS.fullmatch(self.reencode):
            raise ValueError(
                f"--reencode {self.reencode}: known are never, png, webp (both without loss), webpQ and jpegQ with a "
                "quality 0 to 100, for instance jpeg95"
            )

    @property
    def keeps_bytes(self) -> bool:
        """Whether every picture passes through unchanged."""
        return self.resize_short is None and self.reencode == "never"

    def store(self, picture: bytes | Image.Image) -> StoredPicture:
        """Make a picture ready for its shard.

        Args:
            picture: encoded, or already decoded (mode RGB), which is then encoded without loss unless
                ``reencode`` says otherwise.

        Returns:
            The bytes to store and what is known about them.

        Raises:
            SampleError: it is not a picture that could be used.
        """
        if not isinstance(picture, bytes):
            return self._encoded(picture, "PNG", hashlib.sha1(picture.tobytes(), usedforsecurity=False).hexdigest())
        header = picture_header(picture)
        sha1 = hashlib.sha1(picture, usedforsecurity=False).hexdigest()
        too_large = self.resize_short is not None and min(header.height, header.width) > self.resize_short
        if self.reencode == "never" and not too_large:
            meta = {"h": header.height, "w": header.width, "mode": header.mode, "sha1": sha1}
            return StoredPicture(picture, _ENDINGS.get(header.format, "ppm"), meta)
        # One decoder, whatever is installed: the bytes must not depend on it.
        return self._encoded(decode(picture, decoder="pil"), header.format, sha1)

    def _encoded(self, picture: Image.Image, like: str, sha1: str) -> StoredPicture:
        from PIL import Image

        meta: dict[str, Any] = {}
        short = min(picture.size)
        if self.resize_short is not None and short > self.resize_short:
            meta = {"original_h": picture.height, "original_w": picture.width}
            size = [max(1, round(side * self.resize_short / short)) for side in picture.size]
            picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        data, ending = self._encode(picture, like)
        meta |= {"h": picture.height, "w": picture.width, "mode": picture.mode, "sha1": sha1}
        return StoredPicture(data, ending, meta)

    def _encode(self, picture: Image.Image, like: str) -> tuple[bytes, str]:
        kind = self.reencode
        if kind == "never":
            kind = {"JPEG": f"jpeg{_JPEG_QUALITY}", "MPO": f"jpeg{_JPEG_QUALITY}", "WEBP": "webp"}.get(like, "png")
        buffer = io.BytesIO()
        if kind.startswith("jpeg"):
            picture.save(buffer, "JPEG", quality=int(kind[4:]), subsampling=0)
        elif kind == "webp":
            picture.save(buffer, "WEBP", lossless=True)
        elif kind.startswith("webp"):
            picture.save(buffer, "WEBP", quality=int(kind[4:]))
        else:
            picture.save(buffer, "PNG")
        return buffer.getvalue(), {"jpeg": "jpg"}.get(kind.rstrip("0123456789"), kind.rstrip("0123456789"))
