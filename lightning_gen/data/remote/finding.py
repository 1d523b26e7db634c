"""From a URL that a user writes behind ``train:`` to a manifest, or to the tars it names.

Accepted are a ``manifest.json``, a folder that has one, a folder in the manner of timm (``_info.json``,
``FOLDER#SPLIT``), a pattern ``name-{0000..0003}.tar`` with or without ``|NUMBER_OF_SAMPLES``, and a single tar, behind
http, https, s3, gs or hf.
"""

from __future__ import annotations

from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.remote.object_stores import missing_package
from lightning_gen.data.remote.openers import UrlOpener
from lightning_gen.data.remote.retrying import MissingError, RemoteOptions
from lightning_gen.data.remote.urls import SCHEMES, base_name, check_listed, join_location, parent_of, scheme_of, shown
from lightning_gen.data.shard_lists import Listed, expand_pattern, parse_info, pattern_name, split_count

__all__ = ["list_remote", "remote_problem"]

_LARGEST_LIST = 1 << 26


def remote_problem(where: str) -> str | None:
    """What speaks against a URL as a place of indexed shards, without asking for it.

    Args:
        where: what the user wrote.

    Returns:
        A sentence, or None.
    """
    scheme = scheme_of(where)
    if scheme == "pipe":
        return f"{shown(where)} has no random access: the output of a command is read with access: stream"
    if scheme not in SCHEMES:
        return f"{shown(where)}: shards are read from a path or one of {', '.join(SCHEMES)}, not from {scheme}"
    return None


def list_remote(where: str, options: RemoteOptions | None = None) -> Manifest | Listed:
    """What a URL stands for.

    Args:
        where: see the first lines of this file.
        options: limits of the network.

    Returns:
        A manifest, or the tars.

    Raises:
        ShardError: nothing there, a list that is no list, or one that names what it must not.
        ModuleNotFoundError: the package for such addresses is not installed.
    """
    problem, missing = remote_problem(where), missing_package(where)
    if problem is not None:
        raise ShardError(problem)
    if missing is not None:
        raise ModuleNotFoundError(missing)
    location, _, split = where.partition("#")
    location, number = split_count(location, shown(where))
    name = base_name(location)
    if name.endswith(".tar"):
        locations = expand_pattern(location)
        return Listed(pattern_name(base_name(locations[0])), locations, {} if number is None else {"": number})
    if name.endswith(".json") and name != "_info.json":
        return Manifest.load(location, options)
    if name == "_info.json":
        return _timm(location, split, options)
    try:
        # A folder with a manifest of ours has an _info.json as well, which knows less.
        return Manifest.load(join_location(location, "manifest.json"), options)
    except MissingError:
        return _timm(join_location(location, "_info.json"), split, options)


def _timm(info: str, split: str, options: RemoteOptions | None) -> Listed:
    try:
        text = UrlOpener(options).read_all(info, _LARGEST_LIST)
    except MissingError:
        raise ShardError(
            f"{shown(parent_of(info))} has neither manifest.json nor _info.json, and a remote folder cannot be listed: "
            "name a manifest, or a pattern like name-{0000..0003}.tar"
        ) from None
    split, names, lengths = parse_info(text, shown(info), split)
    for name in names:
        check_listed(name, info)
    locations = [join_location(parent_of(info), name) for name in names]
    return Listed(split, locations, dict(zip(locations, lengths, strict=False)))
