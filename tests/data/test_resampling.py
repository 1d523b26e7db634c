"""Both resamplers against PIL itself, and crops of pictures decoded in full or at a fraction of their size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.data.decode import DecodedPicture, decode_pixels
from lightning_gen.data.resampling import Crop, resample
from tests.data.samples import encoded, picture

BOTH = pytest.mark.parametrize("resampler", ["pil", "torch"])


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def whole(pixels: np.ndarray) -> DecodedPicture:
    height, width = pixels.shape[:2]
    return DecodedPicture(pixels, (height, width), (0, 0, width, height))


def levels(first: Any, second: Any) -> np.ndarray:
    return np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int))


@pytest.mark.parametrize("size", [(31, 50), (60, 80), (7, 9), (90, 130), (1, 1)])
def test_pil_is_pil(size: tuple[int, int]) -> None:
    pixels, box = noise((60, 80)), (3.0, 4.5, 71.25, 50.0)
    image = Image.fromarray(pixels)
    found = resample(pixels, size)
    assert found.shape == (*size, 3) and found.dtype == torch.uint8 and found.is_contiguous()
    assert np.array_equal(found, image.resize(size[::-1], Image.Resampling.BICUBIC))
    lanczos = image.resize(size[::-1], Image.Resampling.LANCZOS, box)
    assert np.array_equal(resample(pixels, size, "pil", box, "lanczos"), lanczos)


@pytest.mark.parametrize("size", [(31, 50), (59, 80), (7, 9), (90, 130), (60, 40)])
def test_torch_stays_within_two_levels_of_pil(size: tuple[int, int]) -> None:
    for pixels in (noise((60, 80)), np.array(picture(3, (60, 80)))):
        found = resample(pixels, size, "torch")
        assert found.shape == (*size, 3) and found.dtype == torch.uint8 and found.is_contiguous()
        apart = levels(found, resample(pixels, size, "pil"))
        assert apart.max() <= 2 and apart.mean() < 0.02
        planes = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
        public = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
        assert torch.equal(found, public[0].permute(1, 2, 0))


def test_torch_resamples_rows_first() -> None:
    """Pillow from some version on begins with the columns where that is less work, which rounds elsewhere."""
    pixels, size = noise((168, 55)), (25, 62)
    image = Image.fromarray(pixels)
    rows = image.resize((size[1], 168), Image.Resampling.BICUBIC).resize(size[::-1], Image.Resampling.BICUBIC)
    found = resample(pixels, size, "torch")
    assert levels(found, rows).max() <= 2
    assert levels(found, resample(pixels, size, "pil")).mean() < 0.5


def test_torch_gets_the_layout_of_its_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    operator = torch.ops.aten._upsample_bicubic2d_aa

    class Spy:
        _upsample_bicubic2d_aa = staticmethod(lambda x, *rest: seen.append(x) or operator(x, *rest))

    monkeypatch.setattr(torch.ops, "aten", Spy)
    resample(noise((60, 80)), (30, 40), "torch", (5, 6, 70, 50))
    assert seen[0].shape == (1, 3, 44, 65) and seen[0].is_contiguous(memory_format=torch.channels_last)
    # Torch looks at the strides, where those of a batch of one picture may say anything.
    assert seen[0].stride() == (44 * 65 * 3, 1, 65 * 3, 3)


@BOTH
def test_nothing_is_done_where_nothing_is_to_be_done(resampler: Any) -> None:
    pixels = noise((12, 15))
    assert resample(pixels, (12, 15), resampler).data_ptr() == pixels.ctypes.data
    assert np.array_equal(resample(pixels, (12, 15), resampler, (0, 0, 15, 12)), pixels)


@BOTH
def test_a_box_of_its_own_size_is_cut_out(resampler: Any) -> None:
    pixels = noise((64, 64))
    part = Crop((8, 16, 40, 48)).apply(whole(pixels), (32, 32), resampler)
    assert np.array_equal(part, pixels[16:48, 8:40])
    mirrored = Crop((8, 16, 40, 48), flip=True).apply(whole(pixels), (32, 32), resampler)
    assert np.array_equal(mirrored, pixels[16:48, 8:40][:, ::-1])
    assert np.array_equal(Crop(flip=True).apply(whole(pixels), (64, 64), resampler), pixels[:, ::-1])


@BOTH
def test_mirror_and_resampling_commute(resampler: Any) -> None:
    pixels = noise((57, 83))
    flipped = np.ascontiguousarray(pixels[:, ::-1])
    late = Crop(flip=True).apply(whole(pixels), (31, 40), resampler)
    assert np.array_equal(late, resample(flipped, (31, 40), resampler))


def test_a_part_is_resampled_by_lanczos_and_the_whole_bicubically() -> None:
    pixels = noise((60, 80))
    image = Image.fromarray(pixels)
    part = image.resize((20, 20), Image.Resampling.LANCZOS, (10, 5, 70, 55))
    assert np.array_equal(Crop((10, 5, 70, 55), (20, 20)).apply(whole(pixels), (20, 20)), part)
    assert np.array_equal(Crop().apply(whole(pixels), (20, 20)), image.resize((20, 20), Image.Resampling.BICUBIC))


@BOTH
def test_a_part_shows_the_same_place_at_a_fraction_of_the_size(resampler: Any) -> None:
    """251 pixels at an eighth are 31.375: a box that took them for 32 would be two per cent off at the right edge."""
    exif = Image.Exif()
    for orientation in (1, 2, 3, 6):
        exif[0x0112] = orientation
        data = encoded(picture(7, (165, 251)), "JPEG", quality=97, exif=exif)
        full = decode_pixels(data)
        crop = Crop((20, 30, 140, 150))
        for piece, size in ((crop, (20, 20)), (Crop(), (20, 20))):
            small = decode_pixels(data, at_least=piece.at_least(full.original_size, size))
            assert small.pixels.shape[0] * 4 <= full.pixels.shape[0] + 3
            apart = levels(piece.apply(small, size, resampler), piece.apply(full, size, resampler))
            # Torch rounds the left upper corner to a whole pixel, which is an eighth or a quarter of a pixel off there.
            exact = resampler == "pil" or (piece is not crop and orientation == 1)
            assert apart.mean() < (1 if exact else 10)


def test_a_part_still_has_the_pixels_it_needs() -> None:
    assert Crop().at_least((400, 600), (30, 40)) == (30, 40)
    # 120 of 600 columns become 40, so all of them must be at least 200; 100 of 400 rows become 30.
    assert Crop((60, 10, 180, 110)).at_least((400, 600), (30, 40)) == (120, 200)
    assert Crop((0, 0, 7, 7)).at_least((10, 10), (5, 5)) == (8, 8)


@BOTH
def test_a_picture_that_counts_as_of_another_size_is_used_to_its_edge(resampler: Any) -> None:
    """The target of an edit pair counts as being of the source's size; 29 / 7 * 7 is more than 29 in binary."""
    assert 29 / 7 * 7 > 29
    pixels = noise((29, 29))
    other = whole(pixels)._replace(original_size=(7, 7))
    assert torch.equal(Crop().apply(other, (12, 12), resampler), resample(pixels, (12, 12), resampler))


def test_an_unknown_resampler_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown resampler 'cv2': choose pil or torch"):
        resample(noise((8, 8)), (4, 4), "cv2")  # type: ignore[arg-type]
