"""Putting the layers of one adapter into a network: peft's layers, with factors that start under a key.

Shape letters: r rank, I inputs and O outputs of a layer.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_gen.training.randomness import torch_generator

from .lora_targets import LoRATargets, target_modules

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

__all__ = ["LowRankFactor", "inject"]


class LowRankFactor(nn.Linear):
    """A or B of one adapter in one layer, which knows how it starts.

    A ~ N(0, 1 / r^2) entry by entry, B = 0. A depends on the seed and the name of the adapted layer alone, so all
    adapters of one rank start as the same one.

    Args:
        inputs: of this factor.
        outputs: of this factor.
        deviation: standard deviation of the entries at the start, 0 for B.
        seed: of the bank.
        module: name of the adapted layer.
        like: weight of the adapted layer; gives the device, and the dtype where that is at least float32.

    Source: "gaussian" in peft, which the published configuration of arXiv:2505.05470 asks for; the standard deviation
    is 1 / r.
    """

    is_adapter = True
    """Layers that are exchanged for others (float8 products) leave this one alone."""

    def __init__(self, inputs: int, outputs: int, deviation: float, seed: int, module: str, like: Tensor) -> None:
        # First, because the constructor of the linear layer asks for its initial weights.
        self.deviation, self.seed, self.module = deviation, seed, module
        dtype = torch.promote_types(like.dtype, torch.float32) if like.is_floating_point() else torch.float32
        super().__init__(inputs, outputs, bias=False, device=like.device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Fill the weight."""
        if self.weight.is_meta:
            return
        with torch.no_grad():
            if not self.deviation:
                self.weight.zero_()
                return
            generator = torch_generator(self.seed, f"lora {self.module}")
            noise = torch.randn(self.weight.shape, generator=generator, device="cpu", dtype=torch.float32)
            self.weight.copy_(self.deviation * noise)


def inject(
    network: nn.Module, name: str, rank: int, alpha: float, targets: LoRATargets, seed: int
) -> dict[str, LoraLayer]:
    """Give a network one more adapter.

    Args:
        network: plain, or with adapters already; not yet checkpointed or sharded; changed in place.
        name: of the adapter.
        rank: r.
        alpha: numerator of the scale.
        targets: which layers.
        seed: of the initial weights.

    Returns:
        Name of every adapted layer in the network as it was written -> peft's layer there.

    Raises:
        ValueError: targets that do not fit the network.
        RuntimeError: the network is prepared already.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    _require_unprepared(network)
    modules = target_modules(network, targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a real number, whatever the annotation says
        target_modules="|".join(re.escape(module) for module in modules),
        init_lora_weights=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        # On the meta device, so that no random number of the process is used up.
        inject_adapter_in_model(config, network, name, low_cpu_mem_usage=True)
    layers: dict[str, LoraLayer] = {}
    for module in modules:
        layer = network.get_submodule(module)
        assert isinstance(layer, LoraLayer)
        base = layer.get_base_layer()
        assert isinstance(base, nn.Linear)
        layer.lora_A[name] = LowRankFactor(base.in_features, rank, 1.0 / rank, seed, module, base.weight)
        layer.lora_B[name] = LowRankFactor(rank, base.out_features, 0.0, seed, module, base.weight)
        layers[module] = layer
    return layers


def _require_unprepared(network: nn.Module) -> None:
    from torch.distributed.tensor import DTensor

    wrapped = any("_checkpoint_wrapped_module" in name for name, _ in network.named_modules())
    if wrapped or any(isinstance(parameter, DTensor) for parameter in network.parameters()):
        raise RuntimeError(
            f"{type(network).__name__} is checkpointed or sharded already: adapters are put in before prepare"
        )
