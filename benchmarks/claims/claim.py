"""What a claim is: a sentence of a paper, arms that get the same budget, and differences that decide."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

__all__ = ["Budget", "Claim", "Comparison", "Correlation", "Expectation", "Question", "Run"]

Expectation = Literal["higher", "not higher"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every arm gets.

    Attributes:
        steps: optimiser steps.
        batch: samples per step.
        measured_on: samples that an arm is measured on.
    """

    steps: int
    batch: int
    measured_on: int

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.steps} steps of {self.batch}, measured on {self.measured_on}"


Run = Callable[[str, int, Budget, Path], Mapping[str, float]]
"""run(arm, seed, budget, folder) -> numbers by name, larger = better where they are compared.

It trains and measures one arm. The folder is for its checkpoints: called again after an interruption, it goes on from
them. Arms that get one seed see the same data, so that their numbers can be paired.
"""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One arm against another by one number: first - second, paired by seed; or one arm's number by itself.

    Attributes:
        measure: name of the number.
        first: an arm.
        second: another one, as a rule the baseline; None = the number of ``first`` is looked at as it is.
        expects: ``higher`` = the paper says that the difference (or the number) is larger than ``margin``, ``not
            higher`` = that it is not; None = reported, decides nothing.
        margin: smallest difference that counts, in the unit of the number, above 0.
    """

    measure: str
    first: str
    second: str | None
    expects: Expectation | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        _require_decidable(self)

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.measure}: {self.first}" + ("" if self.second is None else f" - {self.second}")

    @property
    def kind(self) -> str:
        """Numbers of one kind share an axis: ``psnr@2x`` is a ``psnr``."""
        return self.measure.partition("@")[0]


@dataclasses.dataclass(frozen=True)
class Correlation:
    """How the order of the arms by one number agrees with their order by another: Spearman's rho, one per seed.

    Attributes:
        measure: name of one number.
        against: name of the other one.
        arms: that are ordered, at least three; empty = all of the claim.
        expects: as in ``Comparison``, of the correlation.
        margin: as in ``Comparison``.
    """

    measure: str
    against: str
    arms: tuple[str, ...] = ()
    expects: Expectation | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        _require_decidable(self)

    def __str__(self) -> str:
        """As it is printed."""
        return f"rank correlation of {self.measure} with {self.against}"

    @property
    def kind(self) -> str:
        """Correlations with one number share an axis."""
        return f"rank correlation with {self.against}"


Question = Comparison | Correlation
"""What is asked of the numbers of all arms; the answer is a number per seed."""


def _require_decidable(question: Question) -> None:
    if question.expects not in ("higher", "not higher", None):
        raise ValueError(f"{question}: expects is 'higher', 'not higher' or None, got {question.expects!r}")
    if question.expects is not None and not question.margin > 0:
        raise ValueError(f"{question}: a comparison that decides needs a margin above 0, else a tie has no answer")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim and how it is tested. All of it is fixed before the first run.

    Attributes:
        name: of files, folders and the row; letters, digits, ``_``.
        sentence: what the paper says, short.
        source: where it says so, ``arXiv:...`` with section, table or page.
        arms: name -> what it is. A change of it makes older runs another claim's.
        baseline: the arm that the others are held against.
        seeds: all must be there before there is a verdict.
        budget: of every arm.
        equal: in words, what the arms have in common and what they have not.
        quick: budget of ``--quick``.
        comparisons: differences and rank correlations; at least one decides.
        run: trains and measures one arm.

    Raises:
        ValueError: the parts do not fit together.
    """

    name: str
    sentence: str
    source: str
    arms: Mapping[str, str]
    baseline: str
    seeds: Sequence[int]
    budget: Budget
    equal: str
    quick: Budget
    comparisons: Sequence[Question]
    run: Run

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ValueError(f"a claim's name has letters, digits and _ only, got {self.name!r}")
        if "arXiv:" not in self.source:
            raise ValueError(f"claim {self.name}: the source names the paper as arXiv:..., got {self.source!r}")
        if self.baseline not in self.arms or len(self.arms) < 2:
            raise ValueError(f"claim {self.name} needs two arms, one of them the baseline {self.baseline!r}")
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 2:
            raise ValueError(f"claim {self.name} needs at least two different seeds, got {list(self.seeds)}")
        for one in self.comparisons:
            named = (one.arms or tuple(self.arms)) if isinstance(one, Correlation) else (one.first, one.second)
            unknown = [arm for arm in named if arm is not None and arm not in self.arms]
            if unknown:
                raise ValueError(f"claim {self.name}, {one}: there is no arm {', '.join(unknown)}")
            if isinstance(one, Correlation) and len(set(named)) < 3:
                raise ValueError(f"claim {self.name}, {one}: an order needs at least three arms, got {list(named)}")
        if not any(one.expects for one in self.comparisons):
            raise ValueError(f"claim {self.name}: no comparison decides; give one what it expects")

    def setting(self, arm: str, budget: Budget) -> dict[str, Any]:
        """What a finished run must have been made with to count.

        Args:
            arm: name of the arm.
            budget: the full or the quick one.

        Returns:
            Plain JSON values.
        """
        return {"claim": self.name, "arm": arm, "is": self.arms[arm], "budget": dataclasses.asdict(budget)}
