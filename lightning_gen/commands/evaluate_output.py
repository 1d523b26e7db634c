"""What every verb of `lightning evaluate` ends with: a table on the terminal, and files in the folder of ``--out``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gen.metrics.protocol import Measurement

__all__ = ["Cases", "Finding", "finish"]

_HIDDEN = ("run", "check", "verb", "out", "config")


@dataclasses.dataclass(frozen=True)
class Cases:
    """Cases with one score each, for the contact sheet.

    Attributes:
        meaning: what the score is, and which end is good, for people.
        scores: one per case; NaN = the case could not be scored, and is not shown.
        higher_is_better: which end is the best.
        names: of the cases: file names, prompts or ids.
        images: number of a case -> its uint8 pictures (3, H, W).
    """

    meaning: str
    scores: Sequence[float]
    higher_is_better: bool
    names: Sequence[str]
    images: Callable[[int], Sequence[Tensor]]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a verb found.

    Attributes:
        title: what was evaluated.
        measurements: the numbers.
        inputs: what was read, with fingerprints.
        samples: one record per sample.
        cases: for the contact sheet; None = there is nothing to look at.
        failures: rule that failed -> number of samples.
        warnings: what must be known about the numbers.
        further: numbers that metrics.json has and the table leaves out.
    """

    title: str
    measurements: Sequence[Measurement]
    inputs: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]] = ()
    cases: Cases | None = None
    failures: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()
    further: Sequence[Measurement] = ()


def finish(options: argparse.Namespace, found: Finding) -> int:
    """Write the numbers if a folder was given, print the table, then draw the contact sheet.

    The numbers first: nothing that goes wrong with the terminal or a picture can lose them.

    Args:
        options: of the call.
        found: what to show.

    Returns:
        0.
    """
    from rich.console import Console
    from rich.text import Text

    from lightning_gen.metrics.report import as_table, failed_rules_table

    paths = [] if options.out is None else _write(options, found)
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width: protocol ids stay in one piece.
        console = Console(width=180)
    console.print(as_table(found.title, found.measurements))
    if found.failures:
        console.print(failed_rules_table(found.failures))
    for warning in found.warnings:
        console.print(Text(f"warning: {warning}"))
    if options.out is not None and found.cases is not None:
        paths.append(_draw(options.out / "contact_sheet.png", found.title, found.cases))
    for path in paths:
        console.print(Text(str(path)), soft_wrap=True)
    return 0


def _write(options: argparse.Namespace, found: Finding) -> list[Path]:
    from lightning_gen.metrics.report import write_report, write_samples

    given = {name: _plain(value) for name, value in vars(options).items() if name not in _HIDDEN}
    more: dict[str, Any] = {"failures": dict(found.failures)} if found.failures else {}
    inputs = {**found.inputs, "options": given}
    numbers = [*found.measurements, *found.further]
    paths = [write_report(options.out, options.verb, numbers, inputs, warnings=list(found.warnings), **more)]
    if found.samples:
        paths.append(write_samples(options.out, found.samples))
    return paths


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _draw(path: Path, title: str, cases: Cases) -> Path:
    from lightning_gen.metrics.contact_sheet import Cell, best_median_worst, draw_contact_sheet
    from lightning_gen.metrics.report import number

    scored = [case for case, score in enumerate(cases.scores) if score == score]
    chosen = best_median_worst([cases.scores[case] for case in scored], cases.higher_is_better)
    groups = {kind: [scored[place] for place in places] for kind, places in chosen._asdict().items()}
    # In the order of the set: a compressed npz is unpacked once, not once for every case.
    pictures = {case: cases.images(case) for case in sorted(case for group in groups.values() for case in group)}
    rows = [
        (kind, [Cell(pictures[case], f"{number(cases.scores[case])}  {cases.names[case]}") for case in group])
        for kind, group in groups.items()
    ]
    left_out = len(cases.scores) - len(scored)
    note = f"; {left_out} cases without a score are not shown" if left_out else ""
    draw_contact_sheet(f"{title}: {cases.meaning}{note}", rows).save(path)
    return path
