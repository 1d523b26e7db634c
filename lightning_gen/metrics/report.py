"""What an evaluation leaves behind: a table for people, JSON with the protocol cards for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lightning_gen.data.index import replace_file
from lightning_gen.metrics.protocol import Measurement

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["as_table", "failed_rules_table", "number", "write_report", "write_samples"]

# Distances that are never negative but by rounding; KID and extrapolated values truly can be.
_DISTANCES: Final = ("gfid", "sfid", "fdd", "gfdd", "rfid", "rfdd")
_ROUNDING: Final = 1e-3


def as_table(title: str, measurements: Sequence[Measurement], caption: str = "") -> Table:
    """The report for people.

    Args:
        title: what was evaluated.
        measurements: the numbers.
        caption: last line.

    Returns:
        A table: value, standard error, interval, number of samples, protocol id, note. A Frechet distance that
        rounding put just below 0 is shown as 0.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, because rich takes brackets in a plain string for markup.
    table = Table(
        title=Text(title, style="table.title"),
        caption=Text(caption, style="table.caption") if caption else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
    )
    for column in ("value", "+-", "interval", "N"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("protocol", overflow="fold")
    table.add_column("note", overflow="fold")
    for one in measurements:
        value = Text(f"{number(_shown(one))} {one.unit}".rstrip())
        interval = "" if one.interval is None else f"{number(one.interval[0])} .. {number(one.interval[1])}"
        count = "" if one.protocol.count is None else f"{one.protocol.count:,}"
        error = "" if one.error is None else number(one.error)
        table.add_row(value, error, interval, count, Text(one.protocol.id), Text(one.note))
    return table


def number(value: float) -> str:
    """A number as tables show it: four decimals, three digits where that would show none.

    Args:
        value: the number.

    Returns:
        Text.
    """
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3g}"


def _shown(one: Measurement) -> float:
    below_zero = one.protocol.metric in _DISTANCES and -_ROUNDING < one.value < 0
    return 0.0 if below_zero else one.value


def failed_rules_table(failures: Mapping[str, int]) -> Table:
    """How often each rule failed.

    Args:
        failures: name of the rule -> number of images.

    Returns:
        A table, most frequent first.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title="why images failed", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("images", justify="right")
    table.add_column("rule")
    for rule, count in sorted(failures.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(f"{count:,}", Text(rule))
    return table


def write_report(
    folder: str | Path, verb: str, measurements: Sequence[Measurement], inputs: Mapping[str, Any], **more: Any
) -> Path:
    """Write ``metrics.json``.

    Args:
        folder: where to; it is made.
        verb: what was run, for instance ``gfid``.
        measurements: the numbers with their protocols.
        inputs: what was read and how: options, fingerprints.
        more: further parts of the file, for instance ``failures``.

    Returns:
        The file. A value that is not finite is written as null, with a note, since JSON knows no other word for it.
    """
    from lightning_gen import __version__

    content = {
        "verb": verb,
        "metrics": [_card(one) for one in measurements],
        "inputs": dict(inputs),
        **more,
        "code_version": __version__,
    }
    return _write(Path(folder) / "metrics.json", json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def write_samples(folder: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write ``samples.jsonl``: what was found for every sample.

    Args:
        folder: where to; it is made.
        rows: one record per sample, in order.

    Returns:
        The file.
    """
    lines = "".join(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return _write(Path(folder) / "samples.jsonl", lines)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode("utf-8"))
    return path


def _card(one: Measurement) -> dict[str, Any]:
    card = one.to_json()
    if not math.isfinite(one.value):
        card["note"] = "; ".join(part for part in (one.note, f"the value is {one.value}") if part)
    return card


def _plain(value: Any) -> Any:
    """JSON without NaN: null in its place."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
