"""Reading weights, raw or averaged, out of a checkpoint: one file or a folder of shards.

Only the tensors that are asked for are read, in one process, whatever number of processes wrote them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .safe_reading import load_plain, require_harmless

__all__ = ["AVERAGES", "average_key", "read_weights"]

AVERAGES = "ema"
"""Top-level key of a checkpoint that holds the averages."""


def average_key(decay: float, name: str) -> str:
    """Where a checkpoint keeps the average of one parameter.

    Args:
        decay: the average's decay.
        name: the parameter's name.

    Returns:
        The key under :data:`AVERAGES`.
    """
    return f"{decay!r}/{name}"


def read_weights(path: str | os.PathLike[str], average: bool | float = False) -> dict[str, Tensor]:
    """Read a model's state dict from a Lightning checkpoint.

    Args:
        path: a ``.ckpt`` file, or a folder written by a sharded strategy.
        average: False = the weights as they were trained; a decay = the average with that decay; True = the only
            average there is. What is not averaged (buffers, frozen parameters) comes from the state dict.

    Returns:
        Name -> tensor on the CPU.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is no Lightning checkpoint, or the average is not in it or not unique.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.is_dir():
        return _read_folder(path, average)
    checkpoint = load_plain(path)
    if "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no Lightning checkpoint: it has no state_dict, only {sorted(checkpoint)[:5]}")
    averages: Mapping[str, Tensor] = checkpoint.get(AVERAGES, {})
    return _merge(checkpoint["state_dict"], averages, _prefix(averages, average, path))


def _read_folder(path: Path, average: bool | float) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    if not (path / ".metadata").is_file():
        raise ValueError(f"{path} is no folder of shards: it has no .metadata file (was the run killed while writing?)")
    require_harmless(path)
    stored = {
        key: entry
        for key, entry in FileSystemReader(path).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    names = [key.removeprefix(f"{AVERAGES}.") for key in stored if key.startswith(f"{AVERAGES}.")]
    prefix = _prefix(names, average, path)
    wanted = {key for key in stored if key.startswith("state_dict.")}
    if prefix is not None:
        wanted |= {f"{AVERAGES}.{name}" for name in names if name.startswith(prefix)}
    tree: dict[str, dict[str, Tensor]] = {"state_dict": {}, AVERAGES: {}}
    for key in wanted:
        top, name = key.split(".", 1)
        tree[top][name] = torch.empty(stored[key].size, dtype=stored[key].properties.dtype)
    if not tree["state_dict"]:
        raise ValueError(f"{path} holds no weights: no entry of its metadata is under state_dict")
    load({top: part for top, part in tree.items() if part}, checkpoint_id=path)
    return _merge(tree["state_dict"], tree[AVERAGES], prefix)


def _prefix(names: Iterable[str], average: bool | float, path: Path) -> str | None:
    """Start of the keys of the average that is asked for; None = no average."""
    if average is False:
        return None
    known = sorted({name.split("/", 1)[0] for name in names})
    wanted = known if average is True else [repr(float(average))]
    if len(wanted) != 1 or wanted[0] not in known:
        there = f"averages with decay {', '.join(known)}" if known else "no averages"
        asked = "which one is not said" if average is True else f"{average} is not among them"
        raise ValueError(f"{path} holds {there}: {asked}")
    return f"{wanted[0]}/"


def _merge(state: Mapping[str, Tensor], averages: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    merged = dict(state)
    if prefix is not None:
        for key, value in averages.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                merged[name] = value.to(merged[name].dtype)
    return merged
