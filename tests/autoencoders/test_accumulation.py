"""A step in parts: who is in which part."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lightning_gen.autoencoders.accumulation import check_accumulate, split_step
from lightning_gen.data.batches import ImageBatch
from lightning_gen.nn.tokens import patchify
from tests.autoencoders.muse.tiny import batch


def test_parts_hold_every_image_once_with_all_that_is_known_about_it() -> None:
    whole = dataclasses.replace(batch(5), crop_top_left=torch.arange(10).view(5, 2))
    pictures = whole.images
    assert isinstance(pictures, torch.Tensor)
    parts = split_step(dataclasses.replace(whole, raw=patchify(pictures, 4)), pictures, 2)
    assert [len(part.batch) for part in parts] == [2, 3] and [part.share for part in parts] == [0.4, 0.6]
    for part in parts:
        assert torch.equal(part.images, pictures[part.rows]) and part.batch.epoch == whole.epoch
        for field in dataclasses.fields(ImageBatch):
            value, own = getattr(whole, field.name), getattr(part.batch, field.name)
            if field.name in ("raw", "epoch") or value is None:
                continue
            expected = value[part.rows]
            assert torch.equal(own, expected) if isinstance(own, torch.Tensor) else own == expected, field.name
    (only,) = split_step(whole, pictures, 1)
    assert only.share == 1 and torch.equal(only.images, pictures)


def test_numbers_of_parts_that_make_no_sense_are_refused() -> None:
    whole = batch(2)
    assert isinstance(whole.images, torch.Tensor)
    with pytest.raises(ValueError, match=r"2 images per process cannot be taken in 3 parts: lower model\.accumulate"):
        split_step(whole, whole.images, 3)
    with pytest.raises(ValueError, match="1 or more, got 0"):
        check_accumulate(0)
