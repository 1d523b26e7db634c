"""Data sets of the Hugging Face hub: a folder that was fetched, or a name to fetch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["hub_folder"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hub_folder(where: str, revision: str | None = None, include: Sequence[str] = ()) -> Path:
    """A local folder with the files of a data set.

    Args:
        where: a folder, which is returned as it is, or a name like ``yuvalkirstain/pickapic_v2``.
        revision: branch, tag or commit; None = the main branch.
        include: patterns of the files to fetch, for instance ``data/test-*``; none = all.

    Returns:
        The folder; files that were fetched before are not fetched again.

    Raises:
        FileNotFoundError: neither a folder nor a name, or it cannot be fetched.
    """
    if Path(where).is_dir():
        return Path(where)
    if not _NAME.fullmatch(where):
        raise FileNotFoundError(f"{where} is neither a folder nor the name of a data set on the hub (OWNER/NAME)")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(where, repo_type="dataset", revision=revision, allow_patterns=list(include) or None)
        )
    except Exception as error:
        # The client raises its own, requests' and httpx's classes; all mean that the files are not there.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{where} cannot be fetched from the hub and is not in the cache: {reason} Without a connection, fetch it "
            f"on another machine, hf download {where} --repo-type dataset --local-dir FOLDER, and give that FOLDER"
        ) from None
