"""A segmentation probe with everything it needs, as a test loop runs it: pictures to train on, pictures to measure.

Shape letters: B images, S edge of a picture in pixels, D features.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_gen.metrics.probes.intersection import MeanIntersectionOverUnion
from lightning_gen.metrics.probes.segmentation import DenseFeatures, SegmentationBatch, SegmentationProbe
from lightning_gen.metrics.segmented_pictures import SegmentedPictures
from lightning_gen.training.randomness import torch_generator

__all__ = ["SegmentationTest"]

_PATIENCE = 300.0


@dataclasses.dataclass(frozen=True)
class SegmentationTest:
    """Trains a :class:`SegmentationProbe` on one set of segmented pictures and measures mIoU on another.

    Every picture of ``measured_on`` counts once, whatever the number of processes; the order of ``trained_on`` is a
    function of (seed, pass). Pictures are squares cut from the middle: how the published probe crops is not known.

    Attributes:
        trained_on: pictures with maps whose numbers are classes, for instance ``ADE20KShards``.
        measured_on: others.
        num_classes: classes are numbered from 1; 0 is ignored.
        size: S, edge of the pictures in pixels; a multiple of what the features need.
        batch_size: pictures of a step on every process.
        steps: of training.
        learning_rate: of AdamW at the start; falls to 0 linearly.
        weight_decay: of AdamW.
        num_workers: processes that decode, per process; 0 = none.
        seed: of the head's weights and of the order.

    Raises:
        ValueError: sets without pictures, or a number below what makes sense.

    Source: arXiv:2605.05646 (ADE20K probe: 512 pixels, 150 classes); steps, batch and rates as in
    ``SegmentationProbe``.
    """

    trained_on: SegmentedPictures
    measured_on: SegmentedPictures
    num_classes: int = 150
    size: int = 512
    batch_size: int = 16
    steps: int = 40_000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_classes", "size", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"segmentation: {name} must be at least 1, got {getattr(self, name)}")
        for name, pictures in (("trained_on", self.trained_on), ("measured_on", self.measured_on)):
            if not len(pictures):
                raise ValueError(f"segmentation: {name} has no picture")

    def run(self, features: DenseFeatures, channels: int) -> MeanIntersectionOverUnion:
        """Train the probe and count; every process calls it.

        Args:
            features: makes the dense map (B, D, h, w); frozen.
            channels: D.

        Returns:
            The metric with the pictures of this process; ``compute()`` is over all.
        """
        probe = SegmentationProbe(
            features, channels, self.num_classes, self.learning_rate, self.weight_decay, self.steps, self.seed
        )
        probe.fit(self._training())
        return probe.evaluate(self._measuring())

    def _training(self) -> Iterator[SegmentationBatch]:
        """Pass after pass without a seam, each in its own order; processes share a pass."""
        rank, world = _rank_and_world()

        def batches() -> Iterator[list[int]]:
            numbers = self._endless_order()
            while True:
                yield list(itertools.islice(numbers, self.batch_size * world))[rank::world]

        return self._read(self.trained_on, batches())

    def _endless_order(self) -> Iterator[int]:
        for epoch in itertools.count():
            generator = torch_generator(self.seed, "segmentation probe order", epoch)
            yield from torch.randperm(len(self.trained_on), generator=generator).tolist()

    def _measuring(self) -> Iterator[SegmentationBatch]:
        """As many batches on every process; a picture that fills one up counts once all the same."""
        rank, world = _rank_and_world()
        count, together = len(self.measured_on), self.batch_size * world
        starts = range(0, count, together)
        return self._read(
            self.measured_on,
            ([place % count for place in range(start, start + together)][rank::world] for start in starts),
        )

    def _read(self, pictures: SegmentedPictures, batches: Iterable[list[int]]) -> Iterator[SegmentationBatch]:
        loader: DataLoader[Any] = DataLoader(
            _Squares(pictures, self.size),
            batch_sampler=batches,
            num_workers=self.num_workers,
            timeout=_PATIENCE if self.num_workers else 0,
        )
        for images, segments, index in loader:
            yield SegmentationBatch(images, segments, index)


class _Squares(Dataset[tuple[Tensor, Tensor, int]]):
    """Pictures and maps by number."""

    def __init__(self, pictures: SegmentedPictures, size: int) -> None:
        self.pictures, self.size = pictures, size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return (*self.pictures.read(index, self.size), index)


def _rank_and_world() -> tuple[int, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
