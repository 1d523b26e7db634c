"""The data sets that the data layer is measured on, written when they are first asked for."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lightning_gen.data.manifest import Manifest
from lightning_gen.data.writing import write_shards

__all__ = ["FULL", "LARGE", "QUICK", "SIZE", "Amounts", "Sets", "pictures", "raw_samples"]

SIZE, LARGE = (375, 500), (1024, 1365)


class Amounts(NamedTuple):
    """How much is measured: samples, pictures, large pictures, passes over the pictures."""

    raw: int
    images: int
    large: int
    passes: int


FULL, QUICK = Amounts(400, 96, 16, 20), Amounts(40, 16, 4, 5)


class Sets:
    """The data, written when they are first asked for."""

    def __init__(self, folder: Path, amounts: Amounts) -> None:
        self.folder, self.amounts = folder, amounts

    def raw(self, size: int) -> Manifest:
        """Noise in place of pictures, ``size`` bytes each; written anew at every call."""
        count = self.amounts.raw
        return write_shards(raw_samples(count, size), self.folder / f"raw{size}", max_samples=count // 4)

    @functools.cached_property
    def images(self) -> Manifest:
        """Pictures of ImageNet's usual size."""
        count = self.amounts.images
        return write_shards(pictures(count, SIZE), self.folder / "images", max_samples=count // 4)

    @functools.cached_property
    def large(self) -> Manifest:
        """Large pictures."""
        count = self.amounts.large
        return write_shards(pictures(count, LARGE), self.folder / "large", max_samples=count // 4)


def raw_samples(count: int, size: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of three members as ImageNet's, with noise in place of the picture."""
    rng = np.random.default_rng(0)
    for number in range(count):
        yield f"s{number:06d}", {"jpg": rng.bytes(size), "cls": b"7", "json": b'{"label": 7, "width": 500}'}


def pictures(count: int, size: tuple[int, int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """JPEGs with the 1/f spectrum of photographs."""
    rng = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1]))[:, :, None]
    for number in range(count):
        waves = np.fft.fft2(rng.standard_normal((*size, 3)), axes=(0, 1)) / np.maximum(frequency, 1 / max(size))
        image = np.fft.ifft2(waves, axes=(0, 1)).real
        image = np.clip(128 + 50 * (image - image.mean()) / image.std(), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=90)
        yield f"p{number:06d}", {"jpg": buffer.getvalue(), "cls": b"3"}
