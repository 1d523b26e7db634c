"""What lies in a sample: from the fields of a shard to a record with a meaning."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lightning_gen.data.index import picture_field
from lightning_gen.data.quarantine import SampleError, ShardError
from lightning_gen.data.shards import IndexedShards

__all__ = ["PictureFields", "ShardSource", "Source", "Stored", "json_record", "text_field"]

_LARGEST_LABEL = 2**63 - 1
"""A batch holds labels as int64."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """Where samples come from: shards, a folder, a file of prompts."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def read(self, index: int) -> T_co:
        """Fetch a sample; raises a DataError when it cannot be used."""
        ...

    def name(self, index: int) -> tuple[str, str]:
        """Shard and key of a sample, for batches and messages."""
        ...

    def damage(self, index: int) -> int:
        """How many samples are lost when this one's shard is damaged."""
        ...

    def sizes(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Known heights and widths of the pictures that shapes are planned for, (n, 2), 0 = unknown."""
        ...


class Stored(NamedTuple):
    """A picture as it is stored.

    Attributes:
        picture: encoded bytes.
        label: class, -1 = none.
        caption: text, empty = none.
    """

    picture: bytes
    label: int = -1
    caption: str = ""


class ShardSource(Generic[T]):
    """Samples of tar shards.

    Args:
        shards: the reader.
        parse: fields -> record; raises a SampleError where something is missing.
        stem: the picture whose size decides the shape, see :func:`lightning_gen.data.index.picture_field`.
    """

    def __init__(self, shards: IndexedShards, parse: Callable[[Mapping[str, bytes]], T], stem: str = "") -> None:
        self.shards, self.parse, self.stem = shards, parse, stem

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.shards)

    def read(self, index: int) -> T:
        """Fetch a sample.

        Args:
            index: global sample index.

        Returns:
            The record.

        Raises:
            SampleError: a field is missing or has no meaning.
            ShardError: the shard is damaged.
        """
        return self.parse(self.shards[index])

    def name(self, index: int) -> tuple[str, str]:
        """Shard and key of a sample.

        Args:
            index: global sample index.

        Returns:
            Both names; ``row N`` for the key where the shard's index is damaged: a bad shard must have its name.
        """
        shard, row = self.shards.locate(index)
        try:
            key = self.shards.index(shard).key(row)
        except ShardError:
            key = f"row {row}"
        return self.shards.manifest.shards[shard].name, key

    def damage(self, index: int) -> int:
        """How many samples are lost when this one's shard is damaged.

        Args:
            index: global sample index.

        Returns:
            The number of samples in the shard.
        """
        return self.shards.manifest.shards[self.shards.locate(index)[0]].num_samples

    def sizes(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Heights and widths as the index has them.

        Args:
            indices: global sample indices.

        Returns:
            int64, (n, 2), 0 = unknown.
        """
        return self.shards.sizes(indices, self.stem)


@dataclasses.dataclass(frozen=True)
class PictureFields:
    """One picture with a class or a caption: the label from ``cls``, ``cls.txt`` or ``label`` in ``json``, the caption
    from ``txt`` or ``caption`` in ``json``.

    A label is a class number: decimal digits where it is a text, an integer of at least 0 where it is JSON; ``null`` in
    JSON is none. Anything else makes a bad sample.

    Attributes:
        num_classes: labels must be there and lie in [0, num_classes); None = a sample may have no label.
        captions: ``ignore``, ``optional``, or ``required`` = a sample without a caption cannot be used.
    """

    num_classes: int | None = None
    captions: Literal["ignore", "optional", "required"] = "ignore"

    def __call__(self, fields: Mapping[str, bytes]) -> Stored:
        """Read the fields of a sample.

        Args:
            fields: name -> bytes.

        Returns:
            The encoded picture, its label and its caption.

        Raises:
            SampleError: no picture field, no label, one out of range, no caption.
        """
        picture = picture_field(fields)
        if picture is None:
            raise SampleError(f"the sample has no picture field, only {', '.join(sorted(fields))}")
        return Stored(fields[picture], *self.described(fields))

    def described(self, fields: Mapping[str, bytes]) -> tuple[int, str]:
        """What is said about a sample, whatever it shows.

        Args:
            fields: name -> bytes.

        Returns:
            Its label (-1 = none) and its caption (empty = none).

        Raises:
            SampleError: no label, one out of range, no caption.
        """
        caption = _caption(fields) if self.captions != "ignore" else ""
        if self.captions == "required" and not caption:
            raise SampleError(f"the sample has no caption (txt, or caption in json), only {', '.join(sorted(fields))}")
        return self._label(fields), caption

    def _label(self, fields: Mapping[str, bytes]) -> int:
        label = _label(fields)
        if self.num_classes is None:
            return -1 if label is None else label
        if label is None:
            raise SampleError(f"the sample has no label (cls, cls.txt, or label in json), only {', '.join(fields)}")
        if label >= self.num_classes:
            raise SampleError(f"label {label} is not one of {self.num_classes} classes")
        return label


def json_record(fields: Mapping[str, bytes]) -> dict[str, Any]:
    """The field ``json`` of a sample.

    Args:
        fields: name -> bytes.

    Returns:
        The record, empty where there is no such field.

    Raises:
        SampleError: it is not a JSON object.
    """
    if "json" not in fields:
        return {}
    try:
        record = json.loads(fields["json"])
    except (ValueError, RecursionError) as error:
        raise SampleError(f"the field json cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise SampleError(f"the field json holds a {type(record).__name__}, not an object")
    return record


def text_field(record: Mapping[str, Any], name: str) -> str:
    """A text of a JSON record.

    Args:
        record: the record.
        name: the key.

    Returns:
        The text, empty where the key is missing or null.

    Raises:
        SampleError: the value is not a text.
    """
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise SampleError(f"{name} in json is {value!r}, not a text")
    return value or ""


def _caption(fields: Mapping[str, bytes]) -> str:
    if "txt" not in fields:
        return text_field(json_record(fields), "caption")
    try:
        return fields["txt"].decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError(f"the field txt is not UTF-8: {error}") from None


def _label(fields: Mapping[str, bytes]) -> int | None:
    for field in ("cls", "cls.txt"):
        if field in fields:
            digits = fields[field].strip()
            # int() knows more numbers than these: -7, 1_0, the digits of other scripts. Longer ones fit no int64.
            if not re.fullmatch(rb"[0-9]{1,19}", digits) or int(digits) > _LARGEST_LABEL:
                raise SampleError(f"the field {field} holds {fields[field][:20]!r}, not a class number (digits alone)")
            return int(digits)
    label = json_record(fields).get("label")
    if label is not None and (type(label) is not int or not 0 <= label <= _LARGEST_LABEL):
        raise SampleError(f"label in json is {label!r:.40}, not a class number (an integer of at least 0)")
    return label
