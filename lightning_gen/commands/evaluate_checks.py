"""What can be refused about an evaluation before any picture is read, so that a list of them ends before its first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .evaluate_options import is_class_path
from .options import device_of

__all__ = ["check_ahead"]

_PLACES: Final = (
    "samples",
    "images",
    "originals",
    "reconstructions",
    "reference",
    "against",
    "prompts",
    "metadata",
    "cases",
    "lpips",
)
_CLASSES: Final = ("extractor", "detector", "scorer", "judge", "model")


def check_ahead(options: argparse.Namespace, made_before: Sequence[Path]) -> None:
    """Refuse what can be known to fail: missing files, unknown names, a device that is not there.

    Args:
        options: of one evaluation; ``check`` among them is what its verb can say at once.
        made_before: what earlier evaluations of the list write; it need not be there yet.

    Raises:
        ValueError: something would fail; says which option.
        FileNotFoundError: something that is to be read is missing.
    """
    from lightning_gen.training.classes import class_named

    given = vars(options)
    for option in _CLASSES:
        value = given.get(option)
        name = value[0] if isinstance(value, list) else value
        if name is not None and is_class_path(name):
            class_named(name, f"--{option}")
    if "device" in given:
        device_of(options.device, apple=False)
    if "check" in given:
        options.check(options)
    read = [option for option in _PLACES if given.get(option) is not None]
    if given.get("extractor") == "inception" and options.weights is not None:
        # The weights of other networks may be the name of a repository.
        read.append("weights")
    for option in read:
        where = given[option]
        if any(mark in where for mark in ("{", "#", "|", "://")):
            continue  # a pattern or an address: what is behind it shows at its turn
        path = Path(where).expanduser()
        if not path.exists() and not _is_made(path, made_before):
            raise FileNotFoundError(f"there is no file or folder {where}, which --{option} names")


def _is_made(path: Path, made_before: Sequence[Path]) -> bool:
    places = (path.absolute(), *path.absolute().parents)
    return any(made.absolute() in places for made in made_before)
