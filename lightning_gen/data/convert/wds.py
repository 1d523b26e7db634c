"""Tars of other people in the manner of WebDataset, and what is done about keys with a dot.

WebDataset ends the key at the first dot of the file name. A packer that did not know that wrote ``photo.v2.jpg`` and
``photo.v3.jpg`` as two samples, and everybody else reads one sample ``photo`` with two fields. Of neighbours that share
the name up to the first dot, this reader makes

* one sample, as WebDataset does, if some of them have a field without a dot (``photo.jpg``), or they are ``src.jpg``
  and ``tgt.jpg``;
* several samples, whose keys end at the last dot, if none of them has;
* an error that asks for ``--dots field`` (always the first) or ``--dots key`` (always the second) where both readings
  make sense: some have a field without a dot, and others are pictures with one, unless they are the pair ``0.jpg`` and
  ``1.jpg`` (or ``src`` and ``tgt``) of a sample without another picture.

A key that has to change (dots, slashes, spaces, ...) gets _ for what no key may hold and 8 digits of its old name's
hash, so two keys never become one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from lightning_gen.data.convert.records import Part, Record, Skipped, split_pictures
from lightning_gen.data.index import picture_fields
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.tarfiles import Member, split_name, walk

__all__ = ["Dots", "WdsSource", "safe_key", "split_group"]

Dots = Literal["auto", "field", "key"]

_Fields = dict[str, Member]
_PAIRS = ({"0", "1"}, {"src", "tgt"})


@dataclasses.dataclass(frozen=True)
class WdsSource:
    """Foreign tars.

    Attributes:
        root: folder that the labels of parts are relative to.
        tars: paths below it, in order.
        dots: what a dot in a name means.
        title: where the samples come from, for people.
    """

    root: Path
    tars: tuple[str, ...]
    dots: Dots
    title: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the records."""
        return {"rows": "wds", "dots": self.dots}

    @property
    def place(self) -> str:
        """Where the tars lie."""
        return str(self.root.resolve())

    def parts(self) -> Sequence[Part]:
        """One part per tar; its headers are walked to count the samples.

        Returns:
            The parts in order.

        Raises:
            ShardError: a tar is damaged.
        """
        parts, first = list[Part](), 0
        for number, name in enumerate(self.tars):
            stat = (self.root / name).stat()
            count = sum(1 for _ in self._samples(self.root / name))
            parts.append(Part(name, first, count, f"{stat.st_size}:{stat.st_mtime_ns}", (number,)))
            first += count
        return parts

    def read(self, part: Part) -> Iterator[Record | Skipped]:
        """Read a tar.

        Args:
            part: one of :meth:`parts`.

        Yields:
            One item per sample.

        Raises:
            ShardError: the tar is damaged, the members of a sample are apart, or its dots can be read in two ways.
        """
        path = self.root / self.tars[part.where[0]]
        with path.open("rb") as file:
            for row, (key, members) in enumerate(self._samples(path), part.first):
                yield _record(row, key, {field: _read(file, member) for field, member in members.items()}, part.label)

    def _samples(self, path: Path) -> Iterator[tuple[str, _Fields]]:
        seen = set[str]()
        named = ((split_name(member.name), member) for member in walk(path))
        wanted = ((*split, member) for split, member in named if split is not None and not _is_meta(split[0]))
        for key, group in itertools.groupby(wanted, key=lambda item: item[0]):
            if key in seen:
                raise ShardError(f"shard {path} has the members of {key} apart: sort the tar by name first")
            seen.add(key)
            members = [(field, member) for _, field, member in group]
            yield from split_group(key, members, self.dots, str(path))


def split_group(
    key: str, members: Sequence[tuple[str, Member]], dots: Dots, where: str
) -> Iterator[tuple[str, dict[str, Member]]]:
    """Make samples of neighbours that share the name up to the first dot.

    Args:
        key: the shared part.
        members: what stands behind the first dot, and the file.
        dots: what a dot means.
        where: the tar, for messages.

    Yields:
        Key and fields of every sample, see the first lines of this file.

    Raises:
        ShardError: the dots can be read in two ways, or a sample has a field twice.
    """
    fields = [field for field, _ in members]
    dotted = [field for field in fields if "." in field]
    bare = [field for field in fields if "." not in field]
    stems = {field.rpartition(".")[0] for field in picture_fields(dotted)}
    one = bool(bare) or stems == {"src", "tgt"}
    if dots == "auto" and bare and stems and (stems not in _PAIRS or picture_fields(bare)):
        raise ShardError(
            f"shard {where}: {key}.{bare[0]} and {key}.{dotted[0]} may be one sample or two. --dots field ends keys "
            "at the first dot, as WebDataset does, --dots key at the last"
        )
    if dots == "field" or (dots == "auto" and one):
        yield key, _unique(key, members, where)
        return
    ends = [(f"{key}.{field}".rpartition("."), member) for field, member in members]
    for name, group in itertools.groupby(ends, key=lambda item: item[0][0]):
        yield name, _unique(name, [(parts[2], member) for parts, member in group], where)


def safe_key(key: str) -> str:
    """A key that every reader understands.

    Args:
        key: any text.

    Returns:
        The key itself if it holds letters, digits, _ and - only; else with _ for the rest, and a hash.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+", key):
        return key
    digits = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', key)}-{digits}"


def _unique(key: str, members: Iterable[tuple[str, Member]], where: str) -> _Fields:
    found: _Fields = {}
    for field, member in members:
        name = re.sub(r"[^a-z0-9_.]+", "_", field.lower())
        if name in found:
            raise ShardError(f"shard {where} holds {key}.{field} twice: a sample has every field once")
        found[name] = member
    return found


def _record(row: int, key: str, sample: dict[str, bytes], where: str) -> Record | Skipped:
    pictures, fields = split_pictures(sample)
    try:
        found = json.loads(fields.pop("json", b"{}"))
    except ValueError as error:
        return Skipped(row, "undecodable", f"json: {error}", f"{key} ({where})")
    label = fields.get("cls", b"0")
    if not label.strip().isdigit():
        return Skipped(row, "bad_label", f"cls is {label[:20]!r}, not a class number", f"{key} ({where})")
    meta = found if isinstance(found, dict) else {"json": found}
    return Record(row, safe_key(key), pictures, fields, meta, name=f"{key} ({where})")


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _is_meta(key: str) -> bool:
    base = key.rsplit("/", 1)[-1]
    return base.startswith("__") and base.endswith("__")
