"""The working folder of a conversion: what is done already, whether it may be continued, and how it is finished.

Nothing appears in the output folder before everything is there. The last steps can be repeated: whoever is killed
between two of them does the rest when it is started again.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning_gen.data.convert.spool import Spool
from lightning_gen.data.index import replace_file
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import DataError, ShardError

__all__ = ["Journal"]

_WORK = ".convert"


class Journal:
    """Keeps the books of one output folder.

    Args:
        out: the output folder.
        name: name of the split and start of the shards' names.
        plan: everything that decides the output; a conversion goes on only under an equal plan.
        overwrite: replace a data set that is in the way.
        fresh: throw away what an interrupted conversion has done, under whatever plan.
    """

    def __init__(
        self, out: Path, name: str, plan: Mapping[str, Any], overwrite: bool = False, fresh: bool = False
    ) -> None:
        self.out, self.name, self.overwrite, self.fresh = out, name, overwrite, fresh
        self.work = out / _WORK
        self.files = Spool(self.work)
        self._plan: dict[str, Any] = json.loads(json.dumps(plan))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Take the output folder, for a new conversion or for the rest of an interrupted one.

        Yields:
            While other processes are kept out.

        Raises:
            FileExistsError: something is in the way and may not be overwritten, or another process holds the folder.
        """
        self._refuse_finished()
        if not (self.work / "plan.json").exists():
            self._refuse_tars()
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("wb") as file:
            _lock(file, self.out)
            self._refuse_finished()
            self._continue_or_begin()
            yield

    @property
    def is_ready(self) -> bool:
        """Whether only the last steps are missing."""
        return (self.work / "manifest.json").is_file()

    def make_ready(self, manifest: Manifest, report: Mapping[str, Any]) -> None:
        """Write down what the output folder will hold.

        Args:
            manifest: the finished shards.
            report: content of ``conversion.json``.
        """
        text = json.dumps(report, indent=1, sort_keys=True) + "\n"
        replace_file(self.work / "conversion.json", text.encode())
        manifest.write(self.work / "manifest.json")

    def finish(self) -> Manifest:
        """Move everything into the output folder and remove the working folder.

        Returns:
            The manifest, in the output folder.
        """
        for path in self.work.glob("spool.*"):
            path.unlink()
        self._remove_old()
        for path in sorted(self.work.glob(f"{self.name}-*")):
            if path.suffix in (".tar", ".idx"):
                os.replace(path, self.out / path.name)
        # The manifest last: with it the folder is a data set.
        for name in ("conversion.json", "_info.json", "manifest.json"):
            if (self.work / name).is_file():
                os.replace(self.work / name, self.out / name)
        shutil.rmtree(self.work)
        return Manifest.load(self.out / "manifest.json")

    def _refuse_finished(self) -> None:
        if (self.out / "manifest.json").exists() and not self.overwrite:
            raise FileExistsError(
                f"{self.out} already holds a data set (manifest.json): choose another folder or --overwrite"
            )

    def _refuse_tars(self) -> None:
        there = sorted(self.out.glob(f"{self.name}-{'[0-9]' * 6}.tar"))
        if there and not self.overwrite:
            raise FileExistsError(
                f"{self.out} holds {there[0].name}, which nobody's manifest names and which would be replaced: choose "
                "another folder or --overwrite"
            )

    def _continue_or_begin(self) -> None:
        path = self.work / "plan.json"
        if path.exists():
            try:
                found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                found = {}
            differs = sorted(key for key in {*found, *self._plan} if found.get(key) != self._plan.get(key))
            if differs and not self.fresh:
                raise FileExistsError(
                    f"{self.work} holds an unfinished conversion with another {' and '.join(differs)}: start it again "
                    "as it was started then, or give --fresh to throw its progress away"
                )
        if self.fresh:
            for old in self.work.iterdir():
                if old.name != "lock":
                    old.unlink()
        replace_file(path, json.dumps(self._plan, sort_keys=True).encode())

    def _remove_old(self) -> None:
        """The data set that is replaced, so that no manifest stands beside shards that it does not name."""
        path = self.out / "manifest.json"
        if not path.is_file():
            return
        # A manifest that cannot be read says nothing about files; they are left alone.
        with contextlib.suppress(ShardError):
            old = Manifest.load(path)
            names = [name for shard in old.shards for name in (shard.url, shard.idx) if not os.path.isabs(name)]
            for name in names:
                (self.out / name).unlink(missing_ok=True)
        # Last: whoever is interrupted before still finds the list of what must go.
        path.unlink(missing_ok=True)

    def require_room(self) -> None:
        """Refuse to begin the second pass on a disk that cannot hold the shards.

        Raises:
            DataError: there is less room than the shards need; nothing is lost.
        """
        parts = sum(path.stat().st_size for path in self.work.glob("spool.*.tar"))
        need = parts - sum(path.stat().st_size for path in self.work.glob(f"{self.name}-*.tar"))
        free = shutil.disk_usage(self.work).free
        if free < need:
            raise DataError(
                f"the shards need {need / 1e9:.1f} GB more on the disk of {self.out}, {free / 1e9:.1f} GB are free: "
                "make room and start the same command again, it goes on"
            )

    def require_samples(self, samples: int, summary: str) -> None:
        """Refuse to write a data set without a sample.

        Args:
            samples: how many there are.
            summary: what became of the rows.

        Raises:
            DataError: there is none; the working folder is removed.
        """
        if samples == 0:
            shutil.rmtree(self.work)
            raise DataError(f"no sample is left to write into {self.out}: {summary}")


def _lock(file: BinaryIO, out: Path) -> None:
    try:
        # Where there is no such module (Windows) nobody is kept out.
        lock: Any = importlib.import_module("fcntl")
    except ModuleNotFoundError:
        return
    try:
        lock.flock(file, lock.LOCK_EX | lock.LOCK_NB)
    except OSError:
        raise FileExistsError(f"another process is writing into {out} now") from None
