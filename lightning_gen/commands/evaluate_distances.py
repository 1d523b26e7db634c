"""How far samples lie from a reference: which of them are typical, and which should be looked at."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.frechet import Gaussian
from lightning_gen.metrics.image_sets import ImageSet
from lightning_gen.metrics.reference import ReferenceStatistics

from .evaluate_output import Cases

__all__ = ["ReferenceDistances", "distance_cases"]

_SHRINKAGE: Final = 0.01


class ReferenceDistances:
    """How far every sample lies from the reference, taken from the one forward that the metrics make.

    d^2 = (f - mu)^T ((1 - s) S + s tr(S) / D I)^-1 (f - mu),  s = 0.01

    A covariance of fewer pictures than features has no inverse; the shrinkage s gives it one.

    Args:
        extractor: the network; every forward from now on is watched.
        reference: with moments of ``pool``.
    """

    def __init__(self, extractor: FeatureExtractor, reference: ReferenceStatistics) -> None:
        self._gaussian: Gaussian = reference.gaussians["pool"]
        covariance = self._gaussian.covariance.to(extractor.device)
        size = len(covariance)
        floor = _SHRINKAGE * covariance.trace() / size
        identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
        # A reference of equal pictures has no spread at all.
        floor = floor.clamp(min=torch.finfo(covariance.dtype).tiny)
        self._factor = torch.linalg.cholesky((1 - _SHRINKAGE) * covariance + floor * identity)
        self._found: list[float] = []
        extractor.register_forward_hook(self._take)

    def _take(self, module: Any, arguments: Any, features: dict[str, Tensor]) -> None:
        rows = features["pool"].double() - self._gaussian.mean.to(features["pool"].device)
        self._found += torch.linalg.solve_triangular(self._factor, rows.T, upper=False).norm(dim=0).tolist()

    def all(self) -> list[float]:
        """One distance per sample, in the order in which the extractor saw them."""
        return self._found


def distance_cases(images: ImageSet, distances: list[float]) -> Cases:
    """The cases of the contact sheet.

    Args:
        images: the samples.
        distances: of every sample.

    Returns:
        The nearest ones are the best.
    """
    return Cases(
        f"distance from the reference in its own spread (Mahalanobis, covariance shrunk by {_SHRINKAGE:.0%}); best = "
        "most typical, worst = farthest away, which rare but good pictures can be",
        distances,
        False,
        images.names,
        lambda case: images.select([case]),
    )
