"""What the parsers of several verbs share."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Examples", "add_workers", "device_of"]


class Examples(argparse.RawDescriptionHelpFormatter):
    """Help whose examples keep their lines."""


def add_workers(parser: argparse._ActionsContainer, option: str = "--workers", what: str = "processes") -> None:
    """Add the option for the number of processes.

    Args:
        parser: of the verb, or a group of it.
        option: its name.
        what: what there will be so many of.
    """
    parser.add_argument(option, type=_count, default=0, metavar="N", help=f"{what}; 0 = this one alone (0)")


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


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: give 0 (this one alone) or more")
    return int(text)
