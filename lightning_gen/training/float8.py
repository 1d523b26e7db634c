"""Float8 matrix products inside the blocks of a network, through torchao.

Only the linear layers of the blocks take part, and only those whose widths the hardware can multiply; what surrounds
the blocks stays as it is. Factors are rounded when they are needed (dynamic scaling, one scale per tensor), so weights,
gradients, optimiser states and checkpoints of a training run know nothing of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Obstacle", "obstacles", "quantise_blocks", "require_float8", "use_float8_products"]

_MULTIPLE = 16
_CAPABILITY = (8, 9)
_INSTALL = "pip install 'lightning-gen[fp8]'"


class Obstacle(NamedTuple):
    """One reason why a machine cannot multiply in float8.

    Attributes:
        needed: what it takes.
        here: what there is.
        remedy: what to do about it.
    """

    needed: str
    here: str
    remedy: str


def obstacles(capability: tuple[int, int] | None) -> list[Obstacle]:
    """What keeps a machine from multiplying in float8.

    Args:
        capability: CUDA compute capability of the weakest device that the run uses; None = it uses no CUDA device.

    Returns:
        All reasons; empty if it can.
    """
    found = [_weak_device(capability)]
    if importlib.util.find_spec("torchao") is None:
        found.append(Obstacle("the package torchao", "not installed", _INSTALL))
    return [obstacle for obstacle in found if obstacle is not None]


def require_float8(device: torch.device) -> None:
    """Refuse a device that cannot multiply in float8.

    Args:
        device: where the network is going to run.

    Raises:
        ValueError: it has no float8 products; the message says which devices have.
    """
    import torch

    obstacle = _weak_device(torch.cuda.get_device_capability(device) if device.type == "cuda" else None)
    if obstacle is not None:
        raise ValueError(f"float8 needs {obstacle.needed}, {device} has {obstacle.here}: {obstacle.remedy}")


def _weak_device(capability: tuple[int, int] | None) -> Obstacle | None:
    if capability is not None and capability >= _CAPABILITY:
        return None
    needed = f"a GPU that multiplies in float8 (CUDA compute capability {_number(_CAPABILITY)} or newer)"
    here = "no CUDA compute capability" if capability is None else f"compute capability {_number(capability)}"
    return Obstacle(needed, here, "switch float8 off, or run on a newer GPU")


def _number(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def use_float8_products(network: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Let the blocks multiply in float8, forward and backward: y = x W, dx = dy W^T and dW = x^T dy.

    Layers are exchanged, parameters are not: names, values, dtypes and the state dict stay. To be called before the
    blocks are compiled and sharded. Without compilation, rounding takes longer than the products save.

    Args:
        network: changed in place; may be on the meta device.
        blocks: its blocks.

    Raises:
        ModuleNotFoundError: torchao is not installed.
        ValueError: no layer has widths that can be multiplied.
    """
    with _torchao():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    chosen = _layers(network, blocks)
    # dW sums over tokens, whose number is rarely a multiple of 16 where images lie one after another.
    config = Float8LinearConfig(pad_inner_dim=True)
    convert_to_float8_training(network, module_filter_fn=lambda module, name: module in chosen, config=config)


def quantise_blocks(network: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Round the weights of the blocks to float8 for good, and multiply in float8: for use, not for training.

    Args:
        network: with its final weights, on the device where it runs; changed in place.
        blocks: its blocks.

    Raises:
        ModuleNotFoundError: torchao is not installed.
        ValueError: no layer has widths that can be multiplied.
    """
    with _torchao():
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_
    chosen = _layers(network, blocks)
    # Inductor's settings belong to whoever compiles, not to a layer.
    config = Float8DynamicActivationFloat8WeightConfig(set_inductor_config=False)
    quantize_(network, config, filter_fn=lambda module, name: module in chosen)


def _layers(network: nn.Module, blocks: Iterable[nn.Module]) -> set[nn.Linear]:
    from torch import nn

    linear = {module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)}
    # Adapters are too thin to gain anything, and start in a way that the exchanged layer would not know.
    inside = {layer for layer in linear if not getattr(layer, "is_adapter", False)}
    fitting = {layer for layer in inside if not (layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE)}
    if not fitting:
        raise ValueError(
            f"float8: the blocks of {type(network).__name__} have no linear layer whose widths are multiples of "
            f"{_MULTIPLE}; leave float8 off or choose another width"
        )
    return fitting


@contextlib.contextmanager
def _torchao() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        # Also an old one, or one that was made for another torch.
        raise ModuleNotFoundError(
            f"float8 needs the package torchao, made for this torch: {_INSTALL} ({error})"
        ) from error
