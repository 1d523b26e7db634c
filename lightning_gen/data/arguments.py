"""The arguments that every DataModule has."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import lightning.pytorch as pl

from lightning_gen.data.decode import MAX_PIXELS, Decoder
from lightning_gen.data.joining import WeightedShards
from lightning_gen.data.loader import StartMethod
from lightning_gen.data.remote.retrying import RemoteOptions
from lightning_gen.data.resampling import Resampler

__all__ = ["DataArguments"]


@dataclass(eq=False, repr=False)
class DataArguments(pl.LightningDataModule):
    """Where the data are, in which order they come, and how they are read.

    Args:
        train: training shards: a folder with manifest.json, a manifest, a timm folder (``FOLDER#SPLIT``), a pattern
            ``name-{0000..0003}.tar|N``, a tar; or a list of ``{shards, weight, name}``, mixed by their weights.
            None = no training.
        val: validation shards, one of these places.
        predict: shards to predict on, likewise; default those of ``val``.
        val_batch_size: images per validation batch over all ranks; None = chosen by the module.
        seed: decides the order and the augmentation; not the number of ranks or workers.
        passes: passes over the data in one plan; raise it for tiny data sets.
        block_shards: shards whose samples are mixed with each other.
        canonical_streams: parallel streams the order is made of; default gcd(64, global batch).
        num_workers: decoding processes per rank; 0 = in the training process.
        start_method: how they are started; None = torch's default.
        prefetch_factor: batches that every worker prepares ahead.
        pin_memory: page-locked batches; None = where there is a GPU.
        decoder: ``auto`` = simplejpeg if installed, else PIL (same pixels); ``pil``; ``simplejpeg``; ``torchvision``.
        resampler: ``pil``, or ``torch``: faster, and a level off here and there.
        dct_scaling: training decodes JPEGs that are at least twice as large as they have to be at a fraction of their
            size: faster, with slightly other pixels.
        max_pixels: larger pictures are bad samples.
        max_bad_fraction: fraction of bad samples at which training stops, in [0, 1], over all ranks.
        max_bad_per_shard: bad samples in one shard at which training stops, over all ranks.
        exclude: a quarantine.jsonl of an earlier run; its samples, and those of the lists of further machines beside
            it, are left out.
        verify: what is compared with the manifest before use: ``size`` of each tar when it is opened, or its ``sha256``
            before training begins. An index is always compared by its hash.
        index_folder: where indices of foreign tars are kept; default beside them.
        access: ``indexed`` = exact epochs and resume; ``stream`` = training shards are read from front to back, for
            tars without an index behind a network or a ``pipe:`` (statistical epochs, approximate resume).
        stream_buffer: samples of a stream that each worker holds to mix them; 0 = the order of the tars.
        cache_folder: where shards behind a network are kept; must be given for them unless they are streamed.
        cache_bytes: most bytes kept there.
        remote: limits and retries of the network; None = the defaults.
        read_timeout: seconds one read of a disk may take.
        worker_timeout: seconds to wait for a batch.

    Raises:
        ValueError: a number that is too small.
    """

    train: str | list[WeightedShards] | None = None
    val: str | None = None
    predict: str | None = None
    _: KW_ONLY
    val_batch_size: int | None = None
    seed: int = 0
    passes: int = 1
    block_shards: int = 16
    canonical_streams: int | None = None
    num_workers: int = 0
    start_method: StartMethod | None = None
    prefetch_factor: int = 2
    pin_memory: bool | None = None
    decoder: Decoder = "auto"
    resampler: Resampler = "pil"
    dct_scaling: bool = False
    max_pixels: int = MAX_PIXELS
    max_bad_fraction: float = 1e-3
    max_bad_per_shard: int = 16
    exclude: str | None = None
    verify: Literal["size", "sha256"] = "size"
    index_folder: str | None = None
    access: Literal["indexed", "stream"] = "indexed"
    stream_buffer: int = 256
    cache_folder: str | None = None
    cache_bytes: int = 100 << 30
    remote: RemoteOptions | None = None
    read_timeout: float = 120.0
    worker_timeout: float = 600.0

    def __post_init__(self) -> None:
        super().__init__()
        for name in ("num_workers", "max_bad_per_shard", "stream_buffer"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("read_timeout", "worker_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"data.{name} is a number of seconds above 0, got {getattr(self, name)}")
        counts = ("passes", "block_shards", "prefetch_factor", "val_batch_size", "canonical_streams")
        for name in (*counts, "max_pixels", "cache_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name} must be at least 1, got {value}")
