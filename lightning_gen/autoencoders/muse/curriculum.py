"""What the stages of the curriculum ask of optimisers and of the weights they start from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_gen.autoencoders.muse.network import MuseNetwork
from lightning_gen.autoencoders.muse.stages import Stage, locate_stage
from lightning_gen.training.initialisation import plain_name

__all__ = [
    "learning_rate_factors",
    "parameter_groups",
    "require_predecessor",
    "revive_stages",
    "trained_stage",
]

_UNDECAYED = ("ln", "bias", "norm", "gamma", "embedding")


def parameter_groups(
    network: MuseNetwork, weight_decay: float, learning_rate: float, encoder_learning_rate: float
) -> list[dict[str, Any]]:
    """Encoder and the rest, each with and without weight decay.

    Args:
        network: whose trainable parameters to group.
        weight_decay: of tensors with two or more dimensions whose names hold none of ln, bias, norm, gamma, embedding.
        learning_rate: of the rest.
        encoder_learning_rate: of the encoder.

    Returns:
        Up to four groups, each with a ``name``: ``encoder`` or ``rest``; empty ones are left out.

    Source: arXiv:2605.05646, optimiser of the published code.
    """
    groups: list[dict[str, Any]] = []
    for name, rate in (("encoder", encoder_learning_rate), ("rest", learning_rate)):
        members = [
            (plain_name(key), parameter)
            for key, parameter in network.named_parameters()
            if parameter.requires_grad and (key.startswith("encoder.")) == (name == "encoder")
        ]
        for decays in (True, False):
            chosen = [p for key, p in members if _decays(key, p) == decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay, "name": name})
    return groups


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not any(part in name for part in _UNDECAYED)


def learning_rate_factors(stages: Sequence[Stage], base: float, name: str) -> Callable[[int], float]:
    """What a scheduler multiplies a group's learning rate with.

    Args:
        stages: of the run.
        base: the group's learning rate.
        name: ``encoder``, ``rest`` or ``discriminator``.

    Returns:
        Steps taken -> factor.
    """

    def factor(taken: int) -> float:
        number, step = locate_stage(stages, taken)
        stage = stages[number]
        peak = {
            "encoder": stage.learning_rate * stage.encoder_learning_rate_factor,
            "rest": stage.learning_rate,
            "discriminator": stage.discriminator_learning_rate,
        }[name]
        return stage.factor(step) * peak / base

    return factor


def revive_stages(stages: Iterable[Stage | Mapping[str, Any]]) -> tuple[Stage, ...]:
    """Stages from the mappings that checkpoints hold.

    Args:
        stages: of a run.

    Returns:
        The stages.

    Raises:
        ValueError: there is none.
    """
    found = tuple(stage if isinstance(stage, Stage) else Stage(**stage) for stage in stages)
    if not found:
        raise ValueError("model.stages names the stages of the curriculum; there is none")
    return found


def require_predecessor(first: Stage, start: Literal["previous_stage", "anything"], source: str | None) -> None:
    """Refuse to start a stage on weights that the one before it did not make.

    Args:
        first: the run's first stage.
        start: ``anything`` asks for nothing.
        source: where the run's weights come from; None = nowhere.

    Raises:
        ValueError: the weights are missing, or those of another stage.
    """
    if start not in ("previous_stage", "anything"):
        raise ValueError(f"start is 'previous_stage' or 'anything', got {start!r}")
    if first.kind == 1 or start == "anything":
        return
    before = first.kind - 1
    advice = (
        f"set model.init_from to a checkpoint or an exported folder of stage {before}, or model.start to 'anything' to "
        "begin elsewhere"
    )
    if source is None:
        raise ValueError(f"stage {first.kind} continues the weights of stage {before}, and none are given: {advice}")
    found = trained_stage(source)
    if found is not None and found != before:
        raise ValueError(
            f"stage {first.kind} continues the weights of stage {before}, {source} is of stage {found}: {advice}"
        )


def trained_stage(source: str) -> int | None:
    """Which stage trained some weights.

    Args:
        source: checkpoint file or folder, or an exported folder.

    Returns:
        Its kind; None = it is not said, or there is nothing here.
    """
    path = Path(source)
    if path.is_dir() and (path / "config.json").is_file():
        stage = json.loads((path / "config.json").read_text(encoding="utf-8")).get("stage")
        return stage if isinstance(stage, int) else None
    if path.is_dir() and (path / "meta.pt").is_file():
        path = path / "meta.pt"
    if not path.is_file() or path.suffix not in (".ckpt", ".pt"):
        return None
    stage = torch.load(path, map_location="meta", weights_only=True, mmap=True).get("muse_stage")
    return stage if isinstance(stage, int) else None
