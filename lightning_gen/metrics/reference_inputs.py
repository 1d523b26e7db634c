"""What reference statistics are made from, checked before it becomes a number: foreign arrays, batches of a DataModule.

Shape letters: N pictures, D features, H and W height and width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import Tensor

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.metrics.frechet import Gaussian
from lightning_gen.metrics.reconstruction_pairs import check_target_range
from lightning_gen.nn.tokens import Tokens, unpatchify

__all__ = ["card_of", "checked_gaussian", "pictures_of", "real_numbers"]

Array = npt.NDArray[Any]


def pictures_of(batches: Iterable[ImageBatch]) -> Iterable[list[Tensor]]:
    """8-bit pictures of batches: those that are valid, each index once.

    Args:
        batches: with pixels in [-1, 1], as patch vectors of any sizes or (B, 3, H, W).

    Yields:
        The pictures of one batch that count, uint8 (3, H, W).

    Raises:
        ValueError: latents instead of pixels, or pixels outside [-1, 1].
    """
    seen: set[int] = set()
    for batch in batches:
        images = unpatchify(batch.images) if isinstance(batch.images, Tokens) else list(batch.images)
        chosen = []
        for image, is_valid, number in zip(images, batch.valid.tolist(), batch.index.tolist(), strict=True):
            if not is_valid or number in seen:
                continue
            if image.shape[0] != 3 or not image.is_floating_point():
                raise ValueError(
                    f"a batch holds {image.dtype} {tuple(image.shape)}, expected RGB pixels (3, H, W) in [-1, 1]: "
                    "latents have no features. Give the loader of pictures"
                )
            check_target_range(image)
            seen.add(number)
            chosen.append(signed_to_uint8(image))
        yield chosen


def checked_gaussian(
    where: str | Path, keys: tuple[str, str], mean: Tensor, covariance: Tensor, count: int | None
) -> Gaussian:
    """Moments of a file.

    Args:
        where: the file, for messages.
        keys: names of both arrays in it.
        mean: float64, (D,).
        covariance: float64, (D, D).
        count: N; None = not known.

    Returns:
        Both.

    Raises:
        ValueError: they are no moments, see :class:`Gaussian`; names the file and the arrays.
    """
    try:
        return Gaussian(mean, covariance, count)
    except ValueError as error:
        raise ValueError(f"{where}: {error} (arrays {keys[0]} and {keys[1]})") from None


def real_numbers(path: str | Path, key: str, array: Array, dimensions: int | None = None) -> Array:
    """An array of a foreign file, if it holds real numbers.

    Args:
        path: the file, for messages.
        key: name of the array in it.
        array: as it was read.
        dimensions: how many it must have; None = any.

    Returns:
        The array in a type that torch knows: at most 64 bits, bytes in the order of this machine.

    Raises:
        DataError: text, truth values, complex numbers, dates, or another number of dimensions.
    """
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: {key} is {array.dtype}, expected real numbers")
    if dimensions is not None and array.ndim != dimensions:
        raise DataError(f"{path}: {key} has shape {array.shape}, expected {dimensions} dimensions")
    return array.astype(array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else float, copy=False)


def card_of(path: str | Path, array: Array) -> dict[str, Any]:
    """The card of a file of ours.

    Args:
        path: the file, for messages.
        array: its array ``card``.

    Returns:
        The card.

    Raises:
        DataError: the array is something else.
    """
    try:
        card = json.loads(str(array))
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise DataError(f"{path}: the array card is no card of this package: remove it, or write the file again")
    return card
