"""Pixels: the three number ranges of the house, the token budget, and the random crop and flip.

Batches are float RGB in [-1, 1], rewards see [0, 1], metrics see uint8; every conversion between them is here.
Shape letters: H height and W width in pixels, p patch edge, N token budget, G images.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.data.resampling import Crop
from lightning_gen.training.randomness import uniform

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Augmentation",
    "BudgetRule",
    "from_picture",
    "resize_to_budget",
    "signed_to_uint8",
    "signed_to_unit",
    "token_count",
    "uint8_to_signed",
    "uint8_to_unit",
    "unit_to_signed",
    "unit_to_uint8",
]

BudgetRule = Literal["isotropic", "vitok_release"]

_LEVELS_FROM = 16.0
"""Pixels that are never negative and reach beyond this are levels of 0..255, not an overshoot of [-1, 1] or [0, 1]."""

_ATTEMPTS = 10
_DRAWS = 2 + 4 * _ATTEMPTS


def signed_to_unit(pixels: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]; what lies outside is clamped.

    Args:
        pixels: float, any shape.

    Returns:
        float of the same shape, range [0, 1].
    """
    return ((pixels + 1) / 2).clamp(0, 1)


def unit_to_signed(pixels: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], 0.5 becomes mid grey 0.

    Args:
        pixels: float, any shape, range [0, 1].

    Returns:
        float of the same shape, range [-1, 1].
    """
    return pixels * 2 - 1


def signed_to_uint8(pixels: Tensor) -> Tensor:
    """[-1, 1] -> 0..255 by round(255 (x + 1) / 2); what lies outside is clamped, since a network overshoots.

    Args:
        pixels: float, any shape.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: a value is NaN or infinite, which no pixel shows, or the values are levels of 0..255 already.

    Source: arXiv:2605.05331, inference.
    """
    _check_convertible(pixels, "signed_to_uint8", "[-1, 1]")
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def uint8_to_signed(pixels: Tensor, inside: Tensor | float = 1.0) -> Tensor:
    """0..255 -> [-1, 1] by x / 127.5 - 1; the inverse of :func:`signed_to_uint8`, and the same bits on every device.

    Args:
        pixels: uint8, any shape.
        inside: float32 that broadcasts to this shape, 1 = a pixel, 0 = what fills up around a picture: its bytes are 0,
            and x / 127.5 - 0 makes them mid grey, which no byte is.

    Returns:
        float32 of the same shape.
    """
    # A GPU multiplies by the reciprocal of a plain number, which moves the last bit of 111 of the 256 levels; it
    # divides by a tensor.
    white = torch.full((), 127.5, device=pixels.device)
    return pixels.to(torch.float32, copy=True).div_(white).sub_(inside)


def unit_to_uint8(pixels: Tensor) -> Tensor:
    """[0, 1] -> 0..255 by rounding; what lies outside is clamped, since a network overshoots.

    Args:
        pixels: float, any shape.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: a value is NaN or infinite, which no pixel shows, or the values are levels of 0..255 already.
    """
    _check_convertible(pixels, "unit_to_uint8", "[0, 1]")
    return (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8)


def uint8_to_unit(pixels: Tensor) -> Tensor:
    """0..255 -> [0, 1]; the inverse of :func:`unit_to_uint8`.

    Args:
        pixels: uint8, any shape.

    Returns:
        float32 of the same shape.
    """
    return pixels.float() / 255


def from_picture(picture: Image.Image) -> Tensor:
    """An RGB picture as the house's pixels.

    Args:
        picture: mode RGB.

    Returns:
        float32, (3, H, W), range [-1, 1].
    """
    array = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return uint8_to_signed(array).permute(2, 0, 1).contiguous()


def token_count(size: tuple[int, int], patch: int) -> int:
    """Tokens of a picture: ceil(H / p) ceil(W / p).

    Args:
        size: height and width in pixels.
        patch: patch edge p.

    Returns:
        Number of tokens.
    """
    return -(-size[0] // patch) * -(-size[1] // patch)


def resize_to_budget(size: tuple[int, int], patch: int, tokens: int, rule: BudgetRule = "isotropic") -> tuple[int, int]:
    """The size a picture is resized to so that it needs at most N tokens.

    A picture inside the budget keeps its size (it is padded to the patch multiple later); nothing is ever enlarged.

    * ``isotropic``: bisection on one scale s for the largest grid ceil(s H / p) ceil(s W / p) <= N, the size is the
      grid times p, as timm's ``get_image_size_for_seq`` does it. Never over budget.
    * ``vitok_release``: s = sqrt(N / (h_p w_p)), grid floor(h_p s + 1e-5) x floor(w_p s + 1e-5) but at least 1. Wastes
      some budget, and for extreme aspect ratios it needs more tokens than there are; that is an error here.

    Args:
        size: height and width in pixels, >= 1.
        patch: patch edge p in pixels.
        tokens: budget N, >= 1.
        rule: which of the two.

    Returns:
        New height and width.

    Raises:
        ValueError: a number below 1, an unknown rule, or ``vitok_release`` broke the budget.

    Source: arXiv:2605.05331, native resolution; deviates: bisection by default.
    """
    height, width = size
    if min(height, width, patch, tokens) < 1:
        raise ValueError(f"size {size}, patch {patch} and tokens {tokens} must all be at least 1")
    if token_count(size, patch) <= tokens:
        return size
    if rule == "isotropic":
        grid = _bisected_grid(size, patch, tokens)
    elif rule == "vitok_release":
        grid = _release_grid(size, patch, tokens)
    else:
        raise ValueError(f"unknown budget rule {rule!r}: choose isotropic or vitok_release")
    return min(height, grid[0] * patch), min(width, grid[1] * patch)


def _check_convertible(pixels: Tensor, converter: str, span: str) -> None:
    """Refuse what clamping would turn into a plausible picture. One pass over the pixels; the GPU is waited for once.

    A network that overshoots does so at both ends; levels of 0..255 have no negative value and leave the range far
    behind.
    """
    if pixels.numel() == 0:
        return
    lowest, highest = torch.stack(torch.aminmax(pixels)).float().tolist()
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError(f"{converter}: a pixel is NaN or infinite: look at the network that made the picture")
    if lowest >= 0 and highest > _LEVELS_FROM:
        raise ValueError(
            f"{converter}: pixels from {lowest:.4g} to {highest:.4g}, expected {span}. These look like levels of "
            "0..255: make them uint8 with pixels.round().to(torch.uint8)"
        )


@functools.lru_cache(maxsize=4096)  # pictures of one size are common, and a worker asks once per picture
def _bisected_grid(size: tuple[int, int], patch: int, tokens: int) -> tuple[int, int]:
    def grid(scale: float) -> tuple[int, int]:
        return max(1, math.ceil(size[0] * scale / patch)), max(1, math.ceil(size[1] * scale / patch))

    # timm's bounds and its stopping rule, so that both agree to the pixel.
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, columns = grid(middle)
        low, high = (middle, high) if rows * columns <= tokens else (low, middle)
    found = grid(low)
    if found[0] * found[1] > tokens:
        # Only for sides beyond a million patches: the lower bound itself is over budget.
        return (1, min(found[1], tokens)) if found[1] >= found[0] else (min(found[0], tokens), 1)
    return found


def _release_grid(size: tuple[int, int], patch: int, tokens: int) -> tuple[int, int]:
    rows, columns = -(-size[0] // patch), -(-size[1] // patch)
    scale = math.sqrt(tokens / (rows * columns))
    grid = max(1, math.floor(rows * scale + 1e-5)), max(1, math.floor(columns * scale + 1e-5))
    if grid[0] * grid[1] > tokens:
        raise ValueError(
            f"budget rule vitok_release turns {size[0]} x {size[1]} pixels into {grid[0]} x {grid[1]} = "
            f"{grid[0] * grid[1]} tokens, over the budget of {tokens}: a known defect of that rule for extreme aspect "
            "ratios. Use budget_rule: isotropic"
        )
    return grid


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """ViTok's augmentation: now and then a random resized crop, every second time a mirror image.

    The draws of a sample are a function of (seed, pass, sample) alone, so workers, ranks and a resume change nothing.

    Attributes:
        crop_probability: chance of a crop that is resampled to a square.
        flip_probability: chance of a mirror image.
        scale: smallest and largest share of the area that a crop keeps, in (0, 1].
        ratio: smallest and largest width / height of a crop.

    Raises:
        ValueError: a probability outside [0, 1], or a range that is empty or not positive.

    Source: arXiv:2605.05331, training preprocessing; deviates: a crop smaller than the square is not enlarged.
    """

    crop_probability: float = 0.25
    flip_probability: float = 0.5
    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)

    def __post_init__(self) -> None:
        if not (0 <= self.crop_probability <= 1 and 0 <= self.flip_probability <= 1):
            raise ValueError(f"crop_probability and flip_probability lie in [0, 1], got {self}")
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(f"crop_scale is a range in (0, 1] and crop_ratio one of positive numbers, got {self}")

    def draws(self, seed: int, epoch: int, index: Sequence[int]) -> npt.NDArray[np.float32]:
        """The random numbers of some samples.

        Args:
            seed: the run's seed.
            epoch: number of the pass over the data.
            index: global sample indices, G of them.

        Returns:
            float32, (G, 42), range [0, 1).
        """
        rows = uniform(seed, "augment", epoch, torch.as_tensor(index, dtype=torch.int64), (_DRAWS,))
        return rows.numpy()

    def plan(self, size: tuple[int, int], edge: int, draws: npt.NDArray[np.float32]) -> Crop:
        """Decide what happens to a picture, from its size alone.

        Args:
            size: height and width of the picture.
            edge: edge of the square that a crop is resampled to.
            draws: one row of :meth:`draws`.

        Returns:
            The crop.
        """
        flip = bool(draws[1] < self.flip_probability)
        if draws[0] >= self.crop_probability:
            return Crop(None, None, flip)
        box = self._box(size, draws[2:].reshape(_ATTEMPTS, 4).tolist())
        side = min(edge, box[2] - box[0], box[3] - box[1])
        return Crop(box, (side, side), flip)

    def _box(self, size: tuple[int, int], attempts: list[list[float]]) -> tuple[int, int, int, int]:
        height, width = size
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area_draw, ratio_draw, top_draw, left_draw in attempts:
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area_draw)
            ratio = math.exp(low + (high - low) * ratio_draw)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1))
                return left, top, left + w, top + h
        # Too long or too tall for any such crop: the middle, as wide or as tall as the ratio allows.
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
