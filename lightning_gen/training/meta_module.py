"""A LightningModule whose network lives on the meta device until it is known where it will run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_gen.training.strategies import prepare

__all__ = ["MetaModule"]


class MetaModule(pl.LightningModule):
    """Ground of modules that build ``network`` under ``torch.device("meta")`` and fill it in ``configure_model``."""

    network: nn.Module
    training_only: ClassVar[tuple[str, ...]] = ()
    """How names of tensors begin that only training needs, and that a model may have or not."""

    @property
    def on_meta(self) -> bool:
        """Whether the network has no weights yet."""
        return next(self.network.parameters()).device.type == "meta"

    @property
    def fitting(self) -> bool:
        """Whether a Trainer is training."""
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def prepare_network(
        self,
        network: nn.Module,
        seed: int,
        *,
        doors: tuple[str, ...] = (),
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        float8: bool = False,
    ) -> None:
        """Shard, materialise and initialise a network for this run, see ``strategies.prepare``.

        Args:
            network: on the meta device.
            seed: of its initial weights.
            doors: methods besides ``forward`` by which data enter it; FSDP gathers weights only at doors that it knows.
            activation_checkpointing: recompute blocks in the backward pass; only while training.
            compile_blocks: torch.compile every block.
            float8: multiply in float8 inside the blocks.
        """
        precision = str(self._trainer.precision) if self._trainer is not None else "32-true"
        prepare(
            network,
            device_mesh=self.device_mesh,
            seed=seed,
            activation_checkpointing=activation_checkpointing and self.fitting,
            compile_blocks=compile_blocks,
            compute_dtype=torch.bfloat16 if precision == "bf16-mixed" else None,
            float8=float8,
        )
        if self.device_mesh is not None:
            from torch.distributed.fsdp import register_fsdp_forward_method

            for door in doors:
                register_fsdp_forward_method(network, door)

    def of_use(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state without what only training needs, as far as this model has none of it.

        Args:
            state: tensors by name.

        Returns:
            The others.
        """
        own = self.state_dict().keys()
        return {name: value for name, value in state.items() if name in own or not name.startswith(self.training_only)}

    def require_weights(self) -> None:
        """Refuse to be used before there are weights.

        Raises:
            RuntimeError: they were never loaded or initialised.
        """
        if self.on_meta:
            raise RuntimeError(
                f"this model has no weights yet: use {type(self).__name__}.from_pretrained(...) or "
                f"{type(self).__name__}.load_from_checkpoint(...), or call configure_model() to start from random ones"
            )

    def cpu(self) -> Self:
        """Move to the CPU; on the meta device there is nothing to move (Lightning does this after any failure)."""
        return self if self.on_meta else super().cpu()
