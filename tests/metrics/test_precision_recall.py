"""Precision and recall in cases whose answer is plain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.precision_recall import manifold_scores, neighbourhood_radii


def features(count: int, seed: int, size: int = 4) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("half", [False, True])
def test_equal_sets_cover_each_other_and_far_ones_not_at_all(half: bool) -> None:
    x = features(100, 0)
    same = manifold_scores(x, x, half=half)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1) and same.density >= 1
    far = manifold_scores(x + 50, x, half=half)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_a_small_cluster_inside_a_wide_one_is_precise_and_forgetful() -> None:
    small, wide = 0.1 * features(200, 0), features(200, 1)
    scores = manifold_scores(small, wide)
    assert scores.precision == 1 and scores.recall < 0.2


def test_swapping_the_sets_swaps_precision_and_recall() -> None:
    x, y = features(80, 0), features(120, 1) + 0.7
    there, back = manifold_scores(x, y), manifold_scores(y, x)
    assert 0 < there.precision < 1 and (there.precision, there.recall) == (back.recall, back.precision)


def test_a_radius_reaches_the_third_neighbour_that_is_not_the_point() -> None:
    line = torch.tensor([[0.0], [1], [3], [7], [15]]).double()
    assert neighbourhood_radii(line, 3).tolist() == pytest.approx([49, 36, 16, 49, 196])
    assert neighbourhood_radii(line, 1).tolist() == pytest.approx([1, 1, 4, 16, 64])


def test_a_point_on_the_edge_is_inside_unless_strict() -> None:
    reference = torch.tensor([[0.0], [2], [4], [6]])  # radii with k = 1: 2
    samples = torch.tensor([[-2.0], [-2], [-2], [8]])
    on_edge, strict = manifold_scores(samples, reference, 1), manifold_scores(samples, reference, 1, strict=True)
    assert (on_edge.precision, on_edge.density, on_edge.coverage) == (1, 1, 0.5)
    assert (strict.precision, strict.density, strict.coverage) == (0, 0, 0)


@pytest.mark.parametrize("half", [False, True])
def test_blocks_change_nothing(half: bool) -> None:
    x, y = features(130, 0), features(75, 1) + 0.5
    assert manifold_scores(x, y, half=half, block=16) == manifold_scores(x, y, half=half)


def test_float16_rounds_distances_and_gives_way_where_it_overflows() -> None:
    x, y = features(300, 0, 64), features(300, 1, 64) + 0.02
    exact, rounded = neighbourhood_radii(x), neighbourhood_radii(x, half=True)
    assert not torch.equal(exact, rounded) and torch.allclose(exact, rounded, rtol=5e-3)
    assert torch.equal(rounded, rounded.half().float())
    assert abs(manifold_scores(x, y).precision - manifold_scores(x, y, half=True).precision) < 0.05
    # 64 features of 1000 have a squared length beyond 65504.
    assert torch.allclose(neighbourhood_radii(1000 * x, half=True), 1e6 * exact, rtol=1e-3)


def test_features_far_from_zero_keep_their_neighbours() -> None:
    x, y = features(100, 0).double(), features(100, 1).double() + 0.5
    wanted = manifold_scores(x, y)
    assert manifold_scores((x + 300).float(), (y + 300).float()) == wanted


def test_autocast_and_low_precision_do_not_reach_the_distances() -> None:
    x, y = features(200, 0, 64), features(200, 1, 64) + 0.1
    wanted = manifold_scores(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert manifold_scores(x, y) == wanted


def test_what_has_no_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="3 points have no neighbour number 3"):
        manifold_scores(features(3, 0), features(9, 0))
    with pytest.raises(ValueError, match="another extractor"):
        manifold_scores(features(9, 0), features(9, 0, 5))
    with pytest.raises(ValueError, match="NaN"):
        manifold_scores(features(9, 0) / 0, features(9, 0))


def test_float16_distances_are_those_of_features_where_they_lie() -> None:
    """What float16 rounds depends on the origin, and the ADM evaluator leaves it where it is."""
    x, y = features(60, 0) + 20, features(50, 1) + 20.3

    def rounded(rows: Tensor, columns: Tensor) -> Tensor:
        rows, columns = rows.half(), columns.half()
        lengths = rows.square().sum(1)[:, None], columns.square().sum(1)[None]
        return (lengths[0] - 2 * (rows @ columns.T) + lengths[1]).clamp(min=0).float()

    radii = [rounded(side, side).sort(1).values[:, 3] for side in (x, y)]
    assert torch.equal(neighbourhood_radii(x, half=True), radii[0])
    found = manifold_scores(x, y, half=True)
    between = rounded(x, y)
    assert found.precision == pytest.approx(float((between <= radii[1]).any(1).double().mean()))
    assert found.recall == pytest.approx(float((between <= radii[0][:, None]).any(0).double().mean()))
    assert found != manifold_scores(x, y), "far from zero float16 is coarse"
