"""Parallelism applied to a network from outside, and the strategy that trains it sharded (FSDP2).

A network is single-device code that only says which of its submodules are its blocks. :func:`prepare` adds, in this
order: float8 products, activation checkpointing, compilation per block, one FSDP unit per block and one for the rest,
memory, weights.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from .float8 import require_float8, use_float8_products
from .initialisation import copy_into, initialise
from .safe_reading import require_harmless
from .whole_state import fill_module, fill_optimizer, gather_optimizer

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["FSDP2Strategy", "initialise", "prepare"]


def prepare(
    network: nn.Module,
    *,
    device_mesh: DeviceMesh | None,
    seed: int,
    activation_checkpointing: bool = False,
    compile_blocks: bool = False,
    compute_dtype: torch.dtype | None = None,
    float8: bool = False,
) -> None:
    """Make a network ready to train: products, checkpointing, compilation, sharding, memory, keyed initial weights.

    A network on the meta device is materialised and initialised; one that is in memory already keeps its weights.

    Args:
        network: offers ``blocks()``; changed in place.
        device_mesh: Lightning's mesh (its ``data_parallel`` axis is used) or a one-dimensional one; None = not sharded.
        seed: seed of the initial weights.
        activation_checkpointing: keep only the inputs of each block and compute its inside again in the backward pass.
        compile_blocks: compile each block by itself.
        compute_dtype: dtype in which sharded weights are gathered, for instance bfloat16 with precision "bf16-mixed";
            gradients are reduced and weights kept in float32, and autocast alone decides the dtype of activations, so
            that sharded and unsharded runs compute the same. None = float32.
        float8: multiply in float8 inside the blocks, in both directions; weights and checkpoints stay what they are.

    Raises:
        TypeError: the network has no ``blocks()``, or a module cannot initialise itself.
        ValueError: ``blocks()`` names something that is no submodule, only part of the network is on "meta", or the
            device has no float8 products.
        ModuleNotFoundError: ``float8`` without torchao.
    """
    on_meta = _is_on_meta(network)
    if float8:
        # First, because it exchanges layers, which wrappers and compiled code hold on to.
        require_float8(_device(device_mesh))
        use_float8_products(network, _blocks(network))
    if activation_checkpointing:
        _checkpoint_blocks(network)
    if compile_blocks:
        for block in _blocks(network):
            block.compile()
    if device_mesh is not None:
        _shard(network, device_mesh, compute_dtype)
    if on_meta:
        network.to_empty(device=_device(device_mesh))
        initialise(network, seed)


def _is_on_meta(network: nn.Module) -> bool:
    tensors = [*network.named_parameters(), *network.named_buffers()]
    meta = [name for name, tensor in tensors if tensor.device.type == "meta"]
    if meta and len(meta) < len(tensors):
        raise ValueError(
            f"{len(meta)} of {len(tensors)} tensors of {type(network).__name__} are on the meta device, for instance "
            f"{meta[0]!r}; build the whole network there or none of it"
        )
    return bool(meta)


def _blocks(network: nn.Module) -> list[nn.Module]:
    named = getattr(network, "blocks", None)
    if not callable(named):
        raise TypeError(f"{type(network).__name__} needs a method blocks() that says which submodules are its blocks")
    blocks = list(cast(Callable[[], Iterable[nn.Module]], named)())
    inside = set(network.modules())
    for block in blocks:
        if block not in inside:
            raise ValueError(f"{type(network).__name__}.blocks() names a {type(block).__name__} that is no submodule")
    return blocks


def _checkpoint_blocks(network: nn.Module) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        CheckpointImpl,
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    blocks = set(_blocks(network))
    apply_activation_checkpointing(
        network,
        # the non-reentrant implementation: the one that FSDP2 and torch.compile work with
        checkpoint_wrapper_fn=functools.partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT),
        check_fn=lambda module: module in blocks,
    )
    if blocks & set(_blocks(network)):
        raise ValueError(
            f"{type(network).__name__}.blocks() must look its blocks up each time it is called, because wrappers "
            "replace them; return the content of the module lists, not a list kept from the constructor"
        )


def _shard(network: nn.Module, device_mesh: DeviceMesh, compute_dtype: torch.dtype | None) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    names = device_mesh.mesh_dim_names or ()
    mesh = device_mesh["data_parallel"] if "data_parallel" in names else device_mesh
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=None if compute_dtype is None else torch.float32,
        cast_forward_inputs=False,
    )
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def _device(device_mesh: DeviceMesh | None) -> torch.device:
    # Without a mesh: Lightning opens a device context around configure_model, which names the strategy's device.
    return torch.get_default_device() if device_mesh is None else torch.device(device_mesh.device_type)


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded training in the second version of FSDP, with defaults that shard over every rank.

    Beyond Lightning's strategy: ``data_parallel_size: auto`` means all ranks on all nodes (there it is the number of
    nodes); a checkpoint folder is written under another name and renamed when it is complete, so that a killed run
    leaves no half of one; and callbacks may let further sharded tensors travel in it (:meth:`carry`). Works on CPU with
    gloo too.

    Args:
        data_parallel_size: ranks that share one copy of the weights; "auto" = all of them / tensor_parallel_size.
        tensor_parallel_size: ranks that split one layer between them; 1 = none.
        save_distributed_checkpoint: True = a folder with one file per rank; False = one file, gathered on rank 0.
        process_group_backend: None = nccl on CUDA, gloo on CPU.
        timeout_minutes: how long a collective may wait for the slowest rank before the run ends with an error.
    """

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout_minutes: float = 30.0,
    ) -> None:
        super().__init__(
            data_parallel_size=data_parallel_size,
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self._carried: dict[str, Callable[[], Mapping[str, Tensor]]] = {}

    def setup_environment(self) -> None:
        """Start the processes' group and lay out the device mesh."""
        if self._data_parallel_size == "auto":
            self._data_parallel_size = self.num_nodes * self.num_processes // int(self._tensor_parallel_size)
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Set up the accelerator, the module and the optimisers.

        Args:
            trainer: the run's trainer.
        """
        # FSDP2 keeps the buffers that it gathers weights into. Made in inference mode they could never be written to by
        # a training step again, so a validation before the training (or between two) has to make do with no_grad.
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False
        super().setup(trainer)

    def carry(self, name: str, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Let further tensors, sharded like the weights, travel in every checkpoint under ``name``.

        Loading fills them in place from a folder or a file of any world size and leaves, under ``name`` in the loaded
        checkpoint, the list of those that were found.

        Args:
            name: top-level key in the checkpoint.
            tensors: gives the tensors whenever a checkpoint is written or read; an empty mapping = nothing to carry.
        """
        self._carried[name] = tensors

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; called on every rank.

        Args:
            checkpoint: what Lightning collected; its tensors are taken out.
            filepath: folder (or file, without ``save_distributed_checkpoint``) to write; an old one is replaced.
            storage_options: not supported, as in Lightning's strategy.
        """
        carried = {name: dict(tensors()) for name, tensors in self._carried.items()}
        carried = {name: tensors for name, tensors in carried.items() if tensors}
        path = Path(self.broadcast(os.fspath(filepath)))
        if not self._save_distributed_checkpoint or storage_options is not None:
            for name, tensors in carried.items():
                checkpoint[name] = {key: _whole(tensor) for key, tensor in tensors.items()}
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        state = {"state_dict": checkpoint.pop("state_dict"), **carried}
        for index, optimizer_state in enumerate(checkpoint.pop("optimizer_states", [])):
            state[f"optimizer_{index}"] = optimizer_state
        self._write_folder(state, checkpoint, path)

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of any world size into the model, the optimisers and the carried tensors.

        Args:
            checkpoint_path: a folder of shards or a single file.
            weights_only: None = True, so that no code in the file is run.

        Returns:
            What else the checkpoint holds.
        """
        path = Path(self.broadcast(os.fspath(checkpoint_path)))
        weights_only = True if weights_only is None else weights_only
        if path.is_dir():
            require_harmless(path)
        rest = (self._load_folder if path.is_dir() else self._load_file)(path, weights_only)
        for name, provider in self._carried.items():
            tensors = dict(provider())
            stored = rest.pop(name, None)
            found = _read_folder(path, name, tensors) if path.is_dir() else _read_mapping(stored or {}, tensors)
            if found:
                rest[name] = found
        return rest

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State of an optimiser for a checkpoint: sharded for a folder, whole on rank 0 for a file.

        Args:
            optimizer: one of the run's optimisers.

        Returns:
            Its state.
        """
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        assert self.model is not None
        return gather_optimizer(self.model, getattr(optimizer, "_optimizer", optimizer))

    def _load_folder(self, path: Path, weights_only: bool) -> dict[str, Any]:
        assert self.model is not None and self.lightning_module is not None
        if self.lightning_module.strict_loading:
            return super().load_checkpoint(path, weights_only)
        # Of a module that saves only what it trains, the folder holds a part of the weights.
        from torch.distributed.checkpoint import state_dict as states
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        stored = FileSystemReader(path).read_metadata().state_dict_metadata
        weights = states.get_model_state_dict(self.model)
        # In place: what comes back are the parameters themselves.
        load({"state_dict": {k: v for k, v in weights.items() if f"state_dict.{k}" in stored}}, checkpoint_id=path)
        for number, optimizer in enumerate(self.optimizers):
            found = {f"optimizer_{number}": states.get_optimizer_state_dict(self.model, optimizer)}
            load(found, checkpoint_id=path)
            states.set_optimizer_state_dict(self.model, optimizer, optim_state_dict=found[f"optimizer_{number}"])
        rest: dict[str, Any] = torch.load(path / _METADATA_FILENAME, weights_only=weights_only)
        return rest

    def _load_file(self, path: Path, weights_only: bool) -> dict[str, Any]:
        # Lightning's own way numbers the optimiser's parameters by module, not by group, and trips over the names that
        # activation checkpointing adds.
        assert self.model is not None and self.lightning_module is not None
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
        fill_module(self.model, checkpoint.pop("state_dict"), strict=self.lightning_module.strict_loading)
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states", []), strict=False):
            fill_optimizer(getattr(optimizer, "_optimizer", optimizer), state)
        return checkpoint

    def _write_folder(self, state: dict[str, Any], rest: dict[str, Any], path: Path) -> None:
        from torch.distributed.checkpoint.state_dict_saver import save

        partial = path.with_name(f".{path.name}.partial")
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.barrier()
        save(state, checkpoint_id=partial)
        if self.is_global_zero:
            torch.save(rest, partial / _METADATA_FILENAME)
            _replace(partial, path)
        self.barrier()


def _replace(new: Path, path: Path) -> None:
    """Put a finished folder in the place of whatever is there; at every moment one complete folder exists."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _whole(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def _read_folder(path: Path, name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    found = {key: tensor for key, tensor in tensors.items() if f"{name}.{key}" in stored}
    if found:
        load({name: found}, checkpoint_id=path)
    return list(found)


def _read_mapping(stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    found = [key for key in tensors if key in stored]
    for key in found:
        copy_into(tensors[key], stored[key])
    return found
