"""PSNR and SSIM of reconstructions: one number per image, then the mean over images.

Images are float in [-1, 1]. Reconstructions are clamped to it, because networks overshoot; an original beyond it is
refused, because clamping would make a perfect score of a wrong range. Everything is computed and summed in float64, and
sums of different ranks add, so that the result depends neither on batch size nor on world size. Every image weighs the
same whatever its size. ``quantise`` compares 8-bit values instead, as published tables do.

PSNR is the same on every scale of pixels; SSIM is not, see ``SSIMScale``.

Shape letters: B images, C channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_gen.metrics.protocol import Protocol
from lightning_gen.metrics.reconstruction_pairs import Images, Quantise, comparable
from lightning_gen.metrics.ssim import SSIM_PROTOCOLS, SSIMScale, structural_similarity

__all__ = [
    "EIGHT_BIT_PSNR",
    "PeakSignalToNoise",
    "PerImageMean",
    "Quantise",
    "ReconstructionQuality",
    "SSIMScale",
    "StructuralSimilarity",
    "comparable",
    "psnr_per_image",
    "ssim_per_image",
    "structural_similarity",
]

_RANGE = 2.0

EIGHT_BIT_PSNR = 10 * math.log10(12 * 255**2)
"""58.92 dB: the PSNR of rounding to 8 bits, whose mean squared error is (R / 255)^2 / 12.

Beyond it, a reconstruction is as good as the stored picture, and PSNR only measures floating-point noise.
"""


def psnr_per_image(
    prediction: Images, target: Images, max_psnr: float = EIGHT_BIT_PSNR, quantise: Quantise = False
) -> Tensor:
    """Peak signal-to-noise ratio of every image in decibel.

    PSNR = min(10 log10(R^2 / mean((y - x)^2)), max_psnr),  R = 2

    torchmetrics' function is the same up to 1e-7, because it takes its logarithms in float32.

    Args:
        prediction: reconstructions y, float, (B, C, H, W) or B images (C, H, W) of any sizes, range [-1, 1]; clamped.
        target: originals x of the same sizes, range [-1, 1].
        max_psnr: cap in decibel. Without one (``math.inf``) a perfect image scores infinity, and so does every mean
            that holds it. The default is the level of 8-bit rounding.
        quantise: compare 8-bit values, as files on disk are (about 0.01 dB at 34 dB); see ``Quantise``.

    Returns:
        float64, (B,); NaN where an image holds NaN, or a reconstruction infinity.

    Raises:
        ValueError: numbers or sizes of images differ, or an original leaves [-1, 1].
    """
    values = [
        10 * torch.log10(_RANGE**2 / (y - x).square().mean((1, 2, 3)))
        for y, x in comparable(prediction, target, quantise)
    ]
    return torch.cat(values).clamp(max=max_psnr)


def ssim_per_image(
    prediction: Images, target: Images, quantise: Quantise = False, scale: SSIMScale = "signed"
) -> Tensor:
    """Structural similarity of every image, on the pixels that ``scale`` names.

    See ``structural_similarity`` for the definition. Where an image is smaller than the window, the window shrinks to
    the largest odd edge that fits, sigma stays.

    Args:
        prediction: reconstructions y, float, (B, C, H, W) or B images (C, H, W) of any sizes, range [-1, 1]; clamped.
        target: originals x of the same sizes, range [-1, 1].
        quantise: compare 8-bit values; see ``Quantise``.
        scale: ``unit`` for tables of reconstructions (with ``quantise=True``: 8-bit values, R = 255), ``signed`` for
            ViTok-v2's number; see ``SSIMScale``.

    Returns:
        float64, (B,), in [-1, 1]; 1 = equal; NaN where an image holds NaN, or a reconstruction infinity.

    Raises:
        ValueError: numbers or sizes of images differ, an original leaves [-1, 1], or an unknown scale.

    Source: doi:10.1109/TIP.2003.819861 eq. 13; arXiv:2605.05331 and its released code (signed).
    """
    if scale not in SSIM_PROTOCOLS:
        raise ValueError(f"SSIM has the scales {', '.join(SSIM_PROTOCOLS)}, got {scale!r}")
    pairs = comparable(prediction, target, quantise)
    if scale == "signed":
        return torch.cat([structural_similarity(y, x, data_range=2.0) for y, x in pairs])
    return torch.cat([structural_similarity((y + 1) / 2, (x + 1) / 2, data_range=1.0) for y, x in pairs])


class PerImageMean(Metric, ABC):
    """The mean of one number per image, over batches and ranks.

    A subclass gives a name to its quantity and says how to compute it. The states, a float64 sum and a count, are
    summed over ranks. A parent that is cast to another precision takes them along to its device, but does not round
    them (torchmetrics guards against ``.half()``, not against the ``.to(dtype)`` of Lightning's ``bf16-true``).
    """

    quantity: ClassVar[str]
    """Name of the quantity; it names the states, so that a ``MetricCollection`` never takes two quantities for one."""

    full_state_update: bool | None = False
    is_differentiable: bool | None = False
    higher_is_better: bool | None = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state(f"{self.quantity}_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(f"{self.quantity}_images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def per_image(self, prediction: Images, target: Images) -> Tensor:
        """The quantity of every image.

        Args:
            prediction: B reconstructions in [-1, 1].
            target: B originals of the same sizes.

        Returns:
            float, (B,).
        """

    @property
    def num_images(self) -> int:
        """Number of images counted so far on this rank."""
        return int(getattr(self, f"{self.quantity}_images"))

    def update(self, prediction: Images, target: Images, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            prediction: reconstructions, float, (B, C, H, W) or B images (C, H, W) of any sizes, range [-1, 1].
            target: originals of the same sizes.
            valid: bool, (B,); False = a sample repeated only to fill the batch, not counted. Default: all count.

        Raises:
            ValueError: numbers or sizes of images differ, or ``valid`` is not a mask of B.
        """
        values = self.per_image(prediction, target).detach().double()
        if valid is not None:
            if valid.dtype != torch.bool or valid.shape != values.shape:
                raise ValueError(
                    f"valid must be a bool mask of {len(values)} images, got {valid.dtype} {list(valid.shape)}"
                )
            values = values[valid.to(values.device)]
        for state, more in ((f"{self.quantity}_sum", values.sum()), (f"{self.quantity}_images", len(values))):
            setattr(self, state, getattr(self, state) + more)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), exclude_state)

    def compute(self) -> Tensor:
        """The mean over all images counted on all ranks.

        Returns:
            float64 scalar; NaN if no image was counted.
        """
        total: Tensor = getattr(self, f"{self.quantity}_sum")
        images: Tensor = getattr(self, f"{self.quantity}_images")
        return total / images


class PeakSignalToNoise(PerImageMean):
    """Mean over images of the PSNR in decibel; images in [-1, 1], range 2.

    Args:
        max_psnr: cap per image in decibel; see ``psnr_per_image``.
        quantise: compare 8-bit values; see ``Quantise``.
    """

    quantity = "psnr"

    def __init__(self, max_psnr: float = EIGHT_BIT_PSNR, quantise: Quantise = False) -> None:
        super().__init__()
        self.max_psnr = max_psnr
        self.quantise = quantise

    def per_image(self, prediction: Images, target: Images) -> Tensor:
        """PSNR of every image; see ``psnr_per_image``.

        Args:
            prediction: B reconstructions in [-1, 1].
            target: B originals of the same sizes.

        Returns:
            float64, (B,), decibel.
        """
        return psnr_per_image(prediction, target, self.max_psnr, self.quantise)


class StructuralSimilarity(PerImageMean):
    """Mean over images of the SSIM; images in [-1, 1].

    Args:
        quantise: compare 8-bit values; see ``Quantise``.
        scale: which pixels it sees; ``signed`` is ViTok-v2's number, ``unit`` that of tables; see ``SSIMScale``.
    """

    quantity = "ssim"

    def __init__(self, quantise: Quantise = False, scale: SSIMScale = "signed") -> None:
        super().__init__()
        if scale not in SSIM_PROTOCOLS:
            raise ValueError(f"SSIM has the scales {', '.join(SSIM_PROTOCOLS)}, got {scale!r}")
        self.quantise = quantise
        self.scale: SSIMScale = scale

    @property
    def protocol(self) -> Protocol:
        """The name under which the value may be quoted: ``ssim/gaussian-11-signed`` or ``ssim/gaussian-11``."""
        card = SSIM_PROTOCOLS[self.scale]
        return dataclasses.replace(card, details={**card.details, "quantise": self.quantise})

    def per_image(self, prediction: Images, target: Images) -> Tensor:
        """SSIM of every image; see ``ssim_per_image``.

        Args:
            prediction: B reconstructions in [-1, 1].
            target: B originals of the same sizes.

        Returns:
            float64, (B,).
        """
        return ssim_per_image(prediction, target, self.quantise, self.scale)


class ReconstructionQuality(nn.Module):
    """PSNR and SSIM of one evaluation loop, updated together.

    ``self.log("val/psnr", quality.psnr)`` and the same for ``quality.ssim`` log the means of the whole epoch.

    Args:
        max_psnr: cap per image in decibel; see ``psnr_per_image``.
        quantise: compare 8-bit values; see ``Quantise``.
        scale: which pixels SSIM sees; see ``SSIMScale``.
    """

    def __init__(
        self, max_psnr: float = EIGHT_BIT_PSNR, quantise: Quantise = False, scale: SSIMScale = "signed"
    ) -> None:
        super().__init__()
        self.psnr = PeakSignalToNoise(max_psnr, quantise)
        self.ssim = StructuralSimilarity(quantise, scale)

    def update(self, prediction: Images, target: Images, valid: Tensor | None = None) -> None:
        """Count a batch in both metrics.

        Args:
            prediction: reconstructions, float, (B, C, H, W) or B images (C, H, W) of any sizes, range [-1, 1].
            target: originals of the same sizes.
            valid: bool, (B,); False = a sample repeated only to fill the batch, not counted.

        Raises:
            ValueError: numbers or sizes of images differ, or ``valid`` is not a mask of B.
        """
        self.psnr.update(prediction, target, valid)
        self.ssim.update(prediction, target, valid)

    def compute(self) -> dict[str, Tensor]:
        """The means over all images counted on all ranks.

        Returns:
            ``psnr`` in decibel and ``ssim``, float64 scalars.
        """
        return {"psnr": self.psnr.compute(), "ssim": self.ssim.compute()}

    def reset(self) -> None:
        """Start a new epoch."""
        self.psnr.reset()
        self.ssim.reset()
