"""Kernel distances against their definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gen.metrics import kernel
from lightning_gen.metrics.kernel import clip_mmd, kernel_inception_distance, polynomial_mmd


def features(count: int, seed: int, size: int = 5) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def test_a_set_against_itself_is_negative_by_its_own_diagonal() -> None:
    """-(2 / m) (mean k_ii - mean of k_ij over i != j): xy keeps its diagonal."""
    x, m = features(40, 0), 40
    products = cubic(x, x)
    own, others = products.diagonal().mean(), (products.sum() - products.trace()) / (m * (m - 1))
    wanted = float(-2 / m * (own - others))
    assert wanted < 0 and polynomial_mmd(x, x) == pytest.approx(wanted, rel=1e-10)
    assert kernel_inception_distance(x, x, num_subsets=1, subset_size=40).mean == pytest.approx(wanted, rel=1e-10)


def test_the_estimate_is_unbiased() -> None:
    found = [polynomial_mmd(features(30, seed), features(30, 1000 + seed)) for seed in range(300)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 300**0.5
    assert np.mean(np.array(found) < 0) > 0.2


def test_subsets_are_drawn_without_replacement_from_either_side() -> None:
    x, y = features(60, 0), features(50, 1) + 0.3
    found = kernel_inception_distance(x, y, num_subsets=7, subset_size=20, seed=3)
    random = np.random.RandomState(3)
    wanted = []
    for _ in range(7):
        rows = random.choice(60, 20, replace=False), random.choice(50, 20, replace=False)
        wanted.append(polynomial_mmd(x[rows[0]], y[rows[1]]))
    assert found.subsets == tuple(wanted)
    assert (found.mean, found.deviation) == pytest.approx((np.mean(wanted), np.std(wanted)), rel=1e-12)


def test_cmmd_is_the_mean_of_all_pairs() -> None:
    x, y = features(30, 0), 3 * features(20, 1) + 1
    unit = [side / side.norm(dim=1, keepdim=True) for side in (x, y)]

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / 200).mean()

    wanted = 1000 * (mean(unit[0], unit[0]) + mean(unit[1], unit[1]) - 2 * mean(*unit))
    assert clip_mmd(x, y) == pytest.approx(float(wanted), rel=1e-9)
    assert abs(clip_mmd(x, x)) < 1e-12 and clip_mmd(x, 5 * x) == pytest.approx(0, abs=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(50, 0), features(37, 1)
    whole = polynomial_mmd(x, y), clip_mmd(x, y)
    monkeypatch.setattr(kernel, "_ROWS", 16)
    assert (polynomial_mmd(x, y), clip_mmd(x, y)) == pytest.approx(whole, rel=1e-10)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="100 subsets of 1000 cannot be drawn from 40 and 40"):
        kernel_inception_distance(features(40, 0), features(40, 1))
    with pytest.raises(ValueError, match="another extractor"):
        clip_mmd(features(5, 0), features(5, 0, 4))
    with pytest.raises(ValueError, match="at least 2"):
        polynomial_mmd(features(1, 0), features(5, 0))
    with pytest.raises(ValueError, match="NaN"):
        polynomial_mmd(features(5, 0), features(5, 0) / 0)
