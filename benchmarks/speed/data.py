"""What reading costs, as ratios to a named alternative in the same run.

(a) raw bytes of samples by index, in random order: against webdataset's loop over the same tars
(b) the loader, bytes to token batches: against decoding, resizing and converting the same pictures by hand
(c) reads with their checks: against bare slices of a memory map with the same index
(d) indexing a foreign tar by its headers: against tarfile

    python benchmarks/speed/data.py
"""

from __future__ import annotations

import argparse
import io
import mmap
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measure import Row, compare, report, with_standard_options
from PIL import Image

from lightning_gen.data.decode import Decoder, decode
from lightning_gen.data.index import index_tar
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.transforms import Augmentation, from_picture, resize_picture, resize_to_budget
from lightning_gen.data.writing import write_shards

PATCH, TOKENS, BATCH = 16, 256, 16


def raw_samples(count: int, size: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of three members as ImageNet's, with noise in place of the picture."""
    rng = np.random.default_rng(0)
    for number in range(count):
        yield f"s{number:06d}", {"jpg": rng.bytes(size), "cls": b"7", "json": b'{"label": 7, "width": 500}'}


def pictures(count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """JPEGs of 375 x 500 pixels with the 1/f spectrum of photographs."""
    rng = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.fftfreq(500))[:, :, None]
    for number in range(count):
        waves = np.fft.fft2(rng.standard_normal((375, 500, 3)), axes=(0, 1)) / np.maximum(frequency, 1 / 500)
        image = np.fft.ifft2(waves, axes=(0, 1)).real
        image = np.clip(128 + 50 * (image - image.mean()) / image.std(), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=90)
        yield f"p{number:06d}", {"jpg": buffer.getvalue(), "cls": b"3"}


def read_by_index(shards: IndexedShards, order: list[int]) -> int:
    """Bytes of all samples, asked for one by one."""
    return sum(len(data) for number in order for data in shards[number].values())


def read_by_webdataset(manifest: Manifest) -> int:
    """Bytes of all samples in the order of the tars."""
    import webdataset

    urls = [str(manifest.tar_path(number)) for number in range(len(manifest.shards))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    return sum(len(data) for sample in dataset for name, data in sample.items() if not name.startswith("__"))


def members(path: Path) -> int:
    """Number of members, as tarfile finds them."""
    with tarfile.open(path) as tar:
        return len(tar.getmembers())


def reading(folder: Path, count: int, repetitions: int) -> Iterator[Row]:
    """Parts (a), (c) and (d)."""
    manifest = write_shards(raw_samples(count, 110_000), folder, max_samples=max(1, count // 4))
    order = np.random.default_rng(2).permutation(count).tolist()
    shards = IndexedShards(manifest)
    assert read_by_index(shards, order) == read_by_webdataset(manifest)
    case = f"read {count} samples of 110 kB in random order, webdataset in order"
    yield compare(
        "a", case, lambda: read_by_index(shards, order), lambda: read_by_webdataset(manifest), repetitions, target=10
    )
    yield from against_mmap(manifest, shards, order, repetitions)
    tar = manifest.tar_path(0)
    case = "index a foreign tar by its headers, tarfile"
    yield compare("d", case, lambda: index_tar(tar), lambda: members(tar), repetitions, target=1)


def against_mmap(manifest: Manifest, shards: IndexedShards, order: list[int], repetitions: int) -> Iterator[Row]:
    """Part (c): the same samples sliced from memory maps with the same index."""
    maps = []
    for number in range(len(manifest.shards)):
        with open(manifest.tar_path(number), "rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def sliced() -> int:
        total = 0
        for number in order:
            shard, row = shards.locate(number)
            total += sum(len(maps[shard][first:end]) for _, first, end in shards.index(shard).places(row))
        return total

    case = "reads with their checks, bare slices of a memory map"
    yield compare("c", case, lambda: read_by_index(shards, order), sliced, repetitions)


def loading(folder: Path, count: int, repetitions: int) -> Iterator[Row]:
    """Part (b), with both decoders."""
    stored = dict(pictures(count))
    write_shards(stored.items(), folder, max_samples=max(1, count // 4))
    decoders: tuple[Decoder, ...] = ("pil", "auto")
    for decoder in decoders:
        yield from against_decoding(folder, stored, decoder, repetitions)


def against_decoding(
    folder: Path, stored: dict[str, dict[str, bytes]], decoder: Decoder, repetitions: int
) -> Iterator[Row]:
    """The loader in this process, and the same pictures one after another without it."""
    module = ShardDataModule(str(folder), patch_size=PATCH, tokens=TOKENS, global_batch_size=BATCH, decoder=decoder)
    augmentation = Augmentation()
    wanted = [(key, int(n)) for batch in module.train_loader() for key, n in zip(batch.key, batch.index, strict=True)]
    draws = augmentation.draws(0, 0, [number for _, number in wanted])

    def load() -> None:
        for _ in module.train_loader():
            pass

    def by_hand(augment: bool) -> None:
        for (key, _), row in zip(wanted, draws, strict=True):
            picture = decode(stored[key]["jpg"], decoder=decoder)
            if augment:
                crop = augmentation.plan((picture.height, picture.width), 256, row)
                picture = crop.apply(picture)
                size = resize_to_budget((picture.height, picture.width), PATCH, TOKENS)
                from_picture(resize_picture(picture, size))

    case = f"loader ({decoder}), decode, augment, resize and convert by hand"
    yield compare("b", case, load, lambda: by_hand(True), repetitions, target=0.9)
    yield compare("b", f"loader ({decoder}), JPEG decoding alone", load, lambda: by_hand(False), repetitions)


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = with_standard_options(parser, "runs/speed/data.json").parse_args()
    torch.set_num_threads(options.threads)
    count, images, repetitions = (40, 16, 2) if options.quick else (1600, 96, options.repetitions)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*reading(Path(folder) / "raw", count, repetitions), *loading(Path(folder) / "jpg", images, repetitions)]
    report(sorted(rows, key=lambda row: row.part), options.out, {"samples": count, "pictures": images})


if __name__ == "__main__":
    main()
