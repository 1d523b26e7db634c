"""Keyed random numbers: stable, independent, of the right distribution."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_gen.training.randomness import key_seed, normal, numpy_generator, torch_generator, uniform


def test_values_never_change() -> None:
    """A change here breaks the resume of every run that was started before it."""
    assert key_seed(0, "init") == 9051226151547573005
    assert key_seed(7, "flip", 3, 12) == 3175734951331219005
    assert numpy_generator(0, "x", 1).random(2).tolist() == pytest.approx([0.71894028, 0.59615146], abs=1e-8)
    index = torch.tensor([3, 2**40])
    expected = torch.tensor([[0.26982957, 0.66014516, 0.62136179], [0.01935071, 0.06779963, 0.78458160]])
    assert torch.allclose(uniform(0, "a", 0, index, (3,)), expected, atol=1e-8)


def test_words_equal_the_recipe_in_plain_integers() -> None:
    """The 64-bit arithmetic once more without torch, so that a platform that wraps otherwise is noticed."""
    full = 2**64 - 1

    def mix(word: int) -> int:
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & full
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB & full
        return word ^ (word >> 31)

    golden = 0x9E3779B97F4A7C15
    digest = hashlib.blake2b(repr((9, "noise", 4)).encode(), digest_size=16).digest()
    first, second = (int.from_bytes(part, "little") for part in (digest[:8], digest[8:]))
    for index in (0, 17, 2**40):
        start, key = mix(mix(index) ^ first), mix(mix(index * golden & full) ^ second)
        words = [mix(mix((start + k * golden) & full) ^ key) for k in (1, 2)]
        expected = [number * 2.0**-24 for word in words for number in (word >> 40, word >> 8 & 0xFFFFFF)]
        assert uniform(9, "noise", 4, torch.tensor([index]), (4,))[0].tolist() == expected


def test_key_is_read_exactly() -> None:
    keys = [
        (0, "ab", 1, 2),
        (0, "ab", 12),
        (0, "ab", 1),
        (0, "ab"),
        (1, "ab"),
        (0, "a"),
        (0, "b"),
        (-1, "ab"),
        (0, "ab", 0),
    ]
    assert len({key_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= key_seed(*key) < 2**63 for key in keys)
    assert key_seed(np.int64(3), "a", np.int32(4)) == key_seed(3, "a", 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        key_seed(0, "a", 1.5)  # type: ignore[arg-type]


def test_seed_is_equal_in_another_process_with_another_hash_seed() -> None:
    code = "from lightning_gen.training.randomness import key_seed; print(key_seed(5, 'noise', 6, 7))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(out.stdout) == key_seed(5, "noise", 6, 7)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_row_depends_on_its_own_index_alone(draw: object) -> None:
    assert callable(draw)
    index = torch.tensor([5, 0, -1, 5, 2**62])
    rows = draw(1, "tile", 2, index, (2, 3))
    assert rows.shape == (5, 2, 3) and rows.dtype == torch.float32
    for k, one in enumerate(index):
        assert torch.equal(draw(1, "tile", 2, one[None], (2, 3))[0], rows[k])
    assert torch.equal(rows[0], rows[3]) and not torch.equal(rows[0], rows[1])
    # a longer draw starts with the shorter one; an empty shape is one number
    assert torch.equal(draw(1, "tile", 2, index, (7,))[:, :6], rows.flatten(1))
    assert torch.equal(draw(1, "tile", 2, index, ()), rows[:, 0, 0])
    assert draw(1, "tile", 2, index[:0], (4,)).shape == (0, 4)


@pytest.mark.parametrize("other", [(2, "tile", 2), (1, "tiles", 2), (1, "tile", 3)])
def test_seed_purpose_and_epoch_give_independent_numbers(other: tuple[int, str, int]) -> None:
    index = torch.arange(4000)
    first, second = uniform(1, "tile", 2, index, (5,)), uniform(*other, index, (5,))
    assert not (first == second).all(1).any()
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 4 / 20000**0.5


def test_uniform_numbers_are_uniform_within_and_across_samples() -> None:
    numbers = uniform(0, "check", 0, torch.arange(2000), (100,)).double()
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    counts = torch.histc(numbers.flatten(), 64, 0.0, 1.0)
    expected = numbers.numel() / 64
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 63 - 4 * (126**0.5) < chi_square < 63 + 4 * (126**0.5)
    for left, right in (
        (numbers[:, :-1], numbers[:, 1:]),
        (numbers[:-1], numbers[1:]),
        (numbers[:, ::2], numbers[:, 1::2]),
    ):
        pair = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]
        assert abs(pair) < 4 / left.numel() ** 0.5
    assert torch.unique(numbers.flatten()).numel() > 0.98 * numbers.numel()


def test_normal_numbers_are_normal() -> None:
    numbers = normal(0, "check", 0, torch.arange(2000), (101,)).double().flatten()
    size = numbers.numel()
    assert numbers.isfinite().all()
    assert abs(numbers.mean()) < 4 / size**0.5
    assert abs(numbers.var() - 1) < 4 * (2 / size) ** 0.5
    assert abs((numbers**4).mean() - 3) < 4 * (96 / size) ** 0.5
    share = torch.tensor([(numbers < z).double().mean() for z in (-2.0, -1.0, 0.0, 1.0, 2.0)])
    cumulative = torch.special.ndtr(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64))
    assert torch.allclose(share, cumulative, atol=4 * 0.5 / size**0.5)


def test_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    first = normal(0, "a", 0, torch.arange(3), (4,)), torch.randn(2, generator=torch_generator(0, "b"))
    numpy_generator(0, "c").random()
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == legacy).all()  # type: ignore[index]
    torch.manual_seed(1)
    again = normal(0, "a", 0, torch.arange(3), (4,)), torch.randn(2, generator=torch_generator(0, "b"))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_wrong_index_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        uniform(0, "a", 0, torch.zeros(3), (1,))
    with pytest.raises(ValueError, match=r"shape \(B,\)"):
        uniform(0, "a", 0, torch.zeros(3, 1, dtype=torch.int64), (1,))
