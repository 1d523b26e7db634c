"""Pictures of any sizes through an auto-encoder on maps, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.nn.latent_maps import by_shape, fill_up, latents_of_pictures, pictures_of_latents, require_latents

SIZES = ((8, 8), (6, 12), (8, 8), (12, 4))


def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) * 2 - 1 for size in SIZES]


def encode(batch: Tensor, places: Tensor) -> Tensor:
    return F.pixel_unshuffle(fill_up(batch, 4), 4)


def test_pictures_come_back_in_their_order_and_size() -> None:
    seen: list[list[int]] = []

    def watched(batch: Tensor, places: Tensor) -> Tensor:
        seen.append(places.tolist())
        return encode(batch, places)

    latents = latents_of_pictures(pictures(), 4, watched)
    assert sorted(seen) == [[0, 2], [1], [3]]
    assert latents.patch == 4 and latents.sizes.tolist() == [list(size) for size in SIZES]
    assert latents.grid.tolist() == [[2, 2], [2, 3], [2, 2], [3, 1]] and latents.values.shape == (4, 6, 48)
    back = pictures_of_latents(latents, lambda maps: F.pixel_shuffle(maps, 4))
    assert isinstance(back, list)
    assert all(torch.equal(one, other) for one, other in zip(back, pictures(), strict=True))


def test_pictures_of_one_size_are_one_tensor() -> None:
    same = [pictures()[0], pictures()[2]]
    back = pictures_of_latents(latents_of_pictures(same, 4, encode), lambda maps: F.pixel_shuffle(maps, 4))
    assert isinstance(back, Tensor) and torch.equal(back, torch.stack(same))


def test_filled_up_is_grey_below_and_to_the_right() -> None:
    picture = torch.ones(1, 3, 5, 8)
    filled = fill_up(picture, 4)
    assert filled.shape == (1, 3, 8, 8) and torch.equal(filled[:, :, :5], picture) and not filled[:, :, 5:].any()
    assert fill_up(filled, 4).shape == filled.shape


def test_results_keep_the_order_of_what_was_given() -> None:
    numbers = [torch.full((size,), float(place)) for place, size in enumerate((2, 3, 2, 3, 1))]
    found = by_shape(numbers, lambda batch, places: batch.sum(1) + 100 * places)
    assert [float(one) for one in found] == [0, 103, 204, 309, 404]


def test_latents_of_another_model_are_refused() -> None:
    latents = latents_of_pictures(pictures(), 4, encode)
    require_latents(latents, 4, 48, "this model")
    for patch, channels in ((8, 48), (4, 47)):
        with pytest.raises(ValueError, match="48 channels and 4 pixels per token are not those of this model"):
            require_latents(latents, patch, channels, "this model")
