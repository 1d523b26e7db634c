"""From numbers per arm and seed to a verdict: paired differences, their bootstrap intervals, and a word.

A number that is looked at by itself is its difference from 0. A rank correlation of the arms is a number per seed too.

Shape letters: S seeds, A arms.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import torch
from claim import Claim, Comparison, Correlation, Question

from lightning_gen.metrics.intervals import bootstrap_interval
from lightning_gen.metrics.manifold.correlation import spearman_rho

__all__ = ["LEVEL", "Finding", "Numbers", "Verdict", "Word", "analyse", "decide", "find"]

LEVEL: Final = 0.95
"""Coverage that the intervals are named by. A bootstrap of few seeds covers less: with 5 it is about 0.63 times as wide
as Student's interval. The margins of the comparisons stand against reading much into a small difference."""

Word = Literal["holds", "does not hold", "undecided"]
Numbers = Mapping[str, Mapping[int, Mapping[str, float]]]
"""arm -> seed -> name -> number."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a comparison came to.

    Attributes:
        comparison: which one.
        differences: by seed; of a rank correlation the correlations.
        mean: of the differences.
        interval: of the mean; None = fewer than two seeds.
        word: whether what was expected holds; None = nothing was expected.
    """

    comparison: Question
    differences: Mapping[int, float]
    mean: float
    interval: tuple[float, float] | None
    word: Word | None

    def __str__(self) -> str:
        """As it is printed."""
        between = "" if self.interval is None else f" [{self.interval[0]:+.3f}, {self.interval[1]:+.3f}]"
        expects = self.comparison.expects
        wanted = "" if expects is None else f" (claimed: {expects} than {self.comparison.margin:g})"
        return f"{self.comparison} {self.mean:+.3f}{between}{wanted}"

    @property
    def told(self) -> str:
        """The same with its word, if it has one."""
        return str(self) if self.word is None else f"{self} -> {self.word}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say about a claim.

    Attributes:
        word: holds, does not hold, undecided.
        sentence: the same with its reason.
        findings: one per comparison; empty before any seed is complete.
        seeds: those that every arm has finished.
    """

    word: Word
    sentence: str
    findings: Sequence[Finding]
    seeds: Sequence[int]


def analyse(claim: Claim, numbers: Numbers, seeds: Sequence[int]) -> Verdict:
    """Compare the arms.

    The claim holds if every comparison that decides holds, and does not hold if one of them does not. Before all seeds
    are there it is undecided, whatever the differences are: who looks after every seed finds something sooner or later.

    Args:
        claim: the claim.
        numbers: of the runs that are finished.
        seeds: those that were planned.

    Returns:
        The verdict.

    Raises:
        ValueError: a run lacks a number that is compared.
    """
    complete = [seed for seed in seeds if all(seed in numbers.get(arm, {}) for arm in claim.arms)]
    findings = [find(one, numbers, complete) for one in claim.comparisons] if complete else []
    if len(complete) < len(seeds):
        missing = ", ".join(str(seed) for seed in seeds if seed not in complete)
        sentence = f"undecided: {len(complete)} of {len(seeds)} seeds are complete, missing: {missing}"
        return Verdict("undecided", sentence, findings, complete)
    words = [finding.word for finding in findings if finding.word is not None]
    word: Word = "undecided"
    if "does not hold" in words:
        word = "does not hold"
    elif all(one == "holds" for one in words):
        word = "holds"
    # The differences that are to blame, or all where it holds.
    told = [finding for finding in findings if finding.word == word]
    return Verdict(word, f"{word}: " + "; ".join(map(str, told)), findings, complete)


def find(comparison: Question, numbers: Numbers, seeds: Sequence[int]) -> Finding:
    """One comparison over the seeds.

    Args:
        comparison: what is compared.
        numbers: of the arms that it names, for all of the seeds.
        seeds: at least one.

    Returns:
        Differences, mean, interval and word.

    Raises:
        ValueError: a run lacks the number.
    """
    answer = _correlation if isinstance(comparison, Correlation) else _difference
    differences = [answer(comparison, numbers, seed) for seed in seeds]  # type: ignore[arg-type]
    interval = None
    if len(seeds) > 1:
        # Both sides of a difference are drawn together: they belong to one seed.
        interval = bootstrap_interval(torch.tensor(differences, dtype=torch.float64), level=LEVEL)
    word = None if comparison.expects is None else decide(comparison, interval)
    return Finding(
        comparison, dict(zip(seeds, differences, strict=True)), statistics.fmean(differences), interval, word
    )


def decide(comparison: Question, interval: tuple[float, float] | None) -> Word:
    """The word for an interval.

    higher:      holds where lower end > margin, does not hold where upper end < margin, else undecided
    not higher:  the same with both answers exchanged

    A tie (an interval around 0 inside the margin) therefore is an answer: not higher.

    Args:
        comparison: says what is expected.
        interval: of the mean difference; None = not known.

    Returns:
        The word.
    """
    if interval is None:
        return "undecided"
    lower, upper = interval
    if lower > comparison.margin:
        return "holds" if comparison.expects == "higher" else "does not hold"
    if upper < comparison.margin:
        return "does not hold" if comparison.expects == "higher" else "holds"
    return "undecided"


def _difference(comparison: Comparison, numbers: Numbers, seed: int) -> float:
    second = 0.0 if comparison.second is None else _number(numbers, comparison.second, seed, comparison.measure)
    return _number(numbers, comparison.first, seed, comparison.measure) - second


def _correlation(question: Correlation, numbers: Numbers, seed: int) -> float:
    """Spearman's rho over the arms; 0 where all are equal in one of the numbers, which then foretells nothing."""
    sides = [
        [_number(numbers, arm, seed, measure) for arm in question.arms or numbers]
        for measure in (question.measure, question.against)
    ]
    return float(spearman_rho(torch.tensor([sides], dtype=torch.float64).transpose(1, 2)).nan_to_num(0.0))


def _number(numbers: Numbers, arm: str, seed: int, measure: str) -> float:
    found = numbers[arm][seed]
    if measure not in found:
        raise ValueError(f"arm {arm}, seed {seed} has no number {measure!r}; it has {', '.join(sorted(found))}")
    return found[measure]
