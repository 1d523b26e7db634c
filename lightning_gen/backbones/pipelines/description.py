"""The networks of a pipeline folder as its config files describe them, on the meta device: counted, never filled."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_gen.backbones.weights import MissingWeightsError, read_config

__all__ = ["described_networks"]

# Part of a library -> the ground of its networks. Nothing else that an index names is touched.
_GROUNDS = {"diffusers": "ModelMixin", "transformers": "PreTrainedModel"}


def described_networks(folder: Path) -> dict[str, nn.Module]:
    """Build every network that a pipeline has a ``config.json`` of; weights need not be there.

    Args:
        folder: of a pipeline, with its ``model_index.json``.

    Returns:
        Name of the part (``transformer``, ``vae``, ``text_encoder``, ...) -> network on the meta device.

    Raises:
        MissingWeightsError: a file is no JSON, or describes something that the installed libraries do not have.
    """
    found = {}
    for part, entry in read_config(folder, "model_index.json").items():
        is_named = isinstance(entry, list) and len(entry) == 2 and entry[0] in _GROUNDS
        if is_named and (folder / part / "config.json").is_file():
            network = _described(folder / part, *entry)
            if network is not None:
                found[part] = network
    return found


def _described(folder: Path, library: str, name: Any) -> nn.Module | None:
    """The network of one part; None for schedulers and tokenizers."""
    module = importlib.import_module(library)
    kind: Any = getattr(module, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not isinstance(kind, type) or not issubclass(kind, getattr(module, _GROUNDS[library])):
        return None
    described: Any = kind
    try:
        with torch.device("meta"):
            if library == "diffusers":
                network: nn.Module = described.from_config(read_config(folder))
            else:
                network = described(described.config_class.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # whatever the libraries dislike about the file
        reason = str(error).strip().splitlines() or [""]
        raise MissingWeightsError(
            f"{folder / 'config.json'} does not describe a {name} ({type(error).__name__}: {reason[0][:200]}): copy it "
            "again from its source"
        ) from None
    return network
