"""Preference pairs: two pictures of one prompt, and which of them people liked better."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch

from lightning_gen.data.batches import Example, PreferenceBatch, stack_images
from lightning_gen.data.columns import read_columns
from lightning_gen.data.dataset import Draws, Place, Request
from lightning_gen.data.gap_table import GapTable
from lightning_gen.data.images import PixelDataModule
from lightning_gen.data.index import picture_field
from lightning_gen.data.joining import weighted
from lightning_gen.data.order import Indices
from lightning_gen.data.pixels import DRAWS, ShapedRecipe
from lightning_gen.data.planned import Opened, Split
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import ShardSource, Source, json_record, text_field
from lightning_gen.training.needs import DataNeeds

__all__ = [
    "HPDv3DataModule",
    "PairExample",
    "PickAPicDataModule",
    "PreferenceDataModule",
    "PreferenceFields",
    "PreferenceRecipe",
    "StoredPair",
    "collate_pairs",
]

_log = logging.getLogger(__name__)


class StoredPair(NamedTuple):
    """A preference pair as it is stored, the preferred picture first.

    Attributes:
        winner: encoded picture; a tie has the first one here.
        loser: encoded picture.
        caption: the prompt of both.
        preference: how sure it is that the winner is better: 1 = certain, 0.5 = a tie.
        gap: capability gap of the two models, NaN = not known.
        weight: weight of the pair in a loss.
        models: names of the winner's and the loser's model, empty = not known.
    """

    winner: bytes
    loser: bytes
    caption: str
    preference: float
    gap: float
    weight: float
    models: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class PreferenceFields:
    """The fields ``0.jpg``, ``1.jpg`` and ``json`` of a pair.

    ``label_0`` is 1.0 where picture 0 won, 0.0 where picture 1 won, 0.5 for a tie. ``confidence`` (HPDv3), where it is
    there, says how sure the preference is; ``gap`` and ``weight`` may have been joined later.
    """

    def __call__(self, fields: Mapping[str, bytes]) -> StoredPair:
        """Read the fields of a pair.

        Args:
            fields: name -> bytes.

        Returns:
            The pair, winner first.

        Raises:
            SampleError: a picture or the label is missing, or the label is none of 0, 0.5 and 1.
        """
        first, second = picture_field(fields, "0"), picture_field(fields, "1")
        if first is None or second is None:
            raise SampleError(f"a pair has the pictures 0.jpg and 1.jpg (or png, webp), found {', '.join(fields)}")
        record = json_record(fields)
        label = _label(record)
        order = (first, second) if label >= 0.5 else (second, first)
        models = (text_field(record, "model_0"), text_field(record, "model_1"))
        return StoredPair(
            fields[order[0]],
            fields[order[1]],
            text_field(record, "caption"),
            0.5 if label == 0.5 else _number(record, "confidence", 1.0),
            _number(record, "gap", math.nan) * (1 if label >= 0.5 else -1),
            _number(record, "weight", 1.0),
            models if label >= 0.5 else (models[1], models[0]),
        )


def _label(record: Mapping[str, Any]) -> float:
    if "label_0" not in record:
        raise SampleError(f"json of the pair has no label_0, only {', '.join(record)}")
    label = record["label_0"]
    if isinstance(label, bool) or label not in (0, 0.5, 1):
        raise SampleError(f"label_0 is {label!r}: 1 = picture 0 won, 0 = picture 1 won, 0.5 = a tie")
    return float(label)


def _number(record: Mapping[str, Any], name: str, default: float) -> float:
    value = record.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SampleError(f"{name} in json is {value!r}, not a number")
    return float(value)


class PairExample(NamedTuple):
    """A decoded pair on its way into a batch.

    Attributes:
        winner: the preferred picture.
        loser: the other one.
        stored: where the rest stands.
    """

    winner: Example
    loser: Example
    stored: StoredPair


@dataclasses.dataclass(frozen=True)
class PreferenceRecipe(ShapedRecipe):
    """Both pictures of a pair in the shape of their batch.

    Attributes:
        flip: ``independent`` = each picture by itself (official Diffusion-DPO), ``shared`` = both or none.
    """

    flip: Literal["independent", "shared"] = "independent"

    purpose: ClassVar[str] = "pair"
    numbers: ClassVar[int] = 2 * DRAWS

    def draws(self, seed: int, epoch: int, index: Sequence[int]) -> Draws | None:
        """Random numbers of both pictures.

        Args:
            seed: the run's seed.
            epoch: number of the pass.
            index: global sample indices.

        Returns:
            (n, 6), None in an evaluation.
        """
        draws = super().draws(seed, epoch, index)
        if draws is not None and self.flip == "shared":
            draws[:, -1] = draws[:, DRAWS - 1]
        return draws

    def example(self, stored: StoredPair, place: Place) -> PairExample:
        """Decode both pictures.

        Args:
            stored: the pair.
            place: where it stands.

        Returns:
            The pair, winner first.

        Raises:
            SampleError: one of them cannot be used.
        """
        halves = (None, None) if place.draws is None else (place.draws[:DRAWS], place.draws[DRAWS:])
        winner = self.framed(stored.winner, place, halves[0], caption=stored.caption)
        return PairExample(winner, self.framed(stored.loser, place, halves[1], caption=stored.caption), stored)

    def collate(self, examples: Sequence[PairExample], request: Request) -> PreferenceBatch:
        """Stack the pairs.

        Args:
            examples: of one rank's batch.
            request: one of the batch's.

        Returns:
            The batch.
        """
        return collate_pairs(examples, request.epoch)


def collate_pairs(examples: Sequence[PairExample], epoch: int) -> PreferenceBatch:
    """Make one batch of decoded pairs of one size.

    Args:
        examples: at least one.
        epoch: number of the pass.

    Returns:
        The batch, winners first.
    """
    return PreferenceBatch(
        winner=stack_images([one.winner for one in examples], epoch),
        loser=stack_images([one.loser for one in examples], epoch),
        preference=torch.tensor([one.stored.preference for one in examples]),
        gap=torch.tensor([one.stored.gap for one in examples]),
        weight=torch.tensor([one.stored.weight for one in examples]),
        models=tuple(one.stored.models for one in examples),
    )


class _PairSource(ShardSource[StoredPair]):
    """Pairs; the winner's size decides the bucket."""

    def __init__(self, shards: IndexedShards) -> None:
        super().__init__(shards, PreferenceFields(), "0")
        self.margins: npt.NDArray[np.float32] | None = None
        """Gap of every pair in the unit of a loss, from a table; NaN = it has none."""

    def join(self, table: GapTable) -> None:
        """Take the gaps of a table in place of those that the pairs' JSON may hold.

        Args:
            table: of this data set.

        Raises:
            DataError: it is of another one.
        """
        winners, losers = [], []
        for label, *models in zip(*(self.columns[name] for name in ("label_0", "model_0", "model_1")), strict=True):
            decided = label in (0, 1) and not isinstance(label, bool)
            names: list[str | None] = [str(one) if one is not None else "" for one in models] if decided else [None] * 2
            winners.append(names[0 if label == 1 else 1])
            losers.append(names[1 if label == 1 else 0])
        keys = [self.shards.key(index) for index in range(len(self.shards))]
        self.margins = table.joined(keys, winners, losers, self.shards.manifest.name).margin

    def read(self, index: int) -> StoredPair:
        """Fetch a pair.

        Args:
            index: global sample index.

        Returns:
            The pair.

        Raises:
            SampleError: a field is missing or has no meaning.
            ShardError: the shard is damaged.
        """
        stored = super().read(index)
        return stored if self.margins is None else stored._replace(gap=float(self.margins[index]))

    def sizes(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sizes of the winners.

        Args:
            indices: global sample indices.

        Returns:
            int64, (n, 2), 0 = unknown.
        """
        second = np.array([label == 0 for label in self.columns["label_0"]], np.bool_)[indices]
        return np.where(second[:, None], self.shards.sizes(indices, "1"), self.shards.sizes(indices, "0"))

    @property
    def columns(self) -> dict[str, list[Any]]:
        """Label, confidence and models of every pair."""
        if self._columns is None:
            self._columns = read_columns(self.shards, ("label_0", "confidence", "model_0", "model_1"))
        return self._columns

    _columns: dict[str, list[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Only the plan needs the columns, and workers make no plans.
        return {**self.__dict__, "_columns": None}


@dataclass(eq=False, repr=False, kw_only=True)
class PreferenceDataModule(PixelDataModule):
    """Preference pairs of any origin in the pair format of the package's shards.

    What is left out before the plan is made is counted and logged: ties, unsure pairs, pairs of different shapes.

    Args:
        ties: ``drop`` = pairs with label 0.5 are left out (as in Diffusion-DPO), and those with confidence 0.5, which
            says as little; ``keep`` = they come with preference 0.5, ties with picture 0 first.
        min_confidence: pairs with a lower ``confidence`` are left out; a pair without one counts as certain.
        max_ratio_gap: with buckets, pairs whose aspect ratios differ by more than this fraction are left out; without
            buckets both pictures are cropped to the square and nothing is.
        flip: ``independent`` = each picture of a pair is mirrored by itself, ``shared`` = both or none.
        gaps: table of `lightning arena gaps` made of the training pairs; ``gap`` of a batch is then its ``margin``, the
            gap in the unit of a loss, and pairs without a row are left out. A table of another data set is refused.
            Pairs of ``val`` have it where ``val`` and ``train`` are one place.

    Source: arXiv:2311.12908 (independent mirroring, no ties), arXiv:2508.03789 (confidence of HPDv3).
    """

    ties: Literal["drop", "keep"] = "drop"
    min_confidence: float = 0.0
    max_ratio_gap: float = 0.1
    flip: Literal["independent", "shared"] = "independent"
    gaps: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gaps is not None and len(weighted(self.train)) != 1:
            raise ValueError("data.gaps is the table of one set of pairs: give data.train as a single place")
        if not 0 <= self.min_confidence <= 1 or self.max_ratio_gap < 0:
            raise ValueError(
                f"data.min_confidence lies in [0, 1] and data.max_ratio_gap is not negative, got {self.min_confidence} "
                f"and {self.max_ratio_gap}"
            )

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> DataNeeds:
        """What the data will ask of the machine, and whether the table of gaps is there.

        Args:
            init_args: the constructor's arguments as they stand in the configuration.

        Returns:
            Pixels and pairs of the largest micro-batch, and what is missing on the disk.
        """
        found, gaps = super().needs(init_args), init_args.get("gaps")
        if gaps is None or Path(gaps).is_file():
            return found
        missing = f"data.gaps: there is no {gaps}: make it with `lightning arena fit` and `lightning arena gaps`"
        return dataclasses.replace(found, missing=(*found.missing, missing))

    def _source(self, shards: IndexedShards) -> Source[Any]:
        return _PairSource(shards)

    def _open(self, split: Split) -> Opened:
        opened = super()._open(split)
        if self.gaps is not None and getattr(self, split) == self.train:
            cast("_PairSource", opened.source).join(GapTable.load(self.gaps))
        return opened

    def _recipe(self, split: Split) -> PreferenceRecipe:
        return PreferenceRecipe(self._framing(split), split == "train", flip=self.flip)

    def _left_out(self, source: Source[Any], split: Split) -> Indices:
        del split
        pairs = cast("_PairSource", source)
        labels, confidence = pairs.columns["label_0"], pairs.columns["confidence"]
        reasons = {
            "ties": np.array([self.ties == "drop" and label == 0.5 for label in labels], np.bool_),
            "pairs with confidence 0.5, which says nothing": np.array(
                [self.ties == "drop" and _is_even(c) for c in confidence], np.bool_
            ),
            f"pairs with confidence below {self.min_confidence}": np.array(
                [_is_unsure(c, self.min_confidence) for c in confidence], np.bool_
            ),
            f"pairs whose shapes differ by more than {self.max_ratio_gap:.0%}": self._mismatched(pairs.shards),
            f"decided pairs without a row in {self.gaps}": np.zeros(len(labels), np.bool_)
            if pairs.margins is None
            else np.isnan(pairs.margins) & np.array([label != 0.5 for label in labels], np.bool_),
        }
        for reason, out in reasons.items():
            if out.any():
                _log.info("%d of %d pairs are left out: %s", out.sum(), len(out), reason)
        left_out = np.flatnonzero(np.logical_or.reduce(list(reasons.values())))
        if len(left_out) == len(labels):
            counts = ", ".join(f"{out.sum()} {reason}" for reason, out in reasons.items())
            raise DataError(f"none of {len(labels)} pairs is left: {counts}")
        return left_out

    def _mismatched(self, shards: IndexedShards) -> npt.NDArray[np.bool_]:
        everything = np.arange(len(shards), dtype=np.int64)
        first, second = shards.sizes(everything, "0"), shards.sizes(everything, "1")
        known = (first > 0).all(1) & (second > 0).all(1)
        out = np.zeros(len(shards), np.bool_)
        if self.bucket_step is not None:
            ratios = [np.log(size[known, 0] / size[known, 1]) for size in (first, second)]
            out[known] = np.abs(ratios[0] - ratios[1]) > math.log1p(self.max_ratio_gap)
        return out


def _is_even(confidence: Any) -> bool:
    """Whether a confidence, as batches hold it, is that of a tie."""
    return isinstance(confidence, float) and np.float32(confidence) == np.float32(0.5)


def _is_unsure(confidence: Any, least: float) -> bool:
    """Whether a confidence is too low; what is no number is judged, and counted, when the pair is read."""
    is_number = isinstance(confidence, int | float) and not isinstance(confidence, bool)
    return is_number and not confidence >= least


class PickAPicDataModule(PreferenceDataModule):
    """Pick-a-Pic pairs, converted by ``lightning data convert --from parquet``.

    Source: arXiv:2305.01569.
    """


class HPDv3DataModule(PreferenceDataModule):
    """HPDv3 pairs, converted by ``lightning data convert --from hpdv3``; HPSv3 trains with ``min_confidence: 0.95``.

    Source: arXiv:2508.03789.
    """
