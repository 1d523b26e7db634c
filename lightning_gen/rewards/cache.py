"""Scores that were computed before, on disk: a picture of the same prompt is not scored twice by the same reward."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["RewardCache", "score_key"]

_VERSION: Final = 1
_PATIENCE: Final = 60.0
"""Seconds to wait for another process that writes."""
_TOGETHER: Final = 500
"""Keys asked for at a time; SQLite allows 999 in old builds."""


def score_key(fingerprint: str, image_sha256: str, prompt: str, metadata: Mapping[str, Any]) -> bytes:
    """What a score depends on.

    Args:
        fingerprint: of the reward.
        image_sha256: of the picture's size and pixels.
        prompt: the text.
        metadata: plain JSON values; the order of keys does not matter.

    Returns:
        32 bytes.

    Raises:
        ValueError: metadata that is no JSON.
    """
    try:
        text = json.dumps([fingerprint, image_sha256, prompt, dict(metadata)], sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the metadata of the prompt {prompt!r} are not plain JSON ({error}): no key can be made"
        ) from None
    return hashlib.sha256(text.encode()).digest()


class RewardCache:
    """A bounded table from keys to scores in one SQLite file, which processes of one machine may share.

    When it is full, the scores that were stored first are forgotten. An entry takes about 60 bytes. A file on a network
    drive must not be shared between machines: give each its own.

    Args:
        path: the file; made with its folder when first used.
        max_entries: scores that are kept.

    Raises:
        ValueError: ``max_entries`` is smaller than 1.
    """

    def __init__(self, path: str, max_entries: int = 1_000_000) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, got {max_entries}")
        self.path = Path(path).expanduser()
        self.max_entries = max_entries

    def read(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """Look scores up.

        Args:
            keys: from :func:`score_key`.

        Returns:
            The scores that are there.

        Raises:
            ValueError: the file is damaged or something else, or stays locked.
        """
        found: dict[bytes, float] = {}
        with self._open() as table:
            for start in range(0, len(keys), _TOGETHER):
                some = list(keys[start : start + _TOGETHER])
                marks = ",".join("?" * len(some))
                found.update(table.execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", some).fetchall())
        return found

    def write(self, scores: Mapping[bytes, float]) -> None:
        """Store scores, all or none.

        Args:
            scores: finite.

        Raises:
            ValueError: a score that is not finite; the file is damaged or something else, or stays locked.
        """
        wrong = [score for score in scores.values() if not math.isfinite(score)]
        if wrong:
            raise ValueError(f"only finite scores are kept, got {wrong[0]}")
        with self._open() as table:
            table.executemany("INSERT OR IGNORE INTO scores (key, score) VALUES (?, ?)", scores.items())
            # Numbers of rows grow: the newest ``max_entries`` stay.
            table.execute(
                "DELETE FROM scores WHERE number <= (SELECT max(number) FROM scores) - ?", (self.max_entries,)
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction. Connections are cheap beside rewards, and none is carried into another thread or process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_PATIENCE)) as connection, connection:
                self._prepare(connection)
                yield connection
        except sqlite3.Error as error:
            raise ValueError(
                f"the reward cache {self.path} cannot be used ({error}): delete it if it is damaged or no cache; it "
                f"only saves time"
            ) from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise ValueError(f"the reward cache {self.path} has the format {version}, not {_VERSION}: delete it")
        if version == 0:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS scores (number INTEGER PRIMARY KEY, key BLOB UNIQUE, score REAL)"
            )
            connection.execute(f"PRAGMA user_version = {_VERSION}")
