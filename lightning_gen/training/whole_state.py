"""Whole (unsharded) states in and out of a sharded module and its optimiser.

A file written by a sharded run and one written by a single device have one format: parameters by plain name, the
optimiser's state by number, counted through its parameter groups as torch does. Either opens the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .initialisation import copy_into, plain_name

__all__ = ["fill_module", "fill_optimizer", "gather_optimizer"]


def fill_module(module: nn.Module, state: Mapping[str, Tensor], strict: bool) -> None:
    """Copy whole tensors into a module; every rank takes its own parts.

    Args:
        module: sharded or not, with or without wrappers around its blocks.
        state: plain name -> whole tensor, the same on every rank.
        strict: refuse a missing or an unknown name.

    Raises:
        ValueError: names differ under ``strict``, or a shape differs.
    """
    state = {plain_name(name): tensor for name, tensor in state.items()}
    kept = {plain_name(name) for name in module.state_dict()}
    tensors = [*module.named_parameters(), *module.named_buffers()]
    targets = {plain_name(name): tensor for name, tensor in tensors if plain_name(name) in kept}
    missing, unknown = sorted(kept - set(state)), sorted(set(state) - kept)
    if strict and (missing or unknown):
        raise ValueError(
            f"the checkpoint does not fit {type(module).__name__}: it lacks {missing[:5] or 'nothing'} and has "
            f"{unknown[:5] or 'nothing'} too much"
        )
    with torch.no_grad():
        for name, target in targets.items():
            if name in state:
                copy_into(target, state[name])


def fill_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole optimiser state; every rank takes its own parts.

    Args:
        optimizer: over parameters that may be sharded, in the same groups as when the state was saved.
        state: what the ``state_dict()`` of the same optimiser over whole parameters gives.

    Raises:
        ValueError: another number of groups, or a group of another size.
    """
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved = [len(group["params"]) for group in state["param_groups"]]
    if sizes != saved:
        raise ValueError(f"the checkpoint's optimiser has groups of {saved} parameters, this run's has {sizes}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parts = {
        number: {name: _part(value, parameter) for name, value in state["state"][number].items()}
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in state["state"]
    }
    optimizer.load_state_dict({"state": parts, "param_groups": list(state["param_groups"])})


def gather_optimizer(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The whole state of an optimiser over sharded parameters; called on every rank.

    Args:
        module: whose parameters the optimiser changes.
        optimizer: the optimiser.

    Returns:
        On rank 0 what ``optimizer.state_dict()`` would be on one device, on the CPU; an empty dict on the others.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    named: Mapping[str, Any] = get_optimizer_state_dict(module, optimizer, options=options)
    if not named:
        return {}
    groups = [dict(group) for group in named["param_groups"]]
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group["params"])}
    for group in groups:
        group["params"] = [numbers[name] for name in group["params"]]
    return {"state": {numbers[name]: value for name, value in named["state"].items()}, "param_groups": groups}


def _part(value: Any, parameter: Tensor) -> Any:
    """A moment is sharded like its parameter; a step count is not."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    mine = torch.zeros_like(parameter, dtype=value.dtype).detach()
    copy_into(mine, value)
    return mine
