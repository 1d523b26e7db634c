"""Initial weights that depend on the seed and on a module's name, never on the machine.

Every module that owns parameters is filled by its own ``reset_parameters()`` on a CPU copy, under a generator keyed by
(seed, "init", qualified name), and the numbers are then copied to where the parameter lives. So one device, many
devices, the meta device and a real constructor all start from the same weights, and adding a layer moves no other's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .randomness import key_seed

__all__ = ["copy_into", "initialise", "local", "plain_name"]

# The last one is peft's: a frozen layer inside the layer that adapts it.
_WRAPPERS = ("_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module", "base_layer")


def plain_name(name: str) -> str:
    """Strip what wrappers add to a qualified name.

    Args:
        name: a name from ``named_parameters`` or ``named_modules``.

    Returns:
        The name in the network as it was written.
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def initialise(network: nn.Module, seed: int) -> None:
    """Give every parameter and buffer its keyed initial value, in place.

    Args:
        network: materialised (not on the meta device), on any device, sharded or not.
        seed: the run's seed.

    Raises:
        TypeError: a module owns parameters or buffers but cannot fill them.
        ValueError: something is still on the meta device, or a tensor is sharded in an unknown way.
    """
    for name, module in network.named_modules():
        owned = dict(_owned(module))
        if not owned:
            continue
        plain = plain_name(name)
        for own, target in owned.items():
            if target.device.type == "meta":
                raise ValueError(f"{plain}.{own} is on the meta device: call network.to_empty(device=...) first")
        values = _fresh(module, plain, key_seed(seed, f"init {plain}"))
        with torch.no_grad():
            for own, target in owned.items():
                copy_into(target, values[own])


def copy_into(target: Tensor, full: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded; every rank takes its own part, nothing is communicated.

    Args:
        target: a tensor or DTensor of the same global shape.
        full: the whole tensor, the same on every rank.

    Raises:
        ValueError: shapes differ, or the target is neither split along a dimension nor replicated.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    if target.shape != full.shape:
        raise ValueError(f"cannot copy a tensor of shape {tuple(full.shape)} into one of {tuple(target.shape)}")
    if not isinstance(target, DTensor):
        target.detach().copy_(full)
        return
    place = target.device_mesh.get_coordinate()
    if place is None:
        return
    part = full.detach()
    for axis, placement in enumerate(target.placements):
        if type(placement) is Shard:
            parts = part.chunk(target.device_mesh.size(axis), dim=placement.dim)
            mine = place[axis]
            part = parts[mine] if mine < len(parts) else part.narrow(placement.dim, 0, 0)
        elif type(placement) is not Replicate:
            raise ValueError(f"cannot fill a tensor that is placed as {placement}; only Shard and Replicate are known")
    local(target).copy_(part)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory and detached.

    Args:
        tensor: a tensor or a DTensor.

    Returns:
        A plain tensor.
    """
    from torch.distributed.tensor import DTensor

    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def _owned(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _fresh(module: nn.Module, name: str, seed: int) -> dict[str, Tensor]:
    """What the module's reset_parameters gives on the CPU under its own generator."""
    reset = getattr(type(module), "reset_parameters", None)
    if reset is None:
        raise TypeError(
            f"{type(module).__name__} at {name!r} owns {', '.join(own for own, _ in _owned(module))} but has no "
            "reset_parameters(); give it one that fills all of them, so that it can start on the meta device"
        )
    twin = _childless_twin(module)
    # Only the CPU generator is touched, and given back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        try:
            reset(twin)
        except AttributeError as error:
            raise TypeError(
                f"reset_parameters() of {type(module).__name__} at {name!r} needs {error.name!r}; it may fill the "
                "parameters that the module owns itself, its children fill their own"
            ) from error
    values = dict(_owned(twin))
    forgotten = [own for own, value in values.items() if value.is_floating_point() and value.isnan().any()]
    if forgotten:
        raise TypeError(f"reset_parameters() of {type(module).__name__} at {name!r} leaves out {', '.join(forgotten)}")
    return values


def _childless_twin(module: nn.Module) -> nn.Module:
    """A module with the same settings and empty CPU tensors, made without calling the constructor."""
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__ = dict(module.__dict__)
    twin._modules = {}
    twin._parameters = {
        own: None if value is None else nn.Parameter(_empty(value), requires_grad=value.requires_grad)
        for own, value in module._parameters.items()
    }
    twin._buffers = {own: None if value is None else _empty(value) for own, value in module._buffers.items()}
    return twin


def _empty(value: Tensor) -> Tensor:
    # NaN instead of garbage: a tensor that reset_parameters forgets must not look initialised.
    empty = torch.empty(value.shape, dtype=value.dtype, device="cpu")
    return empty.fill_(float("nan")) if value.is_floating_point() else empty.zero_()
