"""LightningDiT: sizes, start, equations, padding and packing. t = 0 is clean, t = 1 is noise."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.generators.dit.lightningdit.layers import sincos_positions
from lightning_gen.generators.dit.lightningdit.network import LightningDiT
from lightning_gen.generators.dit.lightningdit.variants import LightningDiTShape, lightningdit_shape
from lightning_gen.nn.tokens import Tokens, pack, patchify, unpack
from lightning_gen.training.initialisation import initialise
from tests.harness import NetworkChecks
from tests.harness.network import stir

from .conftest import CHANNELS, CLASSES, LABEL, TIME

F64 = torch.float64
Batch = Callable[..., Tokens]
TINY = "lightningdit_w24_d2_h2_g6_qknorm"


def lively(variant: str = TINY) -> LightningDiT:
    network = LightningDiT(variant, CHANNELS, CLASSES)
    initialise(network, 0)
    stir(network)
    return network.double()


def real(network: LightningDiT, tokens: Tokens, time: Tensor = TIME, label: Tensor = LABEL) -> Tensor:
    out = unpack(tokens.with_values(network(tokens, time, label)))
    return out.values[out.mask]


class TestNetwork(NetworkChecks):
    def network(self) -> nn.Module:
        return LightningDiT(TINY, CHANNELS, CLASSES)

    def batch(self) -> Any:
        tokens = patchify([torch.zeros(1, 12, 20), torch.zeros(1, 8, 8)], 4)
        values = torch.randn(*tokens.mask.shape, CHANNELS, generator=torch.Generator().manual_seed(0))
        return tokens.with_values(values)

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        # Every class is asked for, so that every row of the table has a gradient.
        outs = [network(batch, torch.tensor([0.2, 0.7]), torch.tensor(pair)) for pair in ((0, 1), (2, 3), (4, 5))]
        return torch.stack(outs)[:, batch.mask].float().square().mean()


# Counted by running the published code.
@pytest.mark.parametrize(
    ("name", "total", "trainable"),
    [
        ("lightningdit_xl_1", 675_256_736, None),
        ("lightningdit_xl_1_qknorm", 675_260_768, 674_965_856),
        ("lightningdit_b_1_qknorm", 130_557_728, None),
    ],
)
def test_published_parameter_counts(name: str, total: int, trainable: int | None) -> None:
    with torch.device("meta"):
        network = LightningDiT(name, 32, 1000)
    assert sum(p.numel() for p in network.parameters()) == total == network.shape.parameters(32, 1000)
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert learned == total - network.shape.frozen_parameters and trainable in (None, learned)
    assert sum(p.numel() for p in network.dit_blocks[0].parameters()) == network.shape.block_parameters
    assert not list(network.buffers())


def test_names_of_sizes() -> None:
    assert lightningdit_shape("lightningdit_xl_1") == LightningDiTShape(1152, 28, 16)
    assert lightningdit_shape("lightningdit_b_1_g32_qknorm") == LightningDiTShape(768, 12, 12, 32, True)
    assert lightningdit_shape("lightningdit_w64_d2_h4") == LightningDiTShape(64, 2, 4)
    assert (lightningdit_shape("lightningdit_xl_1").hidden, lightningdit_shape("lightningdit_b_1").hidden) == (
        3072,
        2048,
    )
    for wrong in ("lightningdit_xl_2", "xl_1", "lightningdit_w64_d2", "lightningdit_xl_1_qk"):
        with pytest.raises(ValueError, match=f"unknown size '{wrong}'.*lightningdit_xl_1"):
            lightningdit_shape(wrong)
    with pytest.raises(ValueError, match="multiple of 4"):
        lightningdit_shape("lightningdit_w60_d1_h6")


def test_start() -> None:
    network = LightningDiT("lightningdit_w64_d2_h2", CHANNELS, CLASSES)
    initialise(network, 3)
    tokens = patchify([torch.zeros(1, 8, 12)], 4)
    tokens = tokens.with_values(torch.randn(1, 6, CHANNELS))
    out = network(tokens, torch.tensor([0.3]), torch.tensor([1]))
    assert out.shape == (1, 6, CHANNELS) and bool((out == 0).all())
    for name, parameter in network.named_parameters():
        if "modulation" in name or "head.out_proj" in name or name.endswith("bias"):
            assert bool((parameter == 0).all()), name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name
        elif "embedding" in name:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.15), name
        elif name != "positions.table":
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert float(parameter.detach().abs().max()) <= bound, name
            assert float(parameter.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.15), name


def test_positions_name_the_column_first() -> None:
    table = sincos_positions(3, 8).view(3, 3, 8)
    for row in range(3):
        for col in range(3):
            angles = torch.tensor([[place, place / 100] for place in (col, row)])  # 10000^(-4 i / 8), i = 0, 1
            expected = torch.cat([angles.sin(), angles.cos()], dim=1).flatten()
            torch.testing.assert_close(table[row, col], expected)


def test_forward_equals_the_equations_written_out(batch: Batch) -> None:
    """One block on one image by hand, in the time of the published code, with nothing but the weights."""
    network = lively("lightningdit_w24_d1_h2_g6_qknorm")
    tokens = patchify([torch.zeros(1, 12, 20)], 4)
    tokens = tokens.with_values(torch.randn(1, 15, CHANNELS, dtype=F64, generator=torch.Generator().manual_seed(5)))
    p = dict(network.named_parameters())
    clock, label = 1 - 0.37, 2

    frequency = torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=F64)
    wave = torch.cat([(clock * frequency).cos(), (clock * frequency).sin()])
    hidden = F.silu(p["time_embedding.fc1.weight"] @ wave + p["time_embedding.fc1.bias"])
    c = p["time_embedding.fc2.weight"] @ hidden + p["time_embedding.fc2.bias"] + p["class_embedding.weight"][label]
    row, col = tokens.row[0], tokens.col[0]
    x = tokens.values[0] @ p["in_proj.weight"].T + p["in_proj.bias"] + p["positions.table"][6 * row + col]

    block = {name.removeprefix("dit_blocks.0."): value for name, value in p.items() if name.startswith("dit_blocks.0.")}
    parts = (block["modulation.weight"] @ F.silu(c) + block["modulation.bias"]).chunk(6)
    u = _rms(x) * block["norm1.weight"] * (1 + parts[1]) + parts[0]
    q, k, v = (u @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]).chunk(3, 1)
    heads = []
    for head in range(2):
        one = slice(12 * head, 12 * head + 12)
        q_h = _turn(_rms(q[:, one]) * block["attn.norm_q.weight"], row, col)
        k_h = _turn(_rms(k[:, one]) * block["attn.norm_k.weight"], row, col)
        heads.append((q_h @ k_h.T / 12**0.5).softmax(-1) @ v[:, one])
    x = x + parts[2] * (torch.cat(heads, 1) @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"])
    u = _rms(x) * block["norm2.weight"] * (1 + parts[4]) + parts[3]
    gate, value = (u @ block["ffn.w12.weight"].T + block["ffn.w12.bias"]).chunk(2, 1)
    x = x + parts[5] * ((F.silu(gate) * value) @ block["ffn.w3.weight"].T + block["ffn.w3.bias"])
    shift, scale = (p["head.modulation.weight"] @ F.silu(c) + p["head.modulation.bias"]).chunk(2)
    u = _rms(x) * p["head.norm.weight"] * (1 + scale) + shift
    towards_data = u @ p["head.out_proj.weight"].T + p["head.out_proj.bias"]
    out = network(tokens, torch.tensor([0.37], dtype=F64), torch.tensor([label]))
    torch.testing.assert_close(out[0], -towards_data)


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _turn(x: Tensor, row: Tensor, col: Tensor) -> Tensor:
    frequency = torch.tensor([10000 ** (-2 * i / 6) for i in range(3)], dtype=F64)
    turn = torch.exp(1j * torch.cat([row[:, None] * frequency, col[:, None] * frequency], 1))
    return torch.view_as_real(torch.view_as_complex(x.reshape(len(x), 6, 2).contiguous()) * turn).reshape(len(x), 12)


def test_grids_of_any_ratio_packed_or_padded(batch: Batch) -> None:
    network = lively()
    expected = real(network, batch())
    torch.testing.assert_close(real(network, pack(batch(), 25)), expected)
    padded = batch(30, garbage=37.0)
    scattered = dataclasses.replace(padded, row=torch.where(padded.mask, padded.row, 99))
    torch.testing.assert_close(real(network, scattered), expected)


def test_places_matter_absolutely_and_end_somewhere(batch: Batch) -> None:
    network, tokens = lively(), batch()
    moved = dataclasses.replace(tokens, row=tokens.row + 1)
    assert float((real(network, moved) - real(network, tokens)).detach().abs().max()) > 1e-3
    with pytest.raises(ValueError, match=r"row 8 or column 4 has no position: this network knows 6 x 6"):
        network(dataclasses.replace(tokens, row=tokens.row + 5), TIME, LABEL)
    with pytest.raises(ValueError, match="class 9 of image 0 is out of range"):
        network(tokens, TIME, torch.tensor([9, 0, 0, 0]))
    with pytest.raises(ValueError, match="4 images need"):
        network(tokens, TIME[:1], LABEL)
