"""Networks of diffusers from a folder: safetensors only, complete, without touching the process's random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .weights import MissingWeightsError

__all__ = ["installed_diffusers", "load_diffusers_model"]


def installed_diffusers(purpose: str) -> Any:
    """The package diffusers.

    Args:
        purpose: what needs it, plural, for the message.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import diffusers
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{purpose} need the package diffusers: pip install diffusers") from None
    return diffusers


def load_diffusers_model(folder: Path, kind: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Read a network, on the CPU.

    Args:
        folder: ``config.json`` and ``diffusion_pytorch_model.safetensors``, whole or in shards.
        kind: its class, a ``ModelMixin`` of diffusers.
        dtype: of the weights; layers that diffusers keeps in float32 stay in it.

    Returns:
        The network.

    Raises:
        MissingWeightsError: weights and configuration do not fit each other.
    """
    options = {"local_files_only": True, "use_safetensors": True, "torch_dtype": dtype}
    try:
        # Weights are drawn before they are read: the process's own random numbers are none of its business.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model, report = kind.from_pretrained(str(folder), output_loading_info=True, **options)
    except Exception as error:  # whatever diffusers dislikes about the files
        reason = str(error).strip().splitlines() or [""]
        raise MissingWeightsError(
            f"the weights in {folder} do not fit its config.json ({type(error).__name__}: {reason[0][:200]}). Copy "
            "both files from one source"
        ) from None
    missing = sorted([*report["missing_keys"], *report["unexpected_keys"]])
    if missing:
        raise MissingWeightsError(
            f"the weights in {folder} do not fit its config.json: {len(missing)} tensors are missing or unknown, "
            f"such as {', '.join(missing[:3])}. Copy both files from one source"
        )
    loaded: nn.Module = model
    return loaded
