"""Reconstructions against their originals, all numbers in one pass: PSNR, SSIM, LPIPS, rFID, rFDD."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from lightning_gen.data.transforms import uint8_to_signed
from lightning_gen.metrics.images import check_uint8
from lightning_gen.metrics.lpips import LPIPS, LearnedPerceptualSimilarity
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol
from lightning_gen.metrics.reconstruction import EIGHT_BIT_PSNR, psnr_per_image, ssim_per_image
from lightning_gen.metrics.reconstruction_pairs import Images
from lightning_gen.metrics.reconstruction_variants import muse_ssim_per_image
from lightning_gen.metrics.ssim import SSIM_PROTOCOLS

if TYPE_CHECKING:
    from lightning_gen.metrics.features import ReconstructionFrechet

__all__ = ["ReconstructionTable", "reconstruction_table"]

_PSNR: Final = Protocol("psnr", "image-mean", details={"values": "8 bits", "range": 255, "cap_db": EIGHT_BIT_PSNR})
_SSIM: Final = dataclasses.replace(
    SSIM_PROTOCOLS["unit"], details={**SSIM_PROTOCOLS["unit"].details, "values": "8 bits", "range": 255}
)
_SIGNED_SSIM: Final = dataclasses.replace(
    SSIM_PROTOCOLS["signed"], details={**SSIM_PROTOCOLS["signed"].details, "values": "8 bits as -1 to 1"}
)


@dataclasses.dataclass(frozen=True)
class ReconstructionTable:
    """What ``reconstruction_table`` measured.

    Attributes:
        measurements: means with their standard error over images, then the distances of both sets.
        per_image: ``psnr``, ``ssim`` and, where it was asked for, ``lpips`` of every pair in order, float64, (N,); for
            the best, the median and the worst on a contact sheet.
    """

    measurements: list[Measurement]
    per_image: Mapping[str, Tensor]


def reconstruction_table(
    reconstructions: Iterable[Tensor],
    originals: Iterable[Tensor],
    lpips: LPIPS | None = None,
    frechet: Sequence[ReconstructionFrechet] = (),
    variants: bool = False,
    batch_size: int = 32,
) -> ReconstructionTable:
    """Compare two ordered sets of stored pictures, pair by pair; both are read once.

    Args:
        reconstructions: uint8 images (3, H, W) of any sizes.
        originals: their originals, in the same order and of the same sizes.
        lpips: measures LPIPS, ``net="alex"`` for numbers that compare with published ones.
        frechet: fresh metrics to count the pairs in, for instance ``ReconstructionFrechet(FIDInceptionV3(...))``.
        variants: also PSNR of the pooled squared error, and SSIM as ViTok-v2 and as MUSE compute it, under names of
            their own.
        batch_size: pairs that are compared together.

    Returns:
        The numbers.

    Raises:
        ValueError: numbers of pictures differ, there are none, or a pair has unequal sizes or is not 8-bit RGB; says
            which.
    """
    distance = None if lpips is None else LearnedPerceptualSimilarity(lpips, quantise=True)
    functions = _functions(distance, variants)
    parts: dict[str, list[Tensor]] = {name: [] for name in functions}
    start = 0
    for batch in _batches(reconstructions, originals, batch_size):
        prediction, target = [pair[0] for pair in batch], [pair[1] for pair in batch]
        numbers = torch.arange(start, start + len(batch))
        for metric in frechet:
            metric.update(prediction, target, index=numbers)
        with torch.no_grad():
            sides = _signed(prediction), _signed(target)
            for name, function in functions.items():
                parts[name].append(function(*sides).double().cpu())
        start += len(batch)
    if start == 0:
        raise ValueError("there are no pictures to compare")
    values = {name: torch.cat(some) for name, some in parts.items()}
    measurements = [_mean(_PSNR, values["psnr"], "dB"), _mean(_SSIM, values["ssim"])]
    if distance is not None:
        note = "" if distance.lpips.is_published else "the trunk is no file that torchvision publishes"
        measurements.append(_mean(distance.protocol, values["lpips"], note=note))
    if variants:
        measurements += _variants(values)
    for metric in frechet:
        measurements += metric.measurements()
    return ReconstructionTable(measurements, {name: values[name] for name in values if name in _SHOWN})


_SHOWN: Final = ("psnr", "ssim", "lpips")


def _functions(
    distance: LearnedPerceptualSimilarity | None, variants: bool
) -> dict[str, Callable[[Images, Images], Tensor]]:
    # Stored levels come back exactly from float32 by rounding.
    functions: dict[str, Callable[[Images, Images], Tensor]] = {
        "psnr": lambda y, x: psnr_per_image(y, x, quantise=True),
        "ssim": lambda y, x: ssim_per_image(y, x, quantise=True, scale="unit"),
    }
    if distance is not None:
        functions["lpips"] = distance.per_image
    if variants:
        functions["error"] = lambda y, x: 10 ** (-psnr_per_image(y, x, max_psnr=math.inf, quantise=True) / 10)
        functions["signed_ssim"] = lambda y, x: ssim_per_image(y, x, quantise=True, scale="signed")
        functions["muse_ssim"] = lambda y, x: muse_ssim_per_image(y, x, quantise=True)
    return functions


def _variants(values: Mapping[str, Tensor]) -> list[Measurement]:
    """PSNR of the pooled error, whose squared range is 1 here, and the SSIM of ViTok-v2 and of MUSE."""
    pooled = min(-10 * math.log10(max(float(values["error"].mean()), 1e-300)), EIGHT_BIT_PSNR)
    count = len(values["error"])
    return [
        Measurement(pooled, dataclasses.replace(_PSNR, method="pooled-error", count=count), unit="dB"),
        _mean(_SIGNED_SSIM, values["signed_ssim"], note="black is -1: compares with ViTok-v2's tables only"),
        _mean(
            dataclasses.replace(_SSIM, method="muse", details={**_SSIM.details, "range": 510}),
            values["muse_ssim"],
            note="too high by definition: constants of twice the range; compares with MUSE's tables only",
        ),
    ]


def _mean(protocol: Protocol, values: Tensor, unit: str = "", note: str = "") -> Measurement:
    count = len(values)
    details: dict[str, Detail] = {**protocol.details, "error": "standard error over images"}
    return Measurement(
        float(values.mean()),
        dataclasses.replace(protocol, count=count, details=details),
        error=float(values.std()) / math.sqrt(count) if count > 1 else None,
        unit=unit,
        note=note,
    )


def _batches(
    reconstructions: Iterable[Tensor], originals: Iterable[Tensor], size: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    pairs = _pairs(reconstructions, originals)
    while batch := list(itertools.islice(pairs, size)):
        yield batch


def _pairs(reconstructions: Iterable[Tensor], originals: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for number, (y, x) in enumerate(itertools.zip_longest(reconstructions, originals)):
        if y is None or x is None:
            missing = "reconstruction" if y is None else "original"
            raise ValueError(f"pair {number} has no {missing}: both sets must hold the same pictures in the same order")
        check_uint8([y], f"reconstruction {number}")
        check_uint8([x], f"original {number}")
        if y.shape != x.shape:
            raise ValueError(f"pair {number}: a reconstruction {tuple(y.shape)} of an original {tuple(x.shape)}")
        yield y, x


def _signed(images: Sequence[Tensor]) -> Images:
    """One batch where sizes allow."""
    if len({image.shape for image in images}) == 1:
        return uint8_to_signed(torch.stack(list(images)))
    return [uint8_to_signed(image) for image in images]
