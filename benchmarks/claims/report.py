"""What is left of a tested claim: a JSON file, a picture, and one row in RESULTS.md."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from analysis import LEVEL, Finding, Numbers, Verdict
from claim import Claim, Correlation

__all__ = ["as_json", "draw", "row", "with_row", "write"]

_HEADING: Final = "## Claims"
_HEAD: Final = (
    "| claim | what the paper says | runs | differences, mean over seeds [95 % bootstrap interval] | verdict |",
    "| --- | --- | --- | --- | --- |",
)
_MANY: Final = 8
"""Arms that have colours of their own."""
_LINE: Final = 0.16
"""Inches of a line of a plot."""
_ABOUT: Final = (
    "Headline claims of papers at small scale, against the honest baseline (`make claims`; how: benchmarks/claims/",
    "README.md). Numbers and picture of a row: `benchmarks/results/claim_<claim>.json` and `.png`.",
)


def write(path: Path, text: str) -> None:
    """Write a file so that it is never seen half written.

    Args:
        path: its folder is made.
        text: the content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def as_json(claim: Claim, numbers: Numbers, verdict: Verdict, seeds: Sequence[int], quick: bool) -> dict[str, Any]:
    """Everything that was asked and found.

    Args:
        claim: the claim.
        numbers: of all finished runs.
        verdict: what they came to.
        seeds: those that were planned.
        quick: whether the budget was the quick one.

    Returns:
        Plain JSON values.
    """
    return {
        "claim": claim.name,
        "sentence": claim.sentence,
        "source": claim.source,
        "arms": dict(claim.arms),
        "baseline": claim.baseline,
        "budget": {**dataclasses.asdict(claim.quick if quick else claim.budget), "equal": claim.equal},
        "quick": quick,
        "seeds": {"planned": list(seeds), "complete": list(verdict.seeds)},
        "verdict": verdict.word,
        "because": verdict.sentence,
        "level": LEVEL,
        "findings": [_finding(finding) for finding in verdict.findings],
        "numbers": {arm: {str(seed): dict(found) for seed, found in by.items()} for arm, by in numbers.items()},
        "machine": {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()},
        "date": datetime.date.today().isoformat(),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        **dataclasses.asdict(finding.comparison),
        "differences": {str(seed): value for seed, value in finding.differences.items()},
        "mean": finding.mean,
        "interval": finding.interval,
        "verdict": finding.word,
    }


def row(claim: Claim, verdict: Verdict) -> str:
    """The claim's line of the table.

    Args:
        claim: the claim.
        verdict: of all its seeds.

    Returns:
        A line of Markdown.
    """
    runs = f"{len(claim.arms)} arms x {len(verdict.seeds)} seeds, {claim.budget}; {claim.equal}"
    told = "<br>".join(finding.told for finding in verdict.findings)
    date = datetime.date.today().isoformat()
    cells = (claim.name, f"{claim.sentence} ({claim.source})", runs, told, f"**{verdict.word}**, {date}")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def with_row(text: str, name: str, line: str) -> str:
    """RESULTS.md with a claim's row in it: in the place of its older one, else below the other claims.

    Args:
        text: the file as it is, with or without a section about claims.
        name: of the claim, the row's first cell.
        line: the row.

    Returns:
        The file as it shall be.
    """
    lines = text.rstrip("\n").split("\n")
    if _HEADING not in lines:
        return "\n".join([*lines, "", _HEADING, "", *_ABOUT, "", *_HEAD, line]).lstrip("\n") + "\n"
    start = lines.index(_HEADING) + 1
    end = next((i for i in range(start, len(lines)) if lines[i].startswith("## ")), len(lines))
    mine = [i for i in range(start, end) if lines[i].startswith(f"| {name} |")]
    table = [i for i in range(start, end) if lines[i].startswith("|")]
    if mine:
        lines[mine[0]] = line
    elif table:
        lines.insert(table[-1] + 1, line)
    else:
        lines[start:start] = ["", *_HEAD, line]
    return "\n".join(lines) + "\n"


def draw(claim: Claim, numbers: Numbers, verdict: Verdict, path: Path) -> None:
    """Draw the numbers of every arm, and the differences or rank correlations with their intervals.

    Args:
        claim: the claim.
        numbers: of the finished runs.
        verdict: with at least one complete seed.
        path: PNG file to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the plot needs matplotlib: pip install "lightning-gen[demo]"') from error

    kinds = list(dict.fromkeys(finding.comparison.kind for finding in verdict.findings))
    told = [[one for one in verdict.findings if one.comparison.kind == kind] for kind in kinds]
    heights = [max(3.2, 0.6 + _LINE * max(len(findings), len(claim.arms))) for findings in told]
    figure = Figure(figsize=(12, 1.2 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(kinds), 2, squeeze=False, height_ratios=heights)
    for (left, right), kind, findings in zip(axes, kinds, told, strict=True):
        if isinstance(findings[0].comparison, Correlation):
            _draw_orders(left, claim, numbers, verdict.seeds, findings)
        elif len(claim.arms) > _MANY:
            _draw_arms(left, claim, numbers, verdict.seeds, findings, kind)
        else:
            _draw_numbers(left, claim, numbers, verdict.seeds, findings, kind)
        _draw_differences(right, findings, kind)
    title = textwrap.fill(claim.sentence, 120)
    figure.suptitle(f"{claim.name}, {len(verdict.seeds)} seeds: {verdict.word}\n{title}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _draw_numbers(
    axis: Any, claim: Claim, numbers: Numbers, seeds: Sequence[int], findings: Sequence[Finding], kind: str
) -> None:
    measures = list(dict.fromkeys(finding.comparison.measure for finding in findings))
    for place, arm in enumerate(claim.arms):
        color, aside = f"C{place}", 0.16 * (place - (len(claim.arms) - 1) / 2)
        places = [spot + aside for spot in range(len(measures))]
        values = [[numbers[arm][seed].get(measure, math.nan) for measure in measures] for seed in seeds]
        for of_seed in values:
            axis.plot(places, of_seed, "o", color=color, markersize=3, alpha=0.5)
        axis.plot(places, _means(values), "_", color=color, markersize=14, markeredgewidth=2, label=_called(claim, arm))
    axis.set_xticks(range(len(measures)), measures)
    axis.set_ylabel(kind)
    axis.legend(fontsize=8)


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    """Over the seeds."""
    return [sum(column) / len(column) for column in zip(*values, strict=True)]


def _called(claim: Claim, arm: str) -> str:
    return f"{arm} (baseline)" if arm == claim.baseline else arm


def _draw_arms(
    axis: Any, claim: Claim, numbers: Numbers, seeds: Sequence[int], findings: Sequence[Finding], kind: str
) -> None:
    """A line per arm, where there are too many for colours of their own."""
    measures = dict.fromkeys(finding.comparison.measure for finding in findings)
    for number, measure in enumerate(measures):
        values = [[numbers[arm][seed].get(measure, math.nan) for arm in claim.arms] for seed in seeds]
        for of_seed in values:
            axis.plot(of_seed, range(len(of_seed)), "o", color=f"C{number}", markersize=3, alpha=0.5)
        rows = range(len(claim.arms))
        axis.plot(_means(values), rows, "|", color=f"C{number}", markersize=10, markeredgewidth=2, label=measure)
    axis.set_yticks(range(len(claim.arms)), [_called(claim, arm) for arm in claim.arms], fontsize=8)
    axis.set_ylim(len(claim.arms) - 0.5, -0.5)
    axis.set_xlabel(f"{kind}: seeds and their mean", fontsize=8)
    axis.legend(fontsize=8)


def _draw_orders(axis: Any, claim: Claim, numbers: Numbers, seeds: Sequence[int], findings: Sequence[Finding]) -> None:
    """Mean ranks over the seeds: on a rising or falling line the orders agree."""
    for place, finding in enumerate(findings):
        question = finding.comparison
        assert isinstance(question, Correlation)
        arms = question.arms or tuple(claim.arms)
        ranks = [_mean_ranks(numbers, arms, seeds, measure) for measure in (question.measure, question.against)]
        axis.plot(*ranks, "o", color=f"C{place}", markersize=5, alpha=0.6, label=question.measure)
        axis.set_ylabel(f"rank of {question.against}")
    axis.set_xlabel("rank of an arm, mean over seeds; 0 = lowest", fontsize=8)
    axis.legend(fontsize=8)


def _mean_ranks(numbers: Numbers, arms: Sequence[str], seeds: Sequence[int], measure: str) -> list[float]:
    values = [[numbers[arm][seed][measure] for arm in arms] for seed in seeds]
    ranks = [[sum(other < one for other in of_seed) for one in of_seed] for of_seed in values]
    return _means(ranks)


def _draw_differences(axis: Any, findings: Sequence[Finding], kind: str) -> None:
    for place, finding in enumerate(findings):
        values = list(finding.differences.values())
        axis.plot(values, [place] * len(values), "o", color="0.6", markersize=4)
        if finding.interval is not None:
            axis.plot(finding.interval, [place, place], "-", color="C3", linewidth=2)
        axis.plot([finding.mean], [place], "D", color="C3", markersize=5)
        if finding.comparison.expects is not None:
            axis.plot([finding.comparison.margin] * 2, [place - 0.3, place + 0.3], "--", color="black", linewidth=1)
    axis.axvline(0, color="0.8", linewidth=1)
    axis.set_yticks(range(len(findings)), [str(finding.comparison) for finding in findings], fontsize=8)
    axis.set_ylim(len(findings) - 0.5, -0.5)
    axis.set_xlabel(f"{kind}: seeds, mean, 95 % interval; dashed: margin", fontsize=8)
