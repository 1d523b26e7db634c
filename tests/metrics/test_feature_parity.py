"""The same numbers as the published libraries, from the same features; only the networks are left out.

Relative differences found with float64 features: FID 8e-15 (torch-fidelity), 1e-14 (pytorch-fid, clean-fid), 4e-15
(torchmetrics); KID on the same draws 6e-16 (torch-fidelity, clean-fid), its deviation 6e-15, its estimate on given
rows 4e-15 (torchmetrics); Inception score in 10 splits, shuffled or not, equal to the last bit (torch-fidelity), its
deviation 2e-15; precision, recall (torch-fidelity), density and coverage (prdc) equal. The KID that torch-fidelity
finds from float32 features is off by 5e-7.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor, nn

from lightning_gen.metrics.frechet import Gaussian, Moments, frechet_distance
from lightning_gen.metrics.inception_score import inception_score
from lightning_gen.metrics.kernel import kernel_inception_distance, polynomial_mmd
from lightning_gen.metrics.precision_recall import manifold_scores

SIZE = 24


def features(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
    rows = torch.randn(count, SIZE, generator=generator, dtype=torch.float64) @ mix
    # As after a ReLU and a mean, the features of the networks are not centred.
    return (rows.abs() + 0.1 * seed).to(dtype)


FAKE, REAL = features(700, 1), features(600, 2)


def gaussian(rows: Tensor) -> Gaussian:
    moments = Moments(rows.shape[1], torch.full((rows.shape[1],), 0.5))
    for batch in rows.split(64):
        moments.add(batch)
    return moments.gaussian()


def ours() -> float:
    return frechet_distance(gaussian(REAL), gaussian(FAKE))


def moments_of(rows: Tensor) -> tuple[Any, Any]:
    return rows.numpy().mean(0), np.cov(rows.numpy(), rowvar=False)


def test_frechet_distance_of_torch_fidelity() -> None:
    fid = importlib.import_module("torch_fidelity.metric_fid")
    sides = [fid.fid_features_to_statistics(side) for side in (FAKE, REAL)]
    wanted = fid.fid_statistics_to_metric(*sides, False)["frechet_inception_distance"]
    assert ours() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("module", "function"),
    [("pytorch_fid.fid_score", "calculate_frechet_distance"), ("cleanfid.fid", "frechet_distance")],
)
def test_frechet_distance_of_pytorch_fid_and_clean_fid(module: str, function: str) -> None:
    library = importlib.import_module(module)
    arguments = (*moments_of(REAL), *moments_of(FAKE))
    try:
        wanted = getattr(library, function)(*arguments)
    except TypeError as error:
        # SciPy 1.18 removed an argument that both libraries pass.
        assert "disp" in str(error)
        root = linalg.sqrtm(arguments[1] @ arguments[3]).real
        difference = arguments[0] - arguments[2]
        wanted = difference @ difference + np.trace(arguments[1] + arguments[3] - 2 * root)
    assert ours() == pytest.approx(float(wanted), rel=1e-12)


class _Lookup(nn.Module):
    """torchmetrics asks a network for features; this one has them already."""

    num_features = SIZE

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def test_frechet_distance_of_torchmetrics() -> None:
    library = importlib.import_module("torchmetrics.image.fid")
    metric = library.FrechetInceptionDistance(feature=_Lookup())
    for side, real in ((REAL, True), (FAKE, False)):
        for batch in side.split(64):
            metric.update(batch, real=real)
    assert ours() == pytest.approx(metric.compute().item(), rel=1e-12)


def test_kid_of_torch_fidelity_draw_by_draw() -> None:
    kid = importlib.import_module("torch_fidelity.metric_kid")
    settings = {"kid_subsets": 20, "kid_subset_size": 150, "verbose": False, "rng_seed": 2020}
    wanted = kid.kid_features_to_metric(FAKE, REAL, **settings)
    found = kernel_inception_distance(FAKE, REAL, 20, 150)
    assert found.mean == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-12)
    assert found.deviation == pytest.approx(wanted["kernel_inception_distance_std"], rel=1e-12)
    rounded = kid.kid_features_to_metric(FAKE.float(), REAL.float(), **settings)
    assert found.mean == pytest.approx(rounded["kernel_inception_distance_mean"], rel=1e-5)


def test_kid_of_clean_fid_draw_by_draw() -> None:
    """clean-fid draws from the reference first, by NumPy's global generator."""
    library = importlib.import_module("cleanfid.fid")
    np.random.seed(7)
    wanted = library.kernel_distance(FAKE.numpy(), REAL.numpy(), num_subsets=10, max_subset_size=150)
    found = kernel_inception_distance(REAL, FAKE, 10, 150, seed=7)
    assert found.mean == pytest.approx(wanted, rel=1e-12)


def test_kid_estimate_of_torchmetrics() -> None:
    library = importlib.import_module("torchmetrics.image.kid")
    wanted = library.poly_mmd(FAKE[:500], REAL[:500])
    assert polynomial_mmd(FAKE[:500], REAL[:500]) == pytest.approx(float(wanted), rel=1e-12)


def test_inception_score_of_torch_fidelity() -> None:
    isc = importlib.import_module("torch_fidelity.metric_isc")
    for shuffle in (True, False):
        wanted = isc.isc_features_to_metric(FAKE, splits=10, shuffle=shuffle, rng_seed=2020)
        found = inception_score(FAKE, num_splits=10, shuffle_seed=2020 if shuffle else None)
        assert found.mean == pytest.approx(wanted["inception_score_mean"], rel=1e-14)
        assert found.deviation == pytest.approx(wanted["inception_score_std"], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_and_recall_of_torch_fidelity(dtype: torch.dtype) -> None:
    prc = importlib.import_module("torch_fidelity.metric_prc")
    found = manifold_scores(FAKE.to(dtype), REAL.to(dtype), block=128)
    assert 0.05 < found.precision < 1 and 0.05 < found.recall < 1
    assert (found.precision, found.recall) == pytest.approx(
        prc.calculate_precision_recall_full(FAKE.to(dtype), REAL.to(dtype), 3), abs=1e-6
    )


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_and_coverage_of_prdc(k: int) -> None:
    library = importlib.import_module("prdc")
    # Repeated pictures are where < and <= differ.
    fake, real = torch.cat((FAKE[:300], REAL[:9])), torch.cat((REAL[:250], REAL[:20], REAL[:20]))
    wanted = library.compute_prdc(real.numpy(), fake.numpy(), nearest_k=k)
    found = manifold_scores(fake, real, k, strict=True)
    assert {name: getattr(found, name) for name in wanted} == pytest.approx(wanted, abs=1e-12)
    assert found != manifold_scores(fake, real, k)
