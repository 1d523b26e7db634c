"""Putting somebody else's weights into a network: all of them, or as many as fit, with a report either way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from .averages import read_weights
from .initialisation import copy_into, plain_name

__all__ = ["LoadReport", "load_matching", "read_training_state", "require_fit"]


_SHOWN = 5
"""Names in a message; a whole model would be hundreds."""


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a partial load.

    Attributes:
        loaded: names in the network that were filled.
        missing: names in the network that the weights do not have.
        ignored: names in the weights that were not used, with the reason where it is not that nobody asked for them.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]


def read_training_state(source: str) -> dict[str, Tensor] | None:
    """Read the raw weights of a training run.

    Args:
        source: path of a checkpoint file (``.ckpt``) or of a folder of shards.

    Returns:
        The module's state dict, or None where ``source`` is something else (a folder of safetensors, a hub id, a name).

    Raises:
        FileNotFoundError: ``source`` names a ``.ckpt`` file that does not exist.
        ValueError: the checkpoint is damaged or holds no weights.
    """
    path = Path(source)
    if path.suffix == ".ckpt" or path.is_file() or (path / ".metadata").is_file():
        return read_weights(path)
    return None


def load_matching(network: nn.Module, state: Mapping[str, Tensor], source: str, prefix: str = "") -> LoadReport:
    """Fill the tensors of a network whose name and shape fit, and report the rest.

    Args:
        network: materialised; may be sharded, every rank then gives the same ``state``.
        state: name -> whole tensor.
        source: where the weights come from, for messages.
        prefix: start of the names in ``state`` that stands for the network; without any such name, all names count.

    Returns:
        The report, which is also logged.

    Raises:
        ValueError: not a single tensor fits.
    """
    state = {plain_name(key): tensor for key, tensor in state.items()}
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    given = inside or dict(state)
    targets = _targets(network)
    loaded = [name for name, target in targets.items() if name in given and given[name].shape == target.shape]
    if not loaded:
        raise ValueError(f"no tensor of {source} fits {type(network).__name__}; it holds {_some(sorted(given))}")
    for name in loaded:
        copy_into(targets[name], given[name])
    ignored = [
        f"{name} ({tuple(tensor.shape)} for {tuple(targets[name].shape)})" if name in targets else name
        for name, tensor in sorted(given.items())
        if name not in set(loaded)
    ]
    ignored += sorted(key for key in state if inside and not key.startswith(prefix))
    report = LoadReport(tuple(loaded), tuple(name for name in targets if name not in given), tuple(ignored))
    rank_zero_info(
        f"{source}: {len(loaded)} tensors loaded; missing (left at their start): {_some(report.missing)}; "
        f"ignored: {_some(report.ignored)}"
    )
    return report


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{between.join(names[:_SHOWN])}{more}" if names else "none"


def require_fit(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not exactly those of a network.

    Args:
        network: may be on the meta device.
        state: name -> tensor.
        source: where the weights come from, for the message.

    Raises:
        ValueError: a tensor is missing, is unknown to the network or has another shape.
    """
    state = {plain_name(key): tensor for key, tensor in state.items()}
    targets = _targets(network)
    problems = [f"{name} is missing" for name in targets if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in targets]
    problems += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(target.shape)}"
        for name, target in targets.items()
        if name in state and state[name].shape != target.shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit {type(network).__name__}: {_some(problems, '; ')}")


def _targets(network: nn.Module) -> dict[str, Tensor]:
    tensors = [*network.named_parameters(), *network.named_buffers()]
    kept = {plain_name(name) for name in network.state_dict()}
    return {plain_name(name): tensor for name, tensor in tensors if plain_name(name) in kept}
