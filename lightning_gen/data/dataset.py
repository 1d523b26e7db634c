"""From a place in the plan to a decoded picture: what a worker does.

Everything is a pure function of the request, so it does not matter which worker, rank or restart serves it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from lightning_gen.data.batches import Example, ImageBatch, collate_images
from lightning_gen.data.decode import MAX_PIXELS, Decoder, decode
from lightning_gen.data.index import picture_field
from lightning_gen.data.quarantine import BadSample, DataError, SampleError, ShardError
from lightning_gen.data.shards import IndexedShards, ReadError
from lightning_gen.data.transforms import (
    Augmentation,
    BudgetRule,
    resize_picture,
    resize_to_budget,
    token_count,
)
from lightning_gen.training.randomness import key_seed

__all__ = ["Collate", "Fetched", "ImageDataset", "ImageSource", "Report", "Request", "ShardSource", "Stored"]

_REPLACEMENTS = 32
_Draws = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Request:
    """One place in a batch.

    Attributes:
        index: global sample index.
        epoch: number of the pass.
        tokens: token budget.
        length: tokens the row is padded to, None = the longest of the rank's batch.
        valid: False = only fills an evaluation batch.
    """

    index: int
    epoch: int
    tokens: int
    length: int | None
    valid: bool


class Stored(NamedTuple):
    """A sample as it is stored.

    Attributes:
        picture: encoded bytes.
        label: class, -1 = none.
    """

    picture: bytes
    label: int


class ImageSource(Protocol):
    """Where pictures come from: shards, a folder."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def read(self, index: int) -> Stored:
        """Fetch a sample; raises a DataError when it cannot be used."""
        ...

    def name(self, index: int) -> tuple[str, str]:
        """Shard and key of a sample, for batches and messages."""
        ...

    def damage(self, index: int) -> int:
        """How many samples are lost when this one's shard is damaged."""
        ...

    def sizes(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Known heights and widths, (n, 2), 0 = unknown."""
        ...


class Fetched(NamedTuple):
    """What the dataset returns for one request.

    Attributes:
        example: the decoded sample, or the one that took its place.
        request: what was asked for.
        bad: what was found on the way.
        retried: reads that were tried again.
        bytes_read: bytes that were read.
    """

    example: Example
    request: Request
    bad: tuple[BadSample, ...]
    retried: int
    bytes_read: int


class ShardSource:
    """Pictures of tar shards.

    Args:
        shards: the reader.
        num_classes: labels must be there and lie in [0, num_classes); None = a sample may have no label.
    """

    def __init__(self, shards: IndexedShards, num_classes: int | None = None) -> None:
        self.shards = shards
        self.num_classes = num_classes

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.shards)

    def read(self, index: int) -> Stored:
        """Fetch a sample.

        Args:
            index: global sample index.

        Returns:
            The encoded picture and its label, from ``cls``, ``cls.txt`` or ``label`` in ``json``.

        Raises:
            SampleError: no picture field, no label, or one out of range.
            ShardError: the shard is damaged.
        """
        fields = self.shards[index]
        picture = picture_field(fields)
        if picture is None:
            raise SampleError(f"the sample has no picture field, only {', '.join(sorted(fields))}")
        label = _label(fields)
        if self.num_classes is not None:
            if label is None:
                raise SampleError(f"the sample has no label (cls, cls.txt, or label in json), only {', '.join(fields)}")
            if not 0 <= label < self.num_classes:
                raise SampleError(f"label {label} is not one of {self.num_classes} classes")
        return Stored(fields[picture], -1 if label is None else label)

    def name(self, index: int) -> tuple[str, str]:
        """Shard and key of a sample.

        Args:
            index: global sample index.

        Returns:
            Both names.
        """
        shard, row = self.shards.locate(index)
        return self.shards.manifest.shards[shard].name, self.shards.index(shard).key(row)

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
        return self.shards.sizes(indices)


def _label(fields: dict[str, bytes]) -> int | None:
    for field in ("cls", "cls.txt"):
        if field in fields:
            try:
                return int(fields[field])
            except ValueError:
                raise SampleError(f"the field {field} holds {fields[field][:20]!r}, not a class number") from None
    if "json" not in fields:
        return None
    try:
        record = json.loads(fields["json"])
    except ValueError as error:
        raise SampleError(f"the field json cannot be read: {error}") from None
    label = record.get("label") if isinstance(record, dict) else None
    return label if isinstance(label, int) else None


class ImageDataset:
    """A map-style dataset whose "index" is a :class:`Request`.

    Args:
        source: where the bytes come from.
        patch: patch edge in pixels.
        seed: the run's seed.
        augmentation: None = pictures stay as they are (evaluation, prediction).
        rule: how a picture is made to fit the token budget.
        decoder: see :func:`lightning_gen.data.decode.decode`.
        max_pixels: refuse larger pictures.
        strict: True = a bad sample is an error; False = it is replaced, and the replacement is marked invalid where a
            request was for an evaluation.
        excluded: global sample indices that must not serve as replacements.
    """

    def __init__(
        self,
        source: ImageSource,
        patch: int,
        seed: int,
        *,
        augmentation: Augmentation | None = None,
        rule: BudgetRule = "isotropic",
        decoder: Decoder = "auto",
        max_pixels: int = MAX_PIXELS,
        strict: bool = False,
        excluded: frozenset[int] = frozenset(),
    ) -> None:
        self.source = source
        self.patch, self.seed, self.augmentation, self.rule = patch, seed, augmentation, rule
        self.decoder, self.max_pixels, self.strict = decoder, max_pixels, strict
        self.excluded = excluded

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.source)

    def __getitems__(self, requests: list[Request]) -> list[Fetched]:
        """Decode the samples of a batch, or those that deterministically take their places.

        Args:
            requests: what the plan asks for, all of one pass.

        Returns:
            Examples with reports.

        Raises:
            DataError: with ``strict``, a sample is bad; else, no replacement could be found either.
        """
        draws = self._draws(requests[0].epoch, [request.index for request in requests])
        return [self._fetch(request, row) for request, row in zip(requests, draws, strict=True)]

    def __getitem__(self, request: Request) -> Fetched:
        """Decode one sample, see :meth:`__getitems__`.

        Args:
            request: what the plan asks for.

        Returns:
            The example and a report.
        """
        return self.__getitems__([request])[0]

    def _draws(self, epoch: int, index: list[int]) -> list[_Draws | None]:
        if self.augmentation is None:
            return [None] * len(index)
        return list(self.augmentation.draws(self.seed, epoch, index))

    def _fetch(self, request: Request, draws: _Draws | None) -> Fetched:
        before = self._counters()
        bad: list[BadSample] = []
        for attempt in range(_REPLACEMENTS):
            index = self.candidate(request, attempt)
            if attempt and index in self.excluded:
                continue
            # A replacement is as good as any sample in training, but an evaluation must not count it twice.
            valid = request.valid and (attempt == 0 or self.augmentation is not None)
            try:
                row = draws if attempt == 0 else self._draws(request.epoch, [index])[0]
                example = self._example(request, index, valid, row)
            except DataError as error:
                bad.append(self._report(index, error))
                if self.strict:
                    raise DataError(f"shard {bad[-1].shard}, key {bad[-1].key}: {error}") from None
                continue
            if example is not None:
                after = self._counters()
                return Fetched(example, request, tuple(bad), after[0] - before[0], after[1] - before[1])
        raise DataError(
            f"sample {request.index} is bad, and so are {_REPLACEMENTS - 1} replacements; the first: "
            f"shard {bad[0].shard}, key {bad[0].key}: {bad[0].reason}"
        )

    def candidate(self, request: Request, attempt: int) -> int:
        """The sample that is tried at an attempt: h(seed, pass, sample, attempt).

        Args:
            request: what the plan asks for.
            attempt: 0 = the sample itself.

        Returns:
            A global sample index.
        """
        if attempt == 0:
            return request.index
        return key_seed(self.seed, "replacement", request.epoch, request.index, attempt) % len(self.source)

    def planned_tokens(self, index: npt.NDArray[np.int64], epoch: int, tokens: int) -> int | None:
        """Tokens of the longest of some samples, known before anything is decoded.

        Args:
            index: global sample indices.
            epoch: number of the pass.
            tokens: token budget.

        Returns:
            The maximum; None where the size of one of them is unknown.
        """
        sizes = self.source.sizes(index)
        if (sizes == 0).any():
            return None
        rows = self.augmentation.draws(self.seed, epoch, index.tolist()) if self.augmentation is not None else None
        edge = self._edge(tokens)
        longest = 0
        for number, (height, width) in enumerate(sizes.tolist()):
            size = (height, width)
            if rows is not None and self.augmentation is not None:
                size = self.augmentation.plan(size, edge, rows[number]).size or size
            longest = max(longest, self._tokens_after(size, tokens))
        return longest

    def _tokens_after(self, size: tuple[int, int], tokens: int) -> int:
        try:
            return token_count(resize_to_budget(size, self.patch, tokens, self.rule), self.patch)
        except ValueError:
            return 1  # The release's rule fails on this picture: it is going to be replaced by one that fits.

    def _edge(self, tokens: int) -> int:
        return max(1, math.isqrt(tokens)) * self.patch

    def _example(self, request: Request, index: int, valid: bool, draws: _Draws | None) -> Example | None:
        stored = self.source.read(index)
        picture = decode(stored.picture, self.max_pixels, self.decoder)
        original = (picture.height, picture.width)
        if self.augmentation is not None and draws is not None:
            picture = self.augmentation.plan(original, self._edge(request.tokens), draws).apply(picture)
        try:
            size = resize_to_budget((picture.height, picture.width), self.patch, request.tokens, self.rule)
        except ValueError as error:
            raise SampleError(str(error)) from None
        if request.length is not None and token_count(size, self.patch) > request.length:
            if index != request.index:
                return None  # A replacement must fit the row that was planned for the batch.
            raise SampleError(
                f"the picture is {original[0]} x {original[1]} pixels, the index says otherwise: index the shard again"
            )
        pixels = torch.from_numpy(np.array(resize_picture(picture, size)))
        return Example(pixels, stored.label, index, valid, original, self.source.name(index)[1])

    def _report(self, index: int, error: DataError) -> BadSample:
        try:
            shard, key = self.source.name(index)
        except DataError:
            shard, key = "(index)", str(index)
        if isinstance(error, ReadError):
            return BadSample(shard, key, index, "io", str(error))
        if isinstance(error, ShardError):
            return BadSample(shard, "", index, "shard", str(error), self.source.damage(index))
        return BadSample(shard, key, index, "sample", str(error))

    def _counters(self) -> tuple[int, int]:
        shards = getattr(self.source, "shards", None)
        return (shards.retried, shards.bytes_read) if isinstance(shards, IndexedShards) else (0, 0)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a batch cost.

    Attributes:
        bad: bad samples that were met.
        retried: reads that were tried again.
        bytes_read: bytes read.
    """

    bad: tuple[BadSample, ...]
    retried: int
    bytes_read: int


@dataclasses.dataclass(frozen=True)
class Collate:
    """Makes a batch and its report; an object instead of a closure, so that spawned workers can have it.

    Attributes:
        patch: patch edge in pixels.
    """

    patch: int

    def __call__(self, fetched: Sequence[Fetched]) -> tuple[ImageBatch, Report]:
        """Collate.

        Args:
            fetched: what the dataset returned for one rank's batch.

        Returns:
            The batch and its report.
        """
        first = fetched[0].request
        batch = collate_images([one.example for one in fetched], self.patch, first.length, first.epoch)
        bad = tuple(sample for one in fetched for sample in one.bad)
        return batch, Report(bad, sum(one.retried for one in fetched), sum(one.bytes_read for one in fetched))
