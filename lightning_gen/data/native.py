"""Pictures at native resolution inside a token budget: the recipe of ViTok's batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_gen.data.batches import Example, ImageBatch, collate_images
from lightning_gen.data.dataset import Draws, Place, Request
from lightning_gen.data.decode import MAX_PIXELS, Decoder, decode_pixels, picture_header
from lightning_gen.data.quarantine import SampleError
from lightning_gen.data.resampling import Crop, Resampler
from lightning_gen.data.sources import Stored
from lightning_gen.data.transforms import Augmentation, BudgetRule, resize_to_budget, token_count

__all__ = ["NativeRecipe"]


@dataclasses.dataclass(frozen=True)
class NativeRecipe:
    """Decode, now and then crop and mirror, make it fit the budget, cut it into patches.

    Attributes:
        patch: patch edge in pixels.
        augmentation: None = pictures stay as they are (evaluation, prediction).
        rule: how a picture is made to fit the token budget.
        decoder: see :func:`lightning_gen.data.decode.decode_pixels`.
        max_pixels: larger pictures are refused.
        resampler: ``pil``, or ``torch``, which is faster and a level off here and there, see data/resampling.py.
        dct_scaling: decode JPEGs that are at least twice as large as they have to be at 1/2, 1/4 or 1/8 of their size.
            Faster, but another low-pass filter: on photographs brought to 256 tokens of 16 x 16 the pixels are 1.3 of
            255 levels off in the mean and up to 56 at sharp edges. torchvision cannot do it.
    """

    patch: int
    augmentation: Augmentation | None = None
    rule: BudgetRule = "isotropic"
    decoder: Decoder = "auto"
    max_pixels: int = MAX_PIXELS
    resampler: Resampler = "pil"
    dct_scaling: bool = False

    @property
    def training(self) -> bool:
        """Whether pictures are augmented."""
        return self.augmentation is not None

    def draws(self, seed: int, epoch: int, index: Sequence[int]) -> Draws | None:
        """Random numbers of the augmentation.

        Args:
            seed: the run's seed.
            epoch: number of the pass.
            index: global sample indices.

        Returns:
            One row per sample, None without augmentation.
        """
        return self.augmentation.draws(seed, epoch, index) if self.augmentation is not None else None

    def example(self, stored: Stored, place: Place) -> Example | None:
        """Decode a picture and make it fit.

        Args:
            stored: the picture.
            place: where it stands.

        Returns:
            The example; None = a replacement that needs more tokens than the row has.

        Raises:
            SampleError: it cannot be used.
        """
        request, at_least = place.request, None
        if self.dct_scaling:
            known = picture_header(stored.picture, self.max_pixels)[:2]
            crop, size = self._plan(known, place)
            at_least = crop.at_least(known, size)
        picture = decode_pixels(stored.picture, self.max_pixels, self.decoder, at_least)
        original = picture.original_size
        crop, size = self._plan(original, place)
        if request.length is not None and token_count(size, self.patch) > request.length:
            if place.replaces:
                return None  # A replacement must fit the row that was planned for the batch.
            raise SampleError(
                f"the picture is {original[0]} x {original[1]} pixels, the index says otherwise: index the shard again"
            )
        pixels = crop.apply(picture, size, self.resampler)
        return Example(pixels, stored.label, place.index, place.valid, original, place.key, stored.caption)

    def _plan(self, original: tuple[int, int], place: Place) -> tuple[Crop, tuple[int, int]]:
        """What part of a picture is kept, and the size it gets."""
        crop = Crop()
        if self.augmentation is not None and place.draws is not None:
            crop = self.augmentation.plan(original, self._edge(place.request.tokens), place.draws)
        try:
            return crop, resize_to_budget(crop.size or original, self.patch, place.request.tokens, self.rule)
        except ValueError as error:
            raise SampleError(str(error)) from None

    def collate(self, examples: Sequence[Example], request: Request) -> ImageBatch:
        """Patchify and pad.

        Args:
            examples: of one rank's batch.
            request: one of the batch's.

        Returns:
            A batch of unpacked tokens.
        """
        return collate_images(examples, self.patch, request.length, request.epoch)

    def planned_tokens(self, sizes: npt.NDArray[np.int64], draws: Draws | None, tokens: int) -> int | None:
        """Tokens of the longest of some samples, known before anything is decoded.

        Args:
            sizes: (n, 2), heights and widths.
            draws: their random numbers.
            tokens: token budget.

        Returns:
            The maximum; None where the size of one of them is unknown.
        """
        if (sizes == 0).any():
            return None
        edge, longest = self._edge(tokens), 0
        for number, (height, width) in enumerate(sizes.tolist()):
            size = (height, width)
            if draws is not None and self.augmentation is not None:
                size = self.augmentation.plan(size, edge, draws[number]).size or size
            longest = max(longest, self._tokens_after(size, tokens))
        return longest

    def _tokens_after(self, size: tuple[int, int], tokens: int) -> int:
        try:
            return token_count(resize_to_budget(size, self.patch, tokens, self.rule), self.patch)
        except ValueError:
            return 1  # The release's rule fails on this picture: it is going to be replaced by one that fits.

    def _edge(self, tokens: int) -> int:
        return max(1, math.isqrt(tokens)) * self.patch
