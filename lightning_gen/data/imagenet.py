"""ImageNet shards: the same pictures, with labels that must be there."""

from __future__ import annotations

import logging
import math
from collections import Counter

from lightning_gen.data.checks import require_labels
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.planned import Split
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.sources import Source, Stored

__all__ = ["ImageNetDataModule", "label_entropy"]

_log = logging.getLogger(__name__)


class ImageNetDataModule(ShardDataModule):
    """ImageNet-1k or -22k in tar shards, ours or timm's (``timm/imagenet-1k-wds``).

    The label of a sample is read from ``cls``, ``cls.txt`` or ``label`` in ``json``. A sample without one, or with one
    outside the classes, is a bad sample.

    The arguments are those of :class:`~lightning_gen.data.modules.ShardDataModule`. For timm's files ``train`` is
    ``FOLDER#train`` or ``FOLDER/imagenet1k-train-{0000..1023}.tar|1281167``, and ``val`` is ``FOLDER#validation``;
    ``num_classes`` is 1000 unless it is given (21841 for ImageNet-22k).
    """

    default_classes = 1000

    def prepare_data(self) -> None:
        """Index foreign tars, and warn where the training shards were packed class by class.

        Raises:
            DataError: shards have no labels at all.
        """
        super().prepare_data()
        if self.num_classes is None:
            return
        splits: tuple[Split, ...] = ("train", "val", "predict")
        for split in splits:
            if getattr(self, split) is not None:
                require_labels(self._set(split).source, split)
        if self.train is None:
            return
        opened = self._set("train")
        if len(opened.counts) <= self.block_shards:
            return  # All samples are mixed with each other, whatever their order.
        found = label_entropy(opened.source)
        most = math.log(min(self.num_classes, 1000, len(opened.source)))
        if found < 0.5 * most:
            _log.warning(
                "the first samples of %s have a label entropy of %.2f of at most %.2f: these shards were packed class "
                "by class. Only %d of %d shards are mixed at a time; raise data.init_args.block_shards",
                self.train,
                found,
                most,
                self.block_shards,
                len(opened.counts),
            )


def label_entropy(source: Source[Stored], samples: int = 1000) -> float:
    """How mixed the labels of the first samples are.

    H = - sum_c q_c log q_c, q_c = share of class c among the samples

    Args:
        source: labelled shards.
        samples: how many to read; they are neighbours.

    Returns:
        Entropy in nats; about log(number of classes) for shuffled shards, 0 for one class.
    """
    counts: Counter[int] = Counter()
    for index in range(min(samples, len(source))):
        try:
            counts[source.read(index).label] += 1
        except DataError:
            continue  # Bad samples are counted when they are asked for, not by this probe.
    total = sum(counts.values())
    return sum(count / total * math.log(total / count) for count in counts.values()) if total else 0.0
