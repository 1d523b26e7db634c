"""EGIP, the Entity-Gated Intent Pass Rate, over batches and ranks.

Every row is kept as a few whole numbers under its index, and all rates are quotients of integer sums of them. The
result therefore depends neither on the order of rows nor on the number of ranks, to the last bit, and a row that a
sampler repeated to fill a batch counts once.

Shape letters: N rows, F numbers per row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.intervals import ratio_bootstrap_interval, wilson_interval
from lightning_gen.metrics.judging.egip_rules import CONSTRAINT_TYPES, CaseResult
from lightning_gen.metrics.judging.gen_arena import GEN_ARENA_CATEGORIES
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol

__all__ = ["EGIP", "CaseError"]

ErrorKind = Literal["image", "judge", "specification"]

_ERROR_KINDS: Final[tuple[ErrorKind, ...]] = ("image", "judge", "specification")
_PLAIN: Final = ("category", "error", "entities", "seen", "constraints", "direct", "gated", "passed")
_PER_TYPE: Final = tuple(f"{kind}/{name}" for name in CONSTRAINT_TYPES for kind in ("constraints", "direct", "gated"))


@dataclasses.dataclass(frozen=True)
class CaseError:
    """A row that could not be judged; it counts as a failure.

    Attributes:
        kind: what is missing: the ``image``, the ``judge``'s answer, or a ``specification`` that makes sense.
        message: what happened.
    """

    kind: ErrorKind
    message: str

    def __post_init__(self) -> None:
        if self.kind not in _ERROR_KINDS:
            raise ValueError(f"kind of error must be one of {', '.join(_ERROR_KINDS)}, got {self.kind!r}")


class _Rate(NamedTuple):
    """A share of sums over rows; ``single`` where each row is one trial."""

    passed: Tensor
    total: Tensor
    single: bool


class EGIP(CountedOnce):
    """EGIP, entity, direct and gated constraint rates; per category and per type of constraint; errors counted.

    EGIP              = sum_i EGIP_i / N                      (N = all rows; a row with an error is a failure)
    entity_pass       = sum_i sum_e v_e / sum_i |E_i|         (rows without error, as all that follow)
    constraint_direct = sum_i sum_c d_c / sum_i |C_i|
    constraint_gated  = sum_i sum_c g_c / sum_i |C_i|
    egip_evaluated_only and the rates of a category are over rows without error.

    A row that arrives twice under one index counts once, as it came first (the lowest rank first). Where the two
    differ, because a judge is not deterministic, a warning is logged.

    Args:
        judge: name of the judge in the protocol id ``egip/JUDGE``; no slash.
        categories: names that rows may have.
        expected_rows: N of published numbers; with another N the id is ``egip@N/JUDGE``.
        details: what else decides the number (settings of the judge, version of the instruction).

    Source: arXiv:2605.08043, as executed by its code (nopnor/SCOPE, cli/gen_arena_eval.py).
    """

    columns: tuple[str, ...] = (*_PLAIN, *_PER_TYPE)

    def __init__(
        self,
        judge: str,
        categories: Sequence[str] = GEN_ARENA_CATEGORIES,
        expected_rows: int = 300,
        details: Mapping[str, Detail] | None = None,
    ) -> None:
        super().__init__()
        self.judge = Protocol("egip", judge).method
        self.categories = tuple(categories)
        self.expected_rows = expected_rows
        self.details = dict(details or {})

    def update(self, index: int, category: str, outcome: CaseResult | CaseError, sample: int = 0) -> None:
        """Count one row.

        Args:
            index: which row of the benchmark it is, the same on all ranks, at least 0.
            category: one of ``categories``.
            outcome: what was judged, or why it could not be.
            sample: which image of this row, where several are made; each counts as a row.

        Raises:
            ValueError: an index below 0, or an unknown category.
        """
        if index < 0 or sample < 0:
            raise ValueError(f"the numbers of a row and of its sample are at least 0, got {index} and {sample}")
        if category not in self.categories:
            raise ValueError(f"row {index} has category {category!r}, not one of {', '.join(self.categories)}")
        row = dict.fromkeys(self.columns, 0)
        row["category"] = self.categories.index(category)
        if isinstance(outcome, CaseError):
            row["error"] = 1 + _ERROR_KINDS.index(outcome.kind)
        else:
            row.update(_counts(outcome))
        self.count([index], [sample], torch.tensor([list(row.values())], dtype=torch.float64))

    def compute(self) -> dict[str, Tensor]:
        """All rates over the rows of all ranks.

        Returns:
            float64 scalars ``egip``, ``egip_evaluated_only``, ``entity_pass``, ``constraint_direct``,
            ``constraint_gated``; the same but ``egip_evaluated_only`` as ``RATE/category/NAME``; the two of constraints
            as ``RATE/type/NAME``; int64 ``num_rows``, ``num_errors``, ``num_errors/KIND``,
            ``num_errors/category/NAME`` and ``num_constraints/type/NAME``. A rate of nothing (a category without rows)
            is left out.

        Raises:
            ValueError: no rows.
        """
        column = self._columns()
        scores = {name: rate.passed.sum().double() / rate.total.sum() for name, rate in self._rates(column).items()}
        return {**scores, **self._counted(column)}

    def measurements(self, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> dict[str, Measurement]:
        """The rates with their intervals and protocols.

        Shares of rows (EGIP) have Wilson intervals; micro rates have bootstrap intervals over rows, because the
        entities and constraints of one row are not independent. A micro rate of a single row has no interval.

        Args:
            level: coverage of the intervals.
            resamples: R of the bootstrap.
            seed: of its draws.

        Returns:
            The keys of ``compute`` that are rates.

        Raises:
            ValueError: no rows.
        """
        with self.on_all_ranks():
            column = self._columns()
        counted = {name: int(value) for name, value in self._counted(column).items()}
        note = _note(counted["num_errors"], counted["num_rows"])
        result = {}
        for name, rate in self._rates(column).items():
            interval: tuple[float, float] | None = None
            kind: dict[str, Detail] = {"level": level}
            if rate.single:
                kind["interval"] = "wilson"
                interval = wilson_interval(int(rate.passed.sum()), int(rate.total.sum()), level)
            elif len(rate.total) > 1:
                kind |= {"interval": "bootstrap percentile over rows", "resamples": resamples, "seed": seed}
                interval = ratio_bootstrap_interval(rate.passed, rate.total, resamples, level, seed)
            details: dict[str, Detail] = {
                **self.details,
                **kind,
                "passed": int(rate.passed.sum()),
                "of": int(rate.total.sum()),
                **counted,
            }
            value = float(rate.passed.sum().double() / rate.total.sum())
            result[name] = Measurement(
                value, self._protocol(name, counted["num_rows"], details), None, interval, note=note
            )
        return result

    def _protocol(self, name: str, count: int, details: Mapping[str, Detail]) -> Protocol:
        metric = "egip" if name == "egip" else f"egip:{name.replace('/', ':')}"
        return Protocol(metric, self.judge, count, None if count == self.expected_rows else self.expected_rows, details)

    def _columns(self) -> dict[str, Tensor]:
        """The columns of the rows, each int64, (N,)."""
        table = self.table()[:, 2:].long().cpu()
        if len(table) == 0:
            raise ValueError("EGIP of no rows: update it with at least one row first")
        return dict(zip(self.columns, table.unbind(1), strict=True))

    def _rates(self, column: dict[str, Tensor]) -> dict[str, _Rate]:
        good = column["error"] == 0
        rates = {"egip": _Rate(column["passed"], torch.ones_like(column["passed"]), True)}
        rates["egip_evaluated_only"] = _Rate(column["passed"][good], good[good].long(), True)
        rates |= _micro(column, good, "")
        for number, name in enumerate(self.categories):
            here = good & (column["category"] == number)
            rates[f"egip/category/{name}"] = _Rate(column["passed"][here], here[here].long(), True)
            rates |= _micro(column, here, f"/category/{name}")
        for name in CONSTRAINT_TYPES:
            for kind in ("direct", "gated"):
                total = column[f"constraints/{name}"][good]
                rates[f"constraint_{kind}/type/{name}"] = _Rate(column[f"{kind}/{name}"][good], total, False)
        return {name: rate for name, rate in rates.items() if int(rate.total.sum()) > 0}

    def _counted(self, column: dict[str, Tensor]) -> dict[str, Tensor]:
        error, category = column["error"], column["category"]
        counted = {"num_rows": torch.tensor(len(error)), "num_errors": (error > 0).sum()}
        for number, kind in enumerate(_ERROR_KINDS, 1):
            counted[f"num_errors/{kind}"] = (error == number).sum()
        for number, name in enumerate(self.categories):
            if bool((category == number).any()):
                counted[f"num_errors/category/{name}"] = ((error > 0) & (category == number)).sum()
        for name in CONSTRAINT_TYPES:
            total = column[f"constraints/{name}"].sum()
            if int(total) > 0:
                counted[f"num_constraints/type/{name}"] = total
        return counted


def _counts(result: CaseResult) -> dict[str, int]:
    counts = {
        "entities": len(result.entities),
        "seen": sum(result.entities.values()),
        "constraints": len(result.direct),
        "direct": sum(result.direct.values()),
        "gated": sum(result.gated.values()),
        "passed": int(result.passed),
    }
    for name in CONSTRAINT_TYPES:
        ids = [constraint for constraint, kind in result.types.items() if kind == name]
        counts[f"constraints/{name}"] = len(ids)
        counts[f"direct/{name}"] = sum(result.direct[constraint] for constraint in ids)
        counts[f"gated/{name}"] = sum(result.gated[constraint] for constraint in ids)
    return counts


def _micro(column: dict[str, Tensor], rows: Tensor, suffix: str) -> dict[str, _Rate]:
    return {
        f"entity_pass{suffix}": _Rate(column["seen"][rows], column["entities"][rows], False),
        f"constraint_direct{suffix}": _Rate(column["direct"][rows], column["constraints"][rows], False),
        f"constraint_gated{suffix}": _Rate(column["gated"][rows], column["constraints"][rows], False),
    }


def _note(errors: int, rows: int) -> str:
    if not errors:
        return ""
    return f"{errors} of {rows} rows could not be judged; EGIP counts them as failures, the other rates skip them"
