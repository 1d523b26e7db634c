"""Every protocol's resize against its definition, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.metrics.extraction.resizing import inception_input, resize_clean, resize_tf1

MODES = ["tf1", "clean", "torch", "antialias", "vitok_release"]


def picture(height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_a_ramp_is_sampled_without_half_pixel_centres() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 2, 8)
    wanted = torch.tensor([min(i * 8 / 13, 7) for i in range(13)])
    assert torch.allclose(resize_tf1(ramp, (2, 13))[0, 0, 0], wanted, atol=1e-6)
    assert torch.allclose(resize_tf1(ramp.mT, (13, 2))[0, 0, :, 0], wanted, atol=1e-6)
    half = F.interpolate(ramp, size=(2, 13), mode="bilinear", align_corners=False)[0, 0, 0]
    assert float((half - wanted)[1].abs()) == pytest.approx(0.19, abs=0.01)


@pytest.mark.parametrize(("old", "new"), [((5, 7), (13, 4)), ((31, 2), (3, 9)), ((1, 1), (4, 4))])
def test_bilinear_of_the_first_tensorflow_pixel_by_pixel(old: tuple[int, int], new: tuple[int, int]) -> None:
    image = torch.rand(1, 1, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = resize_tf1(image, new)[0, 0]
    for y in range(new[0]):
        for x in range(new[1]):
            v, u = y * old[0] / new[0], x * old[1] / new[1]
            top, left = math.floor(v), math.floor(u)
            bottom, right = min(top + 1, old[0] - 1), min(left + 1, old[1] - 1)
            corner = image[0, 0]
            upper = corner[top, left] * (1 - (u - left)) + corner[top, right] * (u - left)
            lower = corner[bottom, left] * (1 - (u - left)) + corner[bottom, right] * (u - left)
            assert float(found[y, x]) == pytest.approx(float(upper * (1 - (v - top)) + lower * (v - top)), abs=1e-6)


def test_a_picture_of_299_pixels_is_left_alone() -> None:
    exact = picture(299, 299)[None].float()
    assert torch.equal(resize_tf1(exact, (299, 299)), exact)
    assert torch.equal(resize_clean(exact, (299, 299)), exact)
    for mode in ("antialias", "torch"):
        assert torch.allclose(inception_input([picture(299, 299)], mode), exact / 127.5 - 1, atol=0.01)


def test_pillow_resizes_in_floating_point_and_is_clipped() -> None:
    image = picture()
    found = resize_clean(image[None].float(), (299, 200))[0]
    plane = Image.fromarray(image[1].float().numpy(), mode="F").resize((200, 299), Image.Resampling.BICUBIC)
    unclipped = torch.from_numpy(np.array(plane))
    assert float(unclipped.min()) < -1 and float(unclipped.max()) > 256
    assert torch.equal(found[1], unclipped.clamp(0, 255))
    assert float((found - found.round()).abs().max()) > 0.4


def test_every_protocol_has_its_own_range_of_values() -> None:
    flat = torch.full((1, 3, 20, 30), 200, dtype=torch.uint8)
    wanted = dict.fromkeys(("tf1", "clean", "antialias"), (200 - 128) / 128)
    wanted |= {"torch": 2 * 200 / 255 - 1, "vitok_release": 200 / 255}
    for mode in MODES:
        found = inception_input(flat, mode)  # type: ignore[arg-type]
        assert found.shape == (1, 3, 299, 299)
        assert torch.allclose(found, torch.full_like(found, wanted[mode]), atol=1e-6), mode


def test_only_some_protocols_antialias() -> None:
    """Every fourth column is white and four columns become one: a filter that averages sees a quarter of the light."""
    stripes = torch.zeros(1, 3, 1196, 1196, dtype=torch.uint8)
    stripes[..., ::4] = 255
    quarter = (255 / 4 - 128) / 128
    wanted = {"tf1": 127 / 128, "torch": -1.0, "clean": quarter, "antialias": quarter, "vitok_release": 1 / 4}
    for mode in MODES:
        inner = inception_input(stripes, mode)[0, 0, 9:-9, 9:-9]  # type: ignore[arg-type]
        assert torch.allclose(inner, torch.tensor(wanted[mode]), atol=1e-4), mode


def test_half_pixel_bilinear_at_a_point() -> None:
    image = picture()
    u, v = (100.5 * 56 / 299 - 0.5), (50.5 * 40 / 299 - 0.5)
    left, top = math.floor(u), math.floor(v)
    corner = image[0, top : top + 2, left : left + 2].double()
    along = corner[:, 0] + (corner[:, 1] - corner[:, 0]) * (u - left)
    wanted = 2 * float(along[0] + (along[1] - along[0]) * (v - top)) / 255 - 1
    assert float(inception_input([image], "torch", torch.float64)[0, 0, 50, 100]) == pytest.approx(wanted, abs=1e-9)
    upscaled = inception_input([image], "antialias", torch.float64)
    assert torch.allclose(upscaled * 128 + 128, (inception_input([image], "torch", torch.float64) + 1) * 127.5)


def test_all_protocols_differ() -> None:
    inputs = [inception_input([picture(333, 320)], mode) for mode in MODES]  # type: ignore[arg-type]
    for i, first in enumerate(inputs):
        for second in inputs[i + 1 :]:
            assert float((first - second).abs().mean()) > 0.01


@pytest.mark.parametrize("mode", MODES)
def test_a_list_of_sizes_is_resized_one_by_one(mode: str) -> None:
    pictures = [picture(20, 31), picture(301, 17, 1), picture(20, 31, 2)]
    together = inception_input(pictures, mode)  # type: ignore[arg-type]
    for image, found in zip(pictures, together, strict=True):
        assert torch.equal(inception_input(image[None], mode)[0], found)  # type: ignore[arg-type]
    batch = torch.stack([pictures[0], pictures[2]])
    assert torch.allclose(inception_input(batch, mode), together[[0, 2]], atol=1e-6)  # type: ignore[arg-type]
    exact = inception_input(pictures, mode, torch.float64)  # type: ignore[arg-type]
    assert exact.dtype == torch.float64
    assert torch.allclose(exact.float(), together, atol=1e-3)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match="'bicubic': choose one of tf1, clean, torch, antialias, vitok_release"):
        inception_input([picture()], "bicubic")  # type: ignore[arg-type]
