"""Maps of drawn scenes are those that the exact detector reads out of the picture."""

from __future__ import annotations

import pytest
import torch

from lightning_gen.shapes.detector import find_objects
from lightning_gen.shapes.scene import Scene
from lightning_gen.shapes.segments import ShapesSegments, segment_map
from lightning_gen.shapes.vocabulary import KINDS


def test_maps_agree_with_the_detector() -> None:
    pictures = ShapesSegments(12)
    for number in range(len(pictures)):
        image, segments = pictures.read(number, 64)
        assert segments.unique().tolist() == list(range(1, int(segments.max()) + 1)) and int(segments.max()) >= 2
        [objects] = find_objects(((image + 1) / 2)[None])
        assert len(objects) == int(segments.max()) - 1
        found = torch.stack([one.mask for one in objects])
        # Soft edges: the detector's masks reach up to a pixel further.
        for label in range(2, int(segments.max()) + 1):
            mine = segments == label
            overlap = max(float((mine & one).sum() / (mine | one).sum()) for one in found)
            assert overlap > 0.7 and any(bool((one | ~mine).all()) for one in found)


def test_maps_by_kind_give_every_object_the_number_of_its_kind() -> None:
    objects, kinds = ShapesSegments(6, seed=1), ShapesSegments(6, seed=1, numbered="kinds")
    for number in range(6):
        image, by_object = objects.read(number, 64)
        same, by_kind = kinds.read(number, 64)
        assert torch.equal(image, same) and torch.equal(by_object == 1, by_kind == 1)
        [seen] = find_objects(((image + 1) / 2)[None])
        wanted = sorted(KINDS.index(one.kind) + 2 for one in seen)
        parts = [by_kind[by_object == label].unique().tolist() for label in range(2, int(by_object.max()) + 1)]
        assert all(len(part) == 1 for part in parts) and sorted(part[0] for part in parts) == wanted
    with pytest.raises(ValueError, match="objects or kinds"):
        ShapesSegments(numbered="colors")  # type: ignore[arg-type]


def test_the_same_number_is_the_same_scene_at_every_size() -> None:
    pictures = ShapesSegments(4, seed=3)
    small, large = pictures.read(2, 32)[1], pictures.read(2, 64)[1]
    assert (small == large[::2, ::2]).double().mean() > 0.9
    with pytest.raises(IndexError, match="picture 4 of 4"):
        pictures.read(4, 32)
    word = Scene(objects=(), background="gray", word="HI", word_color="red")
    with pytest.raises(ValueError, match="only objects have segments"):
        segment_map(word, (32, 32))
