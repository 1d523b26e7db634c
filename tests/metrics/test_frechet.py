"""The Frechet distance against closed forms, SciPy, and the ways in which sums go wrong."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import linalg

from lightning_gen.metrics.frechet import FrechetReference, Gaussian, Moments, frechet_distance, too_few_samples


def features(count: int, size: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + torch.arange(size)


def gaussian(rows: torch.Tensor, shift: torch.Tensor | None = None) -> Gaussian:
    moments = Moments(rows.shape[1], shift)
    moments.add(rows)
    return moments.gaussian()


def test_closed_form_of_diagonal_covariances() -> None:
    first = Gaussian(torch.zeros(4).double(), torch.diag(torch.tensor([1.0, 4, 9, 0.25])).double(), 9)
    second = Gaussian(torch.arange(4).double(), torch.diag(torch.tensor([4.0, 1, 16, 0.25])).double(), 9)
    assert frechet_distance(first, second) == pytest.approx(17, abs=1e-12)


def test_shift_and_scale_of_a_set() -> None:
    x = features(400)
    offset = torch.tensor([1.0, -2, 0, 3, 0.5, 0]).double()
    assert frechet_distance(gaussian(x), gaussian(x + offset)) == pytest.approx(float(offset.square().sum()), rel=1e-9)
    centred = x - x.mean(0)
    wanted = (1 - 1.7) ** 2 * float(gaussian(centred).covariance.trace())
    assert frechet_distance(gaussian(centred), gaussian(1.7 * centred)) == pytest.approx(wanted, rel=1e-9)


def test_rotation_scale_and_symmetry() -> None:
    x, y = features(300), features(200, seed=1)
    rotation = torch.linalg.qr(features(6, seed=2))[0]
    distance = frechet_distance(gaussian(x), gaussian(y))
    assert distance > 1
    assert frechet_distance(gaussian(x @ rotation), gaussian(y @ rotation)) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(gaussian(3 * x), gaussian(3 * y)) == pytest.approx(9 * distance, rel=1e-9)
    assert frechet_distance(gaussian(y), gaussian(x)) == pytest.approx(distance, rel=1e-9)


def test_moments_are_numpys() -> None:
    x = features(50)
    found = gaussian(x)
    assert found.count == 50
    assert np.allclose(found.mean.numpy(), x.numpy().mean(0), rtol=1e-13)
    assert np.allclose(found.covariance.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-11)


@pytest.mark.filterwarnings("ignore:12 samples of 32 features")
@pytest.mark.parametrize(("count", "size"), [(500, 8), (12, 32)])
def test_the_same_as_the_square_root_of_the_product(count: int, size: int) -> None:
    first, second = gaussian(features(count, size)), gaussian(features(count, size, 1))
    root = linalg.sqrtm((first.covariance @ second.covariance).numpy().astype(np.complex128)).real
    traces = float(first.covariance.trace() + second.covariance.trace())
    wanted = float((first.mean - second.mean).square().sum()) + traces - 2 * float(np.trace(root))
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-5)
    assert abs(frechet_distance(first, first)) < 1e-5 * traces


def test_sums_of_uneven_ranks_are_those_of_one_pass() -> None:
    x, shift = features(101), torch.arange(6).double()
    ranks = []
    for part in x.split([50, 3, 1, 47]):
        ranks.append(Moments(6, shift))
        padded = torch.cat([part, part[:1] + 99])
        ranks[-1].add(padded, torch.tensor([True] * len(part) + [False]))
    for rank in ranks[1:]:
        ranks[0].merge(rank)
    merged, whole = ranks[0].gaussian(), gaussian(x, shift)
    assert merged.count == 101
    assert torch.allclose(merged.covariance, whole.covariance, rtol=1e-12)
    assert frechet_distance(merged, gaussian(features(90, seed=3))) == pytest.approx(
        frechet_distance(whole, gaussian(features(90, seed=3))), rel=1e-12
    )


def test_features_far_from_zero_keep_their_covariance() -> None:
    noise = 1e-2 * features(400)
    x, y = noise[:200], 1.5 * noise[200:]
    wanted = frechet_distance(gaussian(x), gaussian(y))
    far = torch.full((6,), 1e3, dtype=torch.float64)
    found = frechet_distance(gaussian(x + far, far), gaussian(y + far, far))
    assert found == pytest.approx(wanted, rel=1e-7)


def test_a_reference_is_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = FrechetReference(gaussian(features(300)))
    first = reference.distance(gaussian(features(200, seed=1)))
    monkeypatch.setattr(torch.linalg, "cholesky_ex", None)
    assert reference.distance(gaussian(features(200, seed=1))) == first


def test_what_makes_no_distance_is_refused() -> None:
    moments = Moments(6)
    with pytest.raises(ValueError, match="at least 2 samples, got 0"):
        moments.gaussian()
    with pytest.raises(ValueError, match=r"expected \(B, 6\)"):
        moments.add(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments.add(torch.tensor([[0.0, 1, 2, 3, 4, float("nan")]]))
    with pytest.raises(ValueError, match="same shift"):
        moments.merge(Moments(6, torch.ones(6)))
    with pytest.raises(ValueError, match="another extractor"):
        frechet_distance(gaussian(features(20)), gaussian(features(20, 5)))
    with pytest.raises(ValueError, match="a mean of shape"):
        Gaussian(torch.zeros(3), torch.zeros(2, 2), 5)


def test_scaling_and_shifting_a_set_moves_it_by_the_closed_form() -> None:
    x = features(500)
    traces = float(gaussian(x).covariance.trace())
    centred = x - x.mean(0)
    assert frechet_distance(gaussian(centred), gaussian(1.5 * centred)) == pytest.approx(0.25 * traces, rel=1e-10)
    assert frechet_distance(gaussian(x), gaussian(x + 2)) == pytest.approx(6 * 4, rel=1e-10)


@pytest.mark.parametrize("size", [256, 300, 700])
def test_blocks_of_columns_give_the_whole_covariance(size: int) -> None:
    x = features(900, size)
    moments = Moments(size, x.mean(0))
    for part in x.split([800, 1, 99]):
        moments.add(part)
    assert torch.allclose(moments.gaussian().covariance, torch.cov(x.T), rtol=1e-10, atol=1e-12)


def test_moments_over_foreign_sums_change_them_in_place() -> None:
    count, total, outer = torch.zeros((), dtype=torch.int64), torch.zeros(6).double(), torch.zeros(6, 6).double()
    Moments.of(count, total, outer, torch.zeros(6).double()).add(features(9))
    assert int(count) == 9 and torch.allclose(total, features(9).sum(0)) and outer.abs().sum() > 0


def test_few_samples_are_named_with_their_bias() -> None:
    few, enough = gaussian(features(6)), gaussian(features(7))
    assert "6 samples of 6 features" in too_few_samples(few) and "about c / N" in too_few_samples(few)
    assert too_few_samples(enough) == "" and too_few_samples(Gaussian(few.mean, few.covariance, None)) == ""
    for pair in ((few, enough), (enough, few)):
        with pytest.warns(UserWarning, match="6 samples of 6 features"):
            frechet_distance(*pair)
    FrechetReference(enough).distance_of_any(enough)


def test_blocks_without_zeros_give_the_same_distance() -> None:
    generator = torch.Generator().manual_seed(3)
    sets = [torch.randn(900, 600, dtype=torch.float64, generator=generator) for _ in range(2)]
    first, second = (Gaussian(x.mean(0), torch.cov(x.T), len(x)) for x in sets)
    reference = FrechetReference(first)
    cross = reference.factor.T @ second.covariance @ reference.factor
    roots = torch.linalg.eigvalsh(cross).sqrt().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    expected = float((first.mean - second.mean).square().sum() + traces - 2 * roots)
    assert reference.distance(second) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [200, 900])
def test_features_that_never_vary_are_no_triangle(count: int) -> None:
    # The eigenvectors of such a reference have zeros where a triangular factor has them.
    generator = torch.Generator().manual_seed(4)
    varies = (torch.arange(600) >= 300).double()
    first, second = (
        Gaussian(x.mean(0), torch.cov(x.T), len(x))
        for x in (torch.randn(count, 600, dtype=torch.float64, generator=generator) * varies for _ in range(2))
    )
    small = [Gaussian(one.mean[300:], one.covariance[300:, 300:], count) for one in (first, second)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert FrechetReference(first).distance(second) == pytest.approx(frechet_distance(*small), rel=1e-6)


def test_what_is_no_covariance_is_refused() -> None:
    mean, good = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    negative, skew = good.clone(), good.clone()
    negative[1, 1] = -0.5
    skew[0, 2] = 1e-5  # above the diagonal, where a distance that reads one half does not look
    for bad, message in ((negative, "variance of feature 1 is -0.5"), (skew, "not symmetric.* up to 1e-05")):
        with pytest.raises(ValueError, match=message):
            Gaussian(mean, bad, None)
    skew[0, 2] = 1e-7
    assert Gaussian(mean, skew, None).count is None, "rounding is no mistake"
    assert Gaussian(mean, torch.zeros_like(good), 5).count == 5


def test_constant_features_far_from_zero_have_a_covariance() -> None:
    rows = torch.full((1000, 300), 1234.567)
    rows[:, 0] = torch.linspace(0, 1, 1000)
    moments = Moments(300)
    for some in rows.split(37):
        moments.add(some)
    covariance = moments.gaussian().covariance
    assert (covariance.diagonal() >= 0).all() and torch.equal(covariance, covariance.T)
    total = torch.tensor([3e3, 0.0], dtype=torch.float64)
    outer = torch.tensor([[3e6 - 1e-9, 0.0], [0.0, 1.0]], dtype=torch.float64)  # a sum of squares, rounded down
    rounded = Moments.of(torch.tensor(3), total, outer, torch.zeros(2, dtype=torch.float64)).gaussian()
    assert rounded.covariance.tolist() == [[0, 0], [0, 0.5]]
