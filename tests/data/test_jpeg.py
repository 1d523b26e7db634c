"""The decoders of plain JPEGs against pinned pixels and each other, and decoding at a fraction of the size."""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_gen.data import jpeg
from lightning_gen.data.decode import decode_pixels
from lightning_gen.data.jpeg import reduction
from lightning_gen.data.quarantine import SampleError
from lightning_gen.data.resampling import resample
from tests.data.samples import encoded, picture

# 14 x 18 pixels, colour at half resolution, sides that are no multiple of a block.
GOLDEN = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5"
    "PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wAAR"
    "CAAOABIDASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAABgAH/8QAJhAAAQEFCAMBAAAAAAAAAAAAEQABBAYS8QIDBRQhIjGBI2GSov/E"
    "ABYBAQEBAAAAAAAAAAAAAAAAAAQFBv/EACcRAAADBQcFAAAAAAAAAAAAAAABBQIREhOhAwRBUlRigqKjstHh/9oADAMBAAIRAxEAPwDPnKH8"
    "mNk8/QFUicofyY2Tz+gBVL3LBrpzHFufoCqQuWDXTmOLc/QFUW9Kx2WyDlKi84+kGQ1xo3Yvr6cArIR0Zr+VLUWQxdBnkZ8qUucej7n0bsl9"
    "rPQf/9k="
)
FULL = "fc43c36d6d70b24c7238ecadc0fbe8993b68168dc1826b3a21f1dcfa1a3be569"
HALF = "b4b1acf5df74d42c3f190e30fb139ba04ee6f0b143d88fd1a5112e730210324c"
FAST = ("auto", "simplejpeg", "torchvision")


def need(decoder: str) -> Any:
    """Skip where the decoder is not installed or broken."""
    if decoder == "simplejpeg":
        pytest.importorskip("simplejpeg")
    if decoder == "torchvision":
        try:
            jpeg._torchvision()
        except ModuleNotFoundError as error:
            pytest.skip(str(error))
    return decoder


def pixels(data: bytes, decoder: Any, **options: Any) -> np.ndarray:
    return decode_pixels(data, decoder=decoder, **options).pixels


def test_the_reference_is_pinned() -> None:
    """PIL on libjpeg-turbo: another library underneath would change what every model of this package was trained on."""
    found = pixels(GOLDEN, "pil")
    corners = [found[y, x].tolist() for y, x in ((0, 0), (0, 17), (13, 0), (13, 17), (7, 9))]
    assert corners == [[4, 0, 0], [227, 3, 0], [7, 230, 201], [244, 228, 212], [123, 133, 158]]
    assert hashlib.sha256(found.tobytes()).hexdigest() == FULL
    assert hashlib.sha256(pixels(GOLDEN, "pil", at_least=(7, 9)).tobytes()).hexdigest() == HALF


@pytest.mark.parametrize("decoder", FAST)
def test_fast_decoders_give_the_pinned_pixels(decoder: str) -> None:
    found = pixels(GOLDEN, need(decoder))
    assert np.abs(found.astype(int) - pixels(GOLDEN, "pil")).max() <= (2 if decoder == "torchvision" else 0)


@pytest.mark.parametrize("decoder", FAST)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_decoders_agree_on_sound_pictures(decoder: str, subsampling: int, progressive: bool) -> None:
    data = encoded(picture(5, (75, 131)), "JPEG", subsampling=subsampling, progressive=progressive, quality=88)
    found = pixels(data, need(decoder))
    assert found.flags.writeable and found.dtype == np.uint8
    assert np.abs(found.astype(int) - pixels(data, "pil")).max() <= (2 if decoder == "torchvision" else 0)


@pytest.mark.parametrize("decoder", FAST)
def test_pil_alone_says_what_cannot_be_used(decoder: str) -> None:
    need(decoder)
    good = encoded(picture(3, (96, 128)), "JPEG", quality=92)
    cut = [good[:size] for size in range(200, len(good), 211)]
    flipped = [good[:place] + bytes([good[place] ^ 0xA5]) + good[place + 1 :] for place in range(200, len(good), 53)]
    outcomes = set()
    for data in cut + flipped:
        found = []
        for one in ("pil", decoder):
            try:
                found.append(pixels(data, one).tobytes())
            except SampleError:
                found.append(b"")
        assert found[0] == found[1]
        outcomes.add(found[0] == b"")
    assert outcomes == {True, False}


def test_what_is_no_plain_jpeg_is_decoded_by_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("not for this decoder")

    monkeypatch.setattr("lightning_gen.data.decode.fast_pixels", never)
    grey = picture(1).convert("L")
    cmyk = picture(1).convert("CMYK")
    for data in (encoded(picture(1)), encoded(grey, "JPEG"), encoded(cmyk, "JPEG"), encoded(picture(1), "WEBP")):
        assert pixels(data, "simplejpeg").shape == (40, 24, 3)


@pytest.fixture
def fresh() -> Any:
    """Forget which decoders were found, before and after."""
    for found in (jpeg._simplejpeg, jpeg._torchvision):
        found.cache_clear()
    yield
    for found in (jpeg._simplejpeg, jpeg._torchvision):
        found.cache_clear()


def test_a_decoder_that_is_missing_is_named(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("simplejpeg", "torchvision", "torchvision.io"):
        monkeypatch.setitem(sys.modules, name, None)
    reference = pixels(GOLDEN, "pil")
    assert np.array_equal(pixels(GOLDEN, "auto"), reference)
    with pytest.raises(ModuleNotFoundError, match="pip install simplejpeg"):
        pixels(GOLDEN, "simplejpeg")
    with pytest.raises(ModuleNotFoundError, match="made for the installed torch .*use decoder: auto"):
        pixels(GOLDEN, "torchvision")


@pytest.mark.parametrize("failure", ["raise RuntimeError('operator torchvision::nms does not exist')", "del missing"])
def test_a_broken_torchvision_troubles_only_who_asks_for_it(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(failure, encoding="utf-8")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert np.array_equal(pixels(GOLDEN, "auto"), pixels(GOLDEN, "pil"))
    with pytest.raises(ModuleNotFoundError, match="decoder: torchvision needs .*(RuntimeError|NameError)"):
        pixels(GOLDEN, "torchvision")


@pytest.mark.parametrize(
    ("size", "at_least", "factor"),
    [
        ((512, 512), None, 1),
        ((512, 512), (257, 1), 1),  # more than half in one side
        ((512, 512), (1, 257), 1),
        ((512, 512), (256, 256), 2),
        ((511, 512), (256, 256), 1),
        ((512, 512), (129, 128), 2),
        ((512, 512), (128, 128), 4),
        ((512, 512), (64, 64), 8),
        ((512, 512), (1, 1), 8),  # never less than an eighth
        ((3, 8), (1, 1), 2),
        ((7, 7), (1, 1), 1),  # less than a block
        ((9, 9), (0, 0), 8),
    ],
)
def test_the_factor_leaves_enough(size: tuple[int, int], at_least: tuple[int, int] | None, factor: int) -> None:
    assert reduction(size, at_least) == factor


@pytest.mark.parametrize("decoder", ["pil", "auto", "simplejpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_picture_is_the_same_picture(decoder: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(7, (163, 251)), "JPEG", exif=exif, quality=95)
    full = decode_pixels(data, decoder=need(decoder))  # type: ignore[arg-type]
    for at_least, factor in (((80, 80), 2), ((40, 40), 4), ((20, 1), 8)):
        enough = at_least if orientation < 5 else at_least[::-1]
        found = decode_pixels(data, decoder=decoder, at_least=enough)  # type: ignore[arg-type]
        assert found.pixels.shape[:2] == tuple(-(-side // factor) for side in full.original_size)
        assert all(side >= least for side, least in zip(found.pixels.shape, enough, strict=False))
        assert found.original_size == full.original_size == ((163, 251) if orientation < 5 else (251, 163))
        small = (20, 30)
        shrunk = [resample(one.pixels, small, box=one.extent).numpy().astype(int) for one in (full, found)]
        assert np.abs(shrunk[0] - shrunk[1]).mean() < 1.5
    wrong_way_round = (80, 125) if orientation >= 5 else (125, 80)
    assert decode_pixels(data, at_least=wrong_way_round).pixels.shape == full.pixels.shape


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_decoders_agree_on_reduced_pictures(subsampling: int) -> None:
    need("simplejpeg")
    for number, size in enumerate([(97, 131), (64, 200), (33, 17), (16, 9), (250, 251), (3, 3), (5, 5), (3, 9)]):
        data = encoded(picture(number, size), "JPEG", subsampling=subsampling, quality=85)
        for factor in (2, 4, 8):
            least = (max(1, size[0] // factor), max(1, size[1] // factor))
            assert np.array_equal(pixels(data, "simplejpeg", at_least=least), pixels(data, "pil", at_least=least))


def test_what_cannot_be_reduced_is_decoded_in_full() -> None:
    for data in (encoded(picture(1, (64, 96))), encoded(picture(1, (64, 96)), "WEBP")):
        assert pixels(data, "auto", at_least=(8, 8)).shape == (64, 96, 3)
    data = encoded(picture(1, (64, 96)), "JPEG")
    assert pixels(data, need("torchvision"), at_least=(8, 8)).shape == (64, 96, 3)


def test_damage_is_found_in_reduced_pictures_too() -> None:
    data = encoded(picture(3, (96, 128)), "JPEG", quality=92)[:-300]
    for decoder in ("pil", "auto"):
        with pytest.raises(SampleError, match="cannot be decoded"):
            pixels(data, decoder, at_least=(24, 32))
