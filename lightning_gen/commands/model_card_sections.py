"""What a card says about any model: what it is, how it was trained, what its run measured and drew, its licence.

To say more, write a function from ``Exported`` to ``Section | None`` in a file of its own and name it in ``SECTIONS``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from lightning_gen import __version__

from .model_card import Exported, Section, SectionMaker
from .model_card_manifold import manifold

__all__ = ["SECTIONS", "licence", "measured", "routing", "settings", "training", "what_it_is"]

_TRAINER: Final = ("accelerator", "strategy", "devices", "num_nodes", "precision")


def what_it_is(exported: Exported) -> Section:
    """The model's class, its size, and how to read it again.

    Args:
        exported: what the card is about.

    Returns:
        The section.
    """
    kind = type(exported.model)
    # Not inspect.getdoc, which would tell what a LightningModule is.
    first = " ".join((kind.__doc__ or "").strip().partition("\n\n")[0].split())
    count = sum(parameter.numel() for parameter in exported.model.parameters())
    lines = [first, f"`{kind.__module__}.{kind.__qualname__}`, {count:,} parameters in training."]
    lines.append(f"The weights are the {_weights(exported)}{f', in {exported.dtype}' if exported.dtype else ''}.")
    if hasattr(kind, "from_pretrained") and hasattr(kind, "save_pretrained"):
        lines.append(
            f"```python\nfrom {kind.__module__} import {kind.__qualname__}\n\n"
            f'model = {kind.__qualname__}.from_pretrained("path/to/{exported.output.resolve().name}")\n```'
        )
    return Section("What it is", "\n\n".join(line for line in lines if line))


def _weights(exported: Exported) -> str:
    average, _, decay = exported.weights.partition(" ")
    return "raw ones of the last step" if average == "raw" else f"moving average of decay {decay}"


def training(exported: Exported) -> Section:
    """How long, on how many samples, on what.

    Args:
        exported: what the card is about.

    Returns:
        The section.
    """
    facts: dict[str, object] = {"optimiser steps": f"{exported.step:,}"}
    if (samples := _samples(exported.state)) is not None:
        facts["samples"] = f"{samples:,}"
    config = _config(exported)
    if data := _mapping(config.get("data")).get("class_path"):
        facts["data"] = f"`{data}`"
    facts |= {name: value for name in _TRAINER if (value := _mapping(config.get("trainer")).get(name)) is not None}
    if config.get("seed_everything") is not None:
        facts["seed"] = config["seed_everything"]
    facts["written by"] = f"lightning-gen {__version__}"
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    return Section("Training", "\n".join(["| | |", "| --- | --- |", *rows]))


def _samples(state: Mapping[str, Any]) -> int | None:
    """Training samples over all ranks, as the DataModules of this package count them."""
    for part in state.values():
        position = _mapping(_mapping(part).get("position"))
        if "samples_seen_global" in position:
            return int(position["samples_seen_global"]) + int(position.get("first_sample", 0))
    return None


def measured(exported: Exported) -> Section | None:
    """The last number of everything that validation and test logged before these weights were saved.

    Args:
        exported: what the card is about.

    Returns:
        The section, or None where the run logged nothing of the kind.
    """
    log = None if exported.run is None else exported.run / "metrics.csv"
    if log is None or not log.is_file():
        return None
    last: dict[str, tuple[float, int]] = {}
    with log.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = int(float(row.get("step") or 0))
            found = {name: value for name, value in row.items() if name and name.split("/")[0] in ("val", "test")}
            if step <= exported.step:
                last |= {name: (float(value), step) for name, value in found.items() if value}
    if not last:
        return None
    rows = [f"| {name} | {value:.4g} | {step:,} |" for name, (value, step) in sorted(last.items())]
    text = "By the run's own log; where an average of the weights is kept, validation looks at that."
    return Section("Measured", "\n".join([text, "", "| | value | step |", "| --- | --- | --- |", *rows]))


def routing(exported: Exported) -> Section | None:
    """The newest picture of ``GradientRouting`` that is not younger than the weights.

    Args:
        exported: what the card is about.

    Returns:
        The section, or None where the run has no such picture.
    """
    folder = None if exported.run is None else exported.run / "routing"
    pictures = {} if folder is None else {_step(path): path for path in folder.glob("step_*.png")}
    steps = [step for step in pictures if 0 <= step <= exported.step]
    if not steps:
        return None
    step = max(steps)
    text = (
        f"![gradients at step {step}](card/routing.png)\n\n"
        f"Which loss reaches which parameters, at step {step:,}: length of its gradient on every group (white = does "
        "not arrive), and cosines between losses, over the parameters that both reach (`cos_shared`) and over all of "
        "them (`cos_full`)."
    )
    return Section("Gradients", text, {"routing.png": pictures[step]})


def _step(path: Path) -> int:
    number = path.stem.removeprefix("step_")
    return int(number) if number.isdecimal() else -1


def settings(exported: Exported) -> Section | None:
    """The values that decide what the weights mean.

    Args:
        exported: what the card is about.

    Returns:
        The section, or None where the checkpoint does not hold them.
    """
    hyper = _mapping(exported.state.get("hyper_parameters"))
    values = _plain({key: value for key, value in hyper.items() if not key.startswith("_")})
    if not values:
        return None
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return Section("Settings", f"```yaml\n{text}```")


def licence(exported: Exported) -> Section:
    """What may be done with it.

    Args:
        exported: not used: what a model was made of, its files do not say.

    Returns:
        The section.
    """
    del exported
    return Section(
        "Licence",
        "What the package lightning-gen made is under its licence, Apache-2.0. Weights that training started from, "
        "frozen networks that it learned from and its data come with licences of their own, which go on to hold.",
    )


SECTIONS: Final[tuple[SectionMaker, ...]] = (what_it_is, training, measured, manifold, routing, settings, licence)
"""In the order in which a card shows them."""


def _config(exported: Exported) -> Mapping[str, Any]:
    path = None if exported.run is None else exported.run / "config.yaml"
    if path is None or not path.is_file():
        return {}
    return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _plain(value: Any) -> Any:
    """What YAML can write; anything else by its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
