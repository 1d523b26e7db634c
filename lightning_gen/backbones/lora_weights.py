"""One adapter as numbers, apart from any network, and the ways to merge several into one.

Shape letters: r rank, I inputs and O outputs of a layer, n adapters, R sum of their ranks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["AdapterWeights", "merge_by_concatenation", "merge_by_delta", "merge_by_factors"]


@dataclasses.dataclass(frozen=True)
class AdapterWeights:
    """The factors of every adapted layer.

    delta W = (alpha / r) B A

    Attributes:
        factors: module name in the base network -> (A, B), (r, I) and (O, r), float.
        alpha: numerator of the scale that is common to all layers.

    Raises:
        ValueError: no layer, or factors that are no matrices of one common rank; names the first such module.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    alpha: float

    def __post_init__(self) -> None:
        if not self.factors:
            raise ValueError("an adapter without a single layer")
        for name, (down, up) in self.factors.items():
            if down.ndim != 2 or up.ndim != 2 or not down.shape[0] == up.shape[1] == self.rank:
                raise ValueError(
                    f"{name}: A of shape {tuple(down.shape)} and B of shape {tuple(up.shape)} are not (r, inputs) and "
                    f"(outputs, r) with the rank r = {self.rank} of the first layer, {next(iter(self.factors))}"
                )

    @property
    def rank(self) -> int:
        """r, the same in all layers."""
        return int(next(iter(self.factors.values()))[0].shape[0])

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def delta(self, module: str) -> Tensor:
        """What the adapter adds to the weight of a layer.

        Args:
            module: its name.

        Returns:
            (O, I).
        """
        down, up = self.factors[module]
        return self.scaling * (up @ down)


def merge_by_factors(adapters: Sequence[AdapterWeights], weights: Sequence[float]) -> AdapterWeights:
    """Add A to A and B to B: cheap, but the product of sums is not the sum of products.

    A = sum_i sign(w_i) sqrt(|w_i| s_i) A_i;  B = sum_i sqrt(|w_i| s_i) B_i;  alpha = r;  s_i = alpha_i / r

    For one adapter, and for copies of one with weights that add up to 1, nothing is lost.

    Args:
        adapters: n of one rank, on the same layers.
        weights: w, n of them.

    Returns:
        The merged adapter, of the same rank.

    Raises:
        ValueError: nothing to merge, not one weight per adapter, or adapters of different layers, shapes or ranks.

    Source: the "linear" combination of peft's ``add_weighted_adapter``.
    """
    _require_mergeable(adapters, weights)
    ranks = [adapter.rank for adapter in adapters]
    if len(set(ranks)) > 1:
        raise ValueError(f"factors of ranks {ranks} cannot be added: merge by delta or by concatenation")
    scales = [weight * adapter.scaling for weight, adapter in zip(weights, adapters, strict=True)]
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
    merged = {}
    for name, (first, _) in adapters[0].factors.items():
        pairs = [adapter.factors[name] for adapter in adapters]
        down = sum(scale * pair[0].double() for scale, pair in zip(signed, pairs, strict=True))
        up = sum(scale * pair[1].double() for scale, pair in zip(roots, pairs, strict=True))
        assert isinstance(down, Tensor) and isinstance(up, Tensor)
        merged[name] = (down.to(first.dtype), up.to(first.dtype))
    return AdapterWeights(merged, float(ranks[0]))


def merge_by_concatenation(adapters: Sequence[AdapterWeights], weights: Sequence[float]) -> AdapterWeights:
    """Stack the factors: exactly the weighted sum of the deltas, at the sum of the ranks.

    A = [w_1 s_1 A_1; ...; w_n s_n A_n];  B = [B_1, ..., B_n];  alpha = R

    Args:
        adapters: n on the same layers.
        weights: w, n of them.

    Returns:
        The merged adapter, of rank R.

    Raises:
        ValueError: nothing to merge, not one weight per adapter, or adapters of different layers or shapes.

    Source: the "cat" combination of peft's ``add_weighted_adapter``.
    """
    _require_mergeable(adapters, weights)
    merged = {}
    for name, (first, _) in adapters[0].factors.items():
        down, up = _stacked(name, adapters, weights)
        merged[name] = (down.to(first.dtype), up.to(first.dtype))
    return AdapterWeights(merged, float(sum(adapter.rank for adapter in adapters)))


def merge_by_delta(adapters: Sequence[AdapterWeights], weights: Sequence[float], rank: int) -> AdapterWeights:
    """The best adapter of a given rank for the weighted sum of the deltas; exact where the rank is enough.

    U S V^T = sum_i w_i delta W_i;  B = U_r S_r;  A = V_r^T;  alpha = r

    The sum is never written out: with the factors stacked and B = Q_B R_B, A^T = Q_A R_A, the singular values are those
    of the R x R matrix R_B R_A^T.

    Args:
        adapters: n on the same layers.
        weights: w, n of them.
        rank: r of the result; from R on nothing is lost, and what is over is filled with zeros.

    Returns:
        The merged adapter.

    Raises:
        ValueError: nothing to merge, not one weight per adapter, adapters of different layers or shapes, or a rank
            below 1.

    Source: the "svd" combination of peft's ``add_weighted_adapter``; arXiv:2106.09685 eq. 3 for delta W.
    """
    _require_mergeable(adapters, weights)
    if rank < 1:
        raise ValueError(f"an adapter has a rank of at least 1, got {rank}")
    merged = {}
    for name, (first, _) in adapters[0].factors.items():
        down, up = _stacked(name, adapters, weights)
        basis_up, rest_up = torch.linalg.qr(up)
        basis_down, rest_down = torch.linalg.qr(down.T)
        left, values, right = torch.linalg.svd(rest_up @ rest_down.T, full_matrices=False)
        kept = min(rank, len(values))
        new_up = up.new_zeros(up.shape[0], rank)
        new_down = down.new_zeros(rank, down.shape[1])
        new_up[:, :kept] = basis_up @ (left[:, :kept] * values[:kept])
        new_down[:kept] = right[:kept] @ basis_down.T
        merged[name] = (new_down.to(first.dtype), new_up.to(first.dtype))
    return AdapterWeights(merged, float(rank))


def _stacked(name: str, adapters: Sequence[AdapterWeights], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """[w_1 s_1 A_1; ...] and [B_1, ...], in float64."""
    scales = [weight * adapter.scaling for weight, adapter in zip(weights, adapters, strict=True)]
    downs = [scale * adapter.factors[name][0].double() for scale, adapter in zip(scales, adapters, strict=True)]
    return torch.cat(downs, 0), torch.cat([adapter.factors[name][1].double() for adapter in adapters], 1)


def _require_mergeable(adapters: Sequence[AdapterWeights], weights: Sequence[float]) -> None:
    if not adapters or len(adapters) != len(weights):
        raise ValueError(f"merging takes adapters and one weight for each, got {len(adapters)} and {len(weights)}")
    first = adapters[0].factors
    for number, adapter in enumerate(adapters[1:], start=2):
        for name in dict.fromkeys([*first, *adapter.factors]):
            if name not in first or name not in adapter.factors:
                owner, other = (1, number) if name in first else (number, 1)
                raise ValueError(f"adapters {owner} and {other} do not fit: only adapter {owner} has {name}")
            sizes = [(pair[0].shape[1], pair[1].shape[0]) for pair in (first[name], adapter.factors[name])]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"adapters 1 and {number} do not fit: at {name} they take {sizes[0][0]} and {sizes[1][0]} inputs "
                    f"and give {sizes[0][1]} and {sizes[1][1]} outputs"
                )
