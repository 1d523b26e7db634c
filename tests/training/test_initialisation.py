"""Keyed initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gen.training.initialisation import copy_into, initialise, plain_name
from lightning_gen.training.randomness import key_seed
from lightning_gen.training.strategies import prepare
from tests.harness.network import assert_equal_states
from tests.harness.toy import ToyNetwork


def test_each_layer_starts_as_its_own_reset_would_under_its_key() -> None:
    network = ToyNetwork()
    initialise(network, 5)
    expected = nn.Linear(8, 24, bias=False)
    torch.manual_seed(key_seed(5, "init layers.1.qkv"))
    expected.reset_parameters()
    assert torch.equal(network.layers[1].qkv.weight, expected.weight)
    assert (network.layers[0].gamma.weight == 0.5).all()


def test_adding_a_layer_moves_no_other() -> None:
    small, large = ToyNetwork(depth=1), ToyNetwork(depth=3)
    initialise(small, 0)
    initialise(large, 0)
    inside = large.state_dict()
    assert_equal_states(small.state_dict(), {name: inside[name] for name in small.state_dict()})
    assert not torch.equal(inside["layers.1.qkv.weight"], inside["layers.2.qkv.weight"])


def test_generator_of_the_process_is_neither_read_nor_moved() -> None:
    first, second = ToyNetwork(), ToyNetwork()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    initialise(first, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    initialise(second, 0)
    assert_equal_states(first.state_dict(), second.state_dict())


def test_buffers_settings_and_training_mode_survive() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout()).eval()
    network[1].running_mean.fill_(7.0)
    network[0].bias.requires_grad_(False)
    initialise(network, 0)
    assert (network[1].running_mean == 0).all() and (network[1].running_var == 1).all()
    assert network[1].momentum == 0.3 and not network.training
    assert not network[0].bias.requires_grad and network[0].weight.requires_grad


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3))


class Forgets(Bare):
    def reset_parameters(self) -> None:
        pass


class Reaches(Bare):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)
        nn.init.zeros_(self.inner.weight)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Bare, r"Bare at 'part' owns table but has no reset_parameters\(\)"),
        (Forgets, "Forgets at 'part' leaves out table"),
        (Reaches, "Reaches at 'part' needs 'inner'"),
    ],
)
def test_a_module_that_cannot_start_is_named(kind: type[nn.Module], message: str) -> None:
    network = nn.Module()
    network.part = kind()
    with pytest.raises(TypeError, match=message):
        initialise(network, 0)


def test_meta_tensors_are_refused() -> None:
    with torch.device("meta"):
        network = ToyNetwork()
    with pytest.raises(ValueError, match=r"embed\.weight is on the meta device"):
        initialise(network, 0)


def test_names_lose_what_wrappers_add() -> None:
    network = ToyNetwork()
    names = [name for name, _ in network.named_parameters()]
    prepare(network, device_mesh=None, seed=0, activation_checkpointing=True)
    wrapped = [name for name, _ in network.named_parameters()]
    assert wrapped != names and [plain_name(name) for name in wrapped] == names
    assert plain_name("a._orig_mod.b") == "a.b"


def test_copy_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) into one of \(3, 2\)"):
        copy_into(torch.zeros(3, 2), torch.zeros(2, 3))
