"""First pass: every part of the input becomes a tar of finished samples in the working folder.

A part depends on nothing but itself, so any worker may make it, in any order, and a part whose report is there need not
be made again. Samples keep the order of the input here; the second pass puts them in their final order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gen.data.convert.packing import Packing
from lightning_gen.data.convert.records import COUNTERS, Part, Skipped, Source
from lightning_gen.data.convert.tally import Tally
from lightning_gen.data.index import ShardIndex, replace_file
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.writing import ShardWriter

__all__ = ["IDENTITY", "KEY", "FirstPass", "Spool", "SpooledPart"]

KEY, IDENTITY = 0, 1
"""Columns of a part's digests."""


@dataclasses.dataclass(frozen=True)
class Spool:
    """The first pass's files.

    Attributes:
        folder: the working folder.
    """

    folder: Path

    def tar(self, number: int) -> Path:
        """The samples of a part.

        Args:
            number: of the part.

        Returns:
            Its tar; the index lies beside it. No shard has such a name: a split's name holds no dot.
        """
        return self.folder / f"spool.{number:06d}.tar"

    def index(self, number: int) -> ShardIndex:
        """Where the samples of a part lie.

        Args:
            number: of the part.

        Returns:
            Its index.
        """
        path = self.tar(number).with_suffix(".idx")
        return ShardIndex.from_bytes(path.read_bytes(), path)

    def digests(self, number: int) -> npt.NDArray[np.uint64]:
        """What tells equal keys and equal samples apart from others.

        Args:
            number: of the part.

        Returns:
            uint64, (samples, 2, 2): 128 bits of the key, 128 bits of the identity.
        """
        found: npt.NDArray[np.uint64] = np.load(self.tar(number).with_suffix(".npy"), allow_pickle=False)
        return found

    def report(self, number: int) -> SpooledPart | None:
        """What became of a part.

        Args:
            number: of the part.

        Returns:
            Its report; None = it was not finished, or its tar is gone.
        """
        path = self.tar(number).with_suffix(".json")
        if not path.is_file() or not self.tar(number).is_file():
            return None
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return SpooledPart(data["samples"], tuple(data["fields"]), Tally.from_json(data))


@dataclasses.dataclass(frozen=True)
class SpooledPart:
    """A finished part.

    Attributes:
        samples: samples in it.
        fields: their fields.
        tally: what became of its rows.
    """

    samples: int
    fields: tuple[str, ...]
    tally: Tally


@dataclasses.dataclass(frozen=True)
class FirstPass:
    """Makes parts; a worker process is given the whole object once.

    Attributes:
        source: where the rows come from.
        packing: what is done to them.
        files: where they go.
    """

    source: Source
    packing: Packing
    files: Spool

    def __call__(self, task: tuple[int, Part]) -> int:
        """Make one part.

        Args:
            task: number of the part, and the part.

        Returns:
            Its number.

        Raises:
            DataError: a key comes twice; or, under ``strict``, a row gives no sample.
        """
        number, part = task
        tally, digests, fields = Tally(), list[bytes](), set[str]()
        with ShardWriter(self.files.tar(number), hashes=False) as writer:
            for item in self.source.read(part):
                tally.count("read")
                where = item.name or f"row {item.row} ({part.label})"
                if isinstance(item, Skipped):
                    self._leave_out(tally, item.counter, f"{where}: {item.reason}")
                    continue
                try:
                    packed = self.packing.pack(item)
                except SampleError as error:
                    self._leave_out(tally, "undecodable", f"{where}: {error}")
                    continue
                try:
                    writer.add(packed.key, packed.fields)
                except ValueError as error:
                    raise DataError(f"{where}: {error}; --keys number takes the rows' numbers for keys") from None
                tally.count(*item.notes)
                fields |= set(packed.fields)
                digests += [hashlib.blake2b(packed.key.encode(), digest_size=16).digest(), packed.identity]
            writer.close()
        table = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2, 2)
        self._finish(number, table, fields, tally)
        return number

    def _leave_out(self, tally: Tally, counter: str, example: str) -> None:
        # What a source leaves out by choice is no fault.
        if self.packing.strict and counter in COUNTERS:
            raise SampleError(example)
        tally.leave_out(counter, example)

    def _finish(self, number: int, digests: npt.NDArray[np.uint64], fields: set[str], tally: Tally) -> None:
        buffer = io.BytesIO()
        np.save(buffer, digests, allow_pickle=False)
        tar = self.files.tar(number)
        replace_file(tar.with_suffix(".npy"), buffer.getvalue())
        # Last: it says that the part is complete.
        report = {"samples": len(digests), "fields": sorted(fields), **tally.to_json()}
        replace_file(tar.with_suffix(".json"), json.dumps(report, sort_keys=True).encode())
