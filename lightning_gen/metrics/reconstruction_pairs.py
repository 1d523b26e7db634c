"""Reconstructions and originals as they are compared: one shape, float64, in [-1, 1], on request at levels of 8 bits.

Shape letters: B images, C channels, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

__all__ = ["Images", "Quantise", "check_target_range", "comparable"]

Images = Tensor | Sequence[Tensor]

Quantise = bool | Literal["truncate_originals"]
"""Whether 8-bit values are compared: no, yes (both sides rounded), or reconstructions rounded and originals cut off.

The last is what the published evaluation of MUSE does. It differs from True only where originals are not whole levels,
for instance because they were resized after decoding.
"""

_LEVEL_SLACK: Final = 1e-3
_TARGET_SLACK: Final = 1e-2


def comparable(prediction: Images, target: Images, quantise: Quantise = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Both sides as they are compared: in float64, inside [-1, 1], on request at whole levels of 8 bits.

    Args:
        prediction: reconstructions y, float, (B, C, H, W) or B images (C, H, W) of any sizes, range [-1, 1]; clamped.
        target: originals x of the same sizes, range [-1, 1].
        quantise: compare 8-bit values; see ``Quantise``.

    Yields:
        The batch as it is, or batches of one image; (y, x), float64. An infinite value of a reconstruction is NaN: what
        clamping would make of it looks like a pixel.

    Raises:
        ValueError: numbers or sizes of images differ, or an original leaves [-1, 1] by more than a hundredth.
    """
    if isinstance(prediction, Tensor) and isinstance(target, Tensor):
        yield _exact(prediction, target, quantise)
    else:
        for y, x in _one_by_one(prediction, target):
            yield _exact(y, x, quantise)


def check_target_range(target: Tensor) -> None:
    """Refuse originals that are not in [-1, 1]; the device is waited for once.

    Args:
        target: float, any shape. NaN passes: it shows in the value.

    Raises:
        ValueError: a value lies outside by more than a hundredth; names the converters.
    """
    if bool((target.detach().abs() > 1 + _TARGET_SLACK).any()):
        raise ValueError(
            f"an original has pixels as far from 0 as {float(target.detach().abs().nan_to_num().max()):.4g}, expected "
            "[-1, 1]. Convert with lightning_gen.data.transforms: uint8_to_signed for 0..255, unit_to_signed for [0, 1]"
        )


def _one_by_one(prediction: Images, target: Images) -> list[tuple[Tensor, Tensor]]:
    if len(prediction) != len(target):
        raise ValueError(f"{len(prediction)} reconstructions, {len(target)} originals")
    if len(prediction) == 0:
        raise ValueError("no images to compare")
    return [(y[None], x[None]) for y, x in zip(prediction, target, strict=True)]


def _exact(prediction: Tensor, target: Tensor, quantise: Quantise) -> tuple[Tensor, Tensor]:
    if prediction.shape != target.shape or prediction.ndim != 4:
        raise ValueError(
            f"need reconstructions and originals of one shape (B, C, H, W), or lists of (C, H, W); got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if not (prediction.is_floating_point() and target.is_floating_point()):
        raise ValueError(f"need float images in [-1, 1], got {prediction.dtype} and {target.dtype}")
    check_target_range(target)
    y, x = (images.detach().double().clamp(-1, 1) for images in (prediction, target))
    y = torch.where(prediction.isfinite(), y, math.nan)
    if not quantise:
        return y, x
    if quantise not in (True, "truncate_originals"):
        raise ValueError(f"quantise must be False, True or 'truncate_originals', got {quantise!r}")
    y_levels, x_levels = (255 * (images + 1) / 2 for images in (y, x))
    # A stored level k comes back from float32 as k minus a millionth, which must not become k - 1.
    x_levels = x_levels.round() if quantise is True else (x_levels + _LEVEL_SLACK).floor()
    return y_levels.round() * (2 / 255) - 1, x_levels * (2 / 255) - 1
