"""`lightning data cache-latents`: the pictures of a data set through an auto-encoder, once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data_packing import progress_bars
from .options import Examples, add_workers, device_of

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["configure"]

_EPILOG = """\
examples:
  lightning data cache-latents data/shards/mine/train latents/train --autoencoder ViTokV2 --weights 350M-f16x64 \\
      --tokens 256 --batch-size 64 --num-workers 8
  lightning data cache-latents data/shards/imagenet-1k#train latents/imagenet --autoencoder DiffusersVAE \\
      --weights weights/sdxl/vae --resolution 256 --mirror

LatentDataModule trains on the result. Beside manifest.json stand latents.json (which weights, mean and standard
deviation per channel) and quarantine.jsonl (pictures that could not be used). An interrupted call goes on where it was.
"""


def configure(verbs: Verbs) -> None:
    """Add the verb.

    Args:
        verbs: where to.
    """
    parser = verbs.add_parser(
        "cache-latents",
        help="encode every picture once, for training on latents",
        description="Encode every picture of a data set once by an auto-encoder and write shards of latents.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("source", metavar="SOURCE", help="pictures: manifest, folder, FOLDER#SPLIT, pattern of tars")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    model = parser.add_argument_group("auto-encoder")
    model.add_argument("--autoencoder", required=True, metavar="CLASS", help="ViTokV2, DiffusersVAE or package.Class")
    model.add_argument("--weights", required=True, metavar="SOURCE", help="folder, hub id or published name")
    size = parser.add_argument_group("pictures (one of the two)").add_mutually_exclusive_group(required=True)
    size.add_argument("--tokens", type=int, metavar="N", help="keep the ratio, at most N tokens; nothing is enlarged")
    size.add_argument("--resolution", type=int, metavar="PIXELS", help="a square out of the middle")
    stored = parser.add_argument_group("latents")
    stored.add_argument("--mirror", action="store_true", help="encode the mirror images too (mirror.npy)")
    stored.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the numbers (float16)")
    work = parser.add_argument_group("work")
    work.add_argument("--batch-size", type=int, default=16, metavar="N", help="pictures at a time (16)")
    work.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto = the fastest one (auto)")
    add_workers(work, "--num-workers", "processes that decode")
    work.add_argument(
        "--max-bad-fraction", type=float, default=1e-3, metavar="F", help="of pictures that may be unusable (0.001)"
    )
    work.add_argument("--overwrite", action="store_true", help="replace a data set in OUT")
    work.add_argument("--fresh", action="store_true", help="throw away what an interrupted call has done in OUT")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from torch import OutOfMemoryError

    from lightning_gen.data.finding import find_manifest
    from lightning_gen.data.latents.caching import Caching, cache_latents
    from lightning_gen.data.latents.journal import LEFT_OUT
    from lightning_gen.data.latents.reading import PictureSize

    caching = Caching(PictureSize(options.tokens, options.resolution), options.dtype, options.mirror)
    manifest = find_manifest(options.source, progress=True)
    if manifest.folder.resolve() == Path(options.out).resolve():
        raise ValueError(f"{options.out} is the data set that is read: choose another folder")
    device = device_of(options.device, apple=True)
    autoencoder = _class(options.autoencoder).from_pretrained(options.weights).to(device).eval()
    try:
        with progress_bars() as watch:
            record = cache_latents(
                manifest,
                options.out,
                autoencoder,
                caching,
                weights=_spoken(options.weights),
                device=device,
                batch_size=options.batch_size,
                num_workers=options.num_workers,
                max_bad_fraction=options.max_bad_fraction,
                overwrite=options.overwrite,
                fresh=options.fresh,
                watch=watch,
            )
    except OutOfMemoryError:
        raise RuntimeError(
            f"the memory of {device} does not hold {options.batch_size} pictures at a time: give a smaller "
            "--batch-size; the call goes on with the first unfinished shard"
        ) from None
    print(
        f"{options.out}: {record.samples:,} latents, {record.num_tokens:,} tokens of {record.channels} channels, "
        f"weights {record.sha256}"
    )
    if record.left_out:
        print(f"{record.left_out:,} pictures could not be used: {Path(options.out) / LEFT_OUT}")
    return 0


def _class(name: str) -> Any:
    from lightning_gen.training.classes import class_named

    found = class_named(name, "--autoencoder")
    if not all(hasattr(found, method) for method in ("from_pretrained", "encode")):
        raise ValueError(f"--autoencoder {name} is no class with from_pretrained(source) and encode(images)")
    return found


def _spoken(weights: str) -> str:
    """A name that says nothing about this machine."""
    return Path(weights).resolve().name if Path(weights).is_dir() else weights
