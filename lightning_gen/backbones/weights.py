"""Finding published weights: a local folder or a hub repository, safetensors only, with errors of our own.

Both kinds of source end as one folder; that of a single network holds ``config.json`` and ``model.safetensors`` (or its
shards and their index). The hub's cache is asked first, so that weights that are here need no connection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "MissingWeightsError",
    "fetch_files",
    "fetch_folder",
    "fetch_weights",
    "find_files",
    "find_folder",
    "find_weights",
    "read_config",
    "stored_shapes",
    "weights_problem",
]

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class MissingWeightsError(RuntimeError):
    """Weights that a run needs are not here, are not allowed to be fetched, or are not what was asked for.

    The message names the source, what is wrong with it and what to do; errors of other libraries stay out of it.
    """


def find_weights(source: str, revision: str | None = None) -> tuple[Path | None, str]:
    """Look for one network's weights on this machine, without any network connection.

    Args:
        source: a local folder, or a hub id ``owner/name``.
        revision: branch, tag or commit of the hub repository; default ``main``.

    Returns:
        The folder that holds ``config.json`` and complete safetensors files, and an empty string; or None and a
        sentence that says what is missing.
    """
    return find_folder(source, revision, _CONFIG, weights_problem)


def find_files(source: str, required: Sequence[str], revision: str | None = None) -> tuple[Path | None, str]:
    """Look for some files on this machine, without any network connection.

    Args:
        source: a local folder, or a hub id ``owner/name``.
        required: names of the files that must be there; safetensors files must be complete as well.
        revision: branch, tag or commit of the hub repository; default ``main``.

    Returns:
        The folder that holds them, and an empty string; or None and a sentence that says what is missing.
    """
    return find_folder(source, revision, required[0], lambda folder: _files_problem(folder, required))


def find_folder(
    source: str, revision: str | None, first: str, problem_of: Callable[[Path], str]
) -> tuple[Path | None, str]:
    """Look for a folder that passes a check of its own on this machine, without any network connection.

    Args:
        source: a local folder, or a hub id ``owner/name``.
        revision: branch, tag or commit of the hub repository; None = ``main``.
        first: a file at the top of the folder that it holds in any case.
        problem_of: what a folder lacks, as a sentence; empty if it is complete.

    Returns:
        The folder, and an empty string; or None and what is missing.
    """
    folder = Path(source).expanduser()
    if folder.exists() and not folder.is_dir():
        return None, f"{source} is a file; give the folder that holds it"
    if not folder.exists():
        if not _REPOSITORY.fullmatch(source):
            return None, f"there is no folder {source}"
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source, first, revision=revision)
        if not isinstance(cached, str):
            return None, f"there is no folder {source}, and the hub cache holds no repository of this name"
        folder = Path(cached).parent
    problem = problem_of(folder)
    return (None, problem) if problem else (folder, "")


def fetch_weights(source: str, revision: str | None = None) -> Path:
    """The folder that holds one network's weights, fetched from the hub if they are not on this machine.

    Args:
        source: a local folder, or a hub id ``owner/name``.
        revision: branch, tag or commit of the hub repository; default ``main``.

    Returns:
        A folder with ``config.json`` and complete safetensors files.

    Raises:
        MissingWeightsError: the folder is incomplete, or the hub does not give the files; says what to do.
    """
    return fetch_folder(source, revision, _CONFIG, [_CONFIG, _INDEX, "model*.safetensors"], weights_problem)


def fetch_files(
    source: str, required: Sequence[str], optional: Sequence[str] = (), revision: str | None = None
) -> Path:
    """The folder that holds some files, fetched from the hub if they are not on this machine.

    Args:
        source: a local folder, or a hub id ``owner/name``.
        required: names of the files that must be there; safetensors files must be complete as well.
        optional: names of files that are fetched along where the repository has them.
        revision: branch, tag or commit of the hub repository; default ``main``.

    Returns:
        A folder with the required files.

    Raises:
        MissingWeightsError: the folder is incomplete, or the hub does not give the files; says what to do.
    """
    return fetch_folder(
        source, revision, required[0], [*required, *optional], lambda folder: _files_problem(folder, required)
    )


def fetch_folder(
    source: str, revision: str | None, first: str, wanted: Sequence[str], problem_of: Callable[[Path], str]
) -> Path:
    """The folder that passes a check of its own, fetched from the hub if it is not on this machine.

    Args:
        source: a local folder, or a hub id ``owner/name``.
        revision: branch, tag or commit of the hub repository; None = ``main``.
        first: a file at the top of the folder that it holds in any case.
        wanted: names and patterns of the files that are fetched.
        problem_of: what a folder lacks, as a sentence; empty if it is complete.

    Returns:
        A folder without a problem.

    Raises:
        MissingWeightsError: the folder has a problem, or the hub does not give the files; says what to do.
    """
    folder, problem = find_folder(source, revision, first, problem_of)
    if folder is not None:
        return folder
    if Path(source).expanduser().exists() or not _REPOSITORY.fullmatch(source):
        raise MissingWeightsError(f"weights of {source}: {problem}")
    from huggingface_hub import snapshot_download

    try:
        fetched = Path(snapshot_download(source, revision=revision, allow_patterns=list(wanted)))
    except Exception as error:  # every failure of the hub client ends in one message of ours
        raise MissingWeightsError(f"weights of {source}: {_hub_problem(error, revision, first)}") from None
    problem = problem_of(fetched)
    if problem:
        raise MissingWeightsError(f"weights of {source}: {problem}")
    return fetched


def weights_problem(folder: Path, weights: str = _WEIGHTS) -> str:
    """What a folder of one network lacks.

    Args:
        folder: holds ``config.json`` and the weights, whole or in shards with their index.
        weights: name of the weights' file when it is whole.

    Returns:
        A sentence; empty if the folder is complete.
    """
    names, index = [weights], folder / f"{weights}.index.json"
    if not (folder / weights).is_file() and index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return f"{index} is damaged: copy it again from its source"
    return _files_problem(folder, [_CONFIG, *names])


def stored_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """What safetensors files hold; only their headers are read.

    Args:
        files: of one network.

    Returns:
        Name of every tensor -> its shape.
    """
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(str(file), framework="numpy") as stored:
            shapes |= {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    return shapes


def read_config(folder: Path, name: str = _CONFIG) -> dict[str, Any]:
    """Read the ``config.json`` of a weights folder.

    Args:
        folder: the weights folder.
        name: of the file, where it is another one.

    Returns:
        The JSON object.

    Raises:
        MissingWeightsError: the file is not a JSON object.
    """
    try:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise MissingWeightsError(f"{folder / name} is not a readable JSON object: copy it again from its source")
    return config


def _files_problem(folder: Path, required: Sequence[str]) -> str:
    for name in required:
        if not (folder / name).is_file():
            pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
            if pickled and name.endswith(".safetensors"):
                return f"{folder} holds only pickled weights ({pickled[0]}), which are not read: save them as {name}"
            return f"{folder} holds no {name}"
        problem = _damaged(folder / name) if name.endswith(".safetensors") else ""
        if problem:
            return problem
    return ""


def _damaged(path: Path) -> str:
    """Say so if the header of a safetensors file does not fit the length of the file; reads the header only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            return ""
    except (SafetensorError, OSError):
        return f"{path} is damaged or cut off ({path.stat().st_size} bytes): copy it again from its source"


def _hub_problem(error: Exception, revision: str | None, first: str) -> str:
    from huggingface_hub import constants, errors

    manual = f"or copy its files ({first} and the others) from another machine and give that folder"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the repository is gated. Accept its licence on its hub page while logged in, give this machine a token "
            f"(`hf auth login`, or the variable HF_TOKEN), and start again; {manual}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no folder of this name here and no such repository on the hub (or it is private: "
            f"`hf auth login`). Check the spelling, {manual}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision {revision!r}"
    if constants.HF_HUB_OFFLINE:
        return (
            f"not on this machine, neither as a folder nor in the hub cache {constants.HF_HUB_CACHE}, and "
            f"HF_HUB_OFFLINE forbids fetching. Unset it, {manual}"
        )
    return (
        f"not on this machine, neither as a folder nor in the hub cache {constants.HF_HUB_CACHE}, and the hub could "
        f"not be reached ({type(error).__name__}). Check the connection, {manual}"
    )
