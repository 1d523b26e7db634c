"""The pictures of a data set, each once, in order, in batches that end where a shard ends."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.dataset import Recipe, SampleDataset
from lightning_gen.data.index import picture_field
from lightning_gen.data.loader import BatchFactory
from lightning_gen.data.native import NativeRecipe
from lightning_gen.data.order import Step
from lightning_gen.data.pixels import Framing, PixelRecipe
from lightning_gen.data.quarantine import BadSample, DataError, Quarantine
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import PictureFields, ShardSource

__all__ = ["LeftOut", "PictureSize", "ShardBatches", "read_pictures", "require_pictures"]

_KEYS = re.compile(rb"[A-Za-z0-9_-]+")


@dataclasses.dataclass(frozen=True)
class PictureSize:
    """How large pictures are when they are encoded; one of the two numbers is given.

    Attributes:
        tokens: pictures keep their ratio and are scaled down, never up, until they have no more tokens than this.
        resolution: a square of this edge is cut out of the middle of every picture.

    Raises:
        ValueError: none or both of them, or a number below 1.
    """

    tokens: int | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.tokens, self.resolution) if value is not None]
        if len(given) != 1 or given[0] < 1:
            raise ValueError(f"give either tokens or resolution, at least 1, got {self.tokens} and {self.resolution}")

    def recipe(self, patch: int) -> Recipe[Any, Any, ImageBatch]:
        """What makes batches of such pictures, without augmentation.

        Args:
            patch: edge of a token in pixels.

        Returns:
            That of an evaluation: tokens of patches, or float images of one shape.
        """
        return NativeRecipe(patch) if self.resolution is None else PixelRecipe(Framing(), training=False)


class ShardBatches:
    """A plan for the loader: some shards, one after another.

    Args:
        counts: samples of every shard of the data set.
        wanted: numbers of the shards to read.
        batch_size: samples of a batch; the last one of a shard may have fewer.
        size: how large pictures are.
    """

    def __init__(self, counts: Sequence[int], wanted: Sequence[int], batch_size: int, size: PictureSize) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        ends = [0, *itertools.accumulate(counts)]
        self.parts = {
            shard: [
                np.arange(first, min(first + batch_size, ends[shard + 1]), dtype=np.int64)
                for first in range(ends[shard], ends[shard + 1], batch_size)
            ]
            for shard in wanted
        }
        self._all = [part for parts in self.parts.values() for part in parts]
        self._shape = None if size.resolution is None else (size.resolution, size.resolution)
        self._tokens = size.tokens if size.tokens is not None else (size.resolution or 0) ** 2

    @property
    def steps(self) -> int:
        """Number of batches."""
        return len(self._all)

    def step(self, number: int) -> Step:
        """One batch.

        Args:
            number: in [0, steps).

        Returns:
            Its samples.
        """
        index = self._all[number]
        return Step(index, np.ones(len(index), np.bool_), 0, self._tokens, self._shape)


class LeftOut(Quarantine):
    """Lists pictures that cannot be used; whatever may look different tomorrow is an error instead.

    Args:
        total: pictures of the data set.
        max_bad_fraction: fraction of them that may be unusable, in [0, 1].
        path: the list.
    """

    def __init__(self, total: int, max_bad_fraction: float, path: Path) -> None:
        super().__init__(total, max_bad_fraction, total, path)

    def report(self, sample: BadSample) -> None:
        """Write a picture down.

        Args:
            sample: what was found.

        Raises:
            DataError: a shard is damaged or cannot be read, or too many pictures cannot be used.
        """
        if sample.kind != "sample":
            raise DataError(f"{sample.reason}. What is done is kept: repair the shard and start the same command again")
        super().report(sample)

    def _check(self, last: BadSample) -> None:
        if self.bad > self.allowed:
            raise DataError(
                f"{self.bad} of {self.total} pictures cannot be used, max_bad_fraction={self.max_bad_fraction} allows "
                f"{self.allowed}; all of them are listed in {self.path}, the last one is {last.key} of {last.shard}: "
                f"{last.reason}"
            )


def require_pictures(shards: IndexedShards) -> None:
    """Refuse what would fail later, sample by sample.

    Args:
        shards: the data set.

    Raises:
        DataError: a shard holds no single pictures, or a key that no shard of ours can hold.
    """
    for number, shard in enumerate(shards.manifest.shards):
        index = shards.index(number)
        if picture_field(dict.fromkeys(index.fields)) is None:
            raise DataError(
                f"shard {shard.name} has no picture field, only {', '.join(index.fields)}: latents are cached of "
                "single pictures"
            )
        if not _KEYS.fullmatch(index.key_block):
            key = next(key for key in map(index.key, range(len(index))) if not _KEYS.fullmatch(key.encode()))
            raise DataError(
                f"key {key!r} of shard {shard.name} may hold letters, digits, _ and - only: `lightning data repack` "
                "gives such samples new keys"
            )


def read_pictures(
    shards: IndexedShards,
    wanted: Sequence[int],
    size: PictureSize,
    patch: int,
    left_out: LeftOut,
    *,
    batch_size: int = 16,
    num_workers: int = 0,
) -> Generator[tuple[int, Iterator[ImageBatch]], None, None]:
    """Read some shards from beginning to end.

    Args:
        shards: the data set.
        wanted: numbers of the shards.
        size: how large pictures are.
        patch: edge of a token in pixels.
        left_out: is told of pictures that cannot be used.
        batch_size: pictures at a time.
        num_workers: processes that decode; 0 = this one.

    Yields:
        The number of a shard, and its batches, which must be used up before the next shard is asked for. What is not
        ``valid`` in a batch stands in the place of a picture that cannot be used.

    Raises:
        DataError: too many pictures cannot be used, or a shard cannot be read.
    """
    dataset = SampleDataset(ShardSource(shards, PictureFields(None, "optional")), size.recipe(patch), 0)
    plan = ShardBatches([shard.num_samples for shard in shards.manifest.shards], wanted, batch_size, size)
    factory = BatchFactory(dataset, 0, 1, left_out, pad_to="rank", num_workers=num_workers)
    try:
        batches = factory.batches(plan, 0, shards.manifest.name)
        for shard in wanted:
            yield shard, itertools.islice(batches, len(plan.parts[shard]))
    finally:
        factory.close()
