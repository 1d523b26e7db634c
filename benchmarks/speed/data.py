"""What reading costs, as ratios to a named alternative in the same run.

(a) raw bytes of samples by index, in random order: against webdataset's loop over the same tars
(b) images decoded, resized, batched by the loader and converted to float: against a plain webdataset + PIL pipeline
(c) the loader, bytes to batches of 8-bit patches: against decoding, augmenting and resizing the same pictures by hand;
    and with the conversion to float, which belongs to the device, on both sides
(d) memory and open files after 20 passes of the loader: against those after the first passes
(e) indexing a foreign tar by its headers: against tarfile

Everything but (d) runs in one thread and is timed by the processor time of its process; in (a), where a read is so
short that the heap which the other side leaves behind decides, every side has a process of its own.

    python benchmarks/speed/data.py
"""

from __future__ import annotations

import argparse
import functools
import mmap
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from corpora import FULL, LARGE, QUICK, SIZE, Sets
from measure import Row, report, with_standard_options
from PIL import Image

from lightning_gen.data.dataset import SampleDataset
from lightning_gen.data.decode import decode_pixels
from lightning_gen.data.index import index_tar
from lightning_gen.data.jpeg import Decoder
from lightning_gen.data.loader import BatchFactory, EvaluationLoader, PlanLoader
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.native import NativeRecipe
from lightning_gen.data.plan import EvaluationPlan
from lightning_gen.data.quarantine import Quarantine
from lightning_gen.data.resampling import Resampler, resample
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import PictureFields, ShardSource
from lightning_gen.data.transforms import Augmentation, resize_to_budget, uint8_to_signed

PATCH, TOKENS, BATCH = 16, 256, 16
# The ways from bytes to pixels, the reference first and the fastest last.
PATHS: tuple[tuple[Decoder, Resampler], ...] = (("pil", "pil"), ("auto", "pil"), ("auto", "torch"))

Compare = Callable[..., Row]


def raw_reads(sets: Sets, compare: Compare) -> Iterator[Row]:
    """Part (a): samples as large as ImageNet's in the mean, and smaller ones."""
    for size, target in ((110_000, 10), (30_000, None)):
        manifest = sets.raw(size)
        by_index, by_webdataset, sliced = readers(manifest)
        assert by_index() == by_webdataset() == sliced()
        case = f"read {manifest.total} samples of {size // 1000} kB"
        versus = f"{case} in random order, webdataset in order"
        yield compare("a", versus, by_index, by_webdataset, target=target, apart=True)
        yield compare("a", f"{case}, bare slices of a memory map without any check", by_index, sliced, apart=True)


def readers(manifest: Manifest) -> tuple[Callable[[], int], Callable[[], int], Callable[[], int]]:
    """Three ways to count the bytes of all samples, four times over."""
    shards, rounds, rng = IndexedShards(manifest), 4, np.random.default_rng(2)
    order = [number for _ in range(rounds) for number in rng.permutation(manifest.total).tolist()]
    tars = [manifest.tar_path(number) for number in range(len(manifest.shards))]
    maps = []
    for tar in tars:
        with open(tar, "rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def by_index() -> int:
        return sum(len(data) for number in order for data in shards[number].values())

    def by_webdataset() -> int:
        import webdataset

        dataset = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False)
        passes = (sample for _ in range(rounds) for sample in dataset)
        return sum(len(data) for sample in passes for name, data in sample.items() if not name.startswith("__"))

    def sliced() -> int:
        total = 0
        for number in order:
            shard, row = shards.locate(number)
            total += sum(len(maps[shard][first:end]) for _, first, end in shards.index(shard).places(row))
        return total

    return by_index, by_webdataset, sliced


def loader(manifest: Manifest, recipe: NativeRecipe) -> BatchFactory:
    """The loader's machinery in this process."""
    dataset = SampleDataset(ShardSource(IndexedShards(manifest), PictureFields()), recipe, seed=0)
    return BatchFactory(dataset, 0, 1, Quarantine(manifest.total))


def plain_pipeline(manifest: Manifest) -> Any:
    """What one writes with webdataset and PIL: decode, resize, convert, batch."""
    import webdataset

    def transform(picture: Image.Image) -> torch.Tensor:
        height, width = resize_to_budget((picture.height, picture.width), PATCH, TOKENS)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(127.5).sub_(1)

    urls = [str(manifest.tar_path(number)) for number in range(len(manifest.shards))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb").to_tuple("jpg", "cls")
    return dataset.map_tuple(transform, int).batched(BATCH)


def images_per_second(sets: Sets, compare: Compare) -> Iterator[Row]:
    """Part (b). Large pictures also with decoding at a fraction of the size."""
    cases = [(sets.images, SIZE, path, False, 1.4 if path == PATHS[-1] else None) for path in PATHS]
    cases += [(sets.large, LARGE, PATHS[-1], scaling, None) for scaling in (False, True)]
    for manifest, size, (decoder, resampler), scaling, target in cases:
        recipe = NativeRecipe(PATCH, decoder=decoder, resampler=resampler, dct_scaling=scaling)
        plan = EvaluationPlan(manifest.total, min(BATCH, manifest.total), TOKENS)
        ours = EvaluationLoader(plan, loader(manifest, recipe))
        plain = plain_pipeline(manifest)
        mine = [float(batch.images.values[batch.images.mask].mean()) for batch in ours]
        theirs = [float(images.mean()) for images, _ in plain]
        name = f"{size[0]} x {size[1]} to {TOKENS} tokens, {decoder} + {resampler}{' + DCT scaling' * scaling}"
        yield compare(
            "b",
            f"{name}, webdataset + PIL",
            functools.partial(drain_converted, ours),
            functools.partial(drain, plain),
            target=target,
            items=manifest.total,
            difference=max(abs(a - b) for a, b in zip(mine, theirs, strict=True)),
        )


def drain(batches: Any) -> None:
    """Take everything and keep nothing."""
    for _ in batches:
        pass


def drain_converted(batches: Any) -> None:
    """Take everything, make floats of it, and keep nothing."""
    for batch in batches:
        _ = batch.images


def overhead(sets: Sets, compare: Compare) -> Iterator[Row]:
    """Part (c): under 10 % more time than by hand, with and without conversion."""
    manifest, augmentation = sets.images, Augmentation()
    folder = str(manifest.tar_path(0).parent)
    plan = ShardDataModule(folder, patch_size=PATCH, tokens=TOKENS, global_batch_size=BATCH).planner().plan(0)
    order = [int(index) for number in range(plan.steps) for index in plan.step(number).index]
    shards = IndexedShards(manifest)
    stored = [shards[index]["jpg"] for index in order]
    draws = augmentation.draws(0, 0, order)

    def by_hand(decoder: Decoder, resampler: Resampler, convert: bool) -> None:
        for data, row in zip(stored, draws, strict=True):
            picture = decode_pixels(data, decoder=decoder)
            crop = augmentation.plan(picture.original_size, int(TOKENS**0.5) * PATCH, row)
            size = resize_to_budget(crop.size or picture.original_size, PATCH, TOKENS)
            pixels = crop.apply(picture, size, resampler)
            if convert:
                uint8_to_signed(pixels).permute(2, 0, 1).contiguous()

    for decoder, resampler in PATHS:
        recipe = NativeRecipe(PATCH, augmentation, decoder=decoder, resampler=resampler)
        ours = PlanLoader(plan, loader(manifest, recipe))
        for convert in (False, True):
            what = "decode, augment, resize and convert" if convert else "decode, augment and resize"
            hand = functools.partial(by_hand, decoder, resampler, convert)
            mine = functools.partial(drain_converted if convert else drain, ours)
            case = f"loader{', converted' * convert}, {decoder} + {resampler}; {what} by hand"
            yield compare("c", case, mine, hand, target=1 / 1.1)


def staying_level(sets: Sets, compare: Compare) -> Iterator[Row]:
    """Part (d): memory may grow by 5 % at most, the number of open files by none."""
    del compare
    passes = sets.amounts.passes
    folder = str(sets.images.tar_path(0).parent)
    for workers in (0, 2):
        module = ShardDataModule(folder, tokens=TOKENS, global_batch_size=BATCH, num_workers=workers)
        used = []
        for number in range(passes):
            drain(module.train_loader(number))
            used.append(footprint())
        module.teardown()
        early, late = used[passes // 5 : passes // 5 + 3], used[-3:]
        for part, name, unit, target in ((0, "memory", "MB", 0.95), (1, "open files", "", 1.0)):
            before, after = (statistics.median(one[part] for one in some) for some in (early, late))
            shown = f"{before / 1e6:.0f} to {after / 1e6:.0f} MB" if unit else f"{before:.0f} to {after:.0f}"
            case = f"{passes} passes, {workers} workers: {name} {shown}"
            yield Row("d", case, before / after, (before / after, before / after), after, before, target)


def footprint() -> tuple[int, int]:
    """Resident bytes and open files of this process and its workers."""
    memory = files = 0
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        memory += int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1]) * mmap.PAGESIZE
        files += len(os.listdir(f"/proc/{process}/fd"))
    return memory, files


def indexing(sets: Sets, compare: Compare) -> Iterator[Row]:
    """Part (e)."""
    tar = sets.raw(1000).tar_path(0)

    def members() -> int:
        with tarfile.open(tar) as opened:
            return len(opened.getmembers())

    yield compare("e", "index a foreign tar by its headers, tarfile", lambda: index_tar(tar), members, target=1)


def levels(sets: Sets) -> dict[str, list[float]]:
    """How far the fast ways are from the reference: mean and largest difference in levels of 0..255."""

    def apart(manifest: Manifest, scaling: bool) -> list[float]:
        found = []
        for sample in map(IndexedShards(manifest).__getitem__, range(min(8, manifest.total))):
            full = decode_pixels(sample["jpg"], decoder="pil")
            size = resize_to_budget(full.original_size, PATCH, TOKENS)
            fast = decode_pixels(sample["jpg"], at_least=size if scaling else None)
            pair = resample(full.pixels, size, "pil"), resample(fast.pixels, size, "torch", fast.extent)
            found.append((pair[0].float() - pair[1].float()).abs())
        both = torch.stack(found)
        return [round(float(both.mean()), 4), float(both.max())]

    return {"torch": apart(sets.images, False), "torch and DCT scaling": apart(sets.large, True)}


PARTS = {"a": raw_reads, "b": images_per_second, "c": overhead, "d": staying_level, "e": indexing}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="only these parts; default: all")
    options = with_standard_options(parser, "benchmarks/results/speed_data.json").parse_args()
    torch.set_num_threads(options.threads)
    amounts, repetitions = (QUICK, 1) if options.quick else (FULL, options.repetitions)
    compare = functools.partial(measure.compare, repetitions=repetitions, clock=time.process_time)
    settings = {"threads": options.threads, "repetitions": repetitions, "quick": options.quick, **amounts._asdict()}
    parts, rows = options.part or sorted(PARTS), []
    with tempfile.TemporaryDirectory() as folder:
        sets = Sets(Path(folder), amounts)
        for part in parts:
            for row in PARTS[part](sets, compare):
                print(f"{row.part} {row.case}: {row.ratio:.2f}", flush=True)
                rows.append(row)
        if "b" in parts:
            settings["levels"] = levels(sets)
    report(rows, options.out, settings, "images")


if __name__ == "__main__":
    main()
