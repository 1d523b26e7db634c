"""Jobs of two ranks that measure latent spaces and probes; the ranks have unequal shares, and some samples twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gen.metrics.labelled_features import LabelledFeatures
from lightning_gen.metrics.manifold.continuity import LPC
from lightning_gen.metrics.manifold.measures import ManifoldMeasures
from lightning_gen.metrics.probes.intersection import MeanIntersectionOverUnion
from lightning_gen.metrics.probes.linear import LinearProbe
from lightning_gen.metrics.probes.segmentation import SegmentationBatch, SegmentationProbe
from lightning_gen.metrics.probes.zero_shot import ZeroShot
from tests.harness.toy_tokenizer import PatchTokenizer

__all__ = ["SHARES", "measure", "train_segmentation"]

SHARES = ([0, 1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 2, 11])
"""Samples of either rank: numbers 2 and 11 come twice."""


def pixel_distance(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).flatten(1).norm(dim=1)


def measure(alone: bool) -> dict[str, Any]:
    """Every rank counts its share in all metrics; alone: one process counts each sample once."""
    rank = 0 if alone else torch.distributed.get_rank()
    index = torch.arange(12) if alone else torch.tensor(SHARES[rank])
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 3, 32, 32, generator=generator)[index] * 2 - 1
    segments = torch.randint(0, 4, (12, 4, 4), generator=generator)[index]
    labels = (torch.arange(12) // 3)[index]
    tokenizer = PatchTokenizer(PatchTokenizer.noise(5))
    measures = ManifoldMeasures(5, LPC(pixel_distance), num_classes=3, num_draws=4)
    features, miou = LabelledFeatures(5), MeanIntersectionOverUnion(3)
    zero_shot = ZeroShot(torch.eye(5)[:4])
    for part in index.argsort().argsort().split(4):
        latents = measures.count(tokenizer, images[part], index[part], labels[part])
        measures.count_segments(tokenizer, images[part], segments[part], index[part])
        pooled = latents.values.mean(1)
        features.update(pooled, index[part], labels[part])
        zero_shot.update(pooled, labels[part], index[part])
        miou.update(segments[part].roll(1, 1).clamp(min=1), segments[part], index[part])
    with features.on_all_ranks():
        table = features.table()
    probe = LinearProbe(4, epochs=3, batch_size=4).fit(table, table)
    numbers = [*measures.measurements("toy"), *zero_shot.measurements(), *miou.measurements()]
    return {
        "numbers": [one.to_json() for one in numbers],
        "computed": [float(one.compute()) for one in (measures.ssc, measures.gsq, measures.erank, zero_shot, miou)],
        "lpc": {name: float(value) for name, value in measures.lpc.compute().items()},  # type: ignore[union-attr]
        "kept": [x.tolist() for x in table],
        "head": probe.head.linear.weight.tolist(),
        "index": table.numbers.tolist(),
    }


def train_segmentation() -> list[Tensor]:
    """Both ranks train the probe on different batches; what the head is in the end."""
    rank = torch.distributed.get_rank()
    generator = torch.Generator().manual_seed(rank)
    batches = [
        SegmentationBatch(
            torch.randn(2, 3, 4, 4, generator=generator),
            torch.randint(0, 3, (2, 8, 8), generator=generator),
            torch.arange(2),
        )
        for _ in range(3)
    ]
    probe = SegmentationProbe(lambda images: images, 3, 2, steps=4, seed=5)
    probe.fit(batches)
    return [value.detach().clone() for value in probe.head.state_dict().values()]
