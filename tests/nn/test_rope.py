"""Check 6 of the requirement: the formula of the rotary embedding."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gen.nn.rope import rotary_2d, rotate


def at(row: int, col: int, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    rotary = rotary_2d(torch.tensor([[row]]), torch.tensor([[col]]), dim, dtype=torch.float64)
    return rotary.cos.flatten(), rotary.sin.flatten()


def test_angles_of_a_known_place() -> None:
    cos, sin = at(3, 5)
    angles = [3, 0.3, 0.03, 0.003, 5, 0.5, 0.05, 0.005]
    torch.testing.assert_close(cos, torch.tensor([math.cos(a) for a in angles], dtype=torch.float64))
    torch.testing.assert_close(sin, torch.tensor([math.sin(a) for a in angles], dtype=torch.float64))


def test_pairs_are_neighbours_rows_first() -> None:
    x = torch.zeros(1, 1, 1, 16, dtype=torch.float64)
    x[..., 2] = 1  # first member of pair 1, which turns with the row by 0.3
    turned = rotate(x, rotary_2d(torch.tensor([[3]]), torch.tensor([[5]]), 16, dtype=torch.float64)).flatten()
    expected = torch.zeros(16, dtype=torch.float64)
    expected[2], expected[3] = math.cos(0.3), math.sin(0.3)
    torch.testing.assert_close(turned, expected)


def test_norms_stay_and_products_depend_on_the_difference_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64, generator=generator)

    def product(a: tuple[int, int], b: tuple[int, int]) -> torch.Tensor:
        turned = [
            rotate(x, rotary_2d(torch.tensor([[r]]), torch.tensor([[c]]), 16, dtype=torch.float64))
            for x, (r, c) in ((q, a), (k, b))
        ]
        torch.testing.assert_close(turned[0].norm(), q.norm())
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product((3, 5), (1, 9)), product((10, 0), (8, 4)))
    assert (product((3, 5), (1, 9)) - product((3, 5), (9, 1))).abs() > 1e-3


def test_head_width_must_hold_two_axes_of_pairs() -> None:
    with pytest.raises(ValueError, match="divisible by 4, got 18"):
        at(0, 0, 18)


def test_angles_stay_exact_for_low_precision_activations() -> None:
    rotary = rotary_2d(torch.tensor([[511]]), torch.tensor([[300]]), 64, dtype=torch.bfloat16)
    exact = rotary_2d(torch.tensor([[511]]), torch.tensor([[300]]), 64, dtype=torch.float64)
    assert rotary.cos.dtype == torch.bfloat16
    torch.testing.assert_close(rotary.cos.double(), exact.cos, atol=5e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_to_rotate_agree(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 6, 3, 4, 16, generator=generator, dtype=dtype, requires_grad=True)
    place = torch.arange(12).view(2, 6)
    rotary = rotary_2d(place, place.flip(1), 16, dtype=dtype)
    weight = torch.randn(2, 6, 4, 16, generator=generator, dtype=dtype)
    results = []
    for compiling in (False, True):  # a compiler gets real numbers: it fuses them, and knows no complex ones
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda value=compiling: value)
        out = rotate(qkv[:, :, 1], rotary)  # a view, as values of a fused projection are
        names = {node.name() for node in graph_of(out)}
        assert ("ViewAsComplexBackward0" in names) is not compiling
        results.append((out, *torch.autograd.grad((out * weight).sum(), qkv)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 if dtype == torch.float32 else 1e-14, rtol=0)


def graph_of(out: torch.Tensor) -> list[torch.autograd.graph.Node]:
    nodes = [out.grad_fn]
    for node in nodes:
        nodes.extend(parent for parent, _ in node.next_functions if parent is not None)
    return nodes


def test_low_precision_is_rotated_too() -> None:
    x = torch.randn(1, 5, 2, 16, generator=torch.Generator().manual_seed(0))
    place = torch.arange(5)[None]
    exact = rotate(x, rotary_2d(place, place, 16))
    turned = rotate(x.bfloat16(), rotary_2d(place, place, 16, dtype=torch.bfloat16))
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float(), exact, atol=5e-2, rtol=0)
