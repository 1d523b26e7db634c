"""Pictures travel as bytes and are floats in [-1, 1] for whoever looks at them."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gen.data.batches import (
    Example,
    ImageBatch,
    PreferenceBatch,
    collate_images,
    patchify_pixels,
    signed_images,
    stack_images,
)
from lightning_gen.data.transforms import uint8_to_signed
from lightning_gen.nn.tokens import Tokens, patchify

WHOLE, RAGGED = [(8, 16), (16, 16), (8, 8)], [(9, 15), (16, 16), (1, 1)]


def picture(size: tuple[int, int], number: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8)


def examples(sizes: list[tuple[int, int]]) -> list[Example]:
    return [Example(picture(size, n), n, n, True, size, f"k{n}") for n, size in enumerate(sizes)]


def stacked() -> ImageBatch:
    return stack_images(examples([(6, 4)] * 3), epoch=0)


def native(sizes: list[tuple[int, int]]) -> ImageBatch:
    return collate_images(examples(sizes), patch=8, length=6, epoch=0)


def bytes_of(batch: ImageBatch) -> Tensor:
    return batch.raw.values if isinstance(batch.raw, Tokens) else batch.raw


def test_stacked_pictures_are_bytes_on_their_way_and_floats_to_the_eye() -> None:
    batch = stacked()
    pixels = torch.stack([one.pixels for one in examples([(6, 4)] * 3)]).permute(0, 3, 1, 2)
    assert torch.equal(bytes_of(batch), pixels) and bytes_of(batch).dtype == torch.uint8
    assert isinstance(batch.images, Tensor) and batch.images.dtype == torch.float32
    assert torch.equal(batch.images, pixels / 127.5 - 1) and batch.images.is_contiguous()


@pytest.mark.parametrize("sizes", [WHOLE, RAGGED])
def test_tokens_are_those_of_patchify_to_the_bit(sizes: list[tuple[int, int]]) -> None:
    batch = native(sizes)
    assert bytes_of(batch).dtype == torch.uint8
    signed = [picture(size, n).permute(2, 0, 1) / 127.5 - 1 for n, size in enumerate(sizes)]
    expected = patchify(signed, 8, 6).values
    assert isinstance(batch.images, Tokens) and batch.images.values.is_contiguous()
    # As integers: -0 is another number than 0.
    assert torch.equal(batch.images.values.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("batch", [stacked(), native(RAGGED)])
def test_a_batch_that_was_looked_at_still_travels_as_bytes(batch: ImageBatch) -> None:
    seen = batch.images
    assert batch.images is seen, "converted once"
    for other in (batch.to("cpu"), dataclasses.replace(batch, epoch=1), pickle.loads(pickle.dumps(batch))):
        assert bytes_of(other).dtype == torch.uint8
    meta = batch.to("meta")
    assert bytes_of(meta).dtype == torch.uint8 and bytes_of(meta).is_meta
    # Nothing may ask the device for a number, which the meta device has not got and a GPU would have to be waited for.
    values = meta.images.values if isinstance(meta.images, Tokens) else meta.images
    assert values.is_meta and values.dtype == torch.float32


def test_both_pictures_of_a_pair_travel_as_bytes() -> None:
    one = torch.ones(3)
    pair = PreferenceBatch(stacked(), native(WHOLE), one, one, one, (("a", "b"),) * 3)
    assert pair.winner.images is not None
    moved = pair.to("meta")
    assert {bytes_of(side).dtype for side in (moved.winner, moved.loser)} == {torch.uint8}
    assert all(bytes_of(side).is_meta for side in (moved.winner, moved.loser))


def test_floats_stay_as_they_are() -> None:
    tokens = patchify([torch.rand(3, 8, 8)], 4)
    assert signed_images(tokens) is tokens
    floats = torch.rand(2, 3, 4, 4)
    assert dataclasses.replace(stacked(), raw=floats).images is floats


@pytest.mark.parametrize("make", [stacked, lambda: native(RAGGED), lambda: native(WHOLE)])
def test_a_look_in_inference_mode_does_not_spoil_a_batch_for_training(make: Any) -> None:
    weight = torch.ones((), requires_grad=True)
    with torch.inference_mode():
        batch = make().to("cpu")
        assert batch.images is not None
    values = batch.images.values if isinstance(batch.images, Tokens) else batch.images
    (weight * values).sum().backward()
    assert weight.grad is not None and torch.allclose(weight.grad, values.sum())


class _Divisors(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "div" in str(func) or "mul" in str(func):
            self.seen.append(args[1])
        return func(*args, **(kwargs or {}))


def test_every_device_gives_the_same_floats() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    expected = levels / 127.5 - 1
    by_reciprocal = levels.float() * (1 / torch.tensor(127.5)) - 1
    assert int((by_reciprocal != expected).sum()) == 111, "what a GPU makes of a plain number as the divisor"
    with _Divisors() as divisors:
        uint8_to_signed(levels.to("meta"))
    assert [isinstance(one, Tensor) and one.device.type for one in divisors.seen] == ["meta"]
    assert torch.equal(uint8_to_signed(levels), expected)
    if torch.cuda.is_available():
        assert torch.equal(uint8_to_signed(levels.cuda()).cpu(), expected)


def test_bytes_of_padding_are_nought() -> None:
    """So that a batch is the same bytes in every run, and grey comes out where nothing is."""
    raw = patchify_pixels([picture(size, n).clamp(min=1) for n, size in enumerate(RAGGED)], 8, 6)
    outside = patchify([torch.ones(3, *size) for size in RAGGED], 8, 6).values == 0
    assert torch.equal(raw.values == 0, outside)
