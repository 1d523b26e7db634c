"""Patches, packing and their inverses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils import _pytree as pytree

from lightning_gen.nn.tokens import Tokens, join_images, pack, pad_to, patchify, split_images, unpack, unpatchify

SIZES = [(11, 13), (16, 8), (5, 29), (4, 4), (9, 13)]


def images(sizes: list[tuple[int, int]] = SIZES, channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(channels, *size, generator=generator) for size in sizes]


def assert_same(a: Tokens, b: Tokens) -> None:
    for field in dataclasses.fields(Tokens):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, field.name


def test_patch_vectors_are_channel_row_column() -> None:
    image = torch.arange(2 * 8 * 12, dtype=torch.float32).view(2, 8, 12)
    tokens = patchify([image], 4)
    assert tokens.values.shape == (1, 6, 32)
    for token, (r, k) in enumerate([(r, k) for r in range(2) for k in range(3)]):
        assert (tokens.row[0, token], tokens.col[0, token]) == (r, k)
        for c, i, j in [(0, 0, 0), (0, 1, 2), (1, 3, 0), (1, 2, 3)]:
            assert tokens.values[0, token, c * 16 + i * 4 + j] == image[c, r * 4 + i, k * 4 + j]


def test_patches_are_those_of_unfold() -> None:
    image = torch.randn(2, 3, 12, 20)
    assert torch.equal(patchify(image, 4).values, torch.nn.functional.unfold(image, 4, stride=4).transpose(1, 2))


def test_padding_is_grey_at_the_bottom_and_the_right() -> None:
    tokens = patchify([torch.ones(1, 5, 6)], 4)
    blocks = tokens.values.view(2, 2, 4, 4)
    assert blocks[0, 0].eq(1).all()
    assert blocks[0, 1, :, :2].eq(1).all() and blocks[0, 1, :, 2:].eq(0).all()
    assert blocks[1, 0, :1].eq(1).all() and blocks[1, 0, 1:].eq(0).all()


@pytest.mark.parametrize("length", [None, 20, 40])
def test_round_trip_is_exact_on_any_size(length: int | None) -> None:
    given = images()
    tokens = patchify(given, 4, length)
    assert tokens.mask.sum(1).tolist() == [12, 8, 16, 1, 12]
    for back, image in zip(unpatchify(tokens), given, strict=True):
        assert torch.equal(back, image)


def test_padding_garbage_does_not_reach_the_first_patch() -> None:
    given = images([(11, 13), (4, 4)])
    tokens = patchify(given, 4, length=16)
    garbage = torch.where(tokens.mask[..., None], tokens.values, 1e6)
    for back, image in zip(unpatchify(tokens.with_values(garbage)), given, strict=True):
        assert torch.equal(back, image)


def test_order_of_tokens_does_not_matter() -> None:
    given = images()
    tokens = patchify(given, 4)
    order = torch.randperm(tokens.values.shape[1], generator=torch.Generator().manual_seed(1))
    shuffled = dataclasses.replace(
        tokens, **{name: getattr(tokens, name)[:, order] for name in ("values", "mask", "row", "col", "image")}
    )
    for variant in (shuffled, pack(shuffled)):
        for back, image in zip(unpatchify(variant), given, strict=True):
            assert torch.equal(back, image)


@pytest.mark.parametrize("length", [None, 16, 20, 37])
def test_pack_and_unpack_are_inverse(length: int | None) -> None:
    tokens = patchify(images(), 4, length=18)
    packed = pack(tokens, length)
    assert packed.mask.sum() == tokens.mask.sum()
    assert_same(unpack(packed, 18), tokens)
    for back, image in zip(unpatchify(packed), images(), strict=True):
        assert torch.equal(back, image)


def test_packing_wastes_nothing_and_keeps_images_together() -> None:
    packed = pack(patchify(images(), 4, length=40))
    assert packed.values.shape[0] == 1 and bool(packed.mask.all())
    changes = (packed.image[0, 1:] != packed.image[0, :-1]).sum()
    assert changes == len(SIZES) - 1
    counts = torch.bincount(packed.image[0])
    assert counts[packed.image[0].unique_consecutive()].tolist() == sorted(counts.tolist(), reverse=True)


def test_split_and_join_are_inverse() -> None:
    tokens = patchify(images(), 4)
    single = split_images(pack(tokens))
    assert [one.values.shape[:2] for one in single] == [(1, 12), (1, 8), (1, 16), (1, 1), (1, 12)]
    assert all(bool(one.mask.all()) and one.num_images == 1 for one in single)
    assert_same(unpack(join_images(single)), tokens)


def test_gradients_pass_through_packing_and_back() -> None:
    tokens = patchify(images(), 4)
    values = tokens.values.clone().requires_grad_()
    loss = sum(image.square().sum() for image in unpatchify(unpack(pack(tokens.with_values(values)))))
    loss.backward()
    inside = patchify([torch.ones_like(image) for image in images()], 4).values
    assert torch.equal(values.grad, 2 * values.detach() * inside)


def test_trees_see_the_tensors_inside() -> None:
    tokens = patchify(images(), 4)
    leaves, spec = pytree.tree_flatten({"x": tokens})
    assert any(leaf is tokens.values for leaf in leaves)
    assert_same(pytree.tree_unflatten(leaves, spec)["x"], tokens)
    assert_same(tokens.to("cpu"), tokens)


def test_impossible_requests_are_refused() -> None:
    tokens = patchify(images(), 4)
    with pytest.raises(ValueError, match="needs 12 tokens of 4 x 4 pixels, but a row holds 9"):
        patchify(images([(11, 13)]), 4, length=9)
    with pytest.raises(ValueError, match="at least one image"):
        patchify([], 4)
    with pytest.raises(ValueError, match="image 2 has 16 tokens, a packed row holds 12"):
        pack(tokens, 12)
    with pytest.raises(ValueError, match="image 2 has 16 tokens, a row holds 12"):
        unpack(tokens, 12)
    with pytest.raises(ValueError, match="cannot be padded to 3"):
        pad_to(tokens, 3)
    with pytest.raises(ValueError, match="outside the patch grid"):
        unpatchify(dataclasses.replace(tokens, row=tokens.row + 1))
    with pytest.raises(ValueError, match="not whole 4 x 4 patches"):
        unpatchify(tokens.with_values(tokens.values[..., :40]))
    with pytest.raises(ValueError, match=r"\(B, L, D\)"):
        tokens.with_values(tokens.values[0])
