"""Pixel ranges, the token budget and the augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lightning_gen.data import transforms as T
from lightning_gen.data.transforms import Augmentation, resize_to_budget, token_count
from tests.data.samples import picture


def test_every_byte_survives_every_conversion() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(T.signed_to_uint8(T.uint8_to_signed(bytes_)), bytes_)
    assert torch.equal(T.unit_to_uint8(T.uint8_to_unit(bytes_)), bytes_)
    assert torch.equal(T.unit_to_uint8(T.signed_to_unit(T.uint8_to_signed(bytes_))), bytes_)
    assert torch.equal(T.signed_to_uint8(T.unit_to_signed(T.uint8_to_unit(bytes_))), bytes_)


@pytest.mark.parametrize("convert", [T.signed_to_uint8, T.unit_to_uint8])
def test_what_is_no_pixel_becomes_no_picture(convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
    good = torch.tensor([[0.1, 0.9], [0.5, 0.2]])
    for value in (math.nan, math.inf, -math.inf):
        for dtype in (torch.float32, torch.bfloat16):
            bad = good.to(dtype)
            bad[1, 0] = value
            with pytest.raises(ValueError, match=f"{convert.__name__}: a pixel is NaN or infinite"):
                convert(bad)
    with pytest.raises(ValueError, match=r"pixels from 0 to 200, expected .*levels of 0..255: .*uint8"):
        convert(torch.tensor([0.0, 7.0, 200.0]))
    overshoot = torch.tensor([-4.0, 0.3, 200.0])
    assert convert(overshoot)[[0, 2]].tolist() == [0, 255], "a network overshoots at both ends"
    assert convert(torch.zeros(0, 3)).shape == (0, 3)


def test_ends_and_middle_of_the_ranges() -> None:
    signed = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    assert T.signed_to_unit(signed).tolist() == [0, 0, 0.5, 1, 1]
    assert T.signed_to_uint8(signed).tolist() == [0, 0, 128, 255, 255]
    assert T.uint8_to_signed(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([-1, -0.6, 1])
    image = T.from_picture(picture(0))
    assert image.shape == (3, 24, 40)
    assert image[1, 5, 7] == pytest.approx(np.asarray(picture(0))[5, 7, 1] / 127.5 - 1)


def random_case(rng: np.random.Generator) -> tuple[tuple[int, int], int, int]:
    size = (int(2 ** rng.uniform(0, 13)), int(2 ** rng.uniform(0, 13)))
    return size, int(rng.choice([1, 2, 4, 8, 14, 16, 32])), int(rng.choice([1, 4, 64, 100, 256, 1024]))


def test_budget_on_ten_thousand_random_sizes() -> None:
    from timm.data.naflex_transforms import get_image_size_for_seq

    rng = np.random.default_rng(0)
    cases = [random_case(rng) for _ in range(10_000)] + [((17, 4096), 16, 64), ((4096, 17), 16, 64)]
    compared = 0
    for size, patch, tokens in cases:
        new = resize_to_budget(size, patch, tokens)
        assert token_count(new, patch) <= tokens, (size, patch, tokens, new)
        assert 1 <= new[0] <= size[0]
        assert 1 <= new[1] <= size[1]
        if token_count(size, patch) <= tokens:
            assert new == size
            continue
        grid = [-(-side // patch) for side in new]
        if min(grid) >= 8:
            assert abs(math.log(new[0] / new[1]) - math.log(size[0] / size[1])) < 0.14
        timm = get_image_size_for_seq(size, patch, tokens, max_ratio=1.0)[1]
        assert new == (min(timm[0], size[0]), min(timm[1], size[1]))
        compared += 1
    assert compared > 3000


def test_known_budgets() -> None:
    assert resize_to_budget((512, 384), 16, 256) == (288, 224)  # 252 tokens
    assert resize_to_budget((512, 384), 16, 256, "vitok_release") == (288, 208)  # 234 tokens
    assert resize_to_budget((100, 100), 16, 256) == (100, 100)
    assert resize_to_budget((512, 512), 16, 256) == (256, 256)
    assert resize_to_budget((17, 4096), 16, 64) == (16, 1024)
    assert resize_to_budget((5, 4096), 16, 64) == (5, 1024)
    with pytest.raises(ValueError, match=r"17 x 4096 pixels into 1 x 90 = 90 tokens, over the budget of 64"):
        resize_to_budget((17, 4096), 16, 64, "vitok_release")
    with pytest.raises(ValueError, match="at least 1"):
        resize_to_budget((0, 5), 16, 64)
    with pytest.raises(ValueError, match="unknown budget rule"):
        resize_to_budget((500, 500), 16, 64, "other")  # type: ignore[arg-type]


def test_budget_of_absurdly_long_pictures() -> None:
    for size in ((1, 300_000_000), (300_000_000, 1)):
        assert token_count(resize_to_budget(size, 1, 64), 1) <= 64


def test_augmentation_has_the_papers_frequencies_and_ranges() -> None:
    augmentation = Augmentation()
    draws = augmentation.draws(0, 0, range(8000))
    crops = [augmentation.plan((300, 400), 256, row) for row in draws]
    assert np.mean([crop.flip for crop in crops]) == pytest.approx(0.5, abs=0.02)
    cropped = [crop for crop in crops if crop.box is not None]
    assert len(cropped) / 8000 == pytest.approx(0.25, abs=0.02)
    boxes = np.array([crop.box for crop in cropped])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 400
    assert boxes[:, 3].max() <= 300
    area = width * height / (300 * 400)
    assert 0.79 < area.min() < 0.82
    assert area.max() > 0.97
    ratio = width / height
    assert ratio.min() >= 0.74
    assert ratio.max() <= 1.35
    assert {crop.size for crop in cropped} == {(256, 256)}


def test_augmentation_depends_on_the_sample_alone() -> None:
    augmentation = Augmentation(1.0, 0.5)
    together = augmentation.draws(3, 5, [7, 8, 9])
    assert np.array_equal(together[1], augmentation.draws(3, 5, [8])[0])
    for other in (augmentation.draws(4, 5, [8]), augmentation.draws(3, 6, [8]), augmentation.draws(3, 5, [9])):
        assert not np.array_equal(together[1], other[0])
    torch.manual_seed(1)
    np.random.seed(1)
    assert np.array_equal(together, augmentation.draws(3, 5, [7, 8, 9]))


def test_crop_is_the_crop_it_says_and_never_enlarges() -> None:
    augmentation = Augmentation(1.0, 0.0)
    for size in ((20, 31), (5, 300), (300, 5), (1, 1)):
        crop = augmentation.plan(size, 256, augmentation.draws(0, 0, [size[0]])[0])
        assert crop.box is not None
        assert crop.size is not None
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]
        assert crop.size[0] <= min(bottom - top, right - left)
