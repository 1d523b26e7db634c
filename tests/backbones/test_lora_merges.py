"""Merging adapters, in float64, against the formulas and against peft."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.backbones.lora_weights import (
    AdapterWeights,
    merge_by_concatenation,
    merge_by_delta,
    merge_by_factors,
)

SIZES = {"first": (7, 5), "second": (6, 9)}
WEIGHTS = (0.7, -0.4, 1.3)


def adapter(seed: int, rank: int = 3, alpha: float = 6.0, sizes: dict[str, tuple[int, int]] = SIZES) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return AdapterWeights({n: (matrix(rank, ins), matrix(outs, rank)) for n, (ins, outs) in sizes.items()}, alpha)


def summed(adapters: list[AdapterWeights], module: str) -> Tensor:
    parts = [weight * one.delta(module) for weight, one in zip(WEIGHTS, adapters, strict=True)]
    return torch.stack(parts).sum(0)


def close(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.allclose(first, second, rtol=1e-11, atol=1e-11)


UNEQUAL = [adapter(0), adapter(1, 2, 5.0), adapter(2, 1, 0.5)]


def test_concatenation_is_the_sum_of_deltas() -> None:
    merged = merge_by_concatenation(UNEQUAL, WEIGHTS)
    assert merged.rank == 6 and merged.scaling == 1.0
    for module in SIZES:
        assert close(merged.delta(module), summed(UNEQUAL, module))


@pytest.mark.parametrize("rank", [6, 9])
def test_delta_is_exact_where_the_rank_is_enough(rank: int) -> None:
    """6 = the sum of ranks; the second layer has 6 outputs at most, and at 9 rows of zeros fill up."""
    merged = merge_by_delta(UNEQUAL, WEIGHTS, rank)
    assert merged.rank == rank and merged.scaling == 1.0
    for module in SIZES:
        assert close(merged.delta(module), summed(UNEQUAL, module))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_truncated_delta_loses_the_smallest_singular_values_and_no_more(rank: int) -> None:
    merged = merge_by_delta(UNEQUAL, WEIGHTS, rank)
    for module in SIZES:
        whole = summed(UNEQUAL, module)
        lost = torch.linalg.svdvals(whole)[rank:].square().sum()
        assert lost > 1e-3 and (whole - merged.delta(module)).square().sum().item() == pytest.approx(lost.item())
        assert close(merged.factors[module][0] @ merged.factors[module][0].T, torch.eye(rank, dtype=torch.float64))


def test_factors_by_hand() -> None:
    adapters = [adapter(0), adapter(1, 3, 1.5), adapter(2)]
    merged = merge_by_factors(adapters, WEIGHTS)
    assert merged.rank == 3 and merged.scaling == 1.0
    roots = [math.sqrt(0.7 * 2), math.sqrt(0.4 * 0.5), math.sqrt(1.3 * 2)]
    for module in SIZES:
        downs, ups = zip(*(one.factors[module] for one in adapters), strict=True)
        assert close(merged.factors[module][0], roots[0] * downs[0] - roots[1] * downs[1] + roots[2] * downs[2])
        assert close(merged.factors[module][1], roots[0] * ups[0] + roots[1] * ups[1] + roots[2] * ups[2])
        assert not close(merged.delta(module), summed(adapters, module)), "it is no sum of deltas"


def test_factors_of_one_adapter_are_its_multiple() -> None:
    one = adapter(0)
    for weight in (0.25, -2.0):
        assert close(merge_by_factors([one], [weight]).delta("first"), weight * one.delta("first"))


@pytest.mark.parametrize("kind", ["linear", "cat", "svd"])
def test_peft_merges_the_same(kind: Any) -> None:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    adapters = [adapter(0), adapter(1, 3, 1.5), adapter(2)]
    network = nn.ModuleDict({name: nn.Linear(ins, outs).double() for name, (ins, outs) in SIZES.items()})
    names = ["a", "b", "c"]
    configs = [LoraConfig(r=one.rank, lora_alpha=one.alpha, target_modules=list(SIZES)) for one in adapters]  # type: ignore[arg-type]
    model = LoraModel(network, configs[0], "a")
    for name, config in zip(names[1:], configs[1:], strict=True):
        model.peft_config[name] = config
        model.inject_adapter(network, name)
    with torch.no_grad():
        for name, one in zip(names, adapters, strict=True):
            for module, (down, up) in one.factors.items():
                network[module].lora_A[name].weight.copy_(down)
                network[module].lora_B[name].weight.copy_(up)
    model.add_weighted_adapter(names, list(WEIGHTS), "merged", kind, svd_rank=2)
    merged = {
        "linear": lambda: merge_by_factors(adapters, WEIGHTS),
        "cat": lambda: merge_by_concatenation(adapters, WEIGHTS),
        "svd": lambda: merge_by_delta(adapters, WEIGHTS, 2),
    }[kind]()
    for module in SIZES:
        layer = network[module]
        assert layer.lora_A["merged"].weight.shape == merged.factors[module][0].shape
        # peft keeps its weights in single precision
        delta = layer.get_delta_weight("merged").double()
        assert torch.allclose(merged.delta(module), delta, rtol=1e-4, atol=1e-5)
        if kind != "svd":  # singular vectors have a sign of their own
            for ours, theirs in zip(merged.factors[module], (layer.lora_A, layer.lora_B), strict=True):
                assert torch.allclose(ours, theirs["merged"].weight.double(), rtol=1e-5, atol=1e-6)


def test_merges_keep_the_precision_of_the_adapters() -> None:
    half = AdapterWeights({"first": tuple(f.bfloat16() for f in adapter(0).factors["first"])}, 6.0)  # type: ignore[dict-item]
    for merged in (
        merge_by_factors([half], [1.0]),
        merge_by_concatenation([half], [1.0]),
        merge_by_delta([half], [1.0], 2),
    ):
        assert {factor.dtype for factor in merged.factors["first"]} == {torch.bfloat16}


NARROW = adapter(1, sizes={"first": (7, 5), "second": (6, 8)})
OTHER = adapter(1, sizes={"first": (7, 5), "third": (6, 9)})


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (lambda: merge_by_concatenation([], []), "got 0 and 0"),
        (lambda: merge_by_delta([adapter(0)], [1.0, 2.0], 2), "got 1 and 2"),
        (lambda: merge_by_factors(UNEQUAL, WEIGHTS), r"ranks \[3, 2, 1\] cannot be added"),
        (lambda: merge_by_delta(UNEQUAL, WEIGHTS, 0), "rank of at least 1, got 0"),
        (
            lambda: merge_by_delta([adapter(0), NARROW], [1, 1], 2),
            "at second they take 6 and 6 inputs and give 9 and 8",
        ),
        (lambda: merge_by_factors([adapter(0), OTHER], [1, 1]), "only adapter 1 has second"),
        (lambda: AdapterWeights({}, 1.0), "without a single layer"),
        (
            lambda: AdapterWeights({**adapter(0).factors, "x": (torch.ones(2, 3), torch.ones(4, 2))}, 1.0),
            r"x: A of shape \(2, 3\) and B of shape \(4, 2\).*rank r = 3 of the first layer, first",
        ),
    ],
)
def test_what_does_not_fit_is_named(merge: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge()
