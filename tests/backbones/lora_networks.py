"""Small networks of every family, and adapters that do something."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.backbones.lora import AdapterBank
from lightning_gen.backbones.lora_weights import AdapterWeights
from lightning_gen.training.randomness import torch_generator

__all__ = ["filled", "random_adapter", "sd3", "sd3_inputs", "sd3_velocity"]


def sd3(**changes: Any) -> nn.Module:
    """SD3.5 in miniature: dual attention in the first of its two blocks, qk RMS norm."""
    from diffusers import SD3Transformer2DModel

    shape: dict[str, Any] = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = SD3Transformer2DModel(**{**shape, **changes})
    return network.eval()


def sd3_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(2, 5, 12, generator=generator).to(dtype),
        "pooled_projections": torch.randn(2, 10, generator=generator).to(dtype),
        "timestep": torch.tensor([300.0, 800.0]),
    }


def sd3_velocity(network: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(**sd3_inputs(), return_dict=False)[0]
    return out


def random_adapter(bank: AdapterBank, name: str, seed: int) -> AdapterWeights:
    """Weights for an adapter of a bank in which no factor is zero."""
    factors = {}
    for module, layer in zip(bank.modules(name), pairs(bank.parameters(name)), strict=True):
        generator = torch_generator(seed, module)
        factors[module] = tuple(
            0.3 * torch.randn(factor.shape, generator=generator, dtype=torch.float64).to(factor.dtype)
            for factor in layer
        )
    return AdapterWeights(factors, bank.settings(name).alpha)  # type: ignore[arg-type]


def filled(bank: AdapterBank) -> AdapterBank:
    """Every adapter with weights of its own."""
    for seed, name in enumerate(bank.names):
        bank.load(name, random_adapter(bank, name, seed))
    return bank


def pairs(parameters: list[nn.Parameter]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    return list(zip(parameters[::2], parameters[1::2], strict=True))
