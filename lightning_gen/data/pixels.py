"""Pictures of one shape per batch: decoded, resized to cover the shape, cropped to it, mirrored now and then."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.data.batches import Example, ImageBatch, stack_images
from lightning_gen.data.dataset import Draws, Place, Request
from lightning_gen.data.decode import MAX_PIXELS, DecodedPicture, Decoder, decode_pixels, picture_header
from lightning_gen.data.resampling import Crop, Resampler
from lightning_gen.data.sources import Stored
from lightning_gen.training.randomness import uniform

__all__ = ["DRAWS", "Framed", "Framing", "PixelRecipe", "ShapedRecipe", "cover", "planned_shape"]

DRAWS = 3
"""Random numbers of one picture: where the crop begins (row, column), and whether it is mirrored."""


def cover(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the picture's own ratio that covers a shape.

    s = max(H' / H, W' / W), size = (max(H', round(s H)), max(W', round(s W)))

    Args:
        size: height H and width W of the picture.
        shape: height H' and width W' to be covered.

    Returns:
        Height and width in pixels.
    """
    scale = max(shape[0] / size[0], shape[1] / size[1])
    return max(shape[0], round(size[0] * scale)), max(shape[1], round(size[1] * scale))


class Framed(NamedTuple):
    """A picture in its frame.

    Attributes:
        pixels: uint8, (h, w, 3).
        original_size: height and width of the stored picture.
        crop_top_left: row and column of the first pixel kept, in the resized (and mirrored) picture.
    """

    pixels: Tensor
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Framing:
    """How a picture is brought to a shape.

    Attributes:
        random_crop: the crop lies anywhere; False = in the middle.
        flip_probability: chance of a mirror image, in [0, 1].
        decoder: see :func:`lightning_gen.data.decode.decode`.
        max_pixels: larger pictures are refused.
        resampler: see :func:`lightning_gen.data.resampling.resample`.
        dct_scaling: decode JPEGs that are at least twice as large as they have to be at a fraction of their size.

    Raises:
        ValueError: a probability outside [0, 1].

    Source: arXiv:2307.01952, section 2.2 (micro-conditioning values).
    """

    random_crop: bool = False
    flip_probability: float = 0.0
    decoder: Decoder = "auto"
    max_pixels: int = MAX_PIXELS
    resampler: Resampler = "pil"
    dct_scaling: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability lies in [0, 1], got {self.flip_probability}")

    def decode(self, data: bytes, shape: tuple[int, int]) -> DecodedPicture:
        """Decode a picture.

        Args:
            data: encoded bytes.
            shape: height and width that it is going to cover.

        Returns:
            Its pixels, or with ``dct_scaling`` as few of them as are enough.

        Raises:
            SampleError: it cannot be used.
        """
        at_least = None
        if self.dct_scaling:
            header = picture_header(data, self.max_pixels)
            at_least = cover((header.height, header.width), shape)
        return decode_pixels(data, self.max_pixels, self.decoder, at_least)

    def frame(self, picture: DecodedPicture, shape: tuple[int, int], draws: Draws | None) -> Framed:
        """Resize a picture so that it covers a shape, and cut the shape out of it.

        Args:
            picture: its pixels.
            shape: height and width of the result.
            draws: random numbers in [0, 1) for crop row, crop column and mirror image; None = nothing is random.

        Returns:
            The pixels and where they come from.
        """
        size = cover(picture.original_size, shape)
        resized = Crop().apply(picture, size, self.resampler)
        room = size[0] - shape[0], size[1] - shape[1]
        top, left = room[0] // 2, room[1] // 2
        if self.random_crop and draws is not None:
            top, left = int(draws[0] * (room[0] + 1)), int(draws[1] * (room[1] + 1))
        flip = draws is not None and bool(draws[2] < self.flip_probability)
        # The crop is placed in the mirrored picture, so that its corner means the same with and without a mirror.
        first = room[1] - left if flip else left
        pixels = resized[top : top + shape[0], first : first + shape[1]]
        pixels = pixels.flip(1) if flip else pixels.clone()
        return Framed(pixels, picture.original_size, (top, left))


def planned_shape(place: Place) -> tuple[int, int]:
    """The shape that the plan wants at a place.

    Args:
        place: of an example.

    Returns:
        Height and width.
    """
    assert place.request.shape is not None, "the plan of these recipes names a shape for every step"
    return place.request.shape


@dataclasses.dataclass(frozen=True)
class ShapedRecipe:
    """What the recipes for pictures of one shape have in common.

    Attributes:
        framing: how a picture is brought to the shape of its batch.
        training: crops and mirror images are random.
    """

    framing: Framing
    training: bool

    purpose: ClassVar[str] = "frame"
    numbers: ClassVar[int] = DRAWS

    def draws(self, seed: int, epoch: int, index: Sequence[int]) -> Draws | None:
        """Random numbers of crops and mirror images.

        Args:
            seed: the run's seed.
            epoch: number of the pass.
            index: global sample indices.

        Returns:
            (n, numbers), None in an evaluation.
        """
        if not self.training:
            return None
        places = torch.as_tensor(index, dtype=torch.int64)
        return uniform(seed, self.purpose, epoch, places, (self.numbers,)).numpy()

    def planned_tokens(self, sizes: npt.NDArray[np.int64], draws: Draws | None, tokens: int) -> None:
        """Not a matter here: the plan says the shape.

        Args:
            sizes: not used.
            draws: not used.
            tokens: not used.
        """
        del sizes, draws, tokens

    def framed(self, data: bytes, place: Place, draws: Draws | None, label: int = -1, caption: str = "") -> Example:
        """Decode a picture and bring it to the shape that is planned for it.

        Args:
            data: encoded bytes.
            place: where it stands.
            draws: its random numbers.
            label: its class.
            caption: its text.

        Returns:
            The example.

        Raises:
            SampleError: it cannot be used.
        """
        return self.shaped(self.framing.decode(data, planned_shape(place)), place, draws, label, caption)

    def shaped(
        self, picture: DecodedPicture, place: Place, draws: Draws | None, label: int = -1, caption: str = ""
    ) -> Example:
        """Bring a decoded picture to the shape that is planned for it.

        Args:
            picture: its pixels.
            place: where it stands.
            draws: its random numbers.
            label: its class.
            caption: its text.

        Returns:
            The example.
        """
        pixels, original, corner = self.framing.frame(picture, planned_shape(place), draws)
        return Example(pixels, label, place.index, place.valid, original, place.key, caption, corner)


@dataclasses.dataclass(frozen=True)
class PixelRecipe(ShapedRecipe):
    """Single pictures with a class or a caption."""

    def example(self, stored: Stored, place: Place) -> Example:
        """Decode a picture and bring it to its shape.

        Args:
            stored: the picture.
            place: where it stands.

        Returns:
            The example.

        Raises:
            SampleError: it cannot be used.
        """
        return self.framed(stored.picture, place, place.draws, stored.label, stored.caption)

    def collate(self, examples: Sequence[Example], request: Request) -> ImageBatch:
        """Stack the pictures.

        Args:
            examples: of one rank's batch.
            request: one of the batch's.

        Returns:
            The batch.
        """
        return stack_images(examples, request.epoch)
