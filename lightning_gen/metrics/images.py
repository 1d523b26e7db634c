"""What every metric of pictures accepts: 8-bit RGB, as a batch of one size or as a list of any sizes.

Published numbers are computed from stored pictures, so rounding to 8 bits belongs to the protocol. It happens once, by
a converter that is named, and never as a silent cast.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Images", "as_uint8_list", "check_uint8"]

Images = Tensor | Sequence[Tensor]
"""uint8, (B, 3, H, W), or B tensors (3, H, W) of any sizes."""


def check_uint8(images: Images, what: str = "images") -> None:
    """Refuse everything that is not 8-bit RGB.

    Args:
        images: uint8, (B, 3, H, W) or B tensors (3, H, W) of any sizes.
        what: what the pictures are called in the message.

    Raises:
        ValueError: another dtype, another number of channels or dimensions, or an empty picture; says how to convert.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"{what}: shape {tuple(images.shape)}, expected (B, 3, H, W)")
        _check_picture(images.dtype, tuple(images.shape[1:]), what)
        return
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
        raise ValueError(f"{what}: a {type(images).__name__}, expected a uint8 tensor or a list of them")
    for index, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise ValueError(f"{what}[{index}]: a {type(image).__name__}, expected a uint8 tensor of shape (3, H, W)")
        _check_picture(image.dtype, tuple(image.shape), f"{what}[{index}]")


def as_uint8_list(images: Images, what: str = "images") -> list[Tensor]:
    """The pictures one by one.

    Args:
        images: uint8, (B, 3, H, W) or B tensors (3, H, W) of any sizes.
        what: what the pictures are called in a message.

    Returns:
        B uint8 tensors (3, H, W); views, nothing is copied.

    Raises:
        ValueError: as :func:`check_uint8`.
    """
    check_uint8(images, what)
    return list(images)


def _check_picture(dtype: torch.dtype, shape: tuple[int, ...], what: str) -> None:
    if dtype != torch.uint8:
        raise ValueError(
            f"{what}: {dtype}, but metrics see 8-bit pictures, because the rounding is part of the number. Convert "
            f"with lightning_gen.data.transforms: signed_to_uint8 for [-1, 1], unit_to_uint8 for [0, 1]"
        )
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(
            f"{what}: shape {shape} of a picture, expected (3, H, W): RGB, channels first. Repeat a grey channel "
            f"three times, drop or composite an alpha channel"
        )
    if 0 in shape:
        raise ValueError(f"{what}: a picture of shape {shape} has no pixels")
