"""How a number was measured, attached to the number: two values may be compared only if their protocols are equal."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["Measurement", "Protocol", "file_sha256"]

Detail = str | int | float | bool | None

_CHUNK: Final = 1 << 20


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The name under which a value may be quoted, and what stands behind the name.

    Attributes:
        metric: what is measured, for instance ``"gfid"``.
        method: extractor, detector or judge and its manner, for instance ``"adm-tf1"``.
        count: N, the number of samples that were counted; None where the number does not belong to the name.
        expected: the N that published numbers of this metric are computed with; None where there is no such rule.
        details: what else decides the value: sha256 of extractor and reference, rounding rule, k, splits, seed, dtype.

    Raises:
        ValueError: a name that is empty or holds a slash.
    """

    metric: str
    method: str
    count: int | None = None
    expected: int | None = None
    details: Mapping[str, Detail] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in (self.metric, self.method):
            if not part or "/" in part:
                raise ValueError(f"a protocol is named metric/method, each without a slash; got {part!r}")

    @property
    def id(self) -> str:
        """``gfid/adm-tf1/50k`` with the expected N, ``gfid@2048/adm-tf1`` with another one, ``geneval/m2f`` without."""
        if self.expected is None or self.count is None:
            return f"{self.metric}/{self.method}"
        if self.count != self.expected:
            return f"{self.metric}@{self.count}/{self.method}"
        thousands, rest = divmod(self.count, 1000)
        return f"{self.metric}/{self.method}/{self.count if rest or not thousands else f'{thousands}k'}"

    def to_json(self) -> dict[str, Any]:
        """The card as JSON: id, metric, method, count, expected, details."""
        return {"id": self.id, **dataclasses.asdict(self), "details": dict(self.details)}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A value, how sure it is, and how it was measured.

    Attributes:
        value: the number.
        protocol: how it came about.
        error: one standard error; None where none was estimated.
        interval: lower and upper end; its level and kind belong into ``protocol.details``.
        unit: what one counts, for instance ``"dB"``; empty for a pure number.
        note: a warning that must travel with the number, for instance a known bias.
    """

    value: float
    protocol: Protocol
    error: float | None = None
    interval: tuple[float, float] | None = None
    unit: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Value, error, interval, unit, note and the protocol's card."""
        return {
            "value": self.value,
            "error": self.error,
            "interval": None if self.interval is None else list(self.interval),
            "unit": self.unit,
            "note": self.note,
            "protocol": self.protocol.to_json(),
        }


def file_sha256(path: str | Path) -> str:
    """sha256 of a file, read in pieces.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()
