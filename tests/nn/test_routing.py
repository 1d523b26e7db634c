"""Gradients of several losses, against hand-made ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gen.nn.routing import GradientRouter


def parameters() -> dict[str, list[nn.Parameter]]:
    names = ("a", "b", "c")
    return {name: [nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))] for name in names}


def test_cosines_over_what_is_shared_and_over_everything() -> None:
    groups = parameters()
    (a,), (b,), (c,) = groups.values()
    first = 3 * a[0] + 4 * b[0]
    second = 2 * a[0] + a[1] + 5 * c[1]
    found = GradientRouter(groups).measure({"first": first, "second": second})
    assert torch.allclose(found.norms, torch.tensor([[3.0, 4.0, 0.0], [math.sqrt(5), 0.0, 5.0]], dtype=torch.float64))
    assert found.reached.tolist() == [[True, True, False], [True, False, True]]
    assert found.shared.tolist() == [[4, 2], [2, 4]]  # two numbers of each parameter
    assert found.cos_shared[0, 1].item() == pytest.approx(6 / (3 * math.sqrt(5)))
    assert found.cos_full[0, 1].item() == pytest.approx(6 / (5 * math.sqrt(30)))
    assert found.cos_groups[0, 0, 1].item() == pytest.approx(6 / (3 * math.sqrt(5)))
    assert found.cos_groups[1:, 0, 1].tolist() == [0, 0]
    assert all(p.grad is None for group in groups.values() for p in group)
    (first + second).backward()
    assert a.grad is not None


def test_equal_losses_give_1_opposite_ones_minus_1() -> None:
    """Check 10, first part."""
    groups = parameters()
    loss = sum((p.square().sum() for group in groups.values() for p in group), torch.zeros(()))
    found = GradientRouter(groups).measure({"x": loss, "y": loss, "z": -loss})
    for matrix in (found.cos_shared, found.cos_full):
        assert torch.allclose(matrix, matrix.new_tensor([[1, 1, -1], [1, 1, -1], [-1, -1, 1]]))


def test_losses_that_share_nothing_have_no_cosine_and_a_full_one_of_0() -> None:
    groups = parameters()
    found = GradientRouter(groups).measure({"x": groups["a"][0].sum(), "y": groups["b"][0].sum()})
    assert found.cos_shared[0, 1].isnan() and found.cos_full[0, 1] == 0 and found.shared.tolist() == [[2, 0], [0, 2]]
    scalars = found.scalars()
    assert "cos_shared/x-y" not in scalars and scalars["cos_full/x-y"] == 0 and scalars["norm/x/b"] == 0
    assert len(scalars) == 2 * 3 + 1


def test_a_loss_without_a_graph_reaches_nothing() -> None:
    groups = parameters()
    found = GradientRouter(groups).measure({"x": groups["a"][0].sum(), "none": torch.zeros(())})
    assert not found.reached[1].any() and found.cos_full[0].tolist() == [pytest.approx(1), 0]
    assert found.shared.tolist() == [[2, 0], [0, 0]]


def test_what_two_losses_share_does_not_hang_on_the_batch() -> None:
    """A gradient that happens to be 0 arrives all the same."""
    groups = parameters()
    found = GradientRouter(groups).measure({"x": 0 * groups["a"][0].sum(), "y": groups["a"][0].sum()})
    assert found.cos_shared[0, 1].isnan() and found.shared.tolist() == [[2, 2], [2, 2]]


def test_groups_are_disjoint_and_losses_are_there() -> None:
    shared = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="disjoint"):
        GradientRouter({"a": [shared], "b": [shared]})
    with pytest.raises(ValueError, match="no loss"):
        GradientRouter({"a": [shared]}).measure({})
