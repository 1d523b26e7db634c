"""Bad samples: named, written down once, counted, and never more than allowed.

A sample that cannot be used is replaced by another one that is a pure function of (seed, pass, sample, attempt), see
data/loader.py. This file says what "cannot be used" means and where the bound is.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

__all__ = ["BadSample", "BadSamples", "DataError", "Quarantine", "SampleError", "ShardError", "read_quarantine"]


_log = logging.getLogger(__name__)


class DataError(RuntimeError):
    """Something is wrong with the data; the message says what, where and what to do."""


class ShardError(DataError):
    """A tar file, its index or its manifest is missing, damaged or not what it should be."""


class SampleError(DataError):
    """One sample cannot be used: undecodable, a field missing, a label out of range, absurd size."""


@dataclasses.dataclass(frozen=True)
class BadSample:
    """One line of quarantine.jsonl.

    Attributes:
        shard: the tar's name.
        key: the sample's key; empty when the whole shard is bad.
        index: global sample index that asked for it.
        kind: ``io`` (could not be read), ``shard`` (the tar is damaged: all its samples count), ``sample``.
        reason: what was found.
        samples: how many samples this line stands for.
    """

    shard: str
    key: str
    index: int
    kind: Literal["io", "shard", "sample"]
    reason: str
    samples: int = 1


class BadSamples(Protocol):
    """Whoever is told of bad samples."""

    def report(self, sample: BadSample) -> None:
        """Take note; raises a DataError where it is too much."""
        ...


class Quarantine:
    """Counts bad samples and stops the run when there are too many.

    The lists are the account of all processes that see them: each appends what it finds, reads what the others have
    appended before it hands out a batch, and judges the whole.

    Args:
        total: samples of the data set.
        max_bad_fraction: fraction of the data set that may be bad, in [0, 1]. One bad sample is always allowed unless
            the fraction is 0.
        max_bad_per_shard: bad samples allowed in one shard; a shard that is damaged as a whole counts towards the
            fraction only.
        path: file that gets one JSON line per bad sample or shard; None = only count. Lines already there are known
            and are not written twice. Processes of one machine share it. May be pickled.
        others: lists that other machines write. They are only read, since appending to one file from two machines is
            not safe on network file systems; those that are not there count for nothing.
    """

    def __init__(
        self,
        total: int,
        max_bad_fraction: float = 1e-3,
        max_bad_per_shard: int = 16,
        path: str | os.PathLike[str] | None = None,
        others: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is a fraction in [0, 1], got {max_bad_fraction}")
        self.total = total
        self.max_bad_fraction = max_bad_fraction
        self.max_bad_per_shard = max_bad_per_shard
        self.path = Path(path) if path is not None else None
        self._seen: set[tuple[str, str]] = set()
        self._per_shard: Counter[str] = Counter()
        self._bad = 0
        self._read = dict.fromkeys([*([self.path] if self.path is not None else []), *map(Path, others)], 0)
        self._unjudged: list[BadSample] = []
        self._refresh()
        # A run may begin with what an earlier one found, whatever was allowed then: its shards may be whole again.
        self._unjudged.clear()

    @property
    def bad(self) -> int:
        """Distinct bad samples so far; a damaged shard counts with all its samples."""
        self._refresh()
        return self._bad

    @property
    def allowed(self) -> int:
        """Bad samples allowed in total."""
        return max(1, int(self.max_bad_fraction * self.total)) if self.max_bad_fraction > 0 else 0

    def report(self, sample: BadSample) -> None:
        """Write a bad sample down, once, and check the bounds over all processes.

        Args:
            sample: what was found.

        Raises:
            DataError: more bad samples than ``max_bad_fraction`` or ``max_bad_per_shard`` allow.
        """
        self._refresh()
        if not self._count(sample):
            return
        which = f"sample {sample.key} of {sample.shard}" if sample.key else f"{sample.shard} ({sample.samples} samples)"
        _log.warning("%s is not used (%d bad so far): %s", which, self._bad, sample.reason)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps(dataclasses.asdict(sample), sort_keys=True) + "\n"
            # One write in append mode: lines of two processes do not mix.
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        # What others wrote meanwhile: of two who write at once, the second sees both.
        self._refresh()
        self._check(sample)

    def look(self) -> None:
        """Check the bounds where other processes have found bad samples since the last look.

        Raises:
            DataError: more bad samples than ``max_bad_fraction`` or ``max_bad_per_shard`` allow.
        """
        self._refresh()
        while self._unjudged:
            self._check(self._unjudged.pop())

    def _refresh(self) -> None:
        """Count what other processes wrote since the last look."""
        self._unjudged += [sample for path in self._read for sample in self._appended(path) if self._count(sample)]

    def _appended(self, path: Path) -> list[BadSample]:
        try:
            if path.stat().st_size <= self._read[path]:
                return []
        except OSError:
            return []  # Not written yet, or on a machine whose disk is not seen from here.
        with open(path, "rb") as file:
            file.seek(self._read[path])
            data = file.read()
        # A line that is being written is left for the next look.
        end = data.rfind(b"\n") + 1
        self._read[path] += end
        return list(_lines(path, data[:end].decode("utf-8")))

    def _count(self, sample: BadSample) -> bool:
        name = (sample.shard, sample.key)
        if name in self._seen or (sample.shard, "") in self._seen:
            return False
        self._seen.add(name)
        self._bad += sample.samples
        if sample.kind != "shard":
            self._per_shard[sample.shard] += sample.samples
        return True

    def _check(self, last: BadSample) -> None:
        worst = ", ".join(sorted({shard for shard, _ in self._seen})[:8])
        written = f"; all of them are listed in {self.path}" if self.path is not None else ""
        what = f"last one: shard {last.shard}, key {last.key or '(all)'}: {last.reason}"
        if self._bad > self.allowed:
            raise DataError(
                f"{self._bad} of {self.total} samples are bad, max_bad_fraction={self.max_bad_fraction} allows "
                f"{self.allowed}. Shards: {worst}. {what}{written}. Repair or fetch these shards again, or raise "
                "data.init_args.max_bad_fraction"
            )
        if self._per_shard[last.shard] > self.max_bad_per_shard:
            raise DataError(
                f"shard {last.shard} has {self._per_shard[last.shard]} bad samples, max_bad_per_shard="
                f"{self.max_bad_per_shard} allows no more. {what}{written}. Repair or fetch this shard again, or raise "
                "data.init_args.max_bad_per_shard"
            )


def read_quarantine(path: str | os.PathLike[str]) -> frozenset[tuple[str, str]]:
    """Read the samples that an earlier run found bad, to leave them out of a new plan.

    Args:
        path: a quarantine.jsonl; what other machines of that run found (``quarantine.node1.jsonl``, ...) is taken from
            beside it.

    Returns:
        Pairs (shard name, key); the key is empty where the whole shard is meant.

    Raises:
        DataError: the file is missing or a line is not a quarantine record.
    """
    if not Path(path).is_file():
        raise DataError(f"there is no quarantine list at {path}")
    lists = [Path(path), *sorted(Path(path).parent.glob(f"{glob.escape(Path(path).stem)}.node*.jsonl"))]
    lines = (line for one in lists for line in _lines(one, one.read_text(encoding="utf-8")))
    return frozenset((line.shard, line.key) for line in lines)


def _lines(path: Path, content: str) -> Iterable[BadSample]:
    for number, text in enumerate(content.splitlines(), 1):
        if not text.strip():
            continue
        try:
            yield BadSample(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} line {number} is not a quarantine record ({error}): remove the line") from None
