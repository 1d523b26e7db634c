"""Locations of shards as text: what is remote, how it is named in messages, what a list of shards may ask for."""

from __future__ import annotations

import hashlib
import posixpath
import re
from pathlib import PurePath, PureWindowsPath
from urllib.parse import urlsplit, urlunsplit

from lightning_gen.data.quarantine import ShardError

__all__ = [
    "SCHEMES",
    "base_name",
    "check_listed",
    "is_remote",
    "join_location",
    "parent_of",
    "scheme_of",
    "shown",
    "without_secrets",
]

SCHEMES = ("http", "https", "s3", "gs", "hf")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(pipe):")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_TAR = re.compile(r"[\w.-]+\.tar\b")


def scheme_of(location: str) -> str:
    """What stands before the colon.

    Args:
        location: a path, a URL or a ``pipe:`` command.

    Returns:
        The scheme in lower case; empty for a path.
    """
    match = _SCHEME.match(location)
    return (match.group(1) or match.group(2)).lower() if match else ""


def is_remote(location: str) -> bool:
    """Whether a location is anything but a path of this machine.

    Args:
        location: a path, a URL or a ``pipe:`` command.

    Returns:
        True for URLs and commands.
    """
    return bool(scheme_of(location))


def base_name(location: str) -> str:
    """The name of the file behind a location.

    Args:
        location: a path, a URL or a ``pipe:`` command.

    Returns:
        The last part of the path, without query; for a command the last word that ends in ``.tar``, else a hash of the
        command.
    """
    scheme = scheme_of(location)
    if scheme == "pipe":
        words = _TAR.findall(location)
        return str(words[-1]) if words else "pipe-" + hashlib.sha256(location.encode()).hexdigest()[:12]
    return posixpath.basename(urlsplit(location).path) if scheme else PurePath(location).name


def shown(location: str) -> str:
    """A location as it may stand in a message: without user, password, token or the arguments of a command.

    Args:
        location: a path, a URL or a ``pipe:`` command.

    Returns:
        A shorter text that still says which one is meant.
    """
    scheme = scheme_of(location)
    if scheme == "pipe":
        program = location.removeprefix("pipe:").split()[:1]
        return f"pipe:{' '.join(program)} ... {base_name(location)}"
    if not scheme:
        return location
    parts = urlsplit(location)
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def without_secrets(text: str) -> str:
    """Shorten every URL inside a text, for instance in the message of another library.

    Args:
        text: anything.

    Returns:
        The text with :func:`shown` in place of its URLs.
    """
    return _URL.sub(lambda match: shown(match.group()), text)


def parent_of(url: str) -> str:
    """The folder of a remote file.

    Args:
        url: the file.

    Returns:
        The URL of the folder, without query: what was signed for one file opens no other.
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, posixpath.dirname(parts.path), "", ""))


def join_location(folder: str, name: str) -> str:
    """Where a listed file lies.

    Args:
        folder: URL of the list's folder, or a local folder.
        name: what the list says: relative to the folder, or a location of its own.

    Returns:
        The location.
    """
    return name if is_remote(name) else f"{folder.rstrip('/')}/{name}"


def check_listed(location: str, listed_in: str) -> None:
    """Refuse what a manifest or an ``_info.json`` must not ask for.

    Anybody can write such a file, so it runs no command, leaves its folder only by a full URL, and a list that came
    over the network names no file of this machine.

    Args:
        location: the entry.
        listed_in: location of the list.

    Raises:
        ShardError: a command, an unknown scheme, a path that climbs, or a local path in a remote list.
    """
    scheme, where = scheme_of(location), shown(listed_in)
    if scheme == "pipe":
        raise ShardError(
            f"{where} wants to run a command ({shown(location)}): pipe: is taken from your own configuration or "
            "command line only, never from a file that came with the data"
        )
    if scheme and scheme not in SCHEMES:
        raise ShardError(
            f"{where} names {shown(location)}: a listed shard is a path or one of {', '.join(SCHEMES)}, not {scheme}"
        )
    path = urlsplit(location).path if scheme else location
    if ".." in path.replace("\\", "/").split("/"):
        raise ShardError(f"{where} names the shard {shown(location)}, which climbs out of its folder: do not use it")
    is_absolute = path.startswith(("/", "\\")) or bool(PureWindowsPath(path).drive)
    if not scheme and is_absolute and is_remote(listed_in):
        raise ShardError(f"{where} is remote but names {location} on this machine: do not use it")
