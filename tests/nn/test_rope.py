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
