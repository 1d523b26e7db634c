"""Index and manifest for tars that are there already, written beside them, once and for everybody."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from lightning_gen.data.decode import picture_size
from lightning_gen.data.index import ShardIndex, index_tar, replace_file
from lightning_gen.data.manifest import Manifest, Shard
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.workers import Watch, run_tasks

from .contents import merged_samples

__all__ = ["doubtful_shards", "index_in_place"]


def index_in_place(
    tars: Sequence[Path],
    folder: Path,
    name: str,
    *,
    hashes: bool = False,
    workers: int = 0,
    overwrite: bool = False,
    watch: Watch = lambda what, done, total: None,
) -> Manifest:
    """Write an index per tar and a manifest.

    An index that is there, fits the size of its tar and is not older is kept, so an interrupted call goes on.

    Args:
        tars: the shards, in order.
        folder: where index and manifest go; tars inside it are named by relative paths, others by absolute ones.
        name: name of the split.
        hashes: read every tar in full, for sha256 and for the md5 that wids wants.
        workers: processes; 0 and 1 = this one only.
        overwrite: replace a manifest that is there, and make every index again.
        watch: gets the progress.

    Returns:
        The manifest, on disk.

    Raises:
        FileExistsError: the folder has a manifest and ``overwrite`` is off.
        ShardError: two tars have one name, or one of them is damaged or holds no sample.
    """
    if (folder / "manifest.json").exists() and not overwrite:
        gone = [f"{tar.stem}.idx" for tar in tars if not (folder / f"{tar.stem}.idx").is_file()]
        raise FileExistsError(
            f"{folder} already holds a manifest.json{f', but no {gone[0]}' if gone else ''}: --overwrite makes every "
            "index again and replaces the manifest; or choose another --out"
        )
    names = [tar.stem for tar in tars]
    twice = next((stem for stem in names if names.count(stem) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ShardError(f"two tars are called {twice}.tar: their indices would have one name")
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[int, Shard] = {}
    work = _IndexOne(folder, hashes, overwrite)
    for number, shard in run_tasks(work, list(enumerate(tars)), workers):
        rows[number] = shard
        watch("shards", len(rows), len(tars))
    manifest = Manifest(name, folder, tuple(rows[number] for number in sorted(rows)), {}, "indexed from existing tars")
    manifest.write()
    return manifest


def doubtful_shards(manifest: Manifest) -> list[str]:
    """Look for samples that seem to be several, whose names had a dot.

    Args:
        manifest: what :func:`index_in_place` wrote.

    Returns:
        One sentence per shard that has such samples, with the first of them and what to do.
    """
    found = list[str]()
    for number in range(len(manifest.shards)):
        path = manifest.idx_path(number)
        index = ShardIndex.from_bytes(path.read_bytes(), path)
        rows = merged_samples(index)
        if rows:
            key, fields = index.key(rows[0]), [field for field, _, _ in index.places(rows[0])]
            found.append(
                f"shard {manifest.tar_path(number)}: {len(rows):,} samples have several pictures but none of their "
                f"own, for instance {key!r} with {', '.join(fields[:4])}. A key ends at the first dot of a file's "
                "name: if these are different samples, write them anew with lightning data convert --from wds"
            )
    return found


@dataclasses.dataclass(frozen=True)
class _IndexOne:
    folder: Path
    hashes: bool
    fresh: bool

    def __call__(self, task: tuple[int, Path]) -> tuple[int, Shard]:
        number, tar = task
        idx = self.folder / f"{tar.stem}.idx"
        index = None if self.fresh else _kept(idx, tar)
        if index is None:
            index = index_tar(tar, picture_size)
        if len(index) == 0:
            raise ShardError(f"shard {tar} holds no sample: remove it from the list or fetch it again")
        digest = replace_file(idx, index.to_bytes())
        sha256, md5 = _hashes(tar) if self.hashes else ("", "")
        inside = tar.resolve().is_relative_to(self.folder.resolve())
        url = tar.resolve().relative_to(self.folder.resolve()).as_posix() if inside else str(tar.resolve())
        return number, Shard(url, len(index), index.tar_bytes, idx.name, digest, sha256=sha256, md5=md5)


def _kept(idx: Path, tar: Path) -> ShardIndex | None:
    if not idx.is_file() or idx.stat().st_mtime_ns < tar.stat().st_mtime_ns:
        return None
    try:
        index = ShardIndex.from_bytes(idx.read_bytes(), idx)
    except ShardError:
        return None
    return index if index.tar_bytes == tar.stat().st_size else None


def _hashes(tar: Path) -> tuple[str, str]:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with tar.open("rb") as file:
        while chunk := file.read(1 << 22):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()
