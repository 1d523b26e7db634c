"""What serves a request, and what stands in where a sample is bad."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gen.data.dataset import Place, Request, SampleDataset
from lightning_gen.data.pixels import Framing, PixelRecipe
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import PictureFields, ShardSource
from lightning_gen.data.writing import write_shards
from tests.data.samples import sample

BAD = (5, 11, 30, 35)


def test_a_replacement_has_the_random_numbers_of_its_own_place(tmp_path: Path) -> None:
    """Not those of the sample it stands for: it must look as it would look anywhere in this pass."""
    pairs = [(sample(n)[0], {"png": b"nothing"} if n in BAD else sample(n)[1]) for n in range(42)]
    manifest = write_shards(pairs, tmp_path)
    places: list[Place] = []

    @dataclasses.dataclass(frozen=True)
    class Watched(PixelRecipe):
        def example(self, stored: Any, place: Place) -> Any:
            made = super().example(stored, place)
            places.append(place)
            return made

    recipe = Watched(Framing(True, 0.5), True)
    dataset = SampleDataset(ShardSource(IndexedShards(manifest), PictureFields()), recipe, 3)
    for index in BAD:
        dataset[Request(index, 2, 256, 256, True, (16, 16))]
    assert len(places) == len(BAD) and all(place.replaces for place in places)
    for place in places:
        own = recipe.draws(3, 2, [place.index])
        assert own is not None and place.draws is not None and np.array_equal(place.draws, own[0])
