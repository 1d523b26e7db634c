"""What `rl.py` holds against each other in memory; each side runs in a process of its own, which imports this file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rl_models import TINY, PolicyShape, be_quiet, bytes_of, open_policy, passes, random_network, write_pipeline
from torch import Tensor, nn

from lightning_gen.backbones.lora import AdapterBank, LoRASettings

__all__ = ["adapters_of_one", "bytes_of_policies", "copies_of_network", "encoded_and_passed"]


def bytes_of_policies(shape: PolicyShape, names: Sequence[str]) -> tuple[int, int]:
    """Parameters of some policies and their reference, a frozen network in bfloat16; nothing is allocated.

    Args:
        shape: of the network.
        names: of the policies, each with an adapter of the published shape.

    Returns:
        Bytes of one network with all adapters; of a network with its adapter for every policy, and one more.
    """

    def adapted(adapters: Sequence[str]) -> nn.Module:
        return AdapterBank(random_network(shape, "meta", torch.bfloat16), LoRASettings(), adapters, adapters[0]).network

    copies = [adapted([name]) for name in names]
    return bytes_of(adapted(names)), bytes_of(*copies, random_network(shape, "meta", torch.bfloat16))


def adapters_of_one(shape: PolicyShape, names: Sequence[str], learn: bool) -> Callable[[], Tensor]:
    """Policies and their reference in one network, which is built and passed once for each.

    Args:
        shape: of the network.
        names: of the policies; the first one is trained.
        learn: a training step; False = passes without gradients.

    Returns:
        What is to be measured.
    """
    _warm_up()
    predicted = passes(shape)

    def run() -> Tensor:
        network = random_network(shape)
        bank = AdapterBank(network, LoRASettings(), names, names[0])
        with torch.no_grad():
            with bank.disabled():
                targets = [predicted(network)]
            for name in names[1:]:
                with bank.using(name):
                    targets.append(predicted(network))
        return _learned(network, predicted, targets, learn)

    return run


def copies_of_network(shape: PolicyShape, names: Sequence[str], learn: bool) -> Callable[[], Tensor]:
    """The same with a network for every policy and one for the reference; of an adapter each has its own only.

    Args:
        shape: of the networks.
        names: of the policies; the first one is trained.
        learn: a training step; False = passes without gradients.

    Returns:
        What is to be measured.
    """
    _warm_up()
    predicted = passes(shape)

    def run() -> Tensor:
        policies = [AdapterBank(random_network(shape), LoRASettings()).network for _ in names]
        reference = random_network(shape)
        with torch.no_grad():
            targets = [predicted(network) for network in (reference, *policies[1:])]
        return _learned(policies[0], predicted, targets, learn)

    return run


def encoded_and_passed(
    folder: Path, shape: PolicyShape, cache: Path | None, prompts: Sequence[str]
) -> Callable[[], Tensor]:
    """A pipeline is read, prompts are encoded or found in the cache, and one picture passes the network.

    Args:
        folder: of the pipeline.
        shape: its sizes.
        cache: that holds all of the prompts; None = they are encoded.
        prompts: texts.

    Returns:
        What is to be measured.
    """
    _warm_up()

    def run() -> Tensor:
        policy = open_policy(folder, shape, cache)
        text = policy.encode_prompts(prompts)
        with torch.no_grad():
            x = torch.zeros(len(prompts), *policy.latent_shape)
            return policy.velocity(x, torch.full((len(prompts),), 0.5), text)

    return run


def _learned(
    network: nn.Module, predicted: Callable[[nn.Module], Tensor], targets: Sequence[Tensor], learn: bool
) -> Tensor:
    if not learn:
        with torch.no_grad():
            return predicted(network)
    loss = (predicted(network) - torch.stack(list(targets)).sum(0)).square().mean()
    loss.backward()
    return loss


def _warm_up() -> None:
    """Libraries are imported and their first buffers taken before anything is measured."""
    be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        policy = open_policy(write_pipeline(Path(folder), TINY), TINY)
        policy.encode_prompts(["a"])
    network = random_network(TINY)
    AdapterBank(network, LoRASettings())
    passes(TINY)(network).mean().backward()
