"""Second pass: the samples of all parts become shards, in their final order.

Which samples a shard holds is known before one of them is read, so shards are written side by side, and one that was
finished before a crash is kept.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gen.data.convert.order import PIECE
from lightning_gen.data.convert.packing import Packing
from lightning_gen.data.convert.spool import Spool
from lightning_gen.data.index import replace_file
from lightning_gen.data.manifest import Shard
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.tarfiles import split_name, walk_bytes
from lightning_gen.data.writing import ShardWriter

__all__ = ["SecondPass", "ShardTask", "cut_shards", "finished_shard", "is_whole"]

_END_MARK = 10_240
_OPEN_FILES = 128


class ShardTask(NamedTuple):
    """A shard to be written.

    Attributes:
        number: of the shard.
        pieces: where its samples lie, in order.
    """

    number: int
    pieces: npt.NDArray[np.void]


def cut_shards(buckets: Iterable[npt.NDArray[np.void]], packing: Packing) -> Iterator[ShardTask]:
    """Cut the final order into shards.

    Args:
        buckets: pieces in order.
        packing: largest shard, and how many samples are wanted at all.

    Yields:
        The shards in order.
    """
    number, rest, wanted = 0, np.empty(0, PIECE), packing.limit
    for bucket in buckets:
        bucket = bucket if wanted is None else bucket[:wanted]
        wanted = None if wanted is None else wanted - len(bucket)
        rest = np.concatenate([rest, bucket])
        while (end := _shard_end(rest, packing)) < len(rest):
            yield ShardTask(number, rest[:end])
            number, rest = number + 1, rest[end:]
    if len(rest):
        yield ShardTask(number, rest)


def _shard_end(pieces: npt.NDArray[np.void], packing: Packing) -> int:
    """How many pieces fit into the next shard; at least one, however large."""
    room = packing.max_bytes - _END_MARK
    fit = int(np.searchsorted(np.cumsum(pieces["size"]), room, side="right"))
    return max(1, fit if packing.max_samples is None else min(fit, packing.max_samples))


def finished_shard(folder: Path, name: str) -> Shard | None:
    """What an earlier attempt wrote down about a shard.

    Args:
        folder: the working folder.
        name: of the tar.

    Returns:
        The manifest's line; None = it was not finished, or its tar is gone.
    """
    path = (folder / name).with_suffix(".json")
    if not path.is_file():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    shard = Shard(**{**row, "alternates": tuple(row["alternates"])})
    return shard if is_whole(folder, shard) else None


def is_whole(folder: Path, shard: Shard) -> bool:
    """Whether a shard that was finished is still there.

    Args:
        folder: the working folder.
        shard: the manifest's line for it.

    Returns:
        True = tar and index are there, and the tar has its size.
    """
    tar = folder / shard.url
    return tar.is_file() and tar.stat().st_size == shard.bytes and (folder / shard.idx).is_file()


@dataclasses.dataclass(frozen=True)
class SecondPass:
    """Writes shards; a worker process is given the whole object once.

    Attributes:
        files: the first pass's files; the shards go into the same folder.
        name: start of the shards' names.
    """

    files: Spool
    name: str

    def __call__(self, task: ShardTask) -> Shard:
        """Write one shard, unless it is there already.

        Args:
            task: which samples, in which order.

        Returns:
            The manifest's line for it.
        """
        path = self.files.folder / f"{self.name}-{task.number:06d}.tar"
        found = finished_shard(path.parent, path.name)
        if found is not None:
            return found
        with ShardWriter(path) as writer, _Parts(self.files) as parts:
            for part, start, size in task.pieces.tolist():
                writer.add(*parts.sample(part, start, size))
            shard = writer.close()
        replace_file(path.with_suffix(".json"), json.dumps(dataclasses.asdict(shard), sort_keys=True).encode())
        return shard


class _Parts:
    """Random access to the samples of the first pass, with a bounded number of open files."""

    def __init__(self, files: Spool) -> None:
        self._files = files
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def sample(self, part: int, start: int, size: int) -> tuple[str, dict[str, bytes]]:
        path = self._files.tar(part)
        file = self._open.pop(part, None) or path.open("rb")
        self._open[part] = file
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        file.seek(start)
        block = file.read(size)
        sample, key = dict[str, bytes](), ""
        for member in walk_bytes(block, str(path)):
            key, field = split_name(member.name) or ("", "")
            sample[field] = block[member.offset : member.offset + member.size]
        if len(block) != size or not sample:
            raise ShardError(f"{path} was changed while it was in use: start again with --fresh")
        return key, sample

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._open:
            self._open.popitem()[1].close()
