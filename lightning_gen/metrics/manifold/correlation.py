"""Do measures of a latent space foretell how well a generator trains on it? Rank correlations over variants.

Shape letters: V variants, R resamples.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightning_gen.metrics.intervals import Statistic, bootstrap_interval
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol

__all__ = ["RankCorrelation", "correlate", "kendall_tau", "rank_correlation", "read_results", "spearman_rho"]

_FEW: Final = 10


@dataclasses.dataclass(frozen=True)
class RankCorrelation:
    """How the orders of some variants by two numbers agree.

    Attributes:
        spearman: correlation of the ranks, in [-1, 1]; NaN where all variants are equal in one of the numbers.
        spearman_interval: bootstrap over variants; None where it cannot be computed.
        kendall: tau-b, in [-1, 1].
        kendall_interval: as above.
        variants: V.
    """

    spearman: float
    spearman_interval: tuple[float, float] | None
    kendall: float
    kendall_interval: tuple[float, float] | None
    variants: int


def spearman_rho(sets: Tensor) -> Tensor:
    """Correlation of ranks; equal values share their mean rank.

    Args:
        sets: float64, (R, V, 2).

    Returns:
        (R,); NaN where one side is constant.
    """
    order = _order(sets)
    # The rank of a value is the number of smaller ones and half of the equal ones; the constant drops out.
    ranks = order.sum(2)
    ranks = ranks - ranks.mean(1, keepdim=True)
    x, y = ranks.unbind(-1)
    return (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()


def kendall_tau(sets: Tensor) -> Tensor:
    """Kendall's tau-b: agreeing minus disagreeing pairs, over the geometric mean of the pairs without ties.

    Args:
        sets: float64, (R, V, 2).

    Returns:
        (R,); NaN where one side is constant.
    """
    x, y = _order(sets).unbind(-1)
    return (x * y).sum((1, 2)) / (x.square().sum((1, 2)) * y.square().sum((1, 2))).sqrt()


def _order(sets: Tensor) -> Tensor:
    """Signs of all differences, (R, V, V, 2)."""
    return (sets[:, :, None] - sets[:, None]).sign()


def rank_correlation(
    first: Sequence[float], second: Sequence[float], resamples: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Spearman's and Kendall's correlation of two numbers of the same variants.

    Args:
        first: V numbers, finite.
        second: V numbers, finite.
        resamples: of the bootstrap over variants; resamples that are constant on a side are left out.
        seed: of the bootstrap.

    Returns:
        Both, with 95 % intervals.

    Raises:
        ValueError: fewer than three variants, numbers that differ, or one that is not finite.
    """
    if len(first) != len(second) or len(first) < 3:
        raise ValueError(f"a rank correlation needs at least 3 variants on both sides, got {len(first)}, {len(second)}")
    pairs = torch.tensor([first, second], dtype=torch.float64).T
    if not bool(torch.isfinite(pairs).all()):
        raise ValueError("a number to correlate is NaN or infinite: leave the variant out and say so")
    values, intervals = [], []
    statistics: tuple[Statistic, ...] = (spearman_rho, kendall_tau)
    for statistic in statistics:
        values.append(float(statistic(pairs[None])[0]))
        defined = not math.isnan(values[-1])
        intervals.append(bootstrap_interval(pairs, statistic, resamples, seed=seed) if defined else None)
    return RankCorrelation(values[0], intervals[0], values[1], intervals[1], len(first))


def correlate(
    results: Mapping[str, Mapping[str, float]], generation: Mapping[str, float], seed: int = 0
) -> list[Measurement]:
    """Rank correlation of every measure with the gFID of generators that were trained on the same variants.

    A measure that foretells gFID has a correlation near 1 where less is better (LPC), near -1 where more is.

    Args:
        results: variant -> measure -> value; NaN = it was not measured.
        generation: variant -> gFID.
        seed: of the bootstrap.

    Returns:
        ``MEASURE:spearman/gfid`` and ``MEASURE:kendall/gfid``, in the order of the measures.

    Raises:
        ValueError: a variant has results but no gFID or the other way round, or no measure is known of 3 variants.
    """
    if missing := sorted(results.keys() ^ generation.keys()):
        where = "results but no gFID" if missing[0] in results else "a gFID but no results"
        raise ValueError(f"variant {missing[0]!r} has {where}: both sides must name the same variants")
    found = []
    for measure in dict.fromkeys(name for values in results.values() for name in values):
        known = [v for v in results if math.isfinite(results[v].get(measure, math.nan))]
        if len(known) < 3:
            continue
        pair = rank_correlation([results[v][measure] for v in known], [generation[v] for v in known], seed=seed)
        details: dict[str, Detail] = {
            "variants": ", ".join(known),
            "interval": "bootstrap over variants, 95 %",
            "seed": seed,
        }
        note = f"{len(known)} variants: the interval is rough" if len(known) < _FEW else ""
        for kind, value, interval in (
            ("spearman", pair.spearman, pair.spearman_interval),
            ("kendall", pair.kendall, pair.kendall_interval),
        ):
            card = Protocol(f"{measure}:{kind}", "gfid", len(known), None, details)
            found.append(Measurement(value, card, None, interval, note=note))
    if not found:
        raise ValueError(f"no measure is known of 3 of the variants {', '.join(results)}: a correlation needs them")
    return found


def read_results(path: str | Path) -> dict[str, dict[str, float]]:
    """Read what ``lightning evaluate manifold`` has written.

    Args:
        path: metrics.json, or the folder that holds it.

    Returns:
        Tokenizer -> measure -> value; NaN where the file has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such report.
    """
    place = Path(path)
    place = place / "metrics.json" if place.is_dir() else place
    if not place.is_file():
        raise FileNotFoundError(f"there is no {place}: `lightning evaluate manifold --out FOLDER` writes it")
    found: dict[str, dict[str, float]] = {}
    try:
        content: Any = json.loads(place.read_text(encoding="utf-8"))
        rows = content["metrics"] if content["verb"] == "manifold" else []
        for row in rows:
            card, value = row["protocol"], row["value"]
            if name := card["details"].get("tokenizer"):
                found.setdefault(name, {})[card["metric"]] = math.nan if value is None else float(value)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} is no report of `lightning evaluate manifold` ({error})") from None
    if not found:
        raise ValueError(f"{place} holds no measures of tokenizers: `lightning evaluate manifold` writes such a file")
    return found
