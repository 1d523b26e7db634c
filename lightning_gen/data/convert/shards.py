"""Shards that are packed again: other sizes, another order, fewer samples or fields, smaller pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_gen.data.convert.records import Part, Record, Skipped, split_pictures
from lightning_gen.data.convert.wds import safe_key
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.shards import IndexedShards

__all__ = ["ShardsSource"]


@dataclasses.dataclass(frozen=True)
class ShardsSource:
    """Samples of a manifest.

    Attributes:
        manifest: what to read.
        touch: whether pictures may be changed; False = every byte of a sample passes through.
        fields: fields to keep; None = all.
        keys: keys of the samples to keep; None = all.
    """

    manifest: Manifest
    touch: bool = False
    fields: frozenset[str] | None = None
    keys: frozenset[str] | None = None

    @property
    def title(self) -> str:
        """Where the data come from."""
        return self.manifest.source or self.manifest.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the records."""
        fields = sorted(self.fields) if self.fields is not None else None
        keys = sorted(self.keys) if self.keys is not None else None
        return {"rows": "shards", "of": self.manifest.fingerprint, "fields": fields, "keys": keys}

    @property
    def place(self) -> str:
        """Where the shards lie."""
        return str(self.manifest.folder.resolve())

    def parts(self) -> Sequence[Part]:
        """One part per shard.

        Returns:
            The parts in order.

        Raises:
            DataError: a field is asked for that no sample has.
        """
        self._require_fields()
        parts, first = list[Part](), 0
        for number, shard in enumerate(self.manifest.shards):
            stamp = f"{shard.bytes}:{shard.idx_sha256}"
            parts.append(Part(shard.name, first, shard.num_samples, stamp, (number,)))
            first += shard.num_samples
        return parts

    def _require_fields(self) -> None:
        if self.fields is None:
            return
        reader = IndexedShards(self.manifest)
        there = {field for number in range(len(self.manifest.shards)) for field in reader.index(number).fields}
        if missing := sorted(self.fields - there):
            raise DataError(f"no sample has {', '.join(missing)}: the fields are {', '.join(sorted(there))}")

    def read(self, part: Part) -> Iterator[Record | Skipped]:
        """Read a shard.

        Args:
            part: one of :meth:`parts`.

        Yields:
            One item per sample that is kept, counted; the others are counted as ``not_wanted``.
        """
        reader = IndexedShards(self.manifest)
        try:
            for row in range(part.first, part.first + part.count):
                key = reader.key(row)
                if self.keys is not None and key not in self.keys:
                    yield Skipped(row, "not_wanted", "its key is not listed", key)
                    continue
                sample = reader[row]
                if self.fields is not None:
                    sample = {field: data for field, data in sample.items() if field in self.fields}
                if not sample:
                    yield Skipped(row, "not_wanted", "it has none of the fields", key)
                else:
                    yield self._record(row, key, sample)
        finally:
            reader.close()

    def _record(self, row: int, key: str, fields: dict[str, bytes]) -> Record:
        if not self.touch:
            return Record(row, safe_key(key), {}, fields, None, name=key)
        pictures, rest = split_pictures(fields)
        meta = json.loads(rest.pop("json")) if "json" in rest else None
        return Record(row, safe_key(key), pictures, rest, meta, name=key)
