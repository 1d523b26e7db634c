"""Which loss reaches which parameter, and whether losses pull the same way.

Shape letters: K losses, G groups of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .ranks import mean_over_ranks

__all__ = ["GradientRouter", "RoutesGradients", "RoutingMatrix"]


class RoutingMatrix(NamedTuple):
    """Gradients of several losses, compared.

    Attributes:
        losses: K names.
        groups: G names.
        norms: (K, G), length of the gradient of a loss on a group; 0 where it does not arrive.
        reached: bool, (K, G), whether any parameter of the group is in the loss's graph.
        cos_shared: (K, K), cosine over the parameters that both losses reach; NaN where there is none.
        cos_full: (K, K), cosine over all parameters, missing gradients counting as 0; 0 where one gradient is 0.
        cos_groups: (G, K, K), ``cos_full`` within each group.
        shared: int64, (K, K), how many numbers of all parameters are in the graphs of both losses; on the diagonal, of
            one. 0 = their gradients cannot meet, whatever the batch.
    """

    losses: tuple[str, ...]
    groups: tuple[str, ...]
    norms: Tensor
    reached: Tensor
    cos_shared: Tensor
    cos_full: Tensor
    cos_groups: Tensor
    shared: Tensor

    def scalars(self) -> dict[str, Tensor]:
        """The numbers by name, for logging: ``norm/<loss>/<group>``, ``cos_shared/<a>-<b>``, ``cos_full/<a>-<b>``.

        Returns:
            Scalars; undefined cosines are left out.
        """
        out = {
            f"norm/{loss}/{group}": self.norms[i, j]
            for i, loss in enumerate(self.losses)
            for j, group in enumerate(self.groups)
        }
        for name, matrix in (("cos_shared", self.cos_shared), ("cos_full", self.cos_full)):
            for i, first in enumerate(self.losses):
                for j in range(i + 1, len(self.losses)):
                    if not matrix[i, j].isnan():
                        out[f"{name}/{first}-{self.losses[j]}"] = matrix[i, j]
        return out


@runtime_checkable
class RoutesGradients(Protocol):
    """A module whose losses can be told apart; the callback ``GradientRouting`` measures it."""

    def routing_losses(self, batch: Any) -> Mapping[str, Tensor]:
        """The losses of a batch, with a graph and without side effects.

        Args:
            batch: a training batch on the module's device.

        Returns:
            Scalars by name.
        """
        ...

    def routing_groups(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The parameters that are told apart.

        Returns:
            Disjoint groups by name.
        """
        ...


class GradientRouter:
    """Measures the gradients of several losses on groups of parameters.

    Nothing is accumulated: ``parameter.grad`` stays as it is, and the graphs stay for the backward pass. Under DDP the
    gradients are those of the whole batch, averaged over ranks.

    Args:
        groups: disjoint lists of parameters by name; parameters without ``requires_grad`` are left out.

    Raises:
        ValueError: a parameter is in two groups.
        NotImplementedError: a parameter is sharded; FSDP computes with other tensors than it stores.

    Source: arXiv:2605.05646 (gradient conflict): ``cos_shared`` is the cosine of its published hook.
    """

    def __init__(self, groups: Mapping[str, Iterable[nn.Parameter]]) -> None:
        self.groups = {name: [p for p in group if p.requires_grad] for name, group in groups.items()}
        every = [parameter for group in self.groups.values() for parameter in group]
        if len({id(parameter) for parameter in every}) < len(every):
            raise ValueError("groups of a GradientRouter must be disjoint: a parameter is in two of them")
        if any(type(parameter).__name__ == "DTensor" or hasattr(parameter, "placements") for parameter in every):
            raise NotImplementedError(
                "gradients per loss cannot be measured on sharded parameters (FSDP2): measure with one device or DDP"
            )

    def measure(self, losses: Mapping[str, Tensor]) -> RoutingMatrix:
        """Compare the gradients of some losses.

        Args:
            losses: scalars by name.

        Returns:
            The matrix, float32 on the device of the first loss (float64 for float64).

        Raises:
            ValueError: there is no loss.
        """
        if not losses:
            raise ValueError("no loss to measure")
        found = {name: self._gradients(loss) for name, loss in losses.items()}
        names, groups = tuple(found), tuple(self.groups)
        dots, shared = self._products(found)
        norms = torch.stack([dots[:, i, i].clamp(min=0).sqrt() for i in range(len(names))])
        reached = [[any(g is not None for g in found[name][group]) for group in groups] for name in names]
        return RoutingMatrix(
            losses=names,
            groups=groups,
            norms=norms,
            reached=torch.tensor(reached, device=norms.device),
            cos_shared=shared,
            cos_full=_cosine(dots.sum(0)),
            cos_groups=torch.stack([_cosine(part) for part in dots]),
            shared=self._shared(found).to(norms.device),
        )

    def _gradients(self, loss: Tensor) -> dict[str, list[Tensor | None]]:
        every = [parameter for group in self.groups.values() for parameter in group]
        if not loss.requires_grad:
            return {name: [None] * len(group) for name, group in self.groups.items()}
        flat = iter(torch.autograd.grad(loss, every, retain_graph=True, allow_unused=True))
        mean = {name: [_mean(next(flat)) for _ in group] for name, group in self.groups.items()}
        return mean

    def _shared(self, found: Mapping[str, Mapping[str, list[Tensor | None]]]) -> Tensor:
        """How many numbers are in the graphs of both losses, (K, K)."""
        flat = [[gradient for group in self.groups for gradient in part[group]] for part in found.values()]
        there = torch.tensor([[gradient is not None for gradient in row] for row in flat], dtype=torch.int64)
        every = [parameter.numel() for group in self.groups.values() for parameter in group]
        sizes = torch.tensor(every, dtype=torch.int64)
        return there * sizes @ there.T

    def _products(self, found: Mapping[str, Mapping[str, list[Tensor | None]]]) -> tuple[Tensor, Tensor]:
        """Inner products per group (G, K, K), and the cosine over what two losses share (K, K)."""
        names, groups = list(found), list(self.groups)
        some = next((g for part in found.values() for group in part.values() for g in group if g is not None), None)
        kind = torch.float64 if some is not None and some.dtype == torch.float64 else torch.float32
        device = None if some is None else some.device
        dots = torch.zeros(len(groups), len(names), len(names), dtype=kind, device=device)
        shared = torch.full((len(names), len(names)), float("nan"), dtype=kind, device=device)
        for i, first in enumerate(names):
            for j, second in enumerate(names[: i + 1]):
                parts = torch.zeros(3, dtype=kind, device=device)
                is_shared = False
                for k, group in enumerate(groups):
                    for a, b in zip(found[first][group], found[second][group], strict=True):
                        if a is not None and b is not None:
                            products = _inner(a, b, kind), _inner(a, a, kind), _inner(b, b, kind)
                            dots[k, i, j] += products[0]
                            parts += torch.stack(products)
                            is_shared = True
                dots[:, j, i] = dots[:, i, j]
                if is_shared and parts[1] > 0 and parts[2] > 0:
                    shared[i, j] = shared[j, i] = parts[0] / (parts[1] * parts[2]).sqrt()
        return dots, shared


def _inner(a: Tensor, b: Tensor, kind: torch.dtype) -> Tensor:
    return torch.dot(a.flatten().to(kind), b.flatten().to(kind))


def _mean(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else mean_over_ranks(gradient.detach())


def _cosine(dots: Tensor) -> Tensor:
    """(K, K) of inner products to cosines, 0 where a gradient is 0."""
    length = dots.diagonal().clamp(min=0).sqrt()
    scale = length[:, None] * length
    return torch.where(scale > 0, dots / scale.where(scale > 0, torch.ones_like(scale)), torch.zeros_like(dots))
