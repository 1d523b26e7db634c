"""How sure a measured number is: Wilson's interval of a share and bootstrap intervals of anything else.

Everything is float64 on the CPU. The rows that a bootstrap draws depend on the seed and on the number of rows alone,
so two methods measured on the same rows are resampled alike.

Shape letters: N rows, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Final, Literal

import torch
from torch import Tensor

from lightning_gen.training.randomness import torch_generator

__all__ = [
    "Statistic",
    "bootstrap_interval",
    "mean_of_rows",
    "paired_bootstrap_interval",
    "ratio_bootstrap_interval",
    "ratio_of_sums",
    "wilson_interval",
]

Statistic = Callable[[Tensor], Tensor]
"""A number of a set of rows, for many sets at once: float64 (R, N, ...) -> (R,)."""

_RESAMPLES: Final = 2000
_DRAWN_AT_ONCE: Final = 1 << 20
_NORMAL: Final = NormalDist()


def wilson_interval(passed: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of independent trials.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),  p = passed / n,  z = Phi^-1((1 + level) / 2)

    Unlike p -+ z sqrt(p (1 - p) / n) it stays inside [0, 1] and has a width where nothing or everything passed.

    Args:
        passed: number of successes, 0 to ``total``.
        total: n, at least 1.
        level: probability that the interval covers the true share, in (0, 1).

    Returns:
        Lower and upper end; exactly 0 where nothing passed and exactly 1 where everything did.

    Raises:
        ValueError: no trials, more successes than trials, or a level outside (0, 1).

    Source: Wilson, Journal of the American Statistical Association 22, 1927.
    """
    if total < 1 or not 0 <= passed <= total:
        raise ValueError(f"{passed} successes of {total} trials have no interval")
    z = _NORMAL.inv_cdf((1 + _checked_level(level)) / 2)
    share, spread = passed / total, z * z / total
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    lower = 0.0 if passed == 0 else (centre - half) / (1 + spread)
    upper = 1.0 if passed == total else (centre + half) / (1 + spread)
    return lower, upper


def mean_of_rows(sets: Tensor) -> Tensor:
    """The mean of every set; the statistic of scores.

    Args:
        sets: float64, (R, N).

    Returns:
        (R,).
    """
    return sets.mean(1)


def ratio_of_sums(sets: Tensor) -> Tensor:
    """sum of numerators / sum of denominators of every set; the statistic of micro-averaged rates.

    Args:
        sets: float64, (R, N, 2), numerator and denominator of every row.

    Returns:
        (R,); NaN where all denominators of a set are 0.
    """
    sums = sets.sum(1)
    return sums[:, 0] / sums[:, 1]


def bootstrap_interval(
    values: Tensor,
    statistic: Statistic = mean_of_rows,
    resamples: int = _RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    method: Literal["percentile", "bca"] = "percentile",
) -> tuple[float, float]:
    """Bootstrap interval of a statistic of rows: rows are drawn with replacement, whole.

    percentile: the (1 - level) / 2 and (1 + level) / 2 quantiles of the R values of the statistic
    bca:        the quantiles Phi(b + (b + z) / (1 - a (b + z))) with b = Phi^-1(share of values below the statistic)
                and a = sum d^3 / (6 (sum d^2)^1.5), d = mean of the leave-one-out values - the value without row i

    Resamples on which the statistic is not a number (0 / 0) are left out. BCa corrects for bias and skewness; it also
    computes the statistic on N sets of N - 1 rows.

    Args:
        values: numbers or booleans, (N,) or (N, ...), one row per independent unit, N at least 2.
        statistic: float64 (R, N, ...) -> (R,), see ``mean_of_rows`` and ``ratio_of_sums``.
        resamples: R, at least 1.
        level: coverage in (0, 1).
        seed: of the draws.
        method: kind of interval.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: fewer than two rows (whose interval would have no width), or a value that is not finite, or a
            statistic without any value.

    Source: Efron, Journal of the American Statistical Association 82, 1987 (BCa); quantiles interpolate linearly.
    """
    if values.ndim == 0 or len(values) < 2:
        raise ValueError(f"a bootstrap needs at least 2 rows, got values of shape {tuple(values.shape)}")
    if resamples < 1:
        raise ValueError(f"a bootstrap needs at least 1 resample, got {resamples}")
    tail = (1 - _checked_level(level)) / 2
    rows = values.detach().cpu().double()
    if not torch.isfinite(rows).all():
        raise ValueError("a value to resample is NaN or infinite: leave such rows out and say so")
    drawn = torch.cat([statistic(rows[indices]) for indices in _draws(len(rows), resamples, seed)])
    drawn = drawn[~drawn.isnan()]
    if len(drawn) == 0:
        raise ValueError("the statistic is not a number on any resample")
    ends = (tail, 1 - tail)
    if method == "bca":
        ends = _corrected(ends, drawn, float(statistic(rows[None])[0]), _leave_one_out(rows, statistic))
    elif method != "percentile":
        raise ValueError(f"method must be 'percentile' or 'bca', got {method!r}")
    lower, upper = torch.quantile(drawn, torch.tensor(ends, dtype=torch.float64)).tolist()
    return lower, upper


def ratio_bootstrap_interval(
    numerators: Tensor,
    denominators: Tensor,
    resamples: int = _RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    method: Literal["percentile", "bca"] = "percentile",
) -> tuple[float, float]:
    """Bootstrap interval of a micro-averaged rate: rows are drawn whole, and both sums are computed again.

    The parts of one row (the constraints of one prompt) are not independent; drawing them one by one would make the
    interval too narrow.

    Args:
        numerators: (N,), for instance the constraints of a row that passed.
        denominators: (N,), for instance all its constraints.
        resamples: R.
        level: coverage in (0, 1).
        seed: of the draws.
        method: kind of interval.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: numbers of rows differ; else as ``bootstrap_interval``.
    """
    if numerators.ndim != 1 or numerators.shape != denominators.shape:
        raise ValueError(
            f"numerators {tuple(numerators.shape)} and denominators {tuple(denominators.shape)} must both be (N,)"
        )
    pairs = torch.stack((numerators.double(), denominators.double()), 1)
    return bootstrap_interval(pairs, ratio_of_sums, resamples, level, seed, method)


def paired_bootstrap_interval(
    first: Tensor,
    second: Tensor,
    statistic: Statistic = mean_of_rows,
    resamples: int = _RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    method: Literal["percentile", "bca"] = "percentile",
) -> tuple[float, float]:
    """Bootstrap interval of the difference of two methods that were measured on the same rows.

    statistic(first*) - statistic(second*), both on the same drawn rows

    What makes a prompt easy for both methods cancels, so the interval is narrower than one of unpaired sets.

    Args:
        first: (N, ...), row i belongs to prompt (and seed) i.
        second: the same shape and order.
        statistic: of each side.
        resamples: R.
        level: coverage in (0, 1).
        seed: of the draws.
        method: kind of interval.

    Returns:
        Lower and upper end of statistic(first) - statistic(second).

    Raises:
        ValueError: shapes differ; else as ``bootstrap_interval``.
    """
    if first.shape != second.shape:
        raise ValueError(f"rows that do not pair up: {tuple(first.shape)} and {tuple(second.shape)}")
    both = torch.stack((first.double(), second.double()), -1)
    return bootstrap_interval(
        both, lambda sets: statistic(sets[..., 0]) - statistic(sets[..., 1]), resamples, level, seed, method
    )


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies in (0, 1), got {level}")
    return level


def _draws(count: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Row numbers of all resamples, (r, N) at a time; r depends on N alone, so that equal seeds draw equal rows."""
    generator = torch_generator(seed, "bootstrap", count)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        yield torch.randint(count, (min(at_once, resamples - start), count), generator=generator)


def _leave_one_out(rows: Tensor, statistic: Statistic) -> Tensor:
    count = len(rows)
    others = torch.arange(count - 1)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    parts = []
    for start in range(0, count, at_once):
        left_out = torch.arange(start, min(start + at_once, count))[:, None]
        parts.append(statistic(rows[others + (others >= left_out)]))
    return torch.cat(parts)


def _corrected(ends: tuple[float, float], drawn: Tensor, value: float, jackknife: Tensor) -> tuple[float, float]:
    """The quantiles of BCa in place of the plain ones."""
    # Half of the ties: a discrete statistic equals its value on many resamples. Clamped, so that b stays finite.
    below = float((drawn < value).double().mean() + (drawn == value).double().mean() / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / len(drawn)), 1 - 0.5 / len(drawn)))
    deviation = jackknife.nanmean() - jackknife[~jackknife.isnan()]
    spread = float(deviation.square().sum())
    acceleration = float(deviation.pow(3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    corrected = []
    for end in ends:
        shifted = bias + _NORMAL.inv_cdf(end)
        corrected.append(_NORMAL.cdf(bias + shifted / (1 - acceleration * shifted)))
    return corrected[0], corrected[1]
