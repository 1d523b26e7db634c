"""What two data sets share: keys, uids, captions and pictures. A test set that shares prompts or pictures is no test.

Source: data_layer.md 1.1 (leakage between the training and the test split).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from lightning_gen.data.manifest import Manifest
from lightning_gen.data.shards import IndexedShards

from .walking import visit_samples

__all__ = ["KINDS", "Overlap", "caption_of", "measure_overlap"]

KINDS: Final = ("keys", "uids", "captions", "pictures (sha1)")
"""What is compared."""


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Different values in two sets, and those that both have.

    Attributes:
        counts: one of :data:`KINDS` -> values in the first set, in the second one, in both.
        unreadable: samples of both sets whose JSON could not be read; of them only keys are compared.
        damaged: one sentence per shard of both sets that could not be read to its end.
    """

    counts: dict[str, tuple[int, int, int]]
    unreadable: int
    damaged: list[str]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values.

        Returns:
            What ``stats.json`` holds under ``against``.
        """
        names = ("here", "there", "shared")
        counts = {kind: dict(zip(names, numbers, strict=True)) for kind, numbers in self.counts.items()}
        return {"counts": counts, "unreadable": self.unreadable, "damaged": self.damaged}


def measure_overlap(
    manifest: Manifest, other: Manifest, watch: Callable[[str, int, int], None] = lambda what, done, total: None
) -> Overlap:
    """Compare two sets by what their JSON members say; no pixel is decoded.

    A value takes 16 bytes of hash in memory, about 100 with Python's overhead.

    Args:
        manifest: the first set, on this machine.
        other: the second one, likewise.
        watch: gets the progress.

    Returns:
        The counts.

    Raises:
        ShardError: the shards are remote.
    """
    here, there, damaged = _Values(), _Values(), list[str]()
    for one, values in ((manifest, here), (other, there)):
        damaged += visit_samples(one, _nothing, values.look, watch)
    counts = {
        kind: (len(here.found[kind]), len(there.found[kind]), len(here.found[kind] & there.found[kind]))
        for kind in KINDS
    }
    return Overlap(counts, here.unreadable + there.unreadable, damaged)


def caption_of(record: dict[str, Any]) -> str | None:
    """The text of a sample.

    Args:
        record: its JSON.

    Returns:
        Caption, instruction or prompt, the first that is there; None = there is none, or it is no text.
    """
    text = next((record[name] for name in ("caption", "instruction", "prompt") if name in record), None)
    return text if isinstance(text, str) else None


@dataclasses.dataclass
class _Values:
    """Hashes of the different values of a set, by kind."""

    found: dict[str, set[bytes]] = dataclasses.field(default_factory=lambda: {kind: set() for kind in KINDS})
    unreadable: int = 0

    def look(self, reader: IndexedShards, index: int) -> None:
        self._add("keys", reader.key(index))
        try:
            record: dict[str, Any] = dict(json.loads(reader.field(index, "json") or b"{}"))
        except (ValueError, TypeError):
            self.unreadable += 1
            return
        caption = caption_of(record)
        if caption is None:
            caption = (reader.field(index, "txt") or b"").decode("utf-8", "replace")
        if caption.strip():
            self._add("captions", caption.strip())
        for kind, name in (("uids", "uid"), ("pictures (sha1)", "sha1")):
            for value in _numbered(record, name):
                self._add(kind, value)

    def _add(self, kind: str, value: str) -> None:
        self.found[kind].add(hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def _numbered(record: dict[str, Any], name: str) -> Iterator[str]:
    """The values of ``name``, ``name_0``, ``name_src`` and the like."""
    for key, value in record.items():
        if (key == name or key.startswith(f"{name}_")) and value not in (None, ""):
            yield str(value)


def _nothing(reader: IndexedShards, number: int) -> None:
    del reader, number
