"""Does a data set hold what its manifest says, and can its samples be used?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lightning_gen.data.decode import decode
from lightning_gen.data.index import ShardIndex, index_tar, picture_fields
from lightning_gen.data.manifest import Manifest, verify_shards
from lightning_gen.data.quarantine import DataError, SampleError, ShardError
from lightning_gen.data.shards import IndexedShards

from .contents import empty_samples

__all__ = ["Faults", "verify"]


class Faults(list[str]):
    """One sentence per fault; empty = all is well.

    Attributes:
        decoded: samples that were read and all of whose pictures were decoded.
    """

    decoded: int = 0


def verify(
    manifest: Manifest,
    *,
    hashes: bool = True,
    samples: int | None = 100,
    watch: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Faults:
    """Look through a data set of this machine.

    Every tar is compared with the manifest (bytes, sha256), every index with the manifest and with the headers of its
    tar, samples that hold nothing to use are named, and some samples are decoded.

    Args:
        manifest: what should be there.
        hashes: read every tar in full for its sha256.
        samples: how many samples are decoded, spread over the whole set; None = all.
        watch: gets the progress.

    Returns:
        One sentence per fault, which names the shard and the key; empty = all is well. Its ``decoded`` is the number
        of samples that were decoded.

    Raises:
        ShardError: the shards are remote.
    """
    if manifest.has_remote:
        raise ShardError(f"the shards of {manifest.name} are remote: copy them to a local disk to verify them")
    problems, sound = Faults(), list[bool]()
    for number, shard in enumerate(manifest.shards):
        watch("shards", number, len(manifest.shards))
        one = Manifest(manifest.name, manifest.folder, (shard,))
        found = verify_shards(one, hashes) or _index_problems(one)
        sound.append(not found)
        problems += found or _empty_samples(one)
    watch("shards", len(manifest.shards), len(manifest.shards))
    problems += _strangers(manifest)
    _look_at_samples(problems, manifest, sound, samples, watch)
    return problems


def _index_problems(one: Manifest) -> list[str]:
    """Of a single shard, whose files are there and have their sizes."""
    shard, path, idx = one.shards[0], one.tar_path(0), one.idx_path(0)
    data = idx.read_bytes()
    if hashlib.sha256(data).hexdigest() != shard.idx_sha256:
        return [f"index {idx} has other content than the manifest says (sha256 differs)"]
    try:
        index, real = ShardIndex.from_bytes(data, idx), index_tar(path)
    except ShardError as error:
        return [str(error)]
    if len(real) != shard.num_samples:
        return [f"shard {path} holds {len(real)} samples, the manifest says {shard.num_samples}"]
    same = (
        index.fields == real.fields
        and index.key_block == real.key_block
        and np.array_equal(index.offsets, real.offsets)
        and np.array_equal(index.sizes, real.sizes)
    )
    return [] if same else [f"index {idx} does not belong to its tar: other keys, fields or places"]


def _empty_samples(one: Manifest) -> list[str]:
    """Of a single shard whose index is sound."""
    index = ShardIndex.from_bytes(one.idx_path(0).read_bytes(), one.idx_path(0))
    rows = empty_samples(index)
    if not rows:
        return []
    fields = ", ".join(field for field, _, _ in index.places(rows[0]))
    others = f"; {len(rows) - 1:,} more like it" if len(rows) > 1 else ""
    return [
        f"sample {index.key(rows[0])} of {one.shards[0].name}: no picture, no pair (0 and 1, src and tgt), no txt and "
        f"no npy, only {fields}{others}"
    ]


def _strangers(manifest: Manifest) -> list[str]:
    """Tars of the same name pattern that no manifest names: left by another conversion, or forgotten by this one."""
    named = {Path(shard.url).name for shard in manifest.shards}
    there = sorted(path.name for path in manifest.folder.glob(f"{manifest.name}-*.tar"))
    return [f"shard {manifest.folder / name} is not in the manifest" for name in there if name not in named]


def _look_at_samples(
    problems: Faults,
    manifest: Manifest,
    sound: list[bool],
    samples: int | None,
    watch: Callable[[str, int, int], None],
) -> None:
    reader = IndexedShards(manifest)
    wanted = manifest.total if samples is None else min(samples, manifest.total)
    try:
        for done, index in enumerate(np.linspace(0, manifest.total - 1, wanted, dtype=np.int64).tolist()):
            watch("samples", done, wanted)
            shard, row = reader.locate(index)
            if sound[shard]:
                name = f"sample {reader.key(index)} of {manifest.shards[shard].name}"
                try:
                    fields = reader[index]
                except DataError as error:
                    problems.append(f"{name}: {error}")
                    continue
                broken = list(_picture_faults(fields, reader.index(shard), row))
                problems.decoded += not any(undecoded for undecoded, _ in broken)
                problems += [f"{name}: {fault}" for _, fault in broken]
                problems += [f"{name}: {fault}" for fault in _text_faults(fields)]
        watch("samples", wanted, wanted)
    finally:
        reader.close()


def _picture_faults(fields: dict[str, bytes], table: ShardIndex, row: int) -> Iterator[tuple[bool, str]]:
    """Whether the picture could not be decoded at all, and the fault."""
    for field in picture_fields(fields):
        column = table.fields.index(field)
        known = int(table.heights[row, column]), int(table.widths[row, column])
        try:
            picture = decode(fields[field])
        except SampleError as error:
            yield True, f"{field}: {error}"
            continue
        if (picture.height, picture.width) != known:
            yield False, f"{field} is {picture.height} x {picture.width}, the index says {known[0]} x {known[1]}"


def _text_faults(fields: dict[str, bytes]) -> Iterator[str]:
    if "json" in fields:
        try:
            record = json.loads(fields["json"])
        except ValueError as error:
            record = {}
            yield f"json: {error}"
        if not isinstance(record, dict):
            yield "json holds no object"
        elif record.get("label_0", 1) not in (0, 0.5, 1):
            yield f"label_0 is {record['label_0']!r}; known are 1, 0 and 0.5"
    if "cls" in fields and not fields["cls"].strip().isdigit():
        yield f"cls is {fields['cls'][:20]!r}, not a class number"
    if "txt" in fields:
        try:
            fields["txt"].decode("utf-8")
        except UnicodeDecodeError as error:
            yield f"txt is not UTF-8: {error}"
