"""What the parsers of several verbs share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Examples", "device_of"]


class Examples(argparse.RawDescriptionHelpFormatter):
    """Help whose examples keep their lines."""


def device_of(name: str, apple: bool) -> torch.device:
    """The device that is meant.

    Args:
        name: of the device; ``auto`` = the fastest one.
        apple: whether ``auto`` may be Apple's GPU, which lacks float64.

    Returns:
        It.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name == "auto":
        mps = apple and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device
