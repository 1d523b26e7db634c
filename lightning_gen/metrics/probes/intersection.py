"""Mean intersection over union of segmentations, every image once.

Shape letters: B images, H and W height and width, K classes, N images in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gen.metrics.counted_once import CountedOnce
from lightning_gen.metrics.intervals import bootstrap_interval
from lightning_gen.metrics.labelled_features import check_valid
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol

__all__ = ["MeanIntersectionOverUnion", "intersections_and_unions"]


def intersections_and_unions(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Pixels of every class that both maps, and that either map, give to it.

    Args:
        prediction: whole numbers, (H, W), classes 1 to K.
        target: whole numbers, (H, W), 0 = not counted at all, classes 1 to K.
        num_classes: K.

    Returns:
        int64, (2, K): intersections, unions.

    Raises:
        ValueError: shapes differ, or a class above K.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"a prediction of {tuple(prediction.shape)} against a map of {tuple(target.shape)}")
    counted = target != 0
    guess, truth = prediction[counted].long(), target[counted].long()
    for side, values in (("predicted", guess), ("true", truth)):
        if len(values) and not 1 <= int(values.min()) <= int(values.max()) <= num_classes:
            raise ValueError(
                f"{side} classes from {int(values.min())} to {int(values.max())}, expected 1 to {num_classes}; 0 in a "
                "true map is ignored"
            )
    hits, guessed, there = (
        torch.bincount(values - 1, minlength=num_classes) for values in (guess[guess == truth], guess, truth)
    )
    return torch.stack([hits, guessed + there - hits])


class MeanIntersectionOverUnion(CountedOnce):
    """mIoU over classes, from the pixels of all images; higher is better.

    IoU_k = sum over images of intersection_k / sum over images of union_k;  mean over the classes with a union

    Args:
        num_classes: K; classes are numbered from 1, and pixels of class 0 do not count.
    """

    def __init__(self, num_classes: int = 150) -> None:
        if num_classes < 1:
            raise ValueError(f"a segmentation has at least 1 class, got {num_classes}")
        self.columns = tuple(f"{what} {k}" for what in ("intersection", "union") for k in range(1, num_classes + 1))
        super().__init__()
        self.num_classes = num_classes

    def update(self, prediction: Tensor, target: Tensor, index: Tensor, valid: Tensor | None = None) -> None:
        """Count images.

        Args:
            prediction: whole numbers, (B, H, W), classes 1 to K.
            target: whole numbers, (B, H, W), 0 = ignored, classes 1 to K.
            index: whole numbers, (B,), the number of every image in its set.
            valid: bool, (B,), False = an image that only fills the batch.

        Raises:
            ValueError: shapes differ, or a class above K.
        """
        if not len(prediction) == len(target) == len(index):
            raise ValueError(f"{len(prediction)} predictions, {len(target)} maps and {len(index)} numbers")
        mask = check_valid(valid, len(index)).tolist()
        kept = [number for number, counts in enumerate(mask) if counts]
        rows = [intersections_and_unions(prediction[number], target[number], self.num_classes) for number in kept]
        if rows:
            self.count([int(index[number]) for number in kept], [0] * len(kept), torch.stack(rows).flatten(1))

    def per_class(self) -> Tensor:
        """IoU of every class over the images of this rank, or of all ranks inside ``on_all_ranks``.

        Returns:
            float64, (K,); NaN for a class that no image and no prediction shows.
        """
        return _class_shares(self._counts().sum(0)[None])[0]

    def compute(self) -> Tensor:
        """mIoU over the images of all ranks.

        Returns:
            float64 scalar; NaN where nothing was counted.
        """
        return self.per_class().nanmean()

    def measurements(self, name: str = "miou") -> list[Measurement]:
        """mIoU with a bootstrap interval over images.

        Args:
            name: of the measurement.

        Returns:
            ``NAME/pixels``, over the images of all ranks.
        """
        with self.on_all_ranks():
            counts = self._counts().cpu()
        shares = _class_shares(counts.sum(0)[None])[0]
        details: dict[str, Detail] = {
            "classes": self.num_classes,
            "classes_seen": int((~shares.isnan()).sum()),
            "ignored": 0,
            "interval": "bootstrap over images, 95 %",
        }
        interval = None
        if len(counts) > 1:
            interval = bootstrap_interval(counts, lambda sets: _class_shares(sets.sum(1)).nanmean(1), resamples=200)
        return [
            Measurement(float(shares.nanmean()), Protocol(name, "pixels", len(counts), None, details), None, interval)
        ]

    def _counts(self) -> Tensor:
        """float64, (N, 2, K)."""
        return self.table()[:, 2:].reshape(-1, 2, self.num_classes)


def _class_shares(counts: Tensor) -> Tensor:
    """Intersections over unions of (R, 2, K) sums, NaN for 0 / 0."""
    return counts[:, 0] / counts[:, 1]
