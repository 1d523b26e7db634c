"""Edit pairs: a picture before and after an edit, and what was asked for."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np

from lightning_gen.data.batches import EditBatch, Example, stack_images
from lightning_gen.data.columns import read_columns
from lightning_gen.data.dataset import Place, Request
from lightning_gen.data.images import PixelDataModule
from lightning_gen.data.index import picture_field
from lightning_gen.data.order import Indices
from lightning_gen.data.pixels import ShapedRecipe, planned_shape
from lightning_gen.data.planned import Split
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import ShardSource, Source, json_record, text_field

__all__ = ["EditExample", "EditFields", "EditPairsDataModule", "EditRecipe", "StoredEdit"]

_log = logging.getLogger(__name__)


class StoredEdit(NamedTuple):
    """An edit pair as it is stored.

    Attributes:
        source: encoded picture before the edit.
        target: encoded picture after it.
        instruction: what was asked for, empty = not written down.
        task: what kind of edit it is, empty = not known.
    """

    source: bytes
    target: bytes
    instruction: str
    task: str


@dataclasses.dataclass(frozen=True)
class EditFields:
    """The fields ``src.jpg``, ``tgt.jpg`` and ``json`` of an edit pair."""

    def __call__(self, fields: Mapping[str, bytes]) -> StoredEdit:
        """Read the fields of a pair.

        Args:
            fields: name -> bytes.

        Returns:
            The pair.

        Raises:
            SampleError: a picture is missing.
        """
        source, target = picture_field(fields, "src"), picture_field(fields, "tgt")
        if source is None or target is None:
            raise SampleError(
                f"an edit pair has the pictures src.jpg and tgt.jpg (or png, webp), found {', '.join(fields)}"
            )
        record = json_record(fields)
        return StoredEdit(fields[source], fields[target], text_field(record, "instruction"), text_field(record, "task"))


class EditExample(NamedTuple):
    """A decoded pair on its way into a batch.

    Attributes:
        source: before the edit.
        target: after it.
        task: what kind of edit it is.
    """

    source: Example
    target: Example
    task: str


@dataclasses.dataclass(frozen=True)
class EditRecipe(ShapedRecipe):
    """Both pictures of a pair under one crop and one mirror.

    Attributes:
        max_ratio_gap: pairs whose aspect ratios differ by more than this fraction cannot be used.
    """

    max_ratio_gap: float = 0.02

    purpose: ClassVar[str] = "edit"

    def example(self, stored: StoredEdit, place: Place) -> EditExample:
        """Decode both pictures.

        Args:
            stored: the pair.
            place: where it stands.

        Returns:
            The pair.

        Raises:
            SampleError: one of them cannot be used, or they do not have the same shape.
        """
        shape = planned_shape(place)
        source, target = self.framing.decode(stored.source, shape), self.framing.decode(stored.target, shape)
        (before, after), text = (source.original_size, target.original_size), stored.instruction
        if abs(math.log(before[1] / before[0] * after[0] / after[1])) > math.log1p(self.max_ratio_gap):
            raise SampleError(
                f"the pictures of an edit pair show different frames: {before[1]} x {before[0]} before, "
                f"{after[1]} x {after[0]} after"
            )
        # Under the source's size the target is resampled to the same pixels, so that one crop shows one place.
        framed = self.shaped(target._replace(original_size=before), place, place.draws, caption=text)
        edited = dataclasses.replace(framed, original_size=after)
        return EditExample(self.shaped(source, place, place.draws, caption=text), edited, stored.task)

    def collate(self, examples: Sequence[EditExample], request: Request) -> EditBatch:
        """Stack the pairs.

        Args:
            examples: of one rank's batch.
            request: one of the batch's.

        Returns:
            The batch.
        """
        return EditBatch(
            source=stack_images([one.source for one in examples], request.epoch),
            target=stack_images([one.target for one in examples], request.epoch),
            task=tuple(one.task for one in examples),
        )


@dataclass(eq=False, repr=False, kw_only=True)
class EditPairsDataModule(PixelDataModule):
    """Edit pairs (Relation252K, Pico-Banana, any source and target) in the pair format of the package's shards.

    Seen and unseen edits are told apart by task, never by picture: train with ``unseen_tasks`` left out, and evaluate
    on shards of those tasks.

    Args:
        unseen_tasks: tasks that are kept out of training.
        max_ratio_gap: pairs whose aspect ratios differ by more than this fraction are left out.
    """

    unseen_tasks: tuple[str, ...] = ()
    max_ratio_gap: float = 0.02

    def _source(self, shards: IndexedShards) -> Source[Any]:
        return ShardSource(shards, EditFields(), "src")

    def _recipe(self, split: Split) -> EditRecipe:
        return EditRecipe(self._framing(split), split == "train", max_ratio_gap=self.max_ratio_gap)

    def _left_out(self, source: Source[Any], split: Split) -> Indices:
        shards = cast("ShardSource[StoredEdit]", source).shards
        everything = np.arange(len(shards), dtype=np.int64)
        before, after = shards.sizes(everything, "src"), shards.sizes(everything, "tgt")
        known = (before > 0).all(1) & (after > 0).all(1)
        mismatched = np.zeros(len(shards), np.bool_)
        gaps = np.log(before[known, 0] / before[known, 1] * after[known, 1] / after[known, 0])
        mismatched[known] = np.abs(gaps) > math.log1p(self.max_ratio_gap)
        unseen = np.zeros(len(shards), np.bool_)
        if self.unseen_tasks and split == "train":
            tasks = read_columns(shards, ("task",))["task"]
            unseen = np.array([task in self.unseen_tasks for task in tasks], np.bool_)
            if absent := sorted(set(self.unseen_tasks) - set(tasks)):
                _log.warning("no pair has the task %s, which data.unseen_tasks names", ", ".join(absent))
        left_out = np.flatnonzero(mismatched | unseen)
        if len(left_out):
            _log.info(
                "%d of %d edit pairs are left out: %d of unseen tasks, %d whose pictures have different shapes",
                len(left_out),
                len(shards),
                unseen.sum(),
                mismatched.sum(),
            )
        if len(left_out) == len(shards):
            raise DataError(f"none of {len(shards)} edit pairs is left: look at unseen_tasks and max_ratio_gap")
        return left_out
