"""Decoded pixels to the size they have in a batch.

``pil`` is the reference. ``torch`` computes the same filter on the bytes with 16-bit weights, about five times as fast
on a processor with AVX2 or better. How far apart they are, in levels of 0..255:

* the whole picture, torch against PIL: 0.002 in the mean and 1 at most on the photographs that ship with scikit-image
  and scikit-learn, 0.006 and 2 on noise. Where the height shrinks far more than the width, newer versions of Pillow
  begin with the columns and torch does not: 0.2 and 5 on those photographs, 0.5 and 24 on noise;
* a cropped part, for which torch has no Lanczos kernel in all its versions and the bicubic one is used: 0.7 in the mean
  and 23 at most on those photographs.

Shape letters: h and w of the pixels that come in, H and W of the stored picture.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.data.decode import DecodedPicture
from lightning_gen.data.orientation import Box

__all__ = ["Crop", "Kernel", "Resampler", "resample"]

Kernel = Literal["bicubic", "lanczos"]
Resampler = Literal["pil", "torch"]


def resample(
    pixels: npt.NDArray[np.uint8],
    size: tuple[int, int],
    resampler: Resampler = "pil",
    box: Box | None = None,
    kernel: Kernel = "bicubic",
) -> Tensor:
    """Change the size of a picture, with antialiasing.

    Args:
        pixels: uint8, (h, w, 3).
        size: new height and width.
        resampler: which implementation.
        box: left, upper, right, lower of the part that is kept, in pixels, at least one pixel wide and tall; None = all
            of it. ``torch`` rounds the left upper corner to a whole pixel.
        kernel: the filter; ``torch`` knows the bicubic one only and uses it for both.

    Returns:
        uint8, (*size, 3), range 0..255; it may share the memory of ``pixels``.

    Raises:
        ValueError: an unknown resampler.
    """
    height, width = pixels.shape[:2]
    box = box or (0, 0, width, height)
    if box == (0, 0, width, height) and (height, width) == size:
        return torch.from_numpy(pixels)
    if resampler == "torch":
        return _by_torch(pixels, size, box)
    if resampler != "pil":
        raise ValueError(f"unknown resampler {resampler!r}: choose pil or torch")
    from PIL import Image

    method = Image.Resampling.BICUBIC if kernel == "bicubic" else Image.Resampling.LANCZOS
    return torch.from_numpy(np.array(Image.fromarray(pixels).resize(size[::-1], method, box)))


def _by_torch(pixels: npt.NDArray[np.uint8], size: tuple[int, int], box: Box) -> Tensor:
    left, top, right, bottom = box
    part = np.ascontiguousarray(pixels[round(top) : math.ceil(bottom), round(left) : math.ceil(right)])
    # In this order the strides are those of channels_last, for which torch has the fast path.
    planes = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
    # F.interpolate takes a size or scales, not both; with the scales a box may end inside a pixel.
    scales = size[0] / (bottom - top), size[1] / (right - left)
    resized: Tensor = torch.ops.aten._upsample_bicubic2d_aa(planes, size, False, *scales)
    return resized[0].permute(1, 2, 0).contiguous()


@dataclasses.dataclass(frozen=True)
class Crop:
    """What is done to one picture.

    Attributes:
        box: left, upper, right, lower of the part that is kept, in pixels of the stored picture; None = all of it.
        size: height and width the part is resampled to, None = whatever the budget says.
        flip: mirror left and right.
    """

    box: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None
    flip: bool = False

    def at_least(self, original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """The smallest size of the whole picture at which the part that is kept has as many pixels as it needs.

        Args:
            original: height H and width W of the stored picture.
            size: height and width the part is resampled to.

        Returns:
            Height and width.
        """
        if self.box is None:
            return size
        left, top, right, bottom = self.box
        return math.ceil(original[0] * size[0] / (bottom - top)), math.ceil(original[1] * size[1] / (right - left))

    def apply(self, picture: DecodedPicture, size: tuple[int, int], resampler: Resampler = "pil") -> Tensor:
        """Crop, resample (a part by Lanczos' kernel, the whole bicubically) and mirror.

        Args:
            picture: decoded in full or at a fraction of its size.
            size: height and width of the result.
            resampler: see :func:`resample`.

        Returns:
            uint8, (*size, 3), range 0..255.
        """
        kernel: Kernel = "bicubic" if self.box is None else "lanczos"
        resized = resample(picture.pixels, size, resampler, self._within(picture), kernel)
        return resized.flip(1) if self.flip else resized

    def _within(self, picture: DecodedPicture) -> Box:
        """The box in the pixels at hand, which may be fewer than the stored ones."""
        if self.box is None:
            return picture.extent
        (left, top, right, bottom), (height, width) = picture.extent, picture.original_size
        across, down = (right - left) / width, (bottom - top) / height
        box = self.box
        return left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down
