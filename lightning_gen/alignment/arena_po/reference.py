"""The reference: the model as it was when training began, without a second one where adapters can be switched off."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_gen.alignment.arena_po.objectives import PairErrors
from lightning_gen.backbones.frozen import FrozenModule
from lightning_gen.backbones.lora import AdapterBank
from lightning_gen.interfaces import TextToImage

__all__ = [
    "REFERENCE",
    "AdapterReference",
    "CopiedReference",
    "Reference",
    "coder_digest",
    "require_start",
    "starting_point",
]

REFERENCE = "reference"
"""Name of the adapter that the reference keeps where training begins from one."""

_SAMPLE = 64
_LARGEST_LOGIT = 0.5


class AdapterReference:
    """The same network with its trained adapter off, or with the one that training began from.

    Args:
        policy: its network has the bank's adapters.
        bank: the adapters.
    """

    def __init__(self, policy: TextToImage, bank: AdapterBank) -> None:
        self.policy, self.bank = policy, bank

    @contextlib.contextmanager
    def model(self) -> Iterator[TextToImage]:
        """Run a block of code with the reference.

        Yields:
            The policy, switched.
        """
        with self.bank.using(REFERENCE) if REFERENCE in self.bank.names else self.bank.disabled():
            yield self.policy


class CopiedReference(FrozenModule):
    """A copy of the network in a copy of the policy that shares everything else; never trained, never saved.

    Args:
        policy: as it is when training begins, before it is sharded; the copy is sharded like it.
    """

    def __init__(self, policy: TextToImage) -> None:
        original: Any = policy
        twin = copy.copy(original)
        # A shallow copy shares the registry of submodules, and an exchange in it would reach the policy.
        twin.__dict__["_modules"] = dict(original._modules)
        twin.network = copy.deepcopy(original.network).requires_grad_(False).eval()
        super().__init__(twin, dtype=None)

    @property
    def policy(self) -> TextToImage:
        """The copy."""
        return cast(TextToImage, self.network)

    @contextlib.contextmanager
    def model(self) -> Iterator[TextToImage]:
        """Run a block of code with the reference.

        Yields:
            The copy.
        """
        yield self.policy


Reference = AdapterReference | CopiedReference
"""Where the reference's numbers come from."""


def starting_point(network: nn.Module) -> str:
    """Digest of weights, to tell one starting point from another: the first numbers of every tensor.

    Args:
        network: before adapters are put into it.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} ".encode())
        digest.update(parameter.detach().flatten()[:_SAMPLE].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def coder_digest(policy: TextToImage) -> str | None:
    """Digest of the auto-encoder's weights, see :func:`starting_point`.

    Args:
        policy: a text-to-image model.

    Returns:
        16 hexadecimal digits; None where it has no auto-encoder.
    """
    owner = getattr(policy, "vae", getattr(policy, "space", None))
    coder = getattr(owner, "network", owner)
    return starting_point(coder) if isinstance(coder, nn.Module) else None


def require_start(errors: PairErrors, logits: Tensor, tolerance: float) -> None:
    """Refuse a reference that is not the model as it is before its first step: both must be off by the same.

    Args:
        errors: of both networks before the first step.
        logits: z, (B,), of the errors.
        tolerance: largest relative difference of the two networks' errors; no logit may be above 0.5 besides.

    Raises:
        ValueError: they differ.
    """
    ours = torch.stack([errors.winner, errors.loser]).detach()
    reference = torch.stack([errors.reference_winner, errors.reference_loser])
    smallest = torch.finfo(reference.dtype).tiny
    apart = float(((ours - reference).abs() / reference.abs().clamp(min=smallest)).max())
    largest = float(logits.detach().abs().max())
    if not (apart <= tolerance and largest <= _LARGEST_LOGIT):
        raise ValueError(
            f"the reference is not the starting point: before the first step the errors of the two networks differ by "
            f"up to {apart:.1%} (allowed: {tolerance:.1%}), and logits, which begin at 0, are up to {largest:.3g} "
            f"(allowed: {_LARGEST_LOGIT}). Errors of a cache must come from the model that training begins from: give "
            "cache.folder another name; a network with dropout must be in eval mode"
        )
