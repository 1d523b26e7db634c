"""A training step in several parts: the memory of one part, the result of the whole batch.

Modules that step their optimisers themselves cannot use ``trainer.accumulate_grad_batches``. They take their batch
apart instead: ``data.global_batch_size`` stays the number of images of a step, and a step stays a batch for schedules,
logs, averages and checkpoints.

Shape letters: B images, H and W height and width in pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import lightning.pytorch as pl
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lightning_gen.data.batches import ImageBatch

__all__ = ["Part", "check_accumulate", "ranks_wait", "split_step"]


class Part(NamedTuple):
    """Some images of a step.

    Attributes:
        batch: of these images; its pictures are a tensor.
        rows: which rows of the step they are.
        share: of the images of the step, in (0, 1].
    """

    batch: ImageBatch
    rows: slice
    share: float

    @property
    def images(self) -> Tensor:
        """The pictures, (B, 3, H, W) in [-1, 1]."""
        images = self.batch.images
        assert isinstance(images, Tensor)
        return images


def check_accumulate(count: int) -> int:
    """Refuse a number of parts that makes no sense.

    Args:
        count: as configured.

    Returns:
        The same.

    Raises:
        ValueError: it is below 1.
    """
    if count < 1:
        raise ValueError(f"model.accumulate is the number of parts of a step, 1 or more, got {count}")
    return count


def split_step(batch: ImageBatch, pictures: Tensor, count: int) -> list[Part]:
    """Take the batch of a step apart.

    Args:
        batch: of this process, B images.
        pictures: its pictures, (B, 3, H, W) in [-1, 1].
        count: number of parts; they differ by one image at most.

    Returns:
        The parts in the order of the batch; their shares sum to 1.

    Raises:
        ValueError: there are fewer images than parts.
    """
    if count > len(batch):
        raise ValueError(
            f"a step of {len(batch)} images per process cannot be taken in {count} parts: lower model.accumulate, or "
            "raise data.global_batch_size, which counts the images of the whole step"
        )
    edges = [len(batch) * number // count for number in range(count + 1)]
    return [
        Part(_rows(batch, pictures, slice(*edge)), slice(*edge), (edge[1] - edge[0]) / len(batch))
        for edge in itertools.pairwise(edges)
    ]


def _rows(batch: ImageBatch, pictures: Tensor, rows: slice) -> ImageBatch:
    return dataclasses.replace(
        batch,
        raw=pictures[rows],
        label=batch.label[rows],
        index=batch.index[rows],
        valid=batch.valid[rows],
        original_size=batch.original_size[rows],
        key=batch.key[rows],
        caption=batch.caption[rows],
        crop_top_left=None if batch.crop_top_left is None else batch.crop_top_left[rows],
        target_size=None if batch.target_size is None else batch.target_size[rows],
    )


@contextlib.contextmanager
def ranks_wait(module: pl.LightningModule, wait: bool) -> Iterator[None]:
    """Keep gradients on their rank until the last part: DDP then averages them once per step.

    Sharded gradients (FSDP2) are summed over the ranks part by part all the same, since no rank has room for all.

    Args:
        module: that is training.
        wait: False = this is the last part, gradients are averaged in its backward pass.

    Yields:
        Nothing.
    """
    wrapped = module.trainer.strategy.model if wait else None
    if isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    else:
        yield
