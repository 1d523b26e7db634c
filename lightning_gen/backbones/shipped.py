"""Small weights that come with the package, by name: in a source tree and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lightning_gen.backbones.weights import MissingWeightsError

__all__ = ["SHIPPED", "shipped_folder", "shipped_or_given"]

SHIPPED: Final = ("shapes_base", "shapes_encoder")
"""Names of the weights; each is a folder with ``config.json``, ``model.safetensors`` and its card."""

_PACKAGE: Final = Path(__file__).resolve().parent.parent


def shipped_folder(name: str) -> Path:
    """Where shipped weights lie: inside the package in a wheel, beside it in a source tree.

    Args:
        name: one of ``SHIPPED``.

    Returns:
        The folder.

    Raises:
        MissingWeightsError: no such weights, or this installation lacks their files.
    """
    if name not in SHIPPED:
        raise MissingWeightsError(f"no weights named {name!r} come with this package: choose one of {_names()}")
    places = (_PACKAGE / "_data" / name, _PACKAGE.parent / "data" / name)
    for folder in places:
        if (folder / "model.safetensors").is_file():
            return folder
    raise MissingWeightsError(
        f"the weights {name} are not in this installation (no model.safetensors in {places[0]} or {places[1]}): "
        "install the package again, or make them as their card data/"
        f"{name}/README.md says and give their folder"
    )


def shipped_or_given(source: str | Path) -> str:
    """Turn the name of shipped weights into their folder; every other source stays as it is.

    Args:
        source: one of ``SHIPPED``, a folder, or a hub id. A folder of the same name is written ``./name``.

    Returns:
        A folder or a hub id, for ``fetch_weights``.

    Raises:
        MissingWeightsError: shipped weights whose files this installation lacks.
    """
    return str(shipped_folder(str(source))) if str(source) in SHIPPED else str(source)


def _names() -> str:
    return ", ".join(SHIPPED)
