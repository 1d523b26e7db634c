"""The working folder of a conversion: what is done already, whether it may be continued, and how it is finished.

Nothing appears in the output folder before everything is there. The last steps can be repeated: whoever is killed
between two of them does the rest when it is started again. The list of what was made stays in the working folder until
that folder has lost its name as a whole, so no half of it is ever taken for work that is still to be done.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from lightning_gen.data.convert.spool import Spool
from lightning_gen.data.index import replace_file
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import DataError, ShardError

__all__ = ["Journal"]

_WORK, _REST = ".convert", ".convert.done"


class Journal:
    """Keeps the books of one output folder.

    Args:
        out: the output folder.
        name: name of the split and start of the shards' names.
        plan: everything that decides the output; a conversion goes on only under an equal plan.
        overwrite: replace a data set that is in the way.
        fresh: throw away what an interrupted conversion has done, under whatever plan.
    """

    reports: ClassVar[tuple[str, ...]] = ("conversion.json", "_info.json")
    """Files of the working folder that go beside the manifest."""

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
        shutil.rmtree(self.out / _REST, ignore_errors=True)
        if not self._only_tidying:
            self._refuse_finished()
        if not (self.work / "plan.json").exists():
            self._refuse_tars()
        there = self.out.exists()
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with (self.work / "lock").open("wb") as file:
                _lock(file, self.out)
                if not self._only_tidying:
                    self._refuse_finished()
                    self._continue_or_begin()
                yield
        finally:
            if not there:
                self._remove_empty()

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
        if not self._is_delivered:
            self._remove_old()
        for path in sorted(self.work.glob(f"{self.name}-*")):
            if path.suffix in (".tar", ".idx"):
                os.replace(path, self.out / path.name)
        for name in self.reports:
            if (self.work / name).is_file():
                os.replace(self.work / name, self.out / name)
        # The manifest last: with it the folder is a data set. It is copied: while the working folder has its name, it
        # must say that nothing in it is to be made again.
        replace_file(self.out / "manifest.json", (self.work / "manifest.json").read_bytes())
        os.rename(self.work, self.out / _REST)
        shutil.rmtree(self.out / _REST, ignore_errors=True)
        return Manifest.load(self.out / "manifest.json")

    @property
    def _is_delivered(self) -> bool:
        """Whether the output folder has the manifest that was made here."""
        made, there = self.work / "manifest.json", self.out / "manifest.json"
        return made.is_file() and there.is_file() and made.read_bytes() == there.read_bytes()

    @property
    def _only_tidying(self) -> bool:
        """Whether this very conversion is complete but for the working folder."""
        return not self.fresh and self._is_delivered and not self._differs()

    def _differs(self) -> list[str]:
        """In what the plan of the work that is there is another one."""
        try:
            found: dict[str, Any] = json.loads((self.work / "plan.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        return sorted(key for key in {*found, *self._plan} if found.get(key) != self._plan.get(key))

    def _remove_empty(self) -> None:
        """Folders that were made for nothing: no trace of a conversion that was refused before it did anything."""
        for path in (self.work, self.out):
            with contextlib.suppress(OSError):
                path.rmdir()

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
        differs = self._differs() if path.exists() else []
        # What is delivered already is no work that could be lost.
        begin = self.fresh or (bool(differs) and self._is_delivered)
        if differs and not begin:
            raise FileExistsError(
                f"{self.work} holds an unfinished conversion with another {' and '.join(differs)}: start it again "
                "as it was started then, or give --fresh to throw its progress away"
            )
        if begin:
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
