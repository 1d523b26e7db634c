"""From what a user writes behind ``train:`` to a manifest.

Accepted are a manifest.json, a folder that has one, a folder in the manner of timm (``_info.json`` beside the tars,
``FOLDER#SPLIT`` where it lists several), a pattern ``name-{0000..0003}.tar`` with or without ``|NUMBER_OF_SAMPLES``, a
single tar and a folder of tars; the same behind http, https, s3, gs and hf, but for the folder of tars. Tars of
strangers are indexed once; the index is kept beside them, or in the user's cache folder where their folder cannot be
written.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gen.data.foreign import LocalTars, RemoteTars, indexed
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.remote.finding import list_remote, remote_problem
from lightning_gen.data.remote.object_stores import missing_package
from lightning_gen.data.remote.retrying import RemoteOptions
from lightning_gen.data.remote.urls import is_remote, scheme_of
from lightning_gen.data.shard_lists import Listed, expand_pattern, parse_info, pattern_name, split_count

if TYPE_CHECKING:
    from lightning_gen.data.remote.cache import ShardCache

__all__ = ["expand_pattern", "find_manifest", "list_shards", "missing_data"]


def find_manifest(
    where: str | os.PathLike[str],
    index_folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
    options: RemoteOptions | None = None,
    cache: ShardCache | None = None,
) -> Manifest:
    """Find a data set's manifest, and make one for tars that have none.

    Args:
        where: see the first lines of this file.
        index_folder: where the index of foreign tars is kept; default beside them, then the cache folder.
        progress: show a progress bar while indexing.
        options: limits of the network.
        cache: where whole remote tars may go while they are indexed.

    Returns:
        The manifest.

    Raises:
        ShardError: nothing there, or a shard that is damaged or of another length than stated.
        ModuleNotFoundError: the package for such addresses is not installed.
    """
    found = list_shards(where, options)
    if isinstance(found, Manifest):
        return found
    folders = [Path(index_folder)] if index_folder is not None else [_cache_folder()]
    if not is_remote(found.locations[0]):
        if index_folder is None:
            folders.insert(0, Path(found.locations[0]).parent / ".lightning_gen")
        return indexed(found, LocalTars(found.locations), folders, progress)
    manifest = indexed(found, RemoteTars(found.locations, options, cache), folders, progress)
    # The index on the disk has no passwords and no signatures; what the user wrote today has.
    shards = [dataclasses.replace(s, url=url) for s, url in zip(manifest.shards, found.locations, strict=True)]
    return dataclasses.replace(manifest, shards=tuple(shards))


def list_shards(where: str | os.PathLike[str], options: RemoteOptions | None = None) -> Manifest | Listed:
    """What a user's words stand for; no tar is touched.

    Args:
        where: see the first lines of this file.
        options: limits of the network.

    Returns:
        A manifest, or tars that have none.

    Raises:
        ShardError: nothing there, or a list that is no list.
        ModuleNotFoundError: the package for such addresses is not installed.
    """
    text = os.fspath(where)
    if is_remote(text):
        return list_remote(text, options)
    path = Path(text)
    if path.is_file() and path.suffix == ".json" and path.name != "_info.json":
        return Manifest.load(path)
    if path.is_dir() and (path / "manifest.json").is_file():
        return Manifest.load(path / "manifest.json")
    return _foreign(text)


def _foreign(text: str) -> Listed:
    folder, _, split = text.partition("#")
    info = Path(folder) if folder.endswith("_info.json") else Path(folder) / "_info.json"
    if info.is_file():
        return _timm(info, split)
    pattern, number = split_count(text, text)
    if Path(pattern).is_dir():
        tars = sorted(Path(pattern).glob("*.tar"))
    else:
        tars = [Path(name) for name in expand_pattern(pattern)]
    missing = [str(tar) for tar in tars if not tar.is_file()]
    if missing or not tars:
        which = f"{len(missing)} of {len(tars)} shards are missing, the first is {missing[0]}" if missing else "no tar"
        raise ShardError(
            f"{text}: {which}. Give a folder with manifest.json "
            "(`lightning data convert` makes one), a folder of tars, or a pattern like name-{0000..0003}.tar"
        )
    return Listed(pattern_name(tars[0].name), [str(tar) for tar in tars], {} if number is None else {"": number})


def _timm(info: Path, split: str) -> Listed:
    split, names, lengths = parse_info(info.read_bytes(), str(info), split)
    if any(".." in Path(name).parts or Path(name).is_absolute() or is_remote(name) for name in names):
        raise ShardError(f"{info} names shards outside its folder: do not use it")
    paths = [str(info.parent / name) for name in names]
    return Listed(split, paths, dict(zip(paths, lengths, strict=False)))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lightning_gen" / "index"


def missing_data(what: str, where: str | None, streamed: bool = False) -> list[str]:
    """Say what a data set lacks, without indexing or reading it and without a network: for the preflight.

    Args:
        what: the argument's name, for instance ``train``.
        where: what the user wrote there; None = nothing is asked for.
        streamed: it is read from front to back, so that the output of a command will do.

    Returns:
        One sentence per missing manifest or shard list; empty = it looks complete.
    """
    if where is None:
        return []
    if is_remote(where):
        is_good = streamed and scheme_of(where) == "pipe"
        problem = None if is_good else remote_problem(where) or missing_package(where)
        return [f"data.{what}: {problem}"] if problem is not None else []
    try:
        found = list_shards(where)
    except ShardError as error:
        return [f"data.{what}: {error}"]
    if isinstance(found, Manifest):
        tars = [found.tar_location(number) for number in range(len(found.shards))]
    else:
        tars = found.locations
    gone = [tar for tar in tars if not is_remote(tar) and not Path(tar).is_file()]
    return [f"data.{what}: {len(gone)} of {len(tars)} shards are missing, the first is {gone[0]}"] if gone else []
