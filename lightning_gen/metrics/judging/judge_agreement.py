"""How far two judges agree about the same images: two models, a model and a human, or one model asked twice.

Shape letters: N rows, R resamples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_gen.metrics.egip import CaseError
from lightning_gen.metrics.intervals import bootstrap_interval, ratio_bootstrap_interval
from lightning_gen.metrics.judging.egip_rules import CaseResult

__all__ = ["Agreement", "cohen_kappa", "egip_agreement"]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of two judges about one kind of item.

    Attributes:
        num_items: decisions that both made.
        num_rows: images they belong to.
        raw: share of equal decisions.
        raw_interval: bootstrap interval over rows; None with fewer than two rows.
        kappa: Cohen's kappa; NaN where both always said one and the same.
        kappa_interval: bootstrap interval over rows; None where there is none.
    """

    num_items: int
    num_rows: int
    raw: float
    raw_interval: tuple[float, float] | None
    kappa: float
    kappa_interval: tuple[float, float] | None


def cohen_kappa(tables: Tensor) -> Tensor:
    """Cohen's kappa of two judges, for many tables at once.

    kappa = (p_o - p_e) / (1 - p_e),  p_o = sum_k n_kk / n,  p_e = sum_k n_k. n_.k / n^2

    Args:
        tables: numbers of decisions, (..., K, K): row = what the first judge said, column = the second.

    Returns:
        float64, (...); NaN where p_e = 1 (both always said one and the same: agreement by chance is then certain) or
        where there are no decisions.

    Source: Cohen, Educational and Psychological Measurement 20, 1960.
    """
    counts = tables.double()
    total = counts.sum((-2, -1))
    observed = counts.diagonal(dim1=-2, dim2=-1).sum(-1) / total
    expected = (counts.sum(-1) * counts.sum(-2)).sum(-1) / total**2
    return (observed - expected) / (1 - expected)


def egip_agreement(
    first: Mapping[str, CaseResult | CaseError],
    second: Mapping[str, CaseResult | CaseError],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Agreement]:
    """Compare two judges' decisions about the same images.

    Rows that either could not judge are left out; ``num_rows`` says how many remain. Intervals resample rows, because
    the decisions about one image hang together.

    Args:
        first: outcomes by case id, for instance ``EGIPReport.outcomes``; a human's through ``judge_case``.
        second: the other judge's.
        level: coverage of the intervals.
        resamples: R.
        seed: of the draws.

    Returns:
        Agreement about ``entity`` (v_e), ``constraint`` (d_c, not gated) and ``case`` (EGIP_i); a kind without items
        is left out.

    Raises:
        ValueError: no row was judged by both, or the two saw different entities or constraints.
    """
    pairs: list[tuple[CaseResult, CaseResult]] = []
    for name, one in first.items():
        other = second.get(name)
        if not (isinstance(one, CaseResult) and isinstance(other, CaseResult)):
            continue
        if one.entities.keys() != other.entities.keys() or one.direct.keys() != other.direct.keys():
            raise ValueError(f"row {name!r}: the two judges saw different entities or constraints")
        pairs.append((one, other))
    if not pairs:
        raise ValueError("no row was judged by both judges")
    decisions = {
        "entity": [_table(one.entities, other.entities) for one, other in pairs],
        "constraint": [_table(one.direct, other.direct) for one, other in pairs],
        "case": [_table({"case": one.passed}, {"case": other.passed}) for one, other in pairs],
    }
    stacked = {kind: torch.stack(tables) for kind, tables in decisions.items()}
    return {
        kind: _agreement(tables, level, resamples, seed) for kind, tables in stacked.items() if int(tables.sum()) > 0
    }


def _table(first: Mapping[str, bool], second: Mapping[str, bool]) -> Tensor:
    table = torch.zeros(2, 2, dtype=torch.int64)
    for name, verdict in first.items():
        table[int(verdict), int(second[name])] += 1
    return table


def _agreement(tables: Tensor, level: float, resamples: int, seed: int) -> Agreement:
    """Agreement of (N, 2, 2) tables, one per row."""
    equal, total = tables.diagonal(dim1=1, dim2=2).sum(1), tables.sum((1, 2))
    kappa = float(cohen_kappa(tables.sum(0)))
    raw_interval = kappa_interval = None
    if len(tables) > 1:
        raw_interval = ratio_bootstrap_interval(equal, total, resamples, level, seed)
        if kappa == kappa:
            kappa_interval = bootstrap_interval(tables, lambda sets: cohen_kappa(sets.sum(1)), resamples, level, seed)
    raw = float(equal.sum().double() / total.sum())
    return Agreement(int(total.sum()), len(tables), raw, raw_interval, kappa, kappa_interval)
