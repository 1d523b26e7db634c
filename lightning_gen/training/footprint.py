"""How much memory one process of a run holds, worked out from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from .machine import Machine
from .needs import DataNeeds, ModelNeeds

__all__ = ["Memory", "RunShape", "memory_of_use", "memory_per_rank", "run_shape"]

# What a process holds besides the model: the CUDA context with its kernels, or Python, torch and Lightning.
_PROCESS_BYTES = {"cuda": 1 << 30, "mps": 1 << 30, "cpu": 400 << 20}
_CUDA_NAMES = {"cuda", "gpu"}
_SHARDED_WORDS = ("fsdp", "modelparallel", "deepspeed")


@dataclass(frozen=True)
class RunShape:
    """How the trainer's section spreads a run over processes.

    Args:
        accelerator: ``"cuda"``, ``"mps"``, ``"cpu"`` or the name of another accelerator.
        devices: processes on this machine.
        world: processes on all machines.
        sharded: whether weights, gradients and optimiser states are split over the processes.
        half: whether matrix products run in 16 bits.
        half_weights: whether the weights themselves are stored in 16 bits.
        eight_bit: whether the optimiser keeps its states in 8 bits.
        averages: number of additional copies of the weights (EMA).
    """

    accelerator: str
    devices: int
    world: int
    sharded: bool
    half: bool
    half_weights: bool
    eight_bit: bool
    averages: int


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    compute_copies: int
    activations: int
    process: int

    @property
    def total(self) -> int:
        """Sum over all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def run_shape(config: Mapping[str, Any], machine: Machine) -> RunShape:
    """Read from the trainer's section how many processes run and what each of them holds.

    Args:
        config: parsed configuration as plain dicts.
        machine: what is there; decides what ``auto`` means.

    Returns:
        The shape of the run.
    """
    trainer: Mapping[str, Any] = config.get("trainer") or {}
    accelerator = str(trainer.get("accelerator") or "auto").lower()
    if accelerator == "auto":
        accelerator = machine.accelerator
    elif accelerator in _CUDA_NAMES:
        accelerator = "mps" if machine.accelerator == "mps" and accelerator == "gpu" else "cuda"
    devices = _num_devices(trainer.get("devices", "auto"), accelerator, machine)
    precision = str(trainer.get("precision") or "32-true")
    strategy = trainer.get("strategy") or "auto"
    strategy_name = str(strategy.get("class_path") if isinstance(strategy, Mapping) else strategy).lower()
    return RunShape(
        accelerator=accelerator,
        devices=devices,
        world=devices * int(trainer.get("num_nodes") or 1),
        sharded=any(word in strategy_name.replace("_", "") for word in _SHARDED_WORDS),
        half="16" in precision,
        half_weights=precision.endswith("-true") and "16" in precision,
        eight_bit=any(value is True for value in _values(config.get("model"), "eight_bit")),
        averages=_num_averages(trainer.get("callbacks")),
    )


def memory_per_rank(model: ModelNeeds, data: DataNeeds | None, shape: RunShape) -> Memory:
    """Estimate what one process holds during a training step.

    Weights, gradients and AdamW's two moments take 4 + 4 + 8 = 16 bytes per parameter in 32-bit, divided by the
    number of shards; 8-bit moments take 2 instead of 8. A sharded run gathers two blocks at a time in the precision it
    computes in, an unsharded mixed-precision run keeps one 16-bit copy of all weights.

    Args:
        model: what the model needs.
        data: what the data sends, None if it is not known (then no activations are counted).
        shape: how the run is spread.

    Returns:
        Bytes by purpose.
    """
    shards = shape.world if shape.sharded else 1
    parameters = -(-model.trainable // shards)
    width = 2 if shape.half_weights else 4
    compute_width = 2 if shape.half else 4
    if shape.sharded:
        copies = 2 * model.largest_block * compute_width
    else:
        copies = 2 * model.trainable if shape.half and not shape.half_weights else 0
    tokens = 0.0 if data is None else data.tokens_per_global_batch / shape.world
    return Memory(
        weights=parameters * width + (model.frozen * width if model.frozen_bytes is None else model.frozen_bytes),
        gradients=parameters * width,
        optimizer=parameters * (2 if shape.eight_bit else 2 * width),
        averages=parameters * 4 * shape.averages,
        compute_copies=copies,
        activations=int(tokens * model.activation_bytes_per_token * compute_width / 4),
        process=_PROCESS_BYTES.get(shape.accelerator, 0),
    )


def memory_of_use(model: ModelNeeds, data: DataNeeds | None, shape: RunShape) -> Memory:
    """Estimate what one process holds while it validates, tests or predicts: weights, and the largest batch on its way.

    Args:
        model: what the model needs.
        data: what the data sends; its ``use_tokens`` count.
        shape: how the run is spread.

    Returns:
        Bytes by purpose.
    """
    held = memory_per_rank(replace(model, frozen=0, frozen_bytes=None), None, shape)
    tokens = 0 if data is None else data.use_tokens
    passing = int(tokens * model.use_bytes_per_token * (2 if shape.half else 4) / 4)
    return replace(held, gradients=0, optimizer=0, averages=0, activations=passing)


def _num_devices(requested: Any, accelerator: str, machine: Machine) -> int:
    here = 1 if accelerator == "cpu" else max(1, len(machine.device_memory))
    if requested is None or requested in ("auto", -1, "-1"):
        return here
    if isinstance(requested, Sequence) and not isinstance(requested, str):
        return len(requested)
    text = str(requested)
    return len([part for part in text.split(",") if part.strip()]) if "," in text else int(text)


def _num_averages(callbacks: Any) -> int:
    """Copies of the weights kept by averaging callbacks: one per decay."""
    entries = callbacks if isinstance(callbacks, list) else [callbacks]
    copies = 0
    for entry in entries:
        name = str(entry.get("class_path", "")).rpartition(".")[2] if isinstance(entry, Mapping) else ""
        if "EMA" in name or "Averaging" in name:
            decays = next(iter(_values(entry, "decays")), None)
            copies += len(decays) if isinstance(decays, (list, tuple)) else 1
    return copies


def _values(tree: Any, key: str) -> Iterator[Any]:
    """All values stored under a key anywhere in nested dicts, lists and dataclasses."""
    if is_dataclass(tree) and not isinstance(tree, type):
        tree = {field.name: getattr(tree, field.name) for field in fields(tree)}
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _values(value, key)
