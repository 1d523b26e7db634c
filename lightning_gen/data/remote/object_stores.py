"""s3, gs and hf through fsspec; each package is needed only by those who use its addresses.

Accounts come from the packages' own places (``aws configure``, ``gcloud auth``, ``hf auth login`` and their environment
variables), never from a URL.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from lightning_gen.data.remote.local import BlockAnswer, bounded
from lightning_gen.data.remote.retrying import Interrupted, MissingError, RemoteError, RemoteOptions, Version
from lightning_gen.data.remote.urls import scheme_of, shown, without_secrets

__all__ = ["PACKAGES", "FsspecTransport", "missing_package"]

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
_BLOCK = 4 << 20
# What file systems call the thing that changes with the content.
_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "generation", "LastModified", "updated", "mtime")


def missing_package(url: str) -> str | None:
    """Which package must be installed before a location can be read.

    Args:
        url: the location.

    Returns:
        A sentence, or None where nothing is missing.
    """
    wanted = PACKAGES.get(scheme_of(url))
    for name in ("fsspec", wanted) if wanted is not None else ():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            return (
                f"{scheme_of(url)}:// addresses need the package {name}, which is not installed: "
                f"pip install {name}, or pip install 'lightning-gen[data]' for all of them"
            )
    return None


class FsspecTransport:
    """Files in object stores.

    Reads cannot be watched from outside, so they are made in blocks of 4 MiB, each of which must arrive in
    ``connect_timeout + progress_seconds``.

    Args:
        options: the limits.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self.options = options

    def open(self, url: str, start: int, stop: int | None, seen: Version) -> BlockAnswer:
        """Ask once.

        Args:
            url: the location.
            start: first byte.
            stop: not needed: nothing is sent that is not asked for.
            seen: the content that earlier bytes came from.

        Returns:
            The answer.

        Raises:
            ModuleNotFoundError: the scheme's package is not installed.
            Interrupted: no answer in time, or an error that another attempt may not meet.
            RemoteError: there is no such file, or no access.
        """
        del stop, seen
        missing = missing_package(url)
        if missing is not None:
            raise ModuleNotFoundError(missing)
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, path = url_to_fs(url)
        # What an earlier attempt was told may be out of date.
        self._try(url, lambda: system.invalidate_cache(system._parent(path)))
        info = self._try(url, lambda: system.info(path))
        if info.get("size") is None or info.get("type") == "directory":
            raise RemoteError(f"{shown(url)} is a folder, not a file")
        tag = next((str(info[name]) for name in _TAGS if info.get(name) is not None), "")
        file = self._try(url, lambda: system.open(path, "rb", block_size=_BLOCK, cache_type="none"))

        def fetch(first: int, last: int) -> bytes:
            def read() -> bytes:
                file.seek(first)
                return bytes(file.read(last - first))

            return bytes(self._try(url, read))

        return BlockAnswer(fetch, start, Version(int(info["size"]), tag), _BLOCK, lambda: _close(file))

    def _try(self, url: str, function: Any) -> Any:
        try:
            return bounded(function, self.options.connect_timeout + self.options.progress_seconds)
        except Interrupted:
            raise
        except (FileNotFoundError, IsADirectoryError):
            raise MissingError(f"{shown(url)} does not exist, or its account may not see it") from None
        except PermissionError:
            raise RemoteError(f"{shown(url)} may not be read: access must be granted to this account") from None
        except Exception as error:
            code = getattr(getattr(error, "response", None), "status_code", getattr(error, "code", None))
            text = f"{type(error).__name__}: {without_secrets(str(error))[:300]}"
            if isinstance(code, int) and 400 <= code < 500 and code not in (408, 429):
                raise RemoteError(f"{shown(url)} cannot be read: {text}") from None
            raise Interrupted(text) from None


def _close(file: Any) -> None:
    with contextlib.suppress(Exception):  # Nothing was written; the libraries raise whatever they like here.
        file.close()
