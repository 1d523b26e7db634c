"""Random numbers that depend on what they are for, not on who draws them.

Every draw inside a step or an augmentation is a pure function of (seed, purpose, epoch, global sample index). The
process's global generators are never read, so world size, number of workers, accumulation and a resume change nothing.

Two ways to draw:

* :func:`numpy_generator` and :func:`torch_generator` give one generator per key, for code that draws many different
  numbers for one thing (the augmentations of one sample, the initial weights of one layer);
* :func:`uniform` and :func:`normal` give a whole batch at once, row by row, on the device of the index tensor and
  without waiting for it (tile corners, noise, flow times).

Shape letters: B samples, n numbers per sample.
"""

from __future__ import annotations

import hashlib
import math
import operator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["key_seed", "normal", "numpy_generator", "torch_generator", "uniform"]

# Constants of the SplitMix64 finaliser (a bijection of 64-bit words with full avalanche), as signed 64-bit integers
# because torch multiplies int64 modulo 2**64.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def key_seed(seed: int, purpose: str, *where: int) -> int:
    """Turn a key into one stable 63-bit seed.

    seed' = blake2b(seed, purpose, where) mod 2**63

    The value is the same in every process, on every platform and under every PYTHONHASHSEED.

    Args:
        seed: the run's seed, any integer.
        purpose: what the numbers are for, for instance ``"flip"``; different purposes are independent.
        *where: integers that say which one, for instance epoch and global sample index.

    Returns:
        An integer in [0, 2**63).
    """
    return int.from_bytes(_digest(seed, purpose, where)[:8], "little") & (2**63 - 1)


def numpy_generator(seed: int, purpose: str, *where: int) -> np.random.Generator:
    """A NumPy generator for one key.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for.
        *where: integers that say which one.

    Returns:
        A Philox generator whose 128-bit key is the hash of the arguments.
    """
    import numpy as np

    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, purpose, where), "little")))


def torch_generator(seed: int, purpose: str, *where: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one key.

    Torch's CPU generator keeps 32 bits of its seed: good for thousands of keys (layers, batches), while :func:`uniform`
    and :func:`normal` are made for billions (samples).

    Args:
        seed: the run's seed.
        purpose: what the numbers are for.
        *where: integers that say which one.
        device: where the generator draws. CPU and GPU generators give different numbers for one key.

    Returns:
        A freshly seeded generator.
    """
    return torch.Generator(device=device).manual_seed(key_seed(seed, purpose, *where))


def uniform(seed: int, purpose: str, epoch: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers for a batch; row b depends on (seed, purpose, epoch, index[b]) alone.

    The numbers are bit-equal on every device. A longer ``shape`` starts with the numbers of a shorter one.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for.
        epoch: plan number.
        index: int64, (B,), global sample indices.
        shape: what one sample needs; ``()`` = one number.

    Returns:
        float32, (B, *shape), range [0, 1), on the device of ``index``.
    """
    number = math.prod(shape)
    high, low = _words(seed, purpose, epoch, index, (number + 1) // 2)
    pairs = torch.stack((high, low), dim=-1).flatten(1)[:, :number]
    return (pairs.float() * 2.0**-24).reshape(index.shape[0], *shape)


def normal(seed: int, purpose: str, epoch: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers for a batch; row b depends on (seed, purpose, epoch, index[b]) alone.

    (n_1, n_2) = sqrt(-2 log u) * (cos 2 pi w, sin 2 pi w), u in (0, 1], w in [0, 1)     (Box-Muller)

    Computed in float64 and rounded once, so that devices agree to the last bit or two.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for.
        epoch: plan number.
        index: int64, (B,), global sample indices.
        shape: what one sample needs; ``()`` = one number.

    Returns:
        float32, (B, *shape), mean 0 and variance 1, on the device of ``index``.
    """
    number = math.prod(shape)
    high, low = _words(seed, purpose, epoch, index, (number + 1) // 2)
    radius = torch.sqrt(-2.0 * torch.log((high.double() + 1.0) * 2.0**-24))
    angle = low.double() * (2.0 * math.pi * 2.0**-24)
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(1)[:, :number]
    return pairs.float().reshape(index.shape[0], *shape)


def _digest(seed: int, purpose: str, where: tuple[int, ...]) -> bytes:
    # operator.index turns NumPy and torch integers into plain ones and refuses floats, so equal keys print equally.
    key = (operator.index(seed), purpose, *(operator.index(place) for place in where))
    return hashlib.blake2b(repr(key).encode(), digest_size=16).digest()


def _words(seed: int, purpose: str, epoch: int, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Two 24-bit integers for each of ``count`` counters of each sample, (B, count) each.

    Two keys per sample (128 bits) keep the streams of different samples from being shifted copies of each other.
    """
    if index.ndim != 1 or index.dtype != torch.int64:
        raise ValueError(f"index must be int64 of shape (B,), got {index.dtype} of shape {tuple(index.shape)}")
    digest = _digest(seed, purpose, (epoch,))
    first, second = (int.from_bytes(part, "little", signed=True) for part in (digest[:8], digest[8:]))
    start = _mix(_mix(index) ^ first)[:, None]
    key = _mix(_mix(index * _GOLDEN) ^ second)[:, None]
    counter = torch.arange(1, count + 1, device=index.device, dtype=torch.int64) * _GOLDEN
    word = _mix(_mix(start + counter) ^ key)
    return _shifted(word, 40), (word >> 8) & 0xFFFFFF


def _mix(word: Tensor) -> Tensor:
    word = (word ^ _shifted(word, 30)) * _FIRST
    word = (word ^ _shifted(word, 27)) * _SECOND
    return word ^ _shifted(word, 31)


def _shifted(word: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own is arithmetic and drags the sign along."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)
