"""Networks that are constants of a run: measured with, never trained, never saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

__all__ = ["FrozenModule", "full_float32", "ordinary_construction"]


class FrozenModule(nn.Module):
    """A module around a network that is a constant of the run, not a part of the model.

    The network is kept outside the registry of submodules, so that a module which holds this one as an ordinary
    attribute has no more parameters than before: nothing lands in checkpoints, in the optimiser, in DDP's buckets or in
    FSDP's shards. A parent's ``.to(device)`` takes the network along; its casts, its ``train()``, its
    ``requires_grad_()`` and its ``to_empty()`` do not reach it. It is always in eval mode.

    Gradients flow through it to its input.

    Args:
        network: the network, on its device and holding its final weights.
        dtype: what its weights are cast to; None = they stay as they are, layer by layer.
    """

    network: nn.Module
    """Not a registered submodule."""

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = torch.float32) -> None:
        super().__init__()
        network = network if dtype is None else network.to(dtype)
        # Assignment would register it as a submodule.
        self.__dict__["network"] = network.eval().requires_grad_(False)
        self.training = False

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Number of frozen parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever the parent does.

        Args:
            mode: ignored.

        Returns:
            The module.
        """
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `fn` is whatever a parent does to its tensors: a move, a cast, an emptying. Only the move concerns constants.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0, device=self.device)).device
        if device.type != "meta":
            self.network.to(device)
        return self


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute in full float32 whatever the run has chosen: no autocast, no TF32 or bfloat16 inside products.

    TF32 keeps 10 bits of a mantissa, bfloat16 keeps 7: as many as the scores of two methods often differ by. New
    tensors are float32 too.

    Args:
        device: where is computed.
    """
    switches, dtype = _switches(), torch.get_default_dtype()
    before = [getattr(where, name) for where, name, _ in switches]
    try:
        for where, name, off in switches:
            setattr(where, name, off)
        torch.set_default_dtype(torch.float32)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(dtype)
        for (where, name, _), value in zip(switches, before, strict=True):
            setattr(where, name, value)


@contextlib.contextmanager
def ordinary_construction() -> Iterator[None]:
    """Build on the CPU in float32 even inside a meta-device context, without touching the global random state."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _switches() -> list[tuple[Any, str, Any]]:
    """Where fewer bits are allowed, and the value that forbids it; torch 2.9 renamed the switches."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    places: list[Any] = [cuda.matmul, *(getattr(cudnn, part, None) for part in ("conv", "rnn"))]
    places += [getattr(mkldnn, part, None) for part in ("matmul", "conv")]
    renamed: list[tuple[Any, str, Any]] = [
        (place, "fp32_precision", "ieee") for place in places if hasattr(place, "fp32_precision")
    ]
    # A mixture of old and new names is refused by torch.
    return renamed or [(cuda.matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
