"""The recipe for native resolution: fast paths change the pixels a little and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_gen.data.batches import Example
from lightning_gen.data.dataset import Place, Request
from lightning_gen.data.native import NativeRecipe
from lightning_gen.data.sources import Stored
from lightning_gen.data.transforms import Augmentation
from tests.data.samples import encoded, picture

SIZE = (250, 333)


def example(recipe: NativeRecipe, data: bytes, number: int = 0, tokens: int = 16) -> Example:
    draws = recipe.draws(0, 0, [number])
    place = Place(Request(number, 0, tokens, tokens, True), number, "k", True, None if draws is None else draws[0])
    made = recipe.example(Stored(data, 3, "text"), place)
    assert made is not None
    return made


def recipe(**options: Any) -> NativeRecipe:
    return NativeRecipe(8, **options)


@pytest.fixture(scope="module")
def data() -> bytes:
    return encoded(picture(7, SIZE), "JPEG", quality=95)


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sizes that are good enough, as the recipe asks the decoder for them."""
    import lightning_gen.data.native as module

    asked, decode = [], module.decode_pixels

    def spy(data: bytes, limit: int, decoder: Any, at_least: Any) -> Any:
        asked.append(at_least)
        return decode(data, limit, decoder, at_least)

    monkeypatch.setattr(module, "decode_pixels", spy)
    return asked


def test_pictures_are_decoded_in_full_unless_asked_otherwise(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_for(monkeypatch)
    example(recipe(), data)
    small = example(recipe(dct_scaling=True), data)
    assert asked == [None, tuple(small.pixels.shape[:2])]


@pytest.mark.parametrize("resampler", ["pil", "torch"])
@pytest.mark.parametrize("augmentation", [None, Augmentation(1.0, 0.5), Augmentation(0.0, 1.0)])
def test_fast_paths_change_the_pixels_a_little(
    data: bytes, monkeypatch: pytest.MonkeyPatch, resampler: Any, augmentation: Augmentation | None
) -> None:
    asked = asked_for(monkeypatch)
    for number in range(6):
        reference = example(recipe(augmentation=augmentation), data, number)
        fast = example(recipe(augmentation=augmentation, resampler=resampler, dct_scaling=True), data, number)
        assert fast.original_size == reference.original_size == SIZE
        assert fast.pixels.shape == reference.pixels.shape
        apart = np.abs(fast.pixels.numpy().astype(int) - reference.pixels.numpy())
        assert apart.mean() < 5 and (apart > 0).any()
        assert all(side >= least for side, least in zip(asked[-1], fast.pixels.shape, strict=False))


def test_the_resampler_is_the_one_asked_for(data: bytes) -> None:
    pil, torch = example(recipe(), data), example(recipe(resampler="torch"), data)
    apart = np.abs(pil.pixels.numpy().astype(int) - torch.pixels.numpy())
    assert apart.sum() > 0 and apart.max() <= 1


def test_a_picture_inside_the_budget_is_not_touched() -> None:
    image = picture(4, (24, 30))
    for options in ({}, {"resampler": "torch", "dct_scaling": True}):
        assert np.array_equal(example(recipe(**options), encoded(image)).pixels, image)
