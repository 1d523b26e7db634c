"""How samples are packed, whatever they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Literal

from lightning_gen.data.convert.pictures import PictureRule
from lightning_gen.data.convert.records import Record
from lightning_gen.data.quarantine import SampleError
from lightning_gen.data.writing import check_split_name

__all__ = ["Packed", "Packing"]


@dataclasses.dataclass(frozen=True)
class Packed:
    """A sample with its final bytes.

    Attributes:
        key: its key.
        fields: field -> bytes.
        identity: 16 bytes that are equal for equal samples.
    """

    key: str
    fields: dict[str, bytes]
    identity: bytes


@dataclasses.dataclass(frozen=True)
class Packing:
    """Everything besides the source that decides the bytes of the shards.

    Attributes:
        name: name of the split that is written, and start of the shards' names.
        max_bytes: a shard is closed before it would grow beyond this (a single larger sample gets its own).
        max_samples: samples per shard at most; None = no limit.
        shuffle_seed: write all samples in a random order that this number decides; None = in the source's order.
        dedupe: leave out samples that came before, by uid where the source has one, else by their bytes.
        keys: ``source`` = keys as the source proposes them; ``number`` = the row's number.
        limit: write that many samples only, the first ones of the final order; None = all.
        pictures: resizing and encoding.
        strict: a row that gives no sample is an error instead of a count.

    Raises:
        ValueError: a limit below 1, or a split's name that could start no file name.
    """

    name: str = "train"
    max_bytes: int = 512 << 20
    max_samples: int | None = None
    shuffle_seed: int | None = None
    dedupe: bool = False
    keys: Literal["source", "number"] = "source"
    limit: int | None = None
    pictures: PictureRule = PictureRule()
    strict: bool = False

    def __post_init__(self) -> None:
        check_split_name(self.name)
        for what in ("max_bytes", "max_samples", "limit"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ValueError(f"{what} is at least 1, got {value}")

    def pack(self, record: Record) -> Packed:
        """Give a record its final bytes.

        Args:
            record: what the source gave.

        Returns:
            Key, fields and identity.

        Raises:
            SampleError: a picture could not be used.
        """
        fields, meta = dict(record.fields), dict(record.meta or {})
        for stem, data in record.pictures.items():
            try:
                stored = self.pictures.store(data)
            except SampleError as error:
                raise SampleError(f"{stem}: {error}" if stem else str(error)) from None
            field = f"{stem}.{stored.ending}" if stem else stored.ending
            if field in fields:
                raise SampleError(f"two pictures want the field {field}")
            fields[field] = stored.data
            meta |= {f"{name}_{stem}" if stem else name: value for name, value in stored.meta.items()}
        if record.meta is not None:
            fields["json"] = json.dumps(meta, sort_keys=True).encode()
        key = record.key if self.keys == "source" else f"{record.row:09d}"
        return Packed(key, fields, _identity(record, meta, fields))


def _identity(record: Record, meta: dict[str, Any], fields: dict[str, bytes]) -> bytes:
    """The source's word; else the pictures as they were read; else all fields."""
    digest = hashlib.blake2b(digest_size=16)
    if record.identity:
        digest.update(record.identity.encode())
    elif record.pictures:
        digest.update("".join(meta[f"sha1_{stem}" if stem else "sha1"] for stem in sorted(record.pictures)).encode())
    else:
        for name in sorted(fields):
            digest.update(name.encode() + b"\0" + fields[name])
    return digest.digest()
