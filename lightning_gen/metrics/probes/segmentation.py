"""Segmentation probe: batch normalisation and one linear map on a dense map of frozen features.

Shape letters: B images, D features, h and w of the map, H and W height and width in pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.metrics.probes.intersection import MeanIntersectionOverUnion

__all__ = ["DenseFeatures", "SegmentationBatch", "SegmentationHead", "SegmentationProbe", "segmentation_loss"]

DenseFeatures = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [-1, 1] -> a map of features (B, D, h, w); frozen."""


@dataclasses.dataclass(frozen=True)
class SegmentationBatch:
    """Images with the classes of their pixels.

    Attributes:
        images: float, (B, 3, H, W) in [-1, 1].
        segments: int64, (B, H, W), 0 = ignored, classes 1 to K.
        index: int64, (B,), number of every image in its set.
        valid: bool, (B,), False = an image that only fills the batch; None = all count.
    """

    images: Tensor
    segments: Tensor
    index: Tensor
    valid: Tensor | None = None


class SegmentationHead(nn.Module):
    """Scores of classes for every pixel.

    s = upsample( W bn(f) + b ), bilinear

    Args:
        features: D.
        num_classes: K.

    Source: arXiv:2605.05646, ADE20K probe.
    """

    def __init__(self, features: int, num_classes: int = 150) -> None:
        super().__init__()
        self.norm: nn.SyncBatchNorm | nn.BatchNorm2d = nn.SyncBatchNorm(features)
        self.classify = nn.Conv2d(features, num_classes, 1)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Score.

        Args:
            features: float, (B, D, h, w).
            size: H and W.

        Returns:
            (B, K, H, W), number k stands for class k + 1.
        """
        return F.interpolate(self.classify(self.norm(features)), size, mode="bilinear", align_corners=False)


def segmentation_loss(scores: Tensor, segments: Tensor) -> Tensor:
    """Cross-entropy over the pixels that have a class.

    Args:
        scores: float, (B, K, H, W).
        segments: whole numbers, (B, H, W), 0 = ignored, classes 1 to K.

    Returns:
        Scalar; 0 where no pixel has a class.
    """
    total = F.cross_entropy(scores, segments.long() - 1, ignore_index=-1, reduction="sum")
    return total / (segments != 0).sum().clamp(min=1)


class SegmentationProbe:
    """Trains a :class:`SegmentationHead` on frozen features and measures mIoU.

    With several processes, all of them call both methods with their own batches: gradients are averaged by DDP, and
    on GPUs the normalisation sees the batches of all ranks. On CPUs each rank normalises its own batch, since torch has
    no SyncBatchNorm there.

    Args:
        features: makes the dense map; must not change.
        channels: D.
        num_classes: K.
        learning_rate: at the start; falls to 0 linearly.
        weight_decay: of AdamW.
        steps: batches to train on.
        seed: of the initial weights.

    Raises:
        ValueError: no step to train.

    Source: arXiv:2605.05646 says SyncBN and a 1 x 1 convolution on images of 512 pixels. Optimiser, steps and rate are
    not found there; these are those of the linear segmentation probe of arXiv:2304.07193 (40,000 steps of 16 images).
    """

    def __init__(
        self,
        features: DenseFeatures,
        channels: int,
        num_classes: int = 150,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        steps: int = 40_000,
        seed: int = 0,
    ) -> None:
        if steps < 1:
            raise ValueError(f"a probe takes at least 1 step, got {steps}")
        self.features, self.num_classes, self.steps = features, num_classes, steps
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        # A probe inside a run draws nothing from the run's own numbers, and must be trainable where gradients are off.
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = SegmentationHead(channels, num_classes)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def fit(self, batches: Iterable[SegmentationBatch]) -> list[float]:
        """Train the head; also inside a test loop, where gradients are off.

        Args:
            batches: gone through again and again until the steps are done. An order that differs from pass to pass is
                their matter.

        Returns:
            The loss of every step on this rank.

        Raises:
            ValueError: there are no batches, or a map of another size than the probe was made for.
        """
        network: nn.Module | None = None
        losses = []
        for batch in itertools.islice(_again(batches), self.steps):
            dense, segments = self._dense(batch)
            if network is None:
                network, step = self._ready(dense.device)
            loss = segmentation_loss(network(dense, tuple(segments.shape[-2:])), segments)
            step(loss)
            losses.append(float(loss.detach()))
        if network is not self.head:
            # Ranks that normalised their own batches have different running statistics: those of rank 0 count.
            for value in self.head.buffers():
                torch.distributed.broadcast(value, 0)
        return losses

    @torch.no_grad()
    def evaluate(self, batches: Iterable[SegmentationBatch]) -> MeanIntersectionOverUnion:
        """Segment images and count them.

        Args:
            batches: of this rank.

        Returns:
            The metric: ``compute()``, ``per_class()``, ``measurements()``.

        Raises:
            ValueError: a class above K, or a map of another size than the probe was made for.
        """
        self.head.eval()
        metric: MeanIntersectionOverUnion | None = None
        for batch in batches:
            dense, segments = self._dense(batch)
            metric = MeanIntersectionOverUnion(self.num_classes).to(dense.device) if metric is None else metric
            guess = self.head.to(dense.device)(dense, tuple(segments.shape[-2:])).argmax(1) + 1
            metric.update(guess, segments, batch.index, batch.valid)
        return MeanIntersectionOverUnion(self.num_classes) if metric is None else metric

    def _dense(self, batch: SegmentationBatch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            dense = self.features(batch.images)
        channels = self.head.norm.num_features
        if dense.ndim != 4 or dense.shape[1] != channels or len(dense) != len(batch.segments):
            raise ValueError(
                f"features {tuple(dense.shape)} of {len(batch.segments)} images: the probe takes (B, {channels}, h, w)"
            )
        # Copies: what was made in inference mode cannot take part in training.
        return dense.float().clone(), batch.segments.to(dense.device).clone()

    def _ready(self, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], None]]:
        """The head as it is trained, and what does a step."""
        from torch import distributed

        self.head.to(device).train()
        optimiser = torch.optim.AdamW(self.head.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, self.steps)
        network: nn.Module = self.head
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            if device.type == "cpu":
                self.head.norm = _local(self.head.norm)
            ids: Any = None if device.type == "cpu" else [device]
            network = nn.parallel.DistributedDataParallel(self.head, device_ids=ids)

        def step(loss: Tensor) -> None:
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()

        return network, step


def _again(batches: Iterable[SegmentationBatch]) -> Iterator[SegmentationBatch]:
    while True:
        some = False
        for batch in batches:
            some = True
            yield batch
        if not some:
            raise ValueError("there is no batch to train the segmentation probe on")


def _local(norm: nn.SyncBatchNorm | nn.BatchNorm2d) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(norm.num_features)
    plain.load_state_dict(norm.state_dict())
    return plain.to(norm.running_mean.device if norm.running_mean is not None else "cpu")
