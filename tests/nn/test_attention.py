"""Every kernel against one dense masked softmax in float64, forward and backward."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lightning_gen.nn import windowed
from lightning_gen.nn.attention import FlexAttention, PaddedAttention, VarlenAttention, plan_attention
from lightning_gen.nn.packed import BucketedAttention, length_buckets
from lightning_gen.nn.sdpa import dot_product_attention
from lightning_gen.nn.tokens import Tokens, pack, patchify
from lightning_gen.nn.windowed import WindowedAttention, window_pairs

HEADS, DIM = 2, 8


def batch(sizes: list[tuple[int, int]], length: int | None = None) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    return patchify(
        [torch.randn(3, 4 * r, 4 * k, generator=generator, dtype=torch.float64) for r, k in sizes], 4, length
    )


def projections(tokens: Tokens) -> list[Tensor]:
    """Queries, keys and values that depend on a token's values alone, so that layouts can be compared."""
    found = []
    for seed in range(3):
        matrix = 0.2 * torch.randn(48, HEADS * DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found.append((tokens.values @ matrix).unflatten(-1, (HEADS, DIM)).detach().requires_grad_())
    return found


def dense(tokens: Tokens, radius: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    visible = (tokens.image[:, :, None] == tokens.image[:, None, :]) & tokens.mask[:, None, :]
    if radius is not None:
        visible &= (tokens.row[:, :, None] - tokens.row[:, None, :]).abs() <= radius
        visible &= (tokens.col[:, :, None] - tokens.col[:, None, :]).abs() <= radius
    score = torch.einsum("blhd,bmhd->bhlm", q, k) / DIM**0.5
    weight = score.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
    # Padding queries see nothing here; their rows are not compared.
    return torch.einsum("bhlm,bmhd->blhd", weight.nan_to_num(0), v)


SIZES = [(3, 4), (4, 2), (2, 7), (4, 4), (1, 1), (2, 7)]


@pytest.mark.parametrize("radius", [None, 0, 1, 2, 3, 6, 50])
@pytest.mark.parametrize("layout", ["padded", "full rows", "packed", "packed in rows"])
def test_every_kernel_equals_the_dense_softmax(layout: str, radius: int | None) -> None:
    tokens = {
        "padded": lambda: batch(SIZES, 20),
        "full rows": lambda: batch([(4, 3), (2, 6)]),
        "packed": lambda: pack(batch(SIZES)),
        "packed in rows": lambda: pack(batch(SIZES), 25),
    }[layout]()
    given = projections(tokens)
    out = plan_attention(tokens, radius)(*given)
    expected = dense(tokens, radius, *given)
    torch.testing.assert_close(out[tokens.mask], expected[tokens.mask], atol=1e-12, rtol=0)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = weight * tokens.mask[..., None, None]
    gradients = torch.autograd.grad((out * weight).sum(), given)
    wanted = torch.autograd.grad((expected * weight).sum(), given)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("radius", "packed"), [(None, False), (None, True), (1, False), (1, True)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_kernel_for_cuda_has_the_same_meaning(radius: int | None, packed: bool) -> None:
    tokens = pack(batch(SIZES), 25) if packed else batch(SIZES, 20)
    given = [x.detach() for x in projections(tokens)]
    out = FlexAttention(tokens, radius)(*given)
    torch.testing.assert_close(out[tokens.mask], dense(tokens, radius, *given)[tokens.mask], atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [None, 25])
def test_the_variable_length_kernel_gets_the_images_one_by_one(
    length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself runs on CUDA alone; here a loop over the segments it is handed stands for it."""
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no variable-length kernel")

    def by_segment(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, keys: Tensor, most: int, most_keys: int) -> Tensor:
        assert torch.equal(ends, keys) and most == most_keys >= int(ends.diff().max())
        assert most & (most - 1) == 0, "a bound that changes with every batch would compile blocks anew"
        sizes = ends.diff().tolist()
        parts = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
        return torch.cat([dot_product_attention(a[None], b[None], c[None])[0] for a, b, c in parts])

    monkeypatch.setattr(varlen, "varlen_attn", by_segment)
    tokens = pack(batch(SIZES), length)
    given = [x.detach() for x in projections(tokens)]
    out = VarlenAttention(tokens)(*given)
    torch.testing.assert_close(out[tokens.mask], dense(tokens, None, *given)[tokens.mask], atol=1e-12, rtol=0)


def test_the_kernel_is_chosen_by_the_batch() -> None:
    padded, full = batch(SIZES, 20), batch([(4, 3), (2, 6)])
    assert isinstance(plan_attention(padded), PaddedAttention)
    assert isinstance(plan_attention(pack(padded)), BucketedAttention)
    assert isinstance(plan_attention(padded, 1), WindowedAttention)
    assert isinstance(plan_attention(full, 5), PaddedAttention), "a window as wide as the image is no window"


def test_a_packed_image_never_sees_its_neighbour() -> None:
    tokens = pack(batch(SIZES))
    q, k, v = (x.detach() for x in projections(tokens))
    out = plan_attention(tokens)(q, k, v)
    for image in range(len(SIZES)):
        other = (tokens.image != image)[..., None, None]
        changed = plan_attention(tokens)(q, torch.where(other, k + 7, k), torch.where(other, -v, v))
        mine = tokens.image == image
        assert torch.equal(out[mine], changed[mine])


def test_padding_queries_give_finite_numbers_and_gradients() -> None:
    tokens = batch(SIZES, 40)
    given = projections(tokens)
    out = plan_attention(tokens)(*given)
    out.sum().backward()
    assert bool(out.isfinite().all()) and all(bool(x.grad.isfinite().all()) for x in given)


@pytest.mark.parametrize(
    ("rows", "cols", "radius", "pairs"),
    [(4, 4, 1, 100), (5, 7, 2, 551), (16, 16, 8, 40_000), (32, 32, 8, 222_784), (6, 3, 8, 324)],
)
def test_number_of_pairs_in_a_window(rows: int, cols: int, radius: int, pairs: int) -> None:
    assert window_pairs(rows, cols, radius) == pairs


@pytest.mark.parametrize(("rows", "cols", "radius"), [(4, 4, 1), (5, 7, 2), (6, 3, 8), (20, 33, 3)])
def test_a_window_holds_exactly_its_pairs(rows: int, cols: int, radius: int) -> None:
    # With values that mark their token and equal scores, an output is not 0 exactly where a pair is allowed.
    tokens = batch([(rows, cols)])
    count = rows * cols
    marks = torch.eye(count, dtype=torch.float64).view(1, count, 1, count)
    out = plan_attention(tokens, radius)(torch.zeros_like(marks), torch.zeros_like(marks), marks)
    assert int((out > 0).sum()) == window_pairs(rows, cols, radius)
    above = out[0, cols, 0] if rows > 1 else None
    assert above is None or above[0] > 0, "a token must see the one directly above it"


def test_radius_zero_is_the_token_alone() -> None:
    tokens = batch(SIZES, 20)
    q, k, v = projections(tokens)
    torch.testing.assert_close(plan_attention(tokens, 0)(q, k, v)[tokens.mask], v[tokens.mask])


def test_windows_follow_coordinates_not_positions() -> None:
    tokens = batch([(18, 21), (3, 20)], 400)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    shuffled = dataclasses.replace(
        tokens,
        **{name: getattr(tokens, name)[:, order] for name in ("values", "mask", "image")},
        row=tokens.row[:, order] + 5,
        col=tokens.col[:, order] - 2,
    )
    out = plan_attention(tokens, 2)(*projections(tokens))[:, order]
    moved = plan_attention(shuffled, 2)(*projections(shuffled))
    torch.testing.assert_close(moved[shuffled.mask], out[shuffled.mask], atol=1e-12, rtol=0)


@pytest.mark.parametrize("radius", [0, 2, 9])
def test_windows_over_several_tiles_with_holes(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Halos that overlap, cells outside the grid and cells without a token; a hole wide enough to leave windows empty.
    tokens = batch([(19, 30), (27, 5), (1, 40)], 580)
    hole = (tokens.row < 14) & (tokens.col < 13) & (tokens.image == 0)
    hole &= (tokens.row > 0) & (tokens.col > 0)
    tokens = dataclasses.replace(
        tokens, mask=tokens.mask & ~hole, image=tokens.image.masked_fill(hole, -1), values=tokens.values * 3
    )
    given = projections(tokens)
    masks: list[Tensor] = []

    def recorded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        masks.append(mask)
        return dot_product_attention(q, k, v, mask)

    monkeypatch.setattr(windowed, "dot_product_attention", recorded)
    out, expected = WindowedAttention(tokens, radius)(*given), dense(tokens, radius, *given)
    # Kernels differ in what they make of a query without keys, NaN included, so there must be none.
    assert all(bool((mask == 0).any(-1).all()) for mask in masks)
    torch.testing.assert_close(out, expected * tokens.mask[..., None, None], atol=1e-12, rtol=0)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = weight * tokens.mask[..., None, None]
    gradients = torch.autograd.grad((out * weight).sum(), given)
    for gradient, want in zip(gradients, torch.autograd.grad((expected * weight).sum(), given), strict=True):
        torch.testing.assert_close(gradient, want, atol=1e-12, rtol=0)


def test_a_window_makes_no_mask_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    # The mask of one column of tiles grows with the rows of the image, the halo is fixed.
    seen: list[torch.Size] = []

    def recorded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        seen.append(mask.shape)
        return q

    monkeypatch.setattr(windowed, "dot_product_attention", recorded)
    tokens = batch([(48, 40)])
    WindowedAttention(tokens, 4)(*torch.zeros(3, 1, 48 * 40, 1, 4))
    assert seen == [(6, 1, 64, 256)] * 5


def test_windows_refuse_nonsense() -> None:
    tokens = batch([(4, 4)])
    with pytest.raises(ValueError, match="0 or more patches, got -1"):
        WindowedAttention(tokens, -1)
    with pytest.raises(ValueError, match="two tokens of image 0 share one patch coordinate"):
        WindowedAttention(dataclasses.replace(tokens, row=torch.zeros_like(tokens.row)), 1)


def test_buckets_join_what_is_cheap_to_join() -> None:
    assert length_buckets([100, 100, 99, 98, 10, 10], call_cost=1000) == [(0, 4), (4, 6)]
    assert length_buckets([100, 100, 10, 10], call_cost=10**9) == [(0, 4)]
    assert length_buckets([100, 99, 98], call_cost=0) == [(0, 1), (1, 2), (2, 3)]
    assert length_buckets([7], call_cost=0) == [(0, 1)]


def test_padding_inside_the_only_bucket_is_dropped() -> None:
    tokens = pack(batch([(4, 4), (4, 4), (3, 5)]))
    given = [x.detach() for x in projections(tokens)]
    torch.testing.assert_close(plan_attention(tokens)(*given), dense(tokens, None, *given), atol=1e-12, rtol=0)


def test_packed_images_may_lie_anywhere_in_a_full_row() -> None:
    # No padding, one length: as many slots as tokens, but not in their order.
    tokens = pack(batch([(4, 4), (2, 8), (4, 4)]))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    names = ("values", "mask", "row", "col", "image")
    tokens = dataclasses.replace(tokens, **{name: getattr(tokens, name)[:, order] for name in names})
    given = [x.detach() for x in projections(tokens)]
    torch.testing.assert_close(plan_attention(tokens)(*given), dense(tokens, None, *given), atol=1e-12, rtol=0)


def test_bucketing_does_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = pack(batch(SIZES), 25)
    given = [x.detach() for x in projections(tokens)]
    for price in (0, 10**9):
        monkeypatch.setattr(length_buckets, "__defaults__", (price,))
        out = BucketedAttention(tokens)(*given)
        torch.testing.assert_close(out[tokens.mask], dense(tokens, None, *given)[tokens.mask], atol=1e-12, rtol=0)
        assert bool(out[~tokens.mask].eq(0).all())
