"""The Frechet distance between two sets of features, from moments that add up over batches and ranks.

Everything is float64. Sums are taken around a fixed vector that all processes share, because features far from zero
would lose their covariance in the difference of two large numbers.

Shape letters: N samples, D features.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Final

import torch
from torch import Tensor

__all__ = ["FrechetReference", "Gaussian", "Moments", "frechet_distance", "too_few_samples"]

_SYMMETRY: Final = 1e-6
_COLUMNS: Final = 256
"""Columns per block of a product whose half is not needed: wide enough to be fast, narrow enough to skip that half."""


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of features.

    Attributes:
        mean: float64, (D,).
        covariance: float64, (D, D), with N - 1 in the denominator.
        count: N; None where it is not known, as in the reference files of the ADM evaluator.

    Raises:
        ValueError: shapes that do not belong together, a number that is not finite, or a covariance that is none: a
            variance below 0, or a matrix that is not symmetric to 1e-6 of its largest variance.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None

    def __post_init__(self) -> None:
        size = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if self.covariance.shape != (size, size):
            raise ValueError(
                f"a mean of shape {tuple(self.mean.shape)} and a covariance of shape {tuple(self.covariance.shape)}"
            )
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.covariance).all()):
            raise ValueError("the moments of the features are not finite: some feature is NaN or infinite")
        variances = self.covariance.diagonal()
        if bool((variances < 0).any()):
            place = int(variances.argmin())
            raise ValueError(f"no covariance: the variance of feature {place} is {float(variances[place]):.4g}")
        skew = float((self.covariance - self.covariance.T).abs().amax()) if size else 0.0
        if skew > _SYMMETRY * float(variances.amax() if size else 0):
            raise ValueError(
                f"no covariance: the matrix is not symmetric, entries that should be equal differ by up to {skew:.4g}"
            )

    def to(self, device: torch.device | str) -> Gaussian:
        """The same on another device.

        Args:
            device: where to.

        Returns:
            A copy, or itself if it is there.
        """
        if self.mean.device == torch.device(device):
            return self
        return Gaussian(self.mean.to(device), self.covariance.to(device), self.count)


class Moments:
    """Sums over features that are exact to add: over batches, over ranks, in any order.

    n = number of samples, s = sum (f - K), Q = sum (f - K)(f - K)^T for a fixed vector K.

    Q is symmetric, so only blocks of columns on and above its diagonal are summed; what lies below them stays zero
    until :meth:`gaussian` mirrors it. Large batches are faster: some hundred rows at least.

    Args:
        size: D.
        shift: float, (D,), K, the same in all processes, near the mean of the features; None = zero.
        device: where the sums are kept.

    Source: the shifted-data algorithm for variances (Chan, Golub and LeVeque, 1983).
    """

    def __init__(self, size: int, shift: Tensor | None = None, device: torch.device | str = "cpu") -> None:
        self.shift = torch.zeros(size, dtype=torch.float64, device=device)
        if shift is not None:
            self.shift.copy_(shift)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.total = torch.zeros_like(self.shift)
        self.outer = torch.zeros(size, size, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, count: Tensor, total: Tensor, outer: Tensor, shift: Tensor) -> Moments:
        """Moments over sums that live elsewhere, such as the states of a metric; ``add`` changes those in place.

        Args:
            count: int64, (), n.
            total: float64, (D,), s.
            outer: float64, (D, D), Q.
            shift: float64, (D,), K.

        Returns:
            A view.
        """
        moments = cls.__new__(cls)
        moments.count, moments.total, moments.outer, moments.shift = count, total, outer, shift
        return moments

    def add(self, features: Tensor, valid: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            features: float, (B, D).
            valid: bool, (B,), False = a row that only fills the batch; None = all count.

        Raises:
            ValueError: another number of features, or one that is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.shift.shape[0]:
            raise ValueError(f"features of shape {tuple(features.shape)}, expected (B, {self.shift.shape[0]})")
        rows = features.detach() if valid is None else features.detach()[valid]
        # Widened before they are subtracted; in one mixed expression torch takes seven times as long.
        rows = rows.to(torch.float64, copy=True).sub_(self.shift)
        total = rows.sum(0)
        if not torch.isfinite(total).all():
            raise ValueError("a feature is NaN or infinite: look at the images and at the extractor")
        self.count += rows.shape[0]
        self.total += total
        for start in range(0, rows.shape[1], _COLUMNS):
            block = rows[:, start : start + _COLUMNS]
            self.outer[start : start + _COLUMNS, start:].addmm_(block.T, rows[:, start:])

    def merge(self, other: Moments) -> None:
        """Take in the sums of another process.

        Args:
            other: with the same shift.

        Raises:
            ValueError: another shift, so that the sums do not add up.
        """
        if not torch.equal(self.shift, other.shift):
            raise ValueError("moments around different vectors do not add up: give all processes the same shift")
        self.count += other.count
        self.total += other.total
        self.outer += other.outer

    def gaussian(self) -> Gaussian:
        """Mean and covariance.

        mu = K + s / n,  S = (Q - s s^T / n) / (n - 1)

        Returns:
            Both, with the number of samples.

        Raises:
            ValueError: fewer than two samples.
        """
        count = int(self.count)
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {count}")
        covariance = torch.addr(self.outer, self.total, self.total, alpha=-1 / count).div_(count - 1)
        for start in range(0, len(covariance), _COLUMNS):
            end = start + _COLUMNS
            covariance[end:, start:end] = covariance[start:end, end:].T
            # A product of rows with themselves is symmetric up to rounding only.
            block = covariance[start:end, start:end]
            block.copy_(block.triu() + block.triu(1).T)
        # The variance of a feature that is constant is a difference of rounded numbers, and can come out below 0.
        covariance.diagonal().clamp_(min=0)
        return Gaussian(self.shift + self.total / count, covariance, count)


def too_few_samples(gaussian: Gaussian) -> str:
    """Say what is wrong with a distance from few samples.

    Args:
        gaussian: one side of it.

    Returns:
        A sentence where N <= D, which leaves the covariance without full rank; else an empty string.
    """
    count, size = gaussian.count, gaussian.mean.shape[0]
    if count is None or count > size:
        return ""
    return (
        f"{count} samples of {size} features: the covariance is not of full rank, and the Frechet distance is too "
        f"large by about c / N. Compare only with values of the same N, take more samples, or extrapolate to infinite N"
    )


class FrechetReference:
    """A set that others are compared with; what depends on it alone is computed once.

    Args:
        gaussian: its moments.
    """

    def __init__(self, gaussian: Gaussian) -> None:
        self.gaussian = gaussian

    @property
    def factor(self) -> Tensor:
        """A with A A^T = S: by Cholesky, or symmetric where that fails (fewer samples than features)."""
        return self._factored[0]

    @functools.cached_property
    def _factored(self) -> tuple[Tensor, bool]:
        """A, and whether it is lower triangular."""
        covariance = self.gaussian.covariance
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not failed:
            return factor, True
        values, vectors = torch.linalg.eigh(covariance)
        return vectors * values.clamp(min=0).sqrt(), False

    def distance(self, other: Gaussian) -> float:
        """Frechet distance; warns where either side has no more samples than features.

        d = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 sum_i sqrt(lambda_i),  lambda = eigenvalues of A^T S_2 A >= 0

        Args:
            other: the set that is measured.

        Returns:
            The distance; between sets that are equal, rounding may leave a trifle below 0.

        Raises:
            ValueError: another number of features.

        Source: Dowson and Landau, 1982; the eigenvalues are those of S_1 S_2, found without complex numbers.
        deviates: the ADM evaluator keeps its mean in float32, which moves an FID by less than 1e-6.
        """
        for side in (self.gaussian, other):
            if problem := too_few_samples(side):
                warnings.warn(problem, stacklevel=2)
        return self.distance_of_any(other)

    def distance_of_any(self, other: Gaussian) -> float:
        """The same without the warning, for samples whose number is part of the plan.

        Args:
            other: the set that is measured.

        Returns:
            The distance.

        Raises:
            ValueError: another number of features.
        """
        first = self.gaussian
        if first.mean.shape != other.mean.shape:
            raise ValueError(
                f"{other.mean.shape[0]} features against a reference of {first.mean.shape[0]}: another extractor?"
            )
        # Only the lower triangle is read, so that rounding cannot make it unsymmetric.
        roots = torch.linalg.eigvalsh(_lower_congruence(*self._factored, other.covariance)).clamp(min=0).sqrt()
        traces = first.covariance.trace() + other.covariance.trace()
        return float((first.mean - other.mean).square().sum() + traces - 2 * roots.sum())


def _lower_congruence(factor: Tensor, triangular: bool, covariance: Tensor) -> Tensor:
    """The lower triangle of A^T S A; where A is triangular, in blocks without its zeros: a third of the work."""
    size = factor.shape[0]
    if size <= _COLUMNS or not triangular:
        return factor.T @ covariance @ factor
    result = torch.zeros_like(covariance)
    for column in range(0, size, _COLUMNS):
        columns = slice(column, column + _COLUMNS)
        product = covariance[column:, column:] @ factor[column:, columns]
        for row in range(column, size, _COLUMNS):
            rows = slice(row, row + _COLUMNS)
            result[rows, columns] = factor[row:, rows].T @ product[row - column :]
    return result


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Frechet distance between two Gaussians, see :meth:`FrechetReference.distance`.

    Args:
        first: one set.
        second: the other one.

    Returns:
        The distance.
    """
    return FrechetReference(first).distance(second)
