"""Other definitions of PSNR and SSIM, under names of their own, for comparison with tables that were made by them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gen.metrics.reconstruction import EIGHT_BIT_PSNR, PerImageMean
from lightning_gen.metrics.reconstruction_pairs import Images, Quantise, comparable
from lightning_gen.metrics.ssim import structural_similarity

__all__ = ["MuseStructuralSimilarity", "PooledPeakSignalToNoise", "muse_ssim_per_image"]


def muse_ssim_per_image(prediction: Images, target: Images, quantise: Quantise = False) -> Tensor:
    """SSIM of every image with the constants of a data range of 2 on pixels that span 1, as MUSE's evaluation has it.

    C1 and C2 are four times as large as the pixels' range asks for, so flat parts weigh in as alike and the value is
    too high: compare it with MUSE's tables only. The correct value of the same pixels is
    ``ssim_per_image(..., scale="unit")``.

    Args:
        prediction: reconstructions y, float, (B, C, H, W) or B images (C, H, W) of any sizes, range [-1, 1]; clamped.
        target: originals x of the same sizes, range [-1, 1].
        quantise: compare 8-bit values; the published evaluation has ``"truncate_originals"``.

    Returns:
        float64, (B,).

    Raises:
        ValueError: numbers or sizes of images differ, or an original leaves [-1, 1].

    Source: evaluation code of MUSE; deviates: windows that reach over the border do not count, see
    ``structural_similarity`` (which library the published code takes them from is not known to us).
    """
    pairs = comparable(prediction, target, quantise)
    return torch.cat([structural_similarity((y + 1) / 2, (x + 1) / 2, data_range=2.0) for y, x in pairs])


class MuseStructuralSimilarity(PerImageMean):
    """Mean over images of ``muse_ssim_per_image``: too high, for comparison with MUSE's tables only.

    Args:
        quantise: compare 8-bit values; see ``Quantise``.
    """

    quantity = "muse_ssim"

    def __init__(self, quantise: Quantise = False) -> None:
        super().__init__()
        self.quantise = quantise

    def per_image(self, prediction: Images, target: Images) -> Tensor:
        """See ``muse_ssim_per_image``.

        Args:
            prediction: B reconstructions in [-1, 1].
            target: B originals of the same sizes.

        Returns:
            float64, (B,).
        """
        return muse_ssim_per_image(prediction, target, self.quantise)


class PooledPeakSignalToNoise(PerImageMean):
    """PSNR of the mean squared error over all images, in decibel; images in [-1, 1], range 2.

    min(10 log10(R^2 / mean over images of MSE), max_psnr),  R = 2

    Bad images dominate it, so it is never above the mean of the images' own PSNR (``PeakSignalToNoise``). Every image
    weighs the same whatever its size; torchmetrics' ``PeakSignalNoiseRatio`` lets every pixel weigh the same, which is
    equal for images of one size.

    Args:
        max_psnr: cap in decibel.
        quantise: compare 8-bit values; see ``Quantise``.
    """

    quantity = "mse"

    def __init__(self, max_psnr: float = EIGHT_BIT_PSNR, quantise: Quantise = False) -> None:
        super().__init__()
        self.max_psnr = max_psnr
        self.quantise = quantise

    def per_image(self, prediction: Images, target: Images) -> Tensor:
        """Mean squared error of every image.

        Args:
            prediction: B reconstructions in [-1, 1].
            target: B originals of the same sizes.

        Returns:
            float64, (B,).
        """
        pairs = comparable(prediction, target, self.quantise)
        return torch.cat([(y - x).square().mean((1, 2, 3)) for y, x in pairs])

    def compute(self) -> Tensor:
        """The PSNR over all images counted on all ranks.

        Returns:
            float64 scalar, decibel; NaN if no image was counted.
        """
        return (-10 * torch.log10(super().compute()) + 20 * math.log10(2)).clamp(max=self.max_psnr)
