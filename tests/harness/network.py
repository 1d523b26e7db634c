"""Checks of a network (an nn.Module without a trainer)."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.training.initialisation import initialise, plain_name
from lightning_gen.training.strategies import prepare

__all__ = ["NetworkChecks"]


class NetworkChecks:
    """Inherit, define ``network``, ``batch`` and, where the network does not return it, ``loss``.

    ``network()`` must build the same architecture each time and offer ``blocks()``. The checks move every parameter
    away from its initial value first (:meth:`stirred`): at an initialisation near the identity a broken block passes.
    """

    bfloat16_tolerance = 0.03
    """Largest relative error of the loss under bfloat16 autocast."""

    def network(self) -> nn.Module:
        raise NotImplementedError("return a small network")

    def batch(self) -> Any:
        raise NotImplementedError("return the input of loss()")

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        """A scalar that depends on every parameter."""
        out: Tensor = network(batch)
        return out.float().square().mean()

    def stirred(self, seed: int = 0) -> nn.Module:
        network = self.network()
        initialise(network, seed)
        stir(network)
        return network.train()

    def test_saved_weights_load_into_a_fresh_network(self) -> None:
        first = self.stirred()
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = self.network()
        initialise(second, 1)
        second.train().load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert torch.equal(self.loss(first, self.batch()), self.loss(second, self.batch()))

    def test_equal_seeds_give_equal_losses_and_gradients(self) -> None:
        first, second = self.stirred(), self.stirred()
        torch.manual_seed(1)  # the process's generator must not matter
        loss = self.loss(first, self.batch())
        torch.manual_seed(2)
        again = self.loss(second, self.batch())
        assert torch.equal(loss, again)
        assert_equal_gradients(gradients(first, loss), gradients(second, again))

    def test_every_parameter_gets_a_gradient(self) -> None:
        network = self.stirred()
        found = gradients(network, self.loss(network, self.batch()))
        trainable = {plain_name(name) for name, p in network.named_parameters() if p.requires_grad}
        assert set(found) == trainable
        assert not [name for name, gradient in found.items() if not gradient.any()]

    def test_another_seed_gives_other_weights(self) -> None:
        first, second = self.network(), self.network()
        initialise(first, 0)
        initialise(second, 1)
        assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))

    def test_checkpointing_gives_bit_equal_gradients(self) -> None:
        plain = self.stirred()
        checkpointed = copy.deepcopy(plain)
        prepare(checkpointed, device_mesh=None, seed=0, activation_checkpointing=True)
        calls = count_forwards(checkpointed)
        loss = self.loss(checkpointed, self.batch())
        before = sum(calls)
        found = gradients(checkpointed, loss)
        assert sum(calls) == 2 * before > 0, "the blocks were not computed again in the backward pass"
        assert_equal_gradients(gradients(plain, self.loss(plain, self.batch())), found)
        assert set(plain.state_dict()) == set(checkpointed.state_dict())

    def test_meta_device_gives_the_weights_of_a_real_constructor(self) -> None:
        real = self.network()
        initialise(real, 3)
        with torch.device("meta"):
            meta = self.network()
        prepare(meta, device_mesh=None, seed=3, activation_checkpointing=True)
        assert_equal_states(real.state_dict(), meta.state_dict())

    def test_bfloat16_autocast_stays_close(self) -> None:
        network = self.stirred()
        exact = self.loss(network, self.batch()).item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = self.loss(network, self.batch()).item()
        assert rounded == pytest.approx(exact, rel=self.bfloat16_tolerance)


def stir(network: nn.Module) -> None:
    """Move every parameter by a tenth of a unit normal number, keyed by its name."""
    from lightning_gen.training.randomness import torch_generator

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            generator = torch_generator(0, f"stir {plain_name(name)}")
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by plain name."""
    network.zero_grad()
    loss.backward()
    return {plain_name(n): p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def count_forwards(network: nn.Module) -> list[int]:
    """Count the forward passes through the inside of each (wrapped) block, now and later."""
    calls: list[int] = []
    for number, block in enumerate(network.blocks()):  # type: ignore[operator]
        calls.append(0)
        inner = getattr(block, "_checkpoint_wrapped_module", block)

        def note(module: nn.Module, args: Any, kwargs: Any, number: int = number) -> None:
            calls[number] += 1

        inner.register_forward_pre_hook(note, with_kwargs=True)
    return calls


def assert_equal_gradients(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"gradients differ: {different}"


def assert_equal_states(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert set(first) == set(second)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"tensors differ: {different}"
