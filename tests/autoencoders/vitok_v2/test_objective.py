"""Checks 10 and 12: the pixel loss and the tiles."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from lightning_gen.autoencoders.vitok_v2.objective import (
    charbonnier,
    sample_tiles,
    ssim_loss,
    tile_corners,
)
from lightning_gen.nn.tokens import pack, pad_to, patchify, pixel_validity


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator, dtype=torch.float64) * 2 - 1 for size in sizes]


def test_equal_pictures_cost_epsilon() -> None:
    tokens = patchify(pictures((8, 12)), 4)
    assert charbonnier(tokens, tokens).item() == pytest.approx(1e-3, rel=1e-9)


def test_a_constant_error_has_the_closed_form() -> None:
    tokens = patchify(pictures((8, 12), (4, 4)), 4)
    loss = charbonnier(tokens.with_values(tokens.values + 0.3), tokens)
    assert loss.item() == pytest.approx((0.3**2 + 1e-6) ** 0.5, rel=1e-12)


def test_more_padding_changes_nothing() -> None:
    x = patchify(pictures((8, 12), (4, 8)), 4)
    y = x.with_values(x.values * 0.5)
    longer = charbonnier(pad_to(y, 40), pad_to(x, 40))
    torch.testing.assert_close(longer, charbonnier(y, x))
    torch.testing.assert_close(charbonnier(pack(y), pack(x)), charbonnier(y, x))


def test_every_image_weighs_the_same() -> None:
    x = patchify([torch.zeros(3, 8, 12, dtype=torch.float64), torch.zeros(3, 16, 12, dtype=torch.float64)], 4)
    error = torch.tensor([1.0, 0.0], dtype=torch.float64)[:, None, None]
    y = x.with_values(x.values + error)
    one = (1 + 1e-6) ** 0.5
    for layout in (lambda t: t, pack):
        assert charbonnier(layout(y), layout(x)).item() == pytest.approx((one + 1e-3) / 2, rel=1e-12)


def test_no_gradient_reaches_padding() -> None:
    x = patchify(pictures((8, 12), (4, 4)), 4)
    values = (x.values + 1).requires_grad_()
    charbonnier(x.with_values(values), x).backward()
    assert values.grad[~x.mask].eq(0).all() and values.grad[x.mask].ne(0).all()
    broken = x.values.masked_fill(~x.mask[..., None], torch.inf)
    assert bool(charbonnier(x.with_values(broken), x).isfinite())


def test_grey_filling_counts_unless_masked() -> None:
    x = patchify([torch.zeros(3, 5, 6, dtype=torch.float64)], 4)
    inside = pixel_validity(x).repeat(1, 1, 3)
    assert int(inside.sum()) == 3 * 5 * 6
    y = x.with_values(torch.where(inside, 0.0, 1.0).double())
    assert charbonnier(y, x).item() > 0.1
    assert charbonnier(y, x, pixel_mask=True).item() == pytest.approx(1e-3, rel=1e-9)
    torch.testing.assert_close(charbonnier(pack(y), pack(x), pixel_mask=True), charbonnier(y, x, pixel_mask=True))


def test_corners_are_uniform_on_what_fits() -> None:
    sizes = torch.tensor([[20, 40]]).expand(20_000, 2)
    u = torch.rand(20_000, 1, 2, generator=torch.Generator().manual_seed(0))
    corners = tile_corners(sizes, u, 16)[:, 0]
    for axis, places in ((0, 5), (1, 25)):
        counts = torch.bincount(corners[:, axis], minlength=places)
        assert len(counts) == places
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert tile_corners(torch.tensor([[20, 40]]), torch.full((1, 1, 2), 1 - 2**-24), 16).flatten().tolist() == [4, 24]
    assert tile_corners(torch.tensor([[8, 15]]), torch.full((1, 3, 2), 0.99), 16).eq(0).all()


def test_tiles_are_the_same_crop_of_both_sides() -> None:
    x = pictures((20, 40), (8, 30))
    corners = tile_corners(torch.tensor([[20, 40], [8, 30]]), torch.rand(2, 3, 2), 16)
    tiles = sample_tiles(x, x, corners, 16)
    assert tiles.prediction.shape == (6, 3, 16, 16)
    assert torch.equal(tiles.prediction, tiles.target)
    top, left = corners[0, 1].tolist()
    assert torch.equal(tiles.target[1], x[0][:, top : top + 16, left : left + 16])
    top, left = corners[1, 0].tolist()
    assert torch.equal(tiles.target[3][:, :8], x[1][:, :, left : left + 16])
    assert tiles.target[3][:, 8:].eq(-1).all(), "small pictures are filled up with black"


def test_ssim_is_zero_for_equal_tiles_and_flows_back() -> None:
    x = torch.stack(pictures((32, 32), (32, 32)))
    tiles = sample_tiles(list(x), list(x), torch.zeros(2, 1, 2, dtype=torch.int64), 24)
    assert ssim_loss(tiles).item() == pytest.approx(0, abs=1e-9)
    y = (0.5 * x).requires_grad_()
    loss = ssim_loss(sample_tiles(list(y), list(x), torch.zeros(2, 1, 2, dtype=torch.int64), 24))
    loss.backward()
    assert 0 < loss.item() < 1 and y.grad[:, :, :24, :24].abs().sum() > 0 and y.grad[:, :, 24:].eq(0).all()
    with pytest.raises(ValueError, match="at least 11 pixels, got 8"):
        ssim_loss(sample_tiles(list(x), list(x), torch.zeros(2, 1, 2, dtype=torch.int64), 8))
