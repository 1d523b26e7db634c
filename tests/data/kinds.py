"""One small data set and DataModule of every kind, for tests that all kinds must pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_gen.data.batches import Batch, EditBatch, ImageBatch, PreferenceBatch, PromptBatch
from lightning_gen.data.edits import EditPairsDataModule
from lightning_gen.data.image_folder import ImageFolderDataModule
from lightning_gen.data.images import ImageDataModule, MixtureDataModule, TextImageDataModule
from lightning_gen.data.joining import WeightedShards
from lightning_gen.data.latents.module import LatentDataModule
from lightning_gen.data.planned import PlannedDataModule
from lightning_gen.data.preferences import HPDv3DataModule, PickAPicDataModule
from lightning_gen.data.prompts import PromptDataModule
from lightning_gen.data.writing import write_shards
from lightning_gen.shapes.module import ShapesDataModule
from tests.data.patch_averages import cached
from tests.data.samples import encoded, picture, shards

WIDE, TALL = (24, 40), (40, 24)
MODELS = ("alpha", "beta", "gamma")


def pair(number: int) -> tuple[str, dict[str, bytes]]:
    """Pair n: its labels run 1, 0, 0.5, 1, ...; both pictures are wide or both are tall, but for every seventh."""
    size = WIDE if number % 3 else TALL
    other = size if number % 7 else size[::-1]
    record = {
        "caption": f"prompt {number}",
        "label_0": (1.0, 0.0, 0.5, 1.0)[number % 4],
        "model_0": MODELS[number % 3],
        "model_1": MODELS[(number + 1) % 3],
        "confidence": 0.5 + number % 10 / 20,
        "gap": number / 10,
    }
    first, second = picture(2 * number, size), picture(2 * number + 1, other)
    return f"p{number:04d}", {
        "0.png": encoded(first),
        "1.png": encoded(second),
        "json": json.dumps(record).encode(),
    }


def edit(number: int) -> tuple[str, dict[str, bytes]]:
    """Edit n: the target is the source with its channels swapped."""
    source = picture(number, WIDE if number % 3 else TALL)
    red, green, blue = source.split()
    record = {"task": f"task {number % 4}", "instruction": f"swap {number}"}
    swapped = Image.merge("RGB", (blue, green, red))
    return f"e{number:04d}", {
        "src.png": encoded(source),
        "tgt.png": encoded(swapped),
        "json": json.dumps(record).encode(),
    }


def captioned(number: int) -> tuple[str, dict[str, bytes]]:
    """Picture n with a caption."""
    return f"t{number:04d}", {"png": encoded(picture(number)), "txt": f"caption {number}".encode()}


def pairs(folder: Path, count: int = 44) -> None:
    """Shards of preference pairs."""
    write_shards((pair(number) for number in range(count)), folder, max_samples=9)


def pick_a_pic(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    if write:
        pairs(folder)
    return PickAPicDataModule(str(folder), str(folder), resolution=32, global_batch_size=4, bucket_step=8, **options)


def hpdv3(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    if write:
        pairs(folder)
    settings = {"resolution": 16, "min_confidence": 0.6, "ties": "keep", "flip": "shared", **options}
    return HPDv3DataModule(str(folder), str(folder), global_batch_size=4, **settings)


def edits(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    if write:
        write_shards((edit(number) for number in range(40)), folder, max_samples=9)
    return EditPairsDataModule(
        str(folder), str(folder), resolution=32, global_batch_size=4, bucket_step=8, unseen_tasks=("task 3",), **options
    )


def text_images(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    if write:
        write_shards((captioned(number) for number in range(44)), folder, max_samples=9)
    return TextImageDataModule(str(folder), str(folder), resolution=32, global_batch_size=4, bucket_step=8, **options)


def mixture(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    if write:
        shards(folder / "a", 30, 9)
        write_shards((captioned(number) for number in range(14)), folder / "b", max_samples=9)
    train = [WeightedShards(str(folder / "a"), 3.0, "labelled"), WeightedShards(str(folder / "b"), 1.0, "captioned")]
    return MixtureDataModule(train, str(folder / "a"), resolution=16, global_batch_size=4, **options)


def labelled(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    if write:
        shards(folder, 44, 9)
    return ImageDataModule(
        str(folder), str(folder), resolution=16, global_batch_size=4, num_classes=5, random_crop=False, **options
    )


def image_folder(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    for number in range(36 if write else 0):
        place = folder / f"class_{'cab'[number % 3]}" / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(picture(number)))
        if number % 2:
            place.with_suffix(".txt").write_text(f"caption {number}\n")
    return ImageFolderDataModule(str(folder), str(folder), resolution=16, global_batch_size=4, bucket_step=4, **options)


def prompts(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"prompt": f"prompt {number}", "tag": "counting"}) for number in range(30)]
        (folder / "train.jsonl").write_text("\n".join(lines))
        (folder / "test.txt").write_text("\n".join(f"test {number}" for number in range(10)) + "\n")
    return PromptDataModule(
        str(folder / "train.jsonl"), str(folder / "test.txt"), global_batch_size=12, repeats=3, **options
    )


def latents(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    if write:
        shards(folder / "pictures", 44, 9)
        cached(folder / "pictures", folder, mirror=True)
    return LatentDataModule(str(folder), str(folder), tokens=16, global_batch_size=4, mirror_probability=0.5, **options)


def shapes(folder: Path, write: bool = True, **options: Any) -> PlannedDataModule:
    del folder, write
    sizes = [(32, 32), (32, 48)]
    return ShapesDataModule(
        samples=44, val_samples=11, global_batch_size=4, size=sizes, noise_probability=0.5, **options
    )


KINDS: dict[str, Callable[..., PlannedDataModule]] = {
    "pick_a_pic": pick_a_pic,
    "hpdv3": hpdv3,
    "edits": edits,
    "text_images": text_images,
    "mixture": mixture,
    "labelled": labelled,
    "latents": latents,
    "image_folder": image_folder,
    "prompts": prompts,
    "shapes": shapes,
}


def main_part(batch: Batch) -> ImageBatch | PromptBatch:
    """The part of a batch that has keys, indices and the like."""
    if isinstance(batch, PreferenceBatch):
        return batch.winner
    if isinstance(batch, EditBatch):
        return batch.source
    assert isinstance(batch, ImageBatch | PromptBatch)
    return batch
