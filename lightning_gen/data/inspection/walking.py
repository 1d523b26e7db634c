"""A walk over the samples of a set some of whose shards may be damaged: what can be read is read, the rest is named."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gen.data.manifest import Manifest, verify_shards
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.shards import IndexedShards

__all__ = ["visit_samples"]


def visit_samples(
    manifest: Manifest,
    begin: Callable[[IndexedShards, int], None],
    look: Callable[[IndexedShards, int], None],
    watch: Callable[[str, int, int], None],
) -> list[str]:
    """Look at every sample of every shard that is there and has its size.

    Args:
        manifest: the data set, on this machine.
        begin: called with the reader and the number of a shard before its samples.
        look: called with the reader and the number of a sample in the set.
        watch: gets the progress.

    Returns:
        One sentence per shard that could not be read to its end; it names the shard and the reason.

    Raises:
        ShardError: the shards are remote.
    """
    if manifest.has_remote:
        raise ShardError(f"the shards of {manifest.name} are remote: copy them to a local disk to count them")
    reader, damaged, first = IndexedShards(manifest), list[str](), 0
    try:
        for number, shard in enumerate(manifest.shards):
            problems = verify_shards(Manifest(manifest.name, manifest.folder, (shard,)))
            fault = (
                problems[0]
                if problems
                else _visit(reader, number, range(first, first + shard.num_samples), begin, look)
            )
            if fault:
                damaged.append(f"{fault}: not all of its {shard.num_samples:,} samples are counted")
            first += shard.num_samples
            watch("samples", first, manifest.total)
    finally:
        reader.close()
    return damaged


def _visit(
    reader: IndexedShards,
    number: int,
    samples: range,
    begin: Callable[[IndexedShards, int], None],
    look: Callable[[IndexedShards, int], None],
) -> str:
    """Look at one shard; why that ended before its end, or nothing."""
    try:
        begin(reader, number)
        for index in samples:
            look(reader, index)
    except ShardError as error:
        return str(error)
    return ""
