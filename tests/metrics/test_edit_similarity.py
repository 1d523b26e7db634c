"""Directions of change: closed forms, limits, and what each measure does not see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.edit_similarity import (
    attractor_margin,
    delta_cosine,
    directional_similarity,
    exemplar_leak,
    semantic_delta,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_facts_of_the_semantic_delta() -> None:
    a, b, c = (3 * draw(2, 5, 16, seed=seed) + seed for seed in range(3))
    delta = semantic_delta(a, b)
    assert torch.allclose(delta.sum(-1), torch.zeros(2, 5).double(), atol=1e-12)
    assert not semantic_delta(a, a).any()
    assert torch.allclose(delta, -semantic_delta(b, a))
    assert torch.allclose(delta + semantic_delta(b, c), semantic_delta(a, c), atol=1e-12)
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a[0], b[0], strict=True)])
    assert torch.allclose(delta[0].square().sum(-1), 2 * 16 * (1 - correlation), rtol=1e-5)


def test_delta_cosine_at_its_limits() -> None:
    delta = draw(3, 4, 8)
    for scale, cosine in ((2.0, 1.0), (-1.0, -1.0)):
        same = delta_cosine(scale * delta, delta)
        assert torch.allclose(same.patches, torch.full((3,), cosine).double())
        assert torch.allclose(same.pooled, torch.full((3,), cosine).double())
    nothing = delta_cosine(torch.zeros_like(delta), delta)
    assert nothing.patches.tolist() == nothing.pooled.tolist() == [0.0] * 3
    unknown = delta_cosine(delta, torch.zeros_like(delta))
    assert unknown.patches.isnan().all()
    assert unknown.pooled.isnan().all()


def test_patches_weigh_as_much_as_the_reference_changes_them() -> None:
    reference = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    change = torch.tensor([[[1.0, 0.0], [0.0, -2.0], [5.0, 5.0]]])
    # Weights 3, 1 and 0; cosines 1 and -1.
    assert delta_cosine(change, reference).patches.tolist() == [0.5]


def test_the_pooled_cosine_does_not_ask_where() -> None:
    delta = draw(2, 6, 8)
    moved = delta_cosine(delta.roll(2, 1), delta)
    assert torch.allclose(moved.pooled, torch.ones(2).double())
    assert (moved.patches < 0.9).all()


def test_directional_similarity() -> None:
    before, direction, other = draw(2, 8), draw(2, 8, seed=1), draw(2, 8, seed=2)
    alike = directional_similarity(before, before + 0.3 * direction, other, other + direction)
    assert torch.allclose(alike, torch.ones(2).double())
    assert directional_similarity(before, before, other, other + direction).tolist() == [0, 0]
    assert directional_similarity(before, before + direction, other, other).isnan().all()


def test_a_leak_is_likeness_beyond_that_of_the_truth() -> None:
    truth, example = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert exemplar_leak(truth, truth, example).tolist() == [0.0]
    assert exemplar_leak(torch.tensor([[1.0, 1.0]]), truth, example).tolist() == [pytest.approx(math.sqrt(0.5))]


def test_the_attractor_margin_is_a_difference_of_cosines() -> None:
    image, prompt, attractor = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[5.0, 0.0]])
    assert attractor_margin(image, prompt, attractor).tolist() == [pytest.approx(0.2)]
    assert attractor_margin(image, attractor, prompt).tolist() == [pytest.approx(-0.2)]


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, N, C\)"):
        semantic_delta(draw(2, 5, 8), draw(2, 4, 8))
    with pytest.raises(ValueError, match=r"\(B, N, C\)"):
        delta_cosine(draw(2, 8), draw(2, 8))
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        attractor_margin(draw(2, 8), draw(1, 8), draw(2, 8))
