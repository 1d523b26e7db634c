"""DataModules whose pictures share a shape inside a batch: class-labelled, captioned, or a folder of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_gen.data.buckets import AspectBuckets
from lightning_gen.data.dataset import Recipe
from lightning_gen.data.pixels import Framing, PixelRecipe
from lightning_gen.data.plan import EvaluationPlan
from lightning_gen.data.planned import PlannedDataModule, Split
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import PictureFields, ShardSource, Source
from lightning_gen.training.curriculum import BudgetStage

__all__ = ["ImageDataModule", "MixtureDataModule", "PixelDataModule", "TextImageDataModule"]


@dataclass(eq=False, repr=False, kw_only=True)
class PixelDataModule(PlannedDataModule):
    """Base of the DataModules that yield float images (B, 3, H, W); H x W changes from step to step with buckets.

    Args:
        resolution: R: a batch has about R x R pixels per picture.
        global_batch_size: samples per micro-batch over all ranks.
        bucket_step: sides of the aspect-ratio buckets are multiples of this; None = squares of R x R.
        max_ratio: longest over shortest side of a bucket.
        min_size: pictures with a shorter side than this many pixels are left out; None = none is.
        random_crop: training crops lie anywhere; False = in the middle.
        flip_probability: chance of a mirror image in training, in [0, 1].
    """

    resolution: int
    global_batch_size: int
    bucket_step: int | None = None
    max_ratio: float = 2.0
    min_size: int | None = None
    random_crop: bool = True
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.resolution, self.global_batch_size) < 1:
            raise ValueError(
                f"data.resolution and data.global_batch_size must be at least 1, got {self.resolution} and "
                f"{self.global_batch_size}"
            )
        self._buckets = AspectBuckets(self.resolution, self.bucket_step, self.max_ratio)

    @property
    def curriculum(self) -> tuple[BudgetStage, ...]:
        """A single stage; its budget is counted in pixels."""
        return (BudgetStage(self.resolution**2, self.global_batch_size, min_size=self.min_size),)

    @property
    def buckets(self) -> AspectBuckets:
        """Shapes of the training batches."""
        return self._buckets

    @classmethod
    def _planned_stages(cls, init_args: Mapping[str, Any]) -> Sequence[BudgetStage]:
        size = int(init_args.get("global_batch_size") or 0)
        return (BudgetStage(int(init_args.get("resolution") or 0) ** 2, size),)

    def _evaluation(self, total: int, world: int) -> EvaluationPlan:
        size = self.val_batch_size or max(world, self.global_batch_size - self.global_batch_size % world)
        return EvaluationPlan(total, size, self.resolution**2, (self.resolution, self.resolution))

    def _framing(self, split: Split) -> Framing:
        training = split == "train"
        flip = self.flip_probability if training else 0.0
        dct_scaling = training and self.dct_scaling
        return Framing(training and self.random_crop, flip, self.decoder, self.max_pixels, self.resampler, dct_scaling)


@dataclass(eq=False, repr=False, kw_only=True)
class ImageDataModule(PixelDataModule):
    """Pictures of one shape per batch with their classes, and with captions where there are any.

    Args:
        num_classes: labels must be there and lie in [0, num_classes); None = a sample may have no label (-1).
    """

    num_classes: int | None = None

    def _source(self, shards: IndexedShards) -> Source[Any]:
        return ShardSource(shards, PictureFields(self.num_classes, "optional"))

    def _recipe(self, split: Split) -> Recipe[Any, Any, Any]:
        return PixelRecipe(self._framing(split), split == "train")


class TextImageDataModule(PixelDataModule):
    """Pictures with captions, from ``txt`` or from ``caption`` in ``json``; a sample without one is a bad sample.

    ``original_size``, ``crop_top_left`` and ``target_size`` of a batch are SDXL's micro-conditioning values.
    """

    def _source(self, shards: IndexedShards) -> Source[Any]:
        return ShardSource(shards, PictureFields(None, "required"))

    def _recipe(self, split: Split) -> Recipe[Any, Any, Any]:
        return PixelRecipe(self._framing(split), split == "train")


class MixtureDataModule(ImageDataModule):
    """Several sets of pictures with weights: ``train`` is a list of ``{shards, weight, name}``.

    Every batch (with buckets: every stretch of batches) holds the sets in the proportion of their weights, and each set
    goes through its own passes. Any other DataModule takes such a list too; this one insists on it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.train, str):
            raise ValueError(
                "data.train of a mixture is a list of {shards, weight, name}; for one set use ImageDataModule"
            )
