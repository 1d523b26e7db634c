from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.backbones.frozen import FrozenModule, full_float32, ordinary_construction


class Scaled(FrozenModule):
    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.network(values)
        return out


@pytest.fixture
def frozen() -> Scaled:
    return Scaled(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).double())


def test_it_is_frozen_in_float32_and_eval_mode(frozen: Scaled) -> None:
    assert frozen.num_parameters == 8 and frozen.device.type == "cpu"
    weights = list(frozen.network.parameters())
    assert all(weight.dtype == torch.float32 and not weight.requires_grad for weight in weights)
    values = torch.ones(4, 3, requires_grad=True)
    assert torch.equal(frozen(values), frozen(values))  # no dropout
    frozen(values).sum().backward()
    assert values.grad is not None and weights[0].grad is None


def test_what_a_parent_does_does_not_reach_it(frozen: Scaled) -> None:
    parent = nn.Module()
    parent.frozen = frozen
    before = copy.deepcopy(frozen.network.state_dict())
    assert not list(parent.parameters()) and not parent.state_dict()
    parent.half().train().requires_grad_(True)
    parent.to_empty(device="cpu")
    parent.to("meta")
    assert not frozen.training and not any(module.training for module in frozen.network.modules())
    for name, weight in frozen.network.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, before[name])


def test_a_copy_is_a_copy(frozen: Scaled) -> None:
    twin = copy.deepcopy(frozen)
    assert twin.network is not frozen.network
    assert torch.equal(twin(torch.ones(1, 3)), frozen(torch.ones(1, 3)))


def test_float32_is_full_inside_and_as_it_was_afterwards() -> None:
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    renamed = hasattr(cudnn, "conv")  # since torch 2.9

    def switches() -> tuple[Any, Any]:
        return (matmul.fp32_precision, cudnn.conv.fp32_precision) if renamed else (matmul.allow_tf32, cudnn.allow_tf32)

    torch.set_float32_matmul_precision("high")
    try:
        before = switches()
        assert before[0] == ("tf32" if renamed else True)
        with torch.autocast("cpu", torch.bfloat16):
            with pytest.raises(ArithmeticError), full_float32(torch.device("cpu")):
                assert switches() == (("ieee", "ieee") if renamed else (False, False))
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
                raise ArithmeticError
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert switches() == before
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_construction_is_ordinary_wherever_it_happens() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), ordinary_construction():
            layer = nn.Linear(2, 2)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
    assert torch.equal(torch.rand(1), expected)
