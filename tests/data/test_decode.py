"""Every colour mode and orientation to hand-computed pixels, and files that are not what they should be."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_gen.data.decode import decode, picture_size
from lightning_gen.data.quarantine import SampleError
from tests.data.samples import encoded, picture


def pixels(data: bytes, **options: object) -> list[list[list[int]]]:
    return np.asarray(decode(data, **options)).tolist()  # type: ignore[arg-type]


def png(array: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    return encoded(Image.fromarray(array, mode) if mode else Image.fromarray(array), "PNG", **options)


def test_grey_and_bilevel() -> None:
    assert pixels(png(np.array([[0, 100, 255]], np.uint8))) == [[[0] * 3, [100] * 3, [255] * 3]]
    assert pixels(encoded(Image.new("1", (2, 1), 1), "PNG")) == [[[255] * 3, [255] * 3]]


def test_grey_with_alpha_lies_over_white() -> None:
    data = png(np.array([[[100, 255], [100, 0], [100, 51]]], np.uint8))
    assert Image.open(io.BytesIO(data)).mode == "LA"
    # 100 * 0.2 + 255 * 0.8 = 224
    assert pixels(data) == [[[100] * 3, [255] * 3, [224] * 3]]


def test_alpha_lies_over_white() -> None:
    data = png(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 102]]], np.uint8))
    # a = 0.4: 0.4 c + 0.6 * 255 = 153, 193, 255
    assert pixels(data) == [[[10, 20, 30], [255, 255, 255], [153, 193, 255]]]


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert pixels(encoded(image, "PNG")) == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    # Entry 1 is fully transparent, entry 2 half.
    assert pixels(encoded(image, "PNG", transparency=bytes([255, 0, 128]))) == [
        [[255, 0, 0], [255, 255, 255], [127, 127, 255]]
    ]
    assert pixels(encoded(image, "GIF", transparency=1))[0][1] == [255, 255, 255]


def test_a_transparent_colour_lies_over_white() -> None:
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels(encoded(rgb, "PNG", transparency=(1, 2, 3))) == [[[255, 255, 255], [4, 5, 6]]]
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert pixels(encoded(grey, "PNG", transparency=7)) == [[[255] * 3, [8] * 3]]


def test_sixteen_bits_keep_the_high_byte() -> None:
    data = png(np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16))
    assert Image.open(io.BytesIO(data)).mode.startswith("I;16")
    assert [p[0] for p in pixels(data)[0]] == [0, 0, 1, 128, 255]
    assert [p[0] for p in pixels(encoded(Image.fromarray(np.array([[0x1234]], np.uint16)), "TIFF"))[0]] == [0x12]
    assert pixels(rgb16([[(0x1234, 0xFF00, 0x00FF)]])) == [[[0x12, 0xFF, 0x00]]]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_file(width: int, height: int, colour: int, raw: bytes, extra: bytes = b"") -> bytes:
    """A 16-bit PNG of some colour type, which PIL cannot write."""
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def rgb16(rows: list[list[tuple[int, int, int]]]) -> bytes:
    """A 16-bit colour PNG."""
    raw = b"".join(b"\0" + b"".join(struct.pack(">3H", *p) for p in row) for row in rows)
    return png_file(len(rows[0]), len(rows), 2, raw)


def test_cmyk() -> None:
    cmyk = Image.fromarray(np.full((16, 16, 4), (255, 0, 0, 0), np.uint8), "CMYK")
    tiff = encoded(cmyk, "TIFF")
    assert pixels(tiff)[0][0] == [0, 255, 255]  # full cyan, no red
    jpeg = encoded(cmyk, "JPEG", quality=100)
    assert Image.open(io.BytesIO(jpeg)).mode == "CMYK"
    assert np.abs(np.array(pixels(jpeg)) - (0, 255, 255)).max() <= 3
    black = encoded(Image.fromarray(np.full((1, 1, 4), (0, 0, 0, 255), np.uint8), "CMYK"), "TIFF")
    assert pixels(black) == [[[0, 0, 0]]]


def test_colour_profiles_are_ignored() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = picture(1)
    assert np.array_equal(np.asarray(decode(encoded(image, icc_profile=profile))), np.asarray(image))


ORIENTED = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(orientation: int) -> None:
    """What is stored as 1 2 3 / 4 5 6 must be shown as the table says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    data = encoded(Image.fromarray(stored * 20), "PNG", exif=exif)
    shown = np.asarray(decode(data))[:, :, 0] // 20
    assert shown.tolist() == ORIENTED[orientation]
    assert picture_size(data) == shown.shape
    # The same for JPEG, by blocks of one colour, with both decoders.
    blocks = np.kron(stored * 20, np.ones((16, 16), np.uint8))
    jpeg = encoded(Image.fromarray(blocks).convert("RGB"), "JPEG", exif=exif, quality=100)
    for decoder in ("pil", "simplejpeg"):
        shown = np.asarray(decode(jpeg, decoder=decoder))[8::16, 8::16, 0]  # type: ignore[arg-type]
        assert np.round(shown / 20).astype(int).tolist() == ORIENTED[orientation]


def test_a_damaged_exif_block_leaves_the_picture_upright() -> None:
    data = encoded(picture(0), "JPEG", exif=b"Exif\0\0garbage", quality=95)
    assert decode(data).size == picture(0).size


def test_the_content_decides_not_the_name() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        image = decode(encoded(picture(2), kind))
        assert (image.mode, image.size) == ("RGB", (16, 16)), kind


def bomb() -> bytes:
    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes"),
        (b"<!DOCTYPE html><html>404</html>", "a web page, probably an error message"),
        (b"hello, world", "not a picture .*68656c6c6f"),
        (encoded(picture(0), "JPEG")[:200], "cannot be decoded|header is damaged|not a picture"),
        (encoded(picture(0), "JPEG", quality=95)[:-300], "cannot be decoded"),
        (encoded(picture(0))[:300], "cannot be decoded"),
        (bomb(), "decompression bomb"),
        (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "mode F has no defined range"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
    ids=["empty", "html", "text", "cut header", "cut jpeg", "cut png", "bomb", "float", "postscript"],
)
@pytest.mark.parametrize("decoder", ["pil", "auto"])
def test_bad_files_are_told_apart(data: bytes, message: str, decoder: str) -> None:
    with pytest.raises(SampleError, match=message):
        decode(data, decoder=decoder)  # type: ignore[arg-type]


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    data = encoded(picture(5))
    assert decode(data, max_pixels=64 * 64).size == (64, 64)
    with pytest.raises(SampleError, match="64 x 64 pixels, more than max_pixels=4095"):
        decode(data, max_pixels=64 * 64 - 1)


def test_size_reads_the_header_only(tmp_path: Path) -> None:
    big = encoded(picture(0, (900, 1200)), "JPEG", quality=100)
    (tmp_path / "a.jpg").write_bytes(big)
    with open(tmp_path / "a.jpg", "rb", buffering=0) as file:
        reader = io.BufferedReader(file, 512)
        assert picture_size(reader) == (900, 1200)
        assert file.tell() < len(big) / 10
    with pytest.raises(ValueError, match="not a picture"):
        picture_size(b"no picture at all")


def test_a_damaged_png_is_never_taken_for_a_sound_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    good = encoded(Image.fromarray(pixels), "PNG")
    start = good.index(b"IDAT") + 100
    for place in range(start, len(good) - 100, 997):
        damaged = bytearray(good)
        damaged[place] ^= 0x5A
        with pytest.raises(SampleError):
            decode(bytes(damaged))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_every_format(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(Image.new("RGB", (80, 48)), kind, exif=exif)
    upright = (48, 80) if orientation >= 5 else (80, 48)
    assert decode(data).size == upright and picture_size(data) == upright[::-1]


def test_size_of_a_png_needs_its_header_only() -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)), "PNG")
    assert picture_size(data[:60] + b"\0" * 2000) == (48, 80)


def test_the_pixel_limit_can_be_raised_above_that_of_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.new("L", (40, 30)), "PNG")
    assert decode(data, max_pixels=1200).size == (40, 30)
    with pytest.raises(SampleError, match="40 x 30 pixels, more than max_pixels=1199"):
        decode(data, max_pixels=1199)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_sixteen_bit_pgm_and_transparent_grey() -> None:
    values = np.array([[0, 0x1200, 0xFFFF]], dtype=">u2")
    grey = np.asarray(decode(b"P5 3 1 65535\n" + values.tobytes()))
    assert grey[0, :, 0].tolist() == [0, 0x12, 0xFF]
    # Transparent where all 16 bits are those of the transparent grey, not the high byte alone.
    raw = b"".join(b"\0" + struct.pack(">3H", *row) for row in [(0x1234, 0x1200, 0x1234), (0, 0x3412, 0xFF00)])
    transparent = png_file(3, 2, 0, raw, chunk(b"tRNS", struct.pack(">H", 0x1234)))
    assert np.asarray(decode(transparent))[:, :, 0].tolist() == [[255, 0x12, 255], [0, 0x34, 0xFF]]
