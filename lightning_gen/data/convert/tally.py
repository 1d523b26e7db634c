"""What became of the rows: counts, and a few examples of everything that was left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_gen.data.convert.records import COUNTERS

__all__ = ["Tally"]

_EXAMPLES = 5


@dataclasses.dataclass
class Tally:
    """Counts of rows by what became of them.

    Attributes:
        counts: counter -> rows; see :data:`lightning_gen.data.convert.records.COUNTERS`.
        examples: counter -> the first rows that were left out for it, and why.
    """

    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def count(self, *counters: str, times: int = 1) -> None:
        """Raise counters.

        Args:
            *counters: their names.
            times: by how much.
        """
        for counter in counters:
            self.counts[counter] = self.counts.get(counter, 0) + times

    def leave_out(self, counter: str, example: str) -> None:
        """Count a row that gives no sample.

        Args:
            counter: why, in a word.
            example: which row, and what was found.
        """
        self.count(counter)
        shown = self.examples.setdefault(counter, [])
        if len(shown) < _EXAMPLES:
            shown.append(example)

    def to_json(self) -> dict[str, Any]:
        """The tally as plain JSON values.

        Returns:
            ``counts`` and ``examples``.
        """
        return {"counts": self.counts, "examples": self.examples}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tally:
        """Read what :meth:`to_json` gave.

        Args:
            data: its value.

        Returns:
            The tally.
        """
        counts = {name: data["counts"][name] for name in sorted(data["counts"], key=_place)}
        return cls(counts, {name: list(lines) for name, lines in data["examples"].items()})

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """Add up.

        Args:
            tallies: those of the parts, in order.

        Returns:
            Their sum; the examples are the first ones.
        """
        out = cls()
        for one in tallies:
            for counter, number in one.counts.items():
                out.count(counter, times=number)
            for counter, lines in one.examples.items():
                shown = out.examples.setdefault(counter, [])
                shown += lines[: _EXAMPLES - len(shown)]
        return out


def _place(counter: str) -> int:
    known = list(COUNTERS)
    return known.index(counter) if counter in known else len(known)
