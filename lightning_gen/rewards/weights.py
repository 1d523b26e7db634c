"""Whether what rewards read is on this machine, and how large it is: asked before a run begins, nothing is fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lightning_gen.backbones.weights import find_weights, stored_shapes
from lightning_gen.metrics.extraction.clip import find_clip
from lightning_gen.training.needs import ModelNeeds, WeightNeed

__all__ = ["needs_of_clip", "needs_of_file", "needs_of_network"]

_REMEDY: Final = "Give a local folder, or fetch it from the hub (--preflight false)"


def needs_of_network(what: str, source: str) -> ModelNeeds:
    """Look for a network in the layout of transformers.

    Args:
        what: what it is, for people.
        source: folder or hub id.

    Returns:
        Its parameters in float32, and whether it is here.
    """
    folder, problem = find_weights(source)
    return _needs(what, source, [] if folder is None else sorted(folder.glob("model*.safetensors")), problem)


def needs_of_clip(what: str, source: str, model: str | None = None, processor: str | None = None) -> ModelNeeds:
    """Look for a CLIP.

    Args:
        what: what it is for, for people.
        source: of ``load_clip``.
        model: likewise.
        processor: likewise.

    Returns:
        Its parameters in float32, and whether it is here.
    """
    return _needs(what, source, *find_clip(source, model, processor))


def needs_of_file(what: str, path: str) -> ModelNeeds:
    """Look for a small file.

    Args:
        what: what it holds, for people.
        path: where it should be.

    Returns:
        Whether it is here; its size is not counted.
    """
    found = Path(path).expanduser().is_file()
    return ModelNeeds(0, weights=(WeightNeed(what, path, found, "" if found else f"there is no file {path}"),))


def _needs(what: str, source: str, files: Sequence[Path], problem: str) -> ModelNeeds:
    need = WeightNeed(what, source, bool(files), "" if files else f"{problem}. {_REMEDY}")
    # Torch files have no header that tells sizes.
    shapes = stored_shapes([file for file in files if file.suffix == ".safetensors"])
    total = sum(math.prod(shape) for shape in shapes.values())
    return ModelNeeds(0, total, weights=(need,), frozen_bytes=4 * total)
