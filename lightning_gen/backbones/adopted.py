"""Networks of other libraries as trainable parts of ours.

A network of the house starts on the meta device and every module with tensors of its own fills them by
``reset_parameters``. Modules of transformers and diffusers have no such method; here they get one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["adopt"]


def adopt(network: nn.Module, fill: Callable[[nn.Module], None]) -> None:
    """Give every module of a network that owns tensors a ``reset_parameters``.

    Class, names and behaviour stay: the class becomes a subclass of itself that has one more method.

    Args:
        network: of another library, on any device; changed in place.
        fill: fills the tensors that one module owns itself, children aside.
    """
    adopted: dict[type, type] = {}
    for module in network.modules():
        if next(module.parameters(recurse=False), None) is None and next(module.buffers(recurse=False), None) is None:
            continue
        kind = type(module)
        if kind not in adopted:
            adopted[kind] = type(kind.__name__, (kind,), {"reset_parameters": fill, "__module__": kind.__module__})
        module.__class__ = adopted[kind]
