"""Rows of features: each sample once, in the order of its number."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gen.metrics.labelled_features import LabelledFeatures


def test_rows_are_sorted_and_repeats_are_dropped() -> None:
    metric = LabelledFeatures(2)
    metric.update(torch.tensor([[3.0, 3], [1, 1]]), torch.tensor([3, 1]), torch.tensor([7, -1]))
    metric.update(torch.tensor([[9.0, 9], [0, 0]]), torch.tensor([3, 0]), torch.tensor([7, 8]))
    metric.update(torch.ones(1, 2), torch.tensor([5]), valid=torch.tensor([False]))
    table = metric.table()
    assert table.numbers.tolist() == [0, 1, 3] and table.labels.tolist() == [8, -1, 7]
    assert table.features.tolist() == [[0, 0], [1, 1], [3, 3]]
    assert table.with_class().numbers.tolist() == [0, 3]
    metric.reset()
    assert table.features.dtype == torch.float32 and len(metric.table().labels) == 0


def test_what_does_not_belong_together_is_refused() -> None:
    metric = LabelledFeatures(2)
    with pytest.raises(ValueError, match=r"expected \(B, 2\)"):
        metric.update(torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric.update(torch.full((1, 2), math.nan), torch.tensor([0]))
    with pytest.raises(ValueError, match="bool mask"):
        metric.update(torch.zeros(1, 2), torch.tensor([0]), valid=torch.tensor([1]))
    metric.update(torch.zeros(2, 2), torch.tensor([4, 4]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="sample 4 was counted with two classes"):
        metric.table()
