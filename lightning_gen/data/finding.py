"""From what a user writes behind ``train:`` to a manifest.

Accepted are a manifest.json, a folder that has one, a folder in the manner of timm (``_info.json`` beside the tars,
``FOLDER#SPLIT`` where it lists several), a pattern ``name-{0000..0003}.tar`` with or without ``|NUMBER_OF_SAMPLES``, a
single tar and a folder of tars. Tars of strangers are indexed once; the index is kept beside them, or in the user's
cache folder where their folder cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_gen.data.decode import picture_size
from lightning_gen.data.index import index_tar, replace_file
from lightning_gen.data.manifest import Manifest, Shard
from lightning_gen.data.quarantine import ShardError

__all__ = ["expand_pattern", "find_manifest", "index_shards", "missing_data"]

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_pattern(pattern: str) -> list[str]:
    """Write out the number ranges of a shard pattern.

    Args:
        pattern: for instance ``train-{0000..1023}.tar``; several ranges and none are fine.

    Returns:
        The names in order; the first number's width is kept.
    """
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + f"{number:0{len(first)}d}" + rest for number in numbers for rest in expand_pattern(tail)]


def find_manifest(
    where: str | os.PathLike[str], index_folder: str | os.PathLike[str] | None = None, progress: bool = False
) -> Manifest:
    """Find a data set's manifest, and make one for tars that have none.

    Args:
        where: see the first lines of this file.
        index_folder: where the index of foreign tars is kept; default beside them, then the cache folder.
        progress: show a progress bar while indexing.

    Returns:
        The manifest.

    Raises:
        ShardError: nothing there, remote shards, or a shard that is damaged or of another length than stated.
    """
    text = os.fspath(where)
    if re.match(r"[a-z0-9]+://|pipe:", text):
        raise ShardError(f"{text} is a remote location: copy the shards to a local disk and name that folder")
    path = Path(text)
    if path.is_file() and path.suffix == ".json" and path.name != "_info.json":
        return Manifest.load(path)
    if path.is_dir() and (path / "manifest.json").is_file():
        return Manifest.load(path / "manifest.json")
    name, tars, stated = _foreign(text)
    return _indexed(name, tars, stated, index_folder, progress)


def _foreign(text: str) -> tuple[str, list[Path], dict[str, int]]:
    """Name of the split, its tars, and how many samples they should have by name ("" = together)."""
    folder, _, split = text.partition("#")
    info = Path(folder) if folder.endswith("_info.json") else Path(folder) / "_info.json"
    if info.is_file():
        return _timm(info, split)
    pattern, _, number = text.partition("|")
    if number and not number.isdigit():
        raise ShardError(f"{text}: behind the bar stands the number of samples, got {number!r}")
    if Path(pattern).is_dir():
        tars = sorted(Path(pattern).glob("*.tar"))
    else:
        tars = [Path(name) for name in expand_pattern(pattern)]
    missing = [str(tar) for tar in tars if not tar.is_file()]
    if missing or not tars:
        which = f"{len(missing)} of {len(tars)} shards are missing, the first is {missing[0]}" if missing else "no tar"
        raise ShardError(
            f"{text}: {which}. Give a folder with manifest.json (write_shards and write_image_folder of "
            "lightning_gen.data.writing make one), a folder of tars, or a pattern like name-{0000..0003}.tar"
        )
    return _RANGE.sub("", tars[0].stem).rstrip("-_0123456789") or "shards", tars, {"": int(number)} if number else {}


def _timm(info: Path, split: str) -> tuple[str, list[Path], dict[str, int]]:
    try:
        splits = json.loads(info.read_text(encoding="utf-8"))["splits"]
        if not split and len(splits) == 1:
            split = next(iter(splits))
        if split not in splits:
            raise ShardError(f"{info} has the splits {', '.join(sorted(splits))}: write {info.parent}#SPLIT")
        names, lengths = splits[split]["filenames"], splits[split].get("shard_lengths") or []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{info} is not a shard list in timm's form ({error})") from None
    if any(".." in Path(name).parts or Path(name).is_absolute() for name in names):
        raise ShardError(f"{info} names shards outside its folder: do not use it")
    stated = {str(info.parent / name): int(length) for name, length in zip(names, lengths, strict=False)}
    return split, [info.parent / name for name in names], stated


def index_shards(tars: Sequence[Path], folder: Path, name: str, each: Callable[[], None] = lambda: None) -> Manifest:
    """Index foreign tars by their headers and write .idx files and a manifest.

    The size of every picture is read from its own header, since a JSON beside it may be wrong or lack the rotation.

    Args:
        tars: the shards, in order.
        folder: where the index goes.
        name: name of the split.
        each: called after every shard.

    Returns:
        The manifest, already on disk; it names the tars by absolute paths.

    Raises:
        ShardError: a shard is damaged, not a tar, or holds no sample.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, tar in enumerate(tars):
        index = index_tar(tar, picture_size)
        if len(index) == 0:
            raise ShardError(f"shard {tar} holds no sample: remove it from the list or fetch it again")
        idx = folder / f"{number:06d}-{tar.stem}.idx"
        digest = replace_file(idx, index.to_bytes())
        shards.append(Shard(str(tar.resolve()), len(index), index.tar_bytes, idx.name, digest))
        each()
    manifest = Manifest(name, folder, tuple(shards), {}, "indexed from existing tars")
    manifest.write()
    return manifest


def _indexed(
    name: str, tars: list[Path], stated: dict[str, int], index_folder: str | os.PathLike[str] | None, progress: bool
) -> Manifest:
    missing = [str(tar) for tar in tars if not tar.is_file()]
    if missing:
        raise ShardError(f"{len(missing)} of {len(tars)} shards are missing, the first is {missing[0]}: fetch them")
    stamps = [(str(tar.resolve()), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in tars]
    place = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
    choices = [Path(index_folder)] if index_folder is not None else [tars[0].parent / ".lightning_gen", _cache_folder()]
    for choice in choices:
        if (choice / place / "manifest.json").is_file():
            manifest = Manifest.load(choice / place / "manifest.json")
            break
    else:
        folder = next((c for c in choices if _writable(c)), choices[-1]) / place
        manifest = _index_with_bar(tars, folder, name, progress)
    _compare(manifest, tars, stated)
    return manifest


def _index_with_bar(tars: list[Path], folder: Path, name: str, progress: bool) -> Manifest:
    if not progress:
        return index_shards(tars, folder, name)
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(f"indexing {len(tars)} shards of {name}", total=len(tars))
        return index_shards(tars, folder, name, lambda: bar.advance(task))


def _compare(manifest: Manifest, tars: list[Path], stated: dict[str, int]) -> None:
    if "" in stated and stated[""] != manifest.total:
        raise ShardError(f"{stated['']} samples were announced behind the bar, {tars[0].parent} holds {manifest.total}")
    for tar, shard in zip(tars, manifest.shards, strict=True):
        if stated.get(str(tar), shard.num_samples) != shard.num_samples:
            raise ShardError(
                f"shard {tar} holds {shard.num_samples} samples, _info.json says {stated[str(tar)]}: fetch it again"
            )


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lightning_gen" / "index"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def missing_data(what: str, where: str | None) -> list[str]:
    """Say what a data set lacks, without indexing or reading it: for the preflight.

    Args:
        what: the argument's name, for instance ``train``.
        where: what the user wrote there; None = nothing is asked for.

    Returns:
        One sentence per missing manifest or shard list; empty = it looks complete.
    """
    if where is None:
        return []
    try:
        path = Path(where)
        if (path if path.suffix == ".json" else path / "manifest.json").is_file() and path.name != "_info.json":
            manifest = Manifest.load(path if path.suffix == ".json" else path / "manifest.json")
            tars = [manifest.tar_path(number) for number in range(len(manifest.shards))]
        elif re.match(r"[a-z0-9]+://|pipe:", where):
            return [f"data.{what}: {where} is a remote location; copy the shards to a local disk"]
        else:
            tars = _foreign(where)[1]
    except ShardError as error:
        return [f"data.{what}: {error}"]
    gone = [str(tar) for tar in tars if not tar.is_file()]
    return [f"data.{what}: {len(gone)} of {len(tars)} shards are missing, the first is {gone[0]}"] if gone else []
