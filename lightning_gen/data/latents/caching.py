"""Caching: every picture of a data set through an auto-encoder once, into shards of latents.

Each shard of pictures becomes one shard of latents, and no batch reaches over the end of a shard. What is finished
therefore stays finished: an interrupted call goes on with the first shard that is missing, and ends with the same
bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.latents.encoding import EncodedPicture, PictureEncoder
from lightning_gen.data.latents.fields import CARRIED, MIRRORED, PLAIN, StoredLatent, array_bytes, latent_sample
from lightning_gen.data.latents.journal import LEFT_OUT, FinishedShard, LatentJournal
from lightning_gen.data.latents.reading import LeftOut, PictureSize, read_pictures, require_pictures
from lightning_gen.data.latents.record import LatentRecord, StoredKind, weights_sha256
from lightning_gen.data.latents.statistics import ChannelMoments
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.workers import Watch
from lightning_gen.data.writing import ShardWriter
from lightning_gen.interfaces import Autoencoder

__all__ = ["Caching", "cache_latents"]


@dataclasses.dataclass(frozen=True)
class Caching:
    """What is cached, besides of which pictures and by which auto-encoder.

    Attributes:
        size: how large pictures are when they are encoded.
        dtype: of the stored numbers.
        mirror: cache the latents of the mirror images too, which are not the mirrored latents.
    """

    size: PictureSize
    dtype: StoredKind = "float16"
    mirror: bool = False


def cache_latents(
    source: Manifest,
    out: str | os.PathLike[str],
    autoencoder: Autoencoder,
    caching: Caching,
    *,
    weights: str = "",
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    num_workers: int = 0,
    max_bad_fraction: float = 1e-3,
    overwrite: bool = False,
    fresh: bool = False,
    watch: Watch = lambda what, done, total: None,
) -> LatentRecord:
    """Write shards of latents, with indices, a manifest, latents.json and, if need be, quarantine.jsonl.

    The bytes depend on the pictures, the auto-encoder, ``caching``, the batch size and the device, and not on the
    number of workers or on interruptions.

    Args:
        source: pictures in tar shards.
        out: folder of the latents. Its subfolder ``.convert`` holds unfinished work.
        autoencoder: with its weights, in eval mode, on ``device``.
        caching: what is cached.
        weights: where its weights came from, for people.
        device: where it computes.
        batch_size: pictures encoded at a time.
        num_workers: processes that decode pictures; 0 = this one.
        max_bad_fraction: fraction of the pictures that may be unusable, in [0, 1].
        overwrite: replace a data set that is there.
        fresh: throw away what an interrupted call has done.
        watch: gets the progress.

    Returns:
        What stands in latents.json.

    Raises:
        FileExistsError: the folder holds a data set or unfinished work of something else.
        DataError: a shard cannot be read, too many pictures cannot be used, or a latent cannot be stored.
        TypeError: the auto-encoder is no torch module.
    """
    if not isinstance(autoencoder, nn.Module):
        raise TypeError(f"{type(autoencoder).__name__} is no torch module, so its weights cannot be named by a hash")
    shards = IndexedShards(source)
    require_pictures(shards)
    encoder = PictureEncoder(autoencoder, caching.dtype, caching.mirror, device)
    record = LatentRecord(
        autoencoder=type(autoencoder).__name__,
        name=weights,
        sha256=weights_sha256(autoencoder),
        patch=encoder.patch,
        channels=encoder.channels,
        dtype=caching.dtype,
        tokens=caching.size.tokens,
        resolution=caching.size.resolution,
        mirrored=caching.mirror,
        source=source.fingerprint,
    )
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", source.name)
    journal = LatentJournal(Path(out), name, _plan(record), overwrite, fresh)
    with journal.held():
        if not journal.is_ready:
            journal.remove_halves()
            missing = [number for number in range(len(source.shards)) if journal.finished(number) is None]
            left_out = LeftOut(source.total, max_bad_fraction, journal.work / LEFT_OUT)
            how = {"batch_size": batch_size, "num_workers": num_workers}
            reading = read_pictures(shards, missing, caching.size, encoder.patch, left_out, **how)
            with contextlib.closing(reading):
                _encode(shards, encoder, journal, reading, missing, watch)
            journal.make_complete(source, _fields(shards, caching), record)
        journal.finish()
    return LatentRecord.load(out)


def _plan(record: LatentRecord) -> dict[str, Any]:
    """What an interrupted call must have in common with the one that goes on. A smaller batch may be what helps it."""
    from lightning_gen import __version__

    names = ("source", "autoencoder", "sha256", "tokens", "resolution", "mirrored", "dtype")
    return {**{name: getattr(record, name) for name in names}, "version": __version__}


def _encode(
    shards: IndexedShards,
    encoder: PictureEncoder,
    journal: LatentJournal,
    reading: Iterator[tuple[int, Iterator[ImageBatch]]],
    missing: Sequence[int],
    watch: Watch,
) -> None:
    """Write the shards that are read, one after another."""
    lines = shards.manifest.shards
    done = len(shards) - sum(lines[number].num_samples for number in missing)
    watch("pictures", done, len(shards))
    for number, batches in reading:
        moments = ChannelMoments.none(encoder.channels)
        with ShardWriter(journal.tar(number)) as writer:
            for batch in batches:
                for row, picture in enumerate(encoder(batch.to(encoder.device).images)):
                    if bool(batch.valid[row]):
                        moments = moments.merged(_moments(picture))
                        writer.add(batch.key[row], _sample(picture, batch, row, shards))
                done += len(batch)
                watch("pictures", done, len(shards))
            shard = writer.close() if writer.num_samples else None
        journal.finish_shard(number, FinishedShard(shard, moments))


def _fields(shards: IndexedShards, caching: Caching) -> list[str]:
    there = {field for number in range(len(shards.manifest.shards)) for field in shards.index(number).fields}
    return [PLAIN, "json", *([MIRRORED] if caching.mirror else []), *(field for field in CARRIED if field in there)]


def _moments(picture: EncodedPicture) -> ChannelMoments:
    arrays = [array for array in (picture.plain, picture.mirrored) if array is not None]
    return ChannelMoments.total(map(ChannelMoments.of, arrays))


def _sample(picture: EncodedPicture, batch: ImageBatch, row: int, shards: IndexedShards) -> dict[str, bytes]:
    index = int(batch.index[row])
    known = {field: shards.field(index, field) for field in CARRIED}
    corner = batch.crop_top_left
    latent = StoredLatent(
        array_bytes(picture.plain),
        None if picture.mirrored is None else array_bytes(picture.mirrored),
        picture.grid,
        picture.size,
        _pair(batch.original_size[row]),
        (0, 0) if corner is None else _pair(corner[row]),
        int(batch.label[row]),
        batch.caption[row],
    )
    return latent_sample(latent, {field: data for field, data in known.items() if data is not None})


def _pair(numbers: Tensor) -> tuple[int, int]:
    first, second = numbers.tolist()
    return first, second
