"""Several low-rank adapters on one frozen network: the policy, its older self, teachers, and none at all.

One base network in memory serves as all of them. peft makes the layers; here they are switched, copied, averaged, and
made to work on the meta device, behind activation checkpointing, per-block compilation and FSDP2. The order is: bank,
then ``training.strategies.prepare``.

Shape letters: r rank, I inputs and O outputs of a layer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.training.initialisation import copy_into, local

from .lora_layers import inject
from .lora_targets import LoRATargets, preset_targets
from .lora_weights import AdapterWeights

__all__ = ["AdapterBank", "LoRASettings"]


@dataclasses.dataclass(frozen=True)
class LoRASettings:
    """Shape of one adapter.

    y = W x + (alpha / r) B A x

    Attributes:
        rank: r, >= 1.
        alpha: numerator of the scale, > 0.
        targets: ends of the names of the adapted layers; None = those of the network's family, see ``LORA_TARGETS``.
        exclude: names of submodules that stay free of adapters; only with ``targets``, families have their own.

    Raises:
        ValueError: a value outside its range, an empty list of targets, or ``exclude`` without ``targets``.

    Source: arXiv:2106.09685 section 4.1; rank 32 and alpha 64 in the published configuration of arXiv:2505.05470.
    """

    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"LoRA needs a rank of at least 1 and a positive alpha, got {self.rank} and {self.alpha}")
        if self.targets is not None and not self.targets:
            raise ValueError("LoRASettings.targets is empty: name layers, or leave it out for those of the family")
        if self.exclude and self.targets is None:
            raise ValueError("LoRASettings.exclude goes with targets: a family's own targets have their own exceptions")


class AdapterBank:
    """Named adapters on one network, of which one is on, or none, and exactly one is trained.

    The network is changed in place and stays what is called, saved and sharded; the bank only holds its layers. In
    names of parameters an adapter appears as ``<layer>.lora_A.<name>.weight`` and a frozen weight as
    ``<layer>.base_layer.weight``, which ``training.initialisation.plain_name`` turns back into ``<layer>.weight``.

    A block that is computed again in the backward pass (activation checkpointing by ``prepare``) is computed with the
    adapter it was first computed with, wherever the switch stands by then.

    Args:
        network: on any device, the meta device too; not yet passed to ``prepare``. All its weights are frozen.
        settings: shape of the adapters.
        adapters: their names.
        trainable: the one that is trained and, where nothing else is said, on.
        seed: of the initial weights.

    Raises:
        ValueError: targets that do not fit the network, a bad or double name, or ``trainable`` that is none of them.
        RuntimeError: the network is prepared already.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: LoRASettings = LoRASettings(),  # noqa: B008 (frozen)
        adapters: Sequence[str] = ("default",),
        trainable: str = "default",
        seed: int = 0,
    ) -> None:
        if trainable not in adapters:
            raise ValueError(f"the trainable adapter {trainable!r} is none of {', '.join(adapters)}")
        self.network, self.seed = network, seed
        self._layers: dict[str, dict[str, Any]] = {}
        self._settings: dict[str, LoRASettings] = {}
        self._active: str | None = trainable
        self._trainable = trainable
        for name in adapters:
            self._inject(name, settings)
        self.network.requires_grad_(False)
        self.train_only(trainable)
        network.register_forward_pre_hook(self._remember_adapters)

    def add(self, name: str, settings: LoRASettings) -> None:
        """Give the network one more adapter, frozen and off; before ``prepare``.

        Args:
            name: a new name.
            settings: its shape, which may differ from that of the others.

        Raises:
            ValueError: as for the constructor.
            RuntimeError: as for the constructor.
        """
        self._inject(name, settings)
        self.train_only(self._trainable)

    # ------------------------------------------------------------------ what there is

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(self._layers)

    @property
    def active(self) -> str | None:
        """The adapter that is on; None = the base network alone."""
        return self._active

    @property
    def trainable(self) -> str:
        """The adapter whose parameters require gradients."""
        return self._trainable

    def settings(self, name: str) -> LoRASettings:
        """Shape of an adapter.

        Args:
            name: which one.

        Returns:
            What it was made with.
        """
        self._require(name)
        return self._settings[name]

    def modules(self, name: str) -> tuple[str, ...]:
        """Names of the layers that an adapter changes.

        Args:
            name: which one.

        Returns:
            Names in the base network, in its order.
        """
        self._require(name)
        return tuple(self._layers[name])

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Parameters of an adapter, A and B of every layer in turn.

        Args:
            name: which one.

        Returns:
            The parameters as they are now: of a prepared network, its shards.
        """
        return [factor for pair in self._factors(name).values() for factor in pair]

    def num_parameters(self, name: str) -> int:
        """Size of an adapter over all ranks.

        Args:
            name: which one.

        Returns:
            sum over layers of r (I + O).
        """
        return sum(parameter.numel() for parameter in self.parameters(name))

    # ------------------------------------------------------------------ switching

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Run a block of code with another adapter; which one is trained does not change.

        Args:
            name: which one.

        Yields:
            Nothing; afterwards the switch stands as before, also after an exception.
        """
        self._require(name)
        with self._switched(name):
            yield

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Run a block of code with the base network alone: to the last bit what it computed when it was frozen.

        Yields:
            Nothing; afterwards the switch stands as before, also after an exception.
        """
        with self._switched(None):
            yield

    def train_only(self, name: str) -> None:
        """Choose the adapter that is trained, and switch it on. An optimiser must be made anew for it.

        Args:
            name: which one.
        """
        self._require(name)
        self._reshard()
        for other in self._layers:
            for parameter in self.parameters(other):
                parameter.requires_grad_(other == name)
        self._trainable = name
        self._switch(name)

    # ------------------------------------------------------------------ weights

    def copy(self, source: str, target: str) -> None:
        """Make one adapter equal to another, in place; ranks communicate nothing.

        Args:
            source: it stays as it is.
            target: it becomes the source.

        Raises:
            ValueError: adapters of different layers, ranks or scales.
        """
        self.blend(target, source, 0.0)

    def blend(self, target: str, source: str, decay: float) -> None:
        """Move one adapter towards another, in place; ranks communicate nothing.

        target <- decay target + (1 - decay) source, for A and B each

        Args:
            target: for instance the policy that samples.
            source: for instance the policy that learns.
            decay: in [0, 1]; 0 copies, 1 leaves the target as it is.

        Raises:
            ValueError: a decay outside [0, 1], or adapters of different layers, ranks or scales.

        Source: arXiv:2509.16117 (the old policy follows softly).
        """
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"a decay is in [0, 1], got {decay}")
        self._require_alike(target, source)
        with torch.no_grad():
            for into, parameter in zip(self.parameters(target), self.parameters(source), strict=True):
                if decay == 0.0:
                    local(into).copy_(local(parameter))
                else:
                    local(into).lerp_(local(parameter), 1.0 - decay)  # without a temporary tensor

    def weights(self, name: str) -> AdapterWeights:
        """The whole weights of an adapter, for a file or a merge; called on every rank of a sharded network.

        Args:
            name: which one.

        Returns:
            Copies on the CPU.

        Raises:
            RuntimeError: the network is on the meta device.
        """
        factors = {}
        for module, (down, up) in self._factors(name).items():
            if down.is_meta:
                raise RuntimeError(f"the adapter {name!r} is on the meta device: call prepare first")
            factors[module] = (_whole(down), _whole(up))
        return AdapterWeights(factors, self._settings[name].alpha)

    def load(self, name: str, weights: AdapterWeights, source: str = "the adapter") -> None:
        """Fill an adapter; called with the same weights on every rank.

        Another scale than the one of the adapter here is moved into B.

        Args:
            name: which one.
            weights: for exactly the layers that the adapter has, of its rank.
            source: where they come from, for messages.

        Raises:
            ValueError: they do not fit; the message names the first wrong module.
        """
        own = self._factors(name)
        for module in dict.fromkeys([*own, *weights.factors]):
            problem = self._misfit(name, module, own, weights)
            if problem:
                raise ValueError(f"{source} does not fit the adapter {name!r} of {self._kind()}: {module} {problem}")
        ratio = weights.scaling / self._scaling(name)
        with torch.no_grad():
            for module, (down, up) in weights.factors.items():
                copy_into(own[module][0], down)
                copy_into(own[module][1], up if ratio == 1.0 else up * ratio)

    # ------------------------------------------------------------------ inside

    def _inject(self, name: str, settings: LoRASettings) -> None:
        if not name.isidentifier() or name in self._layers:
            raise ValueError(f"{name!r} is no name for a new adapter: a word that is not {', '.join(self._layers)}")
        targets = LoRATargets(settings.targets, settings.exclude) if settings.targets else preset_targets(self.network)
        self._layers[name] = inject(self.network, name, settings.rank, settings.alpha, targets, self.seed)
        self._settings[name] = settings

    def _factors(self, name: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        self._require(name)
        self._reshard()
        return {
            module: (layer.lora_A[name].weight, layer.lora_B[name].weight)
            for module, layer in self._layers[name].items()
        }

    def _scaling(self, name: str) -> float:
        return self._settings[name].alpha / self._settings[name].rank

    @contextlib.contextmanager
    def _switched(self, name: str | None) -> Iterator[None]:
        before = self._active
        if name == before:
            yield
            return
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str | None) -> None:
        # Not by peft's set_adapter, which also decides what is trained: gradients of the trained adapter would be lost
        # while another one is on.
        for layers in self._layers.values():
            for layer in layers.values():
                layer._disable_adapters = name is None
                if name is not None:
                    layer._active_adapter = [name]
        self._active = name

    def _remember_adapters(self, network: nn.Module, arguments: Any) -> None:
        """Let checkpointed blocks be computed again with the adapter of their forward pass."""
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

        if not torch.is_grad_enabled():
            return
        for module in network.modules():
            # In a compiled block the second computation is part of the compiled code.
            if isinstance(module, CheckpointWrapper) and module._compiled_call_impl is None:
                repeat = module.checkpoint_fn
                if "context_fn" not in repeat.keywords:
                    module.checkpoint_fn = functools.partial(repeat, context_fn=self._now_and_again)

    def _now_and_again(self) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), self._switched(self._active)

    def _reshard(self) -> None:
        """After a pass without gradients FSDP keeps some weights gathered; changes to those would be lost."""
        if not torch.distributed.is_available():
            return
        from torch.distributed.fsdp import FSDPModule

        for module in self.network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _misfit(self, name: str, module: str, own: dict[str, Any], weights: AdapterWeights) -> str:
        """What is wrong with the weights of a module, as the end of a sentence, or an empty string."""
        if module not in weights.factors:
            return "is missing from it"
        if module not in own:
            names = {plain for plain, _ in self.network.named_modules()}
            return "is not adapted here: other targets" if module in names else "is no module of this network"
        (down, up), (own_down, own_up) = weights.factors[module], own[module]
        if weights.rank != self._settings[name].rank:
            return (
                f"has rank {weights.rank} instead of {self._settings[name].rank}: make the adapter with that rank, or "
                "bring the weights to this one with merge_by_delta"
            )
        if (down.shape[1], up.shape[0]) != (own_down.shape[1], own_up.shape[0]):
            return (
                f"takes {down.shape[1]} inputs and gives {up.shape[0]} outputs there, {own_down.shape[1]} and "
                f"{own_up.shape[0]} here"
            )
        return ""

    def _kind(self) -> str:
        return type(self.network).__name__.removeprefix("FSDP")

    def _require(self, name: str) -> None:
        if name not in self._layers:
            raise ValueError(f"there is no adapter {name!r}, only {', '.join(self._layers)}")

    def _require_alike(self, target: str, source: str) -> None:
        first, second = self._factors(target), self._factors(source)
        for module in dict.fromkeys([*first, *second]):
            if module not in first or module not in second:
                raise ValueError(f"{target!r} and {source!r} differ: only one of them adapts {module}")
            if first[module][0].shape != second[module][0].shape:
                ranks = [self._settings[name].rank for name in (target, source)]
                raise ValueError(f"{target!r} and {source!r} differ: ranks {ranks[0]} and {ranks[1]} at {module}")
        if self._scaling(target) != self._scaling(source):
            raise ValueError(
                f"{target!r} and {source!r} differ: their factors are scaled by {self._scaling(target)} and "
                f"{self._scaling(source)}, so equal factors are not equal adapters"
            )


def _whole(parameter: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach().cpu().clone()
