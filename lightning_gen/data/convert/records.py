"""What every source of a conversion speaks: parts that can be read again, and records with a stable row number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from lightning_gen.data.index import picture_fields

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["CHOICES", "COUNTERS", "Part", "Record", "Skipped", "Source", "Unusable", "split_pictures"]

COUNTERS: Final = {
    "read": "rows read",
    "written": "samples written",
    "ties": "pairs without a winner, kept with label_0 = 0.5",
    "contradictory": "pairs whose best_image_uid names the other picture, kept and marked",
    "duplicates": "the same sample again, left out",
    "unlabelled": "has_label is false, left out",
    "dead": "a picture's bytes are null or empty, left out",
    "no_value": "a value is null or not of its kind, left out",
    "missing": "a file that the row names is not there, left out",
    "undecodable": "not a picture that could be used, left out",
    "bad_label": "a label that is not one, left out",
}
"""What is counted in every conversion, with its meaning."""

CHOICES: Final = {
    "preference": "failed edits, left out",
    "multi_turn": "rows of several edits, left out",
    "not_wanted": "samples that were not asked for",
}
"""What some sources count besides: rows that are left out by choice, not for a fault."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of the input that is read in one go, and read again from its start after a crash.

    Attributes:
        label: its name for people: file and place in it, relative to the source.
        first: number of its first row in the whole input.
        count: rows in it.
        stamp: something that changes when the input changes, for instance size and time of the file.
        where: the source's own address of it.
    """

    label: str
    first: int
    count: int
    stamp: str
    where: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample on its way into the shards.

    Attributes:
        row: its number in the whole input.
        key: its key as the source proposes it.
        pictures: stem of the field -> encoded picture, whose ending is told by its content; stem ``""`` for the only
            picture, ``0`` and ``1`` for a pair. A picture that was made, not read, comes as PIL's.
        fields: field -> bytes of everything else.
        meta: goes into the field ``json``, with what is found out about the pictures; None = write none.
        identity: equal for samples that are the same; empty = the bytes decide.
        notes: counters to raise.
        name: what people call the row in a message; empty = its number and its part.
    """

    row: int
    key: str
    pictures: Mapping[str, bytes | Image.Image] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] | None = None
    identity: str = ""
    notes: tuple[str, ...] = ()
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A row that gives no sample.

    Attributes:
        row: its number in the whole input.
        counter: what is counted, one of :data:`COUNTERS` or :data:`CHOICES`.
        reason: what was found.
        name: as in :class:`Record`.
    """

    row: int
    counter: str
    reason: str
    name: str = ""


def split_pictures(sample: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Take the pictures out of a sample.

    Args:
        sample: field -> bytes.

    Returns:
        Stem of the field -> picture, and all other fields. Of two pictures with one stem (``jpg`` and ``png``) the
        second stays a field like any other.
    """
    pictures, rest = dict[str, bytes](), dict(sample)
    for field in picture_fields(sample):
        stem = field.rpartition(".")[0]
        if stem not in pictures:
            pictures[stem] = rest.pop(field)
    return pictures, rest


class Unusable(Exception):
    """A reader's word that a row gives no sample; becomes a :class:`Skipped`.

    Args:
        counter: what is counted.
        reason: what was found.
    """

    def __init__(self, counter: str, reason: str) -> None:
        super().__init__(reason)
        self.counter = counter
        self.reason = reason


class Source(Protocol):
    """Anything that can be converted. It is sent to worker processes, so it must be picklable and cheap to send."""

    @property
    def title(self) -> str:
        """Where the data come from, for people."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the input decides the records; plain JSON values."""
        ...

    @property
    def place(self) -> str:
        """Where the input lies; an interrupted conversion is continued only from the same place."""
        ...

    def parts(self) -> Sequence[Part]:
        """Cut the input into pieces, without reading what they hold.

        Returns:
            The pieces in order; the same input gives the same pieces.
        """
        ...

    def read(self, part: Part) -> Iterator[Record | Skipped]:
        """Read a piece.

        Args:
            part: one of :meth:`parts`.

        Yields:
            One item per row, in order; always the same for the same input.
        """
        ...
