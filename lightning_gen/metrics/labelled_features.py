"""Features of samples with their classes as the state of a metric: gathered from all ranks, each sample once.

Shape letters: B samples of a batch, N samples, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["FeatureTable", "LabelledFeatures", "check_valid"]

_NONE: Final = -1


class FeatureTable(NamedTuple):
    """Samples sorted by their number.

    Attributes:
        features: float, (N, D).
        labels: int64, (N,), class, -1 = none.
        numbers: int64, (N,), number of the sample in its set.
    """

    features: Tensor
    labels: Tensor
    numbers: Tensor

    def with_class(self) -> FeatureTable:
        """The samples that have a class.

        Returns:
            A table without label -1.
        """
        known = self.labels != _NONE
        return FeatureTable(self.features[known], self.labels[known], self.numbers[known])


class LabelledFeatures(Metric):
    """Keeps one row of features per sample, for what is computed from all of them at once: neighbours, ranks, probes.

    A distributed sampler repeats samples to give every rank the same number. The rows are gathered, sorted by the
    number of their sample, and the later ones of a sample are dropped; so what is computed from them depends neither
    on the number of ranks nor on the batches.

    Args:
        size: D.
        dtype: of the rows. Neither a parent nor ``.half()`` rounds them.
    """

    full_state_update: bool | None = False
    is_differentiable: bool | None = False
    higher_is_better: bool | None = None

    kept: list[Tensor] | Tensor
    numbers: list[Tensor] | Tensor

    def __init__(self, size: int, dtype: Literal["float32", "float64"] = "float32") -> None:
        super().__init__()
        if size < 1 or dtype not in ("float32", "float64"):
            raise ValueError(f"rows of {size} numbers of {dtype}: give at least one, float32 or float64")
        self.size = size
        self.exactness: torch.dtype = getattr(torch, dtype)
        self.add_state("kept", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")
        self._open()

    def update(
        self, features: Tensor, index: Tensor, labels: Tensor | None = None, valid: Tensor | None = None
    ) -> None:
        """Keep a batch.

        Args:
            features: float, (B, D).
            index: whole numbers >= 0, (B,), the number of every sample among those of all ranks.
            labels: whole numbers, (B,), classes, -1 = none; None = none has one.
            valid: bool, (B,), False = a sample that only fills the batch.

        Raises:
            ValueError: numbers of rows differ, another D, or a feature that is not finite.
        """
        count = len(features)
        labels = torch.full_like(index, _NONE) if labels is None else labels
        if features.ndim != 2 or features.shape[1] != self.size or not index.shape == labels.shape == (count,):
            raise ValueError(
                f"features {tuple(features.shape)} with {tuple(index.shape)} numbers and {tuple(labels.shape)} labels: "
                f"expected (B, {self.size}), (B,) and (B,)"
            )
        mask = check_valid(valid, count)
        rows = features.detach().to(self.device, self.exactness)[mask.to(self.device)]
        if not torch.isfinite(rows).all():
            raise ValueError("a feature is NaN or infinite: look at the weights of the network that made it")
        numbers = torch.stack([part.detach().to(self.device, torch.int64) for part in (index, labels)], 1)
        self.kept = _with(self.kept, rows)
        self.numbers = _with(self.numbers, numbers[mask.to(self.device)])

    def table(self) -> FeatureTable:
        """What this rank has counted; inside ``compute`` what all ranks have.

        Returns:
            Every sample once, sorted by number; of repeated ones the first.

        Raises:
            ValueError: a sample was counted with two classes.
        """
        features, numbers = (x if isinstance(x, Tensor) else torch.cat(x) for x in (self.kept, self.numbers))
        order = numbers[:, 0].argsort(stable=True)
        index, labels = numbers[order].unbind(1)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        differing = ~first[1:] & (labels[1:] != labels[:-1])
        if differing.any():
            raise ValueError(
                f"sample {int(index[1:][differing][0])} was counted with two classes: do two samples share a number?"
            )
        return FeatureTable(features[order[first]], labels[first], index[first])

    @contextlib.contextmanager
    def on_all_ranks(self) -> Iterator[None]:
        """Within this context the samples are those of all ranks; every rank must enter it."""
        inside = self._is_synced
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync and not inside, should_unsync=not inside
        ):
            yield

    def compute(self) -> object:
        """The samples of all ranks.

        Returns:
            A :class:`FeatureTable`; what subclasses compute from it.
        """
        return self.table()

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self._open()

    def _open(self) -> None:
        # Empty pieces of the right shape and type: a rank without samples must gather what the others do.
        self.kept = [torch.empty((0, self.size), dtype=self.exactness, device=self.device)]
        self.numbers = [torch.empty((0, 2), dtype=torch.int64, device=self.device)]

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), exclude_state)


def check_valid(valid: Tensor | None, count: int) -> Tensor:
    """Which samples of a batch count.

    Args:
        valid: bool, (B,); None = all.
        count: B.

    Returns:
        bool, (B,), on the CPU where ``valid`` is None.

    Raises:
        ValueError: no mask of B.
    """
    if valid is None:
        return torch.ones(count, dtype=torch.bool)
    if valid.dtype != torch.bool or valid.shape != (count,):
        raise ValueError(f"valid must be a bool mask of {count} samples, got {valid.dtype} {list(valid.shape)}")
    return valid


def _with(pieces: list[Tensor] | Tensor, more: Tensor) -> list[Tensor] | Tensor:
    return [*pieces, more] if isinstance(pieces, list) else torch.cat([pieces, more])
