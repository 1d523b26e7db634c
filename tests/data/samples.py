"""Small pictures and shards whose content says which sample they are."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_gen.data.manifest import Manifest
from lightning_gen.data.writing import write_shards

SIZES = ((24, 40), (40, 24), (16, 16), (9, 50), (33, 31), (64, 64), (12, 70))


def picture(number: int, size: tuple[int, int] | None = None) -> Image.Image:
    """A smooth random picture of its own for every number; sizes vary."""
    height, width = size or SIZES[number % len(SIZES)]
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sample(number: int, classes: int = 5) -> tuple[str, dict[str, bytes]]:
    """Sample number n of the test set: a PNG, a label and a JSON record."""
    image = picture(number)
    record = {"label": number % classes, "height": image.height, "width": image.width, "filename": f"{number}.png"}
    fields = {"png": encoded(image), "cls": str(number % classes).encode(), "json": json.dumps(record).encode()}
    return f"s{number:05d}", fields


def samples(count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The first samples of the test set."""
    return (sample(number) for number in range(count))


def shards(folder: Path, count: int = 42, per_shard: int = 9, name: str = "train") -> Manifest:
    """A data set of ``count`` samples in uneven shards (the last one is shorter)."""
    return write_shards(samples(count), folder, name=name, max_samples=per_shard)
