"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gen.training.optim import AdamW, WarmupCosine, decay_groups
from tests.harness.toy import ToyNetwork


def test_only_matrices_decay() -> None:
    network = ToyNetwork(width=8, depth=1)
    decayed, others = decay_groups(network, 0.05)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        "embed.weight",
        "layers.0.qkv.weight",
        "layers.0.out.weight",
        "head.weight",
    }
    assert {names[id(p)] for p in others["params"]} == {
        "embed.bias",
        "layers.0.norm.weight",
        "layers.0.norm.bias",
        "layers.0.out.bias",
        "layers.0.gamma.weight",
        "head.bias",
    }
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


def test_frozen_parameters_are_left_out() -> None:
    network = ToyNetwork()
    network.embed.requires_grad_(False)
    grouped = {id(p) for group in decay_groups(network, 0.1) for p in group["params"]}
    assert grouped == {id(p) for p in network.parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="no trainable parameter"):
        AdamW(learning_rate=1e-3).build(network.requires_grad_(False))


def test_step_equals_the_textbook() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = AdamW(learning_rate=0.1, betas=(0.8, 0.9), weight_decay=0.5, epsilon=1e-6).build(layer)
    first, second = {}, {}
    for step in (1, 2, 3):
        layer.zero_grad()
        layer(torch.tensor([[1.0, 2.0]])).square().sum().backward()
        for name, value, decay in (("weight", weight, 0.5), ("bias", bias, 0.0)):
            gradient = getattr(layer, name).grad
            first[name] = 0.8 * first.get(name, 0.0) + 0.2 * gradient
            second[name] = 0.9 * second.get(name, 0.0) + 0.1 * gradient**2
            value.mul_(1 - 0.1 * decay)
            unbiased = second[name] / (1 - 0.9**step)
            value.sub_(0.1 * first[name] / (1 - 0.8**step) / (unbiased.sqrt() + 1e-6))
        optimizer.step()
    assert torch.allclose(layer.weight, weight, atol=1e-6) and torch.allclose(layer.bias, bias, atol=1e-6)


def test_eight_bit_says_where_it_can_run() -> None:
    with pytest.raises(RuntimeError, match=r"eight_bit: true .*CUDA.*parameters are on cpu.*eight_bit: false"):
        AdamW(learning_rate=1e-3, eight_bit=True).build(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"learning_rate": 1e-3, "betas": (0.9, 1.0)},
        {"learning_rate": 1e-3, "betas": (0.9,)},
        {"learning_rate": 1e-3, "weight_decay": -0.1},
        {"learning_rate": 1e-3, "eight_bit": True, "fused": True},
        {"learning_rate": float("nan")},
    ],
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="AdamW"):
        AdamW(**settings)


PEAK = 5e-4
TABLE = [(25, 2.5005e-4), (50, 5e-4), (500, 2.7523e-4), (1000, 1e-5)]


@pytest.mark.parametrize(("step", "value"), TABLE)
def test_learning_rate_table(step: int, value: float) -> None:
    assert WarmupCosine().learning_rate(step, 1000, PEAK) == pytest.approx(value, rel=2e-5)


def test_learning_rate_between_the_table() -> None:
    schedule = WarmupCosine()
    rates = [schedule.learning_rate(step, 1000, PEAK) for step in range(1, 1001)]
    assert rates[0] == pytest.approx(1e-7 + (PEAK - 1e-7) / 50)
    assert all(a < b for a, b in zip(rates[:49], rates[1:50], strict=True))
    assert all(a > b for a, b in zip(rates[49:-1], rates[50:], strict=True))
    assert schedule.learning_rate(525, 1000, PEAK) == pytest.approx((PEAK + 1e-5) / 2)
    assert schedule.learning_rate(5000, 1000, PEAK) == 1e-5
    assert WarmupCosine(warmup_fraction=0.0).learning_rate(1, 1000, PEAK) == pytest.approx(PEAK, rel=1e-5)
    assert WarmupCosine(warmup_fraction=1.0).learning_rate(1000, 1000, PEAK) == pytest.approx(PEAK)
    with pytest.raises(ValueError, match="counted from 1"):
        schedule.learning_rate(0, 1000, PEAK)


def test_optimiser_uses_the_rate_of_its_step_in_every_group() -> None:
    layer = nn.Linear(2, 2)
    optimizer = AdamW(learning_rate=PEAK).build(layer)
    optimizer.param_groups[1]["lr"] = 2 * PEAK
    scheduler = WarmupCosine().build(optimizer, 1000)
    used = {}
    for step in range(1, 1001):
        used[step] = [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        scheduler.step()
    for step, value in TABLE:
        assert used[step][0] == pytest.approx(value, rel=2e-5)
        assert used[step][1] == pytest.approx(WarmupCosine().learning_rate(step, 1000, 2 * PEAK))


def test_scheduler_state_is_plain_and_the_config_wins_on_resume() -> None:
    optimizer = AdamW(learning_rate=1.0).build(nn.Linear(2, 2))
    scheduler = WarmupCosine(start_learning_rate=0.0).build(optimizer, 10)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert all(isinstance(v, (int, float, bool, str, list, type(None))) for v in state.values()), state
    longer = AdamW(learning_rate=1.0).build(nn.Linear(2, 2))
    resumed = WarmupCosine(start_learning_rate=0.0).build(longer, 100)
    resumed.load_state_dict(state)
    longer.step()
    resumed.step()
    assert longer.param_groups[0]["lr"] == pytest.approx(
        WarmupCosine(start_learning_rate=0.0).learning_rate(5, 100, 1.0)
    )


@pytest.mark.parametrize("total", [0, -1])
def test_schedule_needs_the_length_of_the_run(total: int) -> None:
    optimizer = AdamW(learning_rate=1.0).build(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="max_steps"):
        WarmupCosine().build(optimizer, total)


def test_infinite_or_negative_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="warmup_fraction"):
        WarmupCosine(warmup_fraction=math.inf)
    with pytest.raises(ValueError, match="negative"):
        WarmupCosine(final_learning_rate=-1.0)
