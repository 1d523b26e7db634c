"""Cached latents: what `lightning data cache-latents` wrote, as batches for a generator."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_gen.data.finding import list_shards
from lightning_gen.data.joining import weighted
from lightning_gen.data.latents.fields import LatentFields
from lightning_gen.data.latents.recipe import LatentRecipe
from lightning_gen.data.latents.record import RECORD, LatentRecord
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.plan import EvaluationPlan
from lightning_gen.data.planned import Opened, PlannedDataModule, Split
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.remote.retrying import RemoteOptions
from lightning_gen.data.remote.urls import is_remote, join_location, shown
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import PictureFields, ShardSource, Source
from lightning_gen.training.curriculum import BudgetStage

__all__ = ["LatentDataModule", "find_record"]

_NAMED = "data.statistics"


@dataclass(eq=False, repr=False, kw_only=True)
class LatentDataModule(PlannedDataModule):
    """Latents that `lightning data cache-latents` wrote: an ``ImageBatch`` whose images are latent ``Tokens``.

    A generator on normalised latents gives normalised samples: ``record.restored`` turns them into what the
    auto-encoder decodes.

    Args:
        tokens: tokens of every row, at least as many as the largest cached picture has.
        global_batch_size: pictures per micro-batch over all ranks.
        num_classes: labels must be there and lie in [0, num_classes); None = a sample may have no label (-1).
        captions: ``ignore``, ``optional``, or ``required`` = a sample without a caption cannot be used.
        mirror_probability: chance of the mirror image's latent in training, in [0, 1]; needs latents that were cached
            with ``--mirror``.
        normalise: (z - mean) / std per channel, by the statistics of the training set.
        statistics: latents.json whose statistics normalise; default that of ``train``.
        autoencoder_sha256: hash of the auto-encoder's weights as latents.json names it; latents of another one are
            refused. None = whatever made them, but the same one for all splits.
    """

    tokens: int
    global_batch_size: int
    num_classes: int | None = None
    captions: Literal["ignore", "optional", "required"] = "optional"
    mirror_probability: float = 0.0
    normalise: bool = True
    statistics: str | None = None
    autoencoder_sha256: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.tokens, self.global_batch_size) < 1:
            raise ValueError(
                f"data.tokens and data.global_batch_size must be at least 1, got {self.tokens} and "
                f"{self.global_batch_size}"
            )
        if not 0 <= self.mirror_probability <= 1:
            raise ValueError(f"data.mirror_probability lies in [0, 1], got {self.mirror_probability}")

    @property
    def curriculum(self) -> tuple[BudgetStage, ...]:
        """A single stage."""
        return (BudgetStage(self.tokens, self.global_batch_size),)

    @classmethod
    def _planned_stages(cls, init_args: Mapping[str, Any]) -> Sequence[BudgetStage]:
        return (BudgetStage(int(init_args.get("tokens") or 0), int(init_args.get("global_batch_size") or 0)),)

    @classmethod
    def _missing(cls, name: str, where: str | None, streamed: bool) -> list[str]:
        lines = super()._missing(name, where, streamed)
        if not lines and where is not None and not is_remote(where):
            try:
                find_record(where)
            except DataError as error:
                return [f"data.{name}: {error}"]
        return lines

    @functools.cached_property
    def record(self) -> LatentRecord:
        """What is known about the latents; its statistics are those that normalise.

        Raises:
            DataError: latents.json is missing, contradicts the arguments, or those of the splits contradict each other.
        """
        records = self._records()
        train = [records[part.shards] for part in weighted(self.train)]
        if self.mirror_probability and not all(record.mirrored for record in train):
            raise DataError(
                "data.mirror_probability needs latents of mirror images: cache data.train again with --mirror, or set "
                "it to 0"
            )
        if self.statistics is not None:
            return self._spread(records[_NAMED])
        if self.normalise and len({record.statistics_sha256 for record in train}) != 1:
            what = "there is no data.train" if not train else "the sets of data.train have different ones"
            raise DataError(
                f"data.normalise needs one mean and standard deviation, and {what}: name the latents.json to use in "
                "data.statistics, or set data.normalise to false"
            )
        return self._spread(train[0] if train else next(iter(records.values())))

    def _spread(self, record: LatentRecord) -> LatentRecord:
        if self.normalise:
            record.require_spread()
        return record

    def _records(self) -> dict[str, LatentRecord]:
        """Those of all places, of one auto-encoder, the one that is asked for."""
        trained = [part.shards for part in weighted(self.train)]
        places = [*trained, *(where for where in (self.val, self.predict) if where is not None)]
        records = {where: find_record(where, self.remote) for where in places}
        if self.statistics is not None:
            records[_NAMED] = LatentRecord.load(self.statistics, self.remote)
        if not records:
            raise DataError("there are no latents: name data.train, data.val or data.predict")
        place, first = next(iter(records.items()))
        for where, record in records.items():
            made = f"{shown(where)} was made by {_maker(record)}"
            if self.autoencoder_sha256 not in (None, record.sha256):
                raise DataError(
                    f"{made}, data.autoencoder_sha256 asks for {self.autoencoder_sha256}: cache the latents of the "
                    "auto-encoder that is used"
                )
            if (record.sha256, record.patch, record.channels) != (first.sha256, first.patch, first.channels):
                raise DataError(f"{made}, {shown(place)} by {_maker(first)}: cache all latents by one auto-encoder")
            if where != _NAMED and record.budget > self.tokens:
                raise DataError(
                    f"{shown(where)} holds pictures of up to {record.budget} tokens: set data.tokens to "
                    f"{record.budget}, not {self.tokens}"
                )
        return records

    def _open(self, split: Split) -> Opened:
        opened = super()._open(split)
        # The manifest's own fingerprint is made of keys and sizes, which latents of other weights share.
        key = " ".join((opened.fingerprint, self.record.sha256, self.record.statistics_sha256))
        return dataclasses.replace(opened, fingerprint=hashlib.sha256(key.encode()).hexdigest())

    def _source(self, shards: IndexedShards) -> Source[Any]:
        pictures = PictureFields(self.num_classes, self.captions)
        return ShardSource(shards, LatentFields(self.record.patch, pictures))

    def _recipe(self, split: Split) -> LatentRecipe:
        training = split == "train"
        mirror = self.mirror_probability if training else 0.0
        return LatentRecipe(self.record, self.record if self.normalise else None, training, mirror)

    def _evaluation(self, total: int, world: int) -> EvaluationPlan:
        size = self.val_batch_size or max(world, self.global_batch_size - self.global_batch_size % world)
        return EvaluationPlan(total, size, self.tokens)


def find_record(where: str, options: RemoteOptions | None = None) -> LatentRecord:
    """The latents.json of a data set.

    Args:
        where: what stands behind ``train`` or ``val``: a folder with manifest.json, the manifest, or their URL.
        options: limits of the network.

    Returns:
        The record.

    Raises:
        DataError: the place is none of cached latents.
    """
    found = list_shards(where, options)
    if not isinstance(found, Manifest):
        raise DataError(f"{shown(where)} is no folder of cached latents: `lightning data cache-latents` makes one")
    place = join_location(found.base, RECORD) if found.base else found.folder
    return LatentRecord.load(place, options)


def _maker(record: LatentRecord) -> str:
    return f"{record.autoencoder} {record.name} (weights {record.sha256})"
