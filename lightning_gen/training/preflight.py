"""Can this run start here? Everything that is missing, listed at once, before anything is instantiated.

A model class and a DataModule class may offer ``needs(init_args)``, a classmethod that turns the parsed arguments into
plain numbers without building anything. From these, the trainer's section and the machine the check works out devices,
memory per rank, files, weights and disk. Classes without ``needs`` are not judged.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .float8 import obstacles
from .footprint import Memory, RunShape, memory_of_use, memory_per_rank, run_shape
from .machine import Machine, readable
from .needs import DataNeeds, ModelNeeds, WeightNeed

__all__ = ["DataNeeds", "ModelNeeds", "Shortage", "WeightNeed", "check", "needs_of", "table"]

_SMALLER_STEP = "more shards, an 8-bit optimiser, fewer tokens per step, more accumulation, or a smaller configuration"
_SMALLER_PICTURE = (
    "set data.init_args.tokens to a budget, or model.init_args.window_radius and band_rows where the model has them "
    "(bands of rows do not grow with the height of a picture), or use fewer pictures per batch or a smaller "
    "configuration"
)


@dataclass(frozen=True)
class Shortage:
    """One thing that is missing.

    Args:
        subject: which resource, for instance ``"devices"``.
        needed: what the run asks for.
        here: what there is; empty if there is nothing to say.
        remedy: what to do about it; empty if ``needed`` says it.
    """

    subject: str
    needed: str
    here: str
    remedy: str


def check(config: Mapping[str, Any], machine: Machine, training: bool = True) -> list[Shortage]:
    """Compare a parsed configuration with a machine.

    Args:
        config: parsed `fit` configuration as plain dicts, with ``trainer``, ``model`` and optionally ``data``.
        machine: what is there.
        training: False = validate, test or predict, which hold the weights and nothing else.

    Returns:
        Everything that is missing, in the order checkpoint, devices, float8, memory, batch, data, weights, disk; empty
        if the run can start.
    """
    model, data = needs_of(config)
    shape = run_shape(config, machine)
    if not training:
        return _shortages_of_use(model, data, shape, machine)
    found = [*_checkpoint_shortages(config), *_device_shortages(shape, machine)]
    if model is not None:
        found += _float8_shortages(model, shape, machine)
        found += _memory_shortages(memory_per_rank(model, data, shape), shape, machine, _SMALLER_STEP)
    if data is not None:
        found += _data_shortages(data, shape)
    if model is not None:
        found += [
            Shortage("weights", f"{weight.what}: {weight.source}", "not found", weight.hint)
            for weight in model.weights
            if not weight.found
        ]
        found += _disk_shortages(model, shape, config, machine)
    return found


def table(missing: Sequence[Shortage], fitting: Sequence[str]) -> str:
    """Lay out what is missing for people.

    Args:
        missing: result of :func:`check`.
        fitting: names of configurations that can run here instead, the largest first.

    Returns:
        Text of several lines.
    """
    width = max((len(shortage.subject) for shortage in missing), default=0)
    lines = ["This run cannot start here. Missing:", ""]
    for shortage in missing:
        for label, text in (("needs", shortage.needed), ("here", shortage.here), ("do", shortage.remedy)):
            if text:
                lines.append(f"  {shortage.subject if label == 'needs' else '':<{width}}  {label:<5}  {text}")
        lines.append("")
    names = ", ".join(fitting) or "none of the shipped ones"
    lines.append(f"Configurations that this machine can hold (their data not looked at): {names}")
    lines.append("The numbers are estimates; --preflight false starts the run all the same.")
    return "\n".join(lines) + "\n"


def needs_of(config: Mapping[str, Any]) -> tuple[ModelNeeds | None, DataNeeds | None]:
    """Ask the configured classes what they need.

    Args:
        config: parsed configuration as plain dicts.

    Returns:
        The needs of the model and of the data, None where the class does not say.
    """
    model, data = (_ask(config.get(section)) for section in ("model", "data"))
    return (
        model if isinstance(model, ModelNeeds) else None,
        data if isinstance(data, DataNeeds) else None,
    )


def _ask(section: Any) -> Any:
    if not isinstance(section, Mapping) or "class_path" not in section:
        return None
    module, _, name = str(section["class_path"]).rpartition(".")
    needs = getattr(getattr(importlib.import_module(module), name), "needs", None)
    return None if needs is None else needs(section.get("init_args") or {})


def _shortages_of_use(
    model: ModelNeeds | None, data: DataNeeds | None, shape: RunShape, machine: Machine
) -> list[Shortage]:
    found = [*_device_shortages(shape, machine)]
    if model is not None:
        found += _float8_shortages(model, shape, machine)
        held = memory_of_use(model, data, shape)
        largest = f"{data.largest} is too large; " if data is not None and held.activations > held.weights else ""
        found += _memory_shortages(held, shape, machine, largest + _SMALLER_PICTURE)
    if data is not None:
        # What is trained on is not read, so its absence does not matter.
        read = [sentence for sentence in data.missing if not sentence.startswith("data.train")]
        found += [Shortage("data", sentence, "", "") for sentence in read]
    return found


def _checkpoint_shortages(config: Mapping[str, Any]) -> Iterator[Shortage]:
    if not config.get("ckpt_path"):
        return
    from .run_folder import RunFolder

    try:
        RunFolder(Path(config["runs"]), config["name"]).resolve(config["ckpt_path"])
    except (FileNotFoundError, ValueError) as error:
        yield Shortage("checkpoint", str(error), "", "")


def _device_shortages(shape: RunShape, machine: Machine) -> Iterator[Shortage]:
    if shape.accelerator not in {"cuda", "mps"}:
        return
    machines = shape.world // shape.devices
    here = len(machine.device_memory) if machine.accelerator == shape.accelerator else 0
    if shape.devices > here:
        yield Shortage(
            "devices",
            f"{shape.devices} x {shape.accelerator}" + (f" on each of {machines} machines" if machines > 1 else ""),
            f"{here} x {shape.accelerator}",
            "set trainer.devices (and trainer.accelerator) to what is here, or run on a larger machine",
        )


def _float8_shortages(model: ModelNeeds, shape: RunShape, machine: Machine) -> Iterator[Shortage]:
    if model.float8:
        for obstacle in obstacles(machine.capability if shape.accelerator == "cuda" else None):
            yield Shortage("float8", obstacle.needed, obstacle.here, obstacle.remedy)


def _memory_shortages(memory: Memory, shape: RunShape, machine: Machine, remedy: str) -> Iterator[Shortage]:
    parts = ", ".join(
        f"{field.name.replace('_', ' ')} {readable(getattr(memory, field.name))}"
        for field in fields(memory)
        if getattr(memory, field.name) >= 1 << 20
    )
    needed = f"{readable(memory.total)} per process ({parts})"
    on_device = shape.accelerator == machine.accelerator and machine.device_memory
    if on_device:
        smallest = min(machine.device_memory)
        if memory.total > smallest:
            yield Shortage("memory", needed, f"{readable(smallest)} on each {machine.device_name}", remedy)
    else:
        # Also when the requested accelerator is absent: the host is then all there is.
        if memory.total * shape.devices > machine.host_memory:
            needed += f", {shape.devices} processes" if shape.devices > 1 else ""
            yield Shortage("memory", needed, f"{readable(machine.host_memory)} of main memory", remedy)


def _data_shortages(data: DataNeeds, shape: RunShape) -> Iterator[Shortage]:
    if data.global_batch_size % shape.world:
        yield Shortage(
            "batch",
            f"a global batch that {shape.world} processes divide",
            f"{data.global_batch_size} images",
            f"use a multiple of {shape.world}, or change trainer.devices",
        )
    for sentence in data.missing:
        yield Shortage("data", sentence, "", "")


def _disk_shortages(
    model: ModelNeeds, shape: RunShape, config: Mapping[str, Any], machine: Machine
) -> Iterator[Shortage]:
    settings = config.get("checkpoint")
    keep = int(settings.get("keep") or 1) if isinstance(settings, Mapping) else 1
    one = model.trainable * (4 + (2 if shape.eight_bit else 8) + 4 * shape.averages)
    # The newest checkpoint is complete before an older one is removed.
    needed = one * (max(keep, 1) + 1)
    if needed > machine.disk:
        folder = config.get("runs", "runs")
        yield Shortage(
            "disk",
            f"{readable(needed)} for {max(keep, 1) + 1} checkpoints of {readable(one)}",
            f"{readable(machine.disk)} free under {folder}",
            "free space, or set runs: to a larger disk",
        )
