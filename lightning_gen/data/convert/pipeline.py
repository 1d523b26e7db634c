"""Conversion: source -> pictures -> parts -> final order -> shards.

Two passes. The first reads every part of the input once and writes its finished samples into a working folder; the
second copies them into shards in their final order. The working folder needs as much disk as the shards. Interrupted at
any point, the same call goes on and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gen.data.convert.gather import SecondPass, cut_shards
from lightning_gen.data.convert.journal import Journal
from lightning_gen.data.convert.order import Order, repeated
from lightning_gen.data.convert.packing import Packing
from lightning_gen.data.convert.records import Part, Source
from lightning_gen.data.convert.spool import IDENTITY, KEY, FirstPass, Spool, SpooledPart
from lightning_gen.data.convert.tally import Tally
from lightning_gen.data.manifest import Manifest, Shard
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.workers import Watch, run_tasks
from lightning_gen.data.writing import describe_fields

__all__ = ["Conversion", "convert"]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion came to.

    Attributes:
        manifest: the shards, on disk.
        tally: what became of the rows.
    """

    manifest: Manifest
    tally: Tally


def convert(
    source: Source,
    out: str | os.PathLike[str],
    packing: Packing,
    *,
    workers: int = 0,
    overwrite: bool = False,
    fresh: bool = False,
    watch: Watch = lambda what, done, total: None,
) -> Conversion:
    """Write a source's samples into shards, with indices, a manifest and ``conversion.json``.

    Args:
        source: where the samples come from.
        out: folder of the shards; one split per folder. Its subfolder ``.convert`` holds unfinished work.
        packing: what is done to them.
        workers: processes; 0 and 1 = this one only. The bytes do not depend on it.
        overwrite: replace a data set that is there.
        fresh: throw away what an interrupted conversion has done.
        watch: gets the progress.

    Returns:
        The manifest and the counts.

    Raises:
        FileExistsError: the folder holds a data set or an unfinished conversion of something else.
        DataError: the input is damaged, two samples have one key, or no sample is left.
    """
    parts = source.parts()
    journal = Journal(Path(out), packing.name, _plan(source, parts, packing), overwrite, fresh)
    with journal.held():
        if not journal.is_ready:
            _fill(source, parts, packing, journal, workers, watch)
        manifest = journal.finish()
    report = json.loads((Path(out) / "conversion.json").read_text(encoding="utf-8"))
    return Conversion(manifest, Tally.from_json(report))


def _plan(source: Source, parts: Sequence[Part], packing: Packing) -> dict[str, Any]:
    from lightning_gen import __version__

    return {
        "source": {"title": source.title, **source.settings},
        "place": source.place,
        "input": [[part.label, part.count, part.stamp] for part in parts],
        "packing": dataclasses.asdict(packing),
        "version": __version__,
    }


def _fill(
    source: Source, parts: Sequence[Part], packing: Packing, journal: Journal, workers: int, watch: Watch
) -> None:
    """Both passes, up to the point where only files must be moved."""
    spooled = _first_pass(source, parts, packing, journal.files, workers, watch)
    tally = Tally.total(part.tally for part in spooled)
    samples = [part.samples for part in spooled]
    dropped = _dropped(journal.files, samples, packing)
    tally.count("duplicates", times=len(dropped))
    journal.require_room()
    shards = _second_pass(journal.files, samples, dropped, packing, workers, watch)
    written = sum(shard.num_samples for shard in shards)
    tally.count("written", times=written)
    journal.require_samples(written, _spoken(tally))
    fields = {field for part in spooled for field in part.fields}
    manifest = Manifest(packing.name, journal.out, tuple(shards), describe_fields(fields), source.title)
    journal.make_ready(manifest, _report(source, parts, packing, tally))


def _first_pass(
    source: Source, parts: Sequence[Part], packing: Packing, files: Spool, workers: int, watch: Watch
) -> list[SpooledPart]:
    reports = {number: files.report(number) for number in range(len(parts))}
    missing = [(number, parts[number]) for number, report in reports.items() if report is None]
    total = sum(part.count for part in parts)
    done = total - sum(part.count for _, part in missing)
    watch("reading", done, total)
    for number in run_tasks(FirstPass(source, packing, files), missing, workers):
        reports[number] = files.report(number)
        done += parts[number].count
        watch("reading", done, total)
    return [report for report in reports.values() if report is not None]


def _dropped(files: Spool, samples: Sequence[int], packing: Packing) -> npt.NDArray[np.int64]:
    """Samples that came before; and what remains has keys of its own."""
    dropped = np.empty(0, np.int64)
    if packing.dedupe:
        found = [again for again, _ in repeated(files, samples, IDENTITY, dropped)]
        dropped = np.sort(np.concatenate(found))
    for again, before in repeated(files, samples, KEY, dropped):
        if len(again):
            raise DataError(
                f"key {_key(files, samples, int(again[0]))!r} comes twice, in samples {before[0]} and {again[0]} of "
                "the input: --keys number takes the rows' numbers for keys, --dedupe leaves out equal samples"
            )
    return dropped


def _key(files: Spool, samples: Sequence[int], sample: int) -> str:
    part = 0
    while sample >= samples[part]:
        sample, part = sample - samples[part], part + 1
    return files.index(part).key(sample)


def _second_pass(
    files: Spool,
    samples: Sequence[int],
    dropped: npt.NDArray[np.int64],
    packing: Packing,
    workers: int,
    watch: Watch,
) -> list[Shard]:
    left = sum(samples) - len(dropped)
    total = left if packing.limit is None else min(left, packing.limit)
    tasks = cut_shards(Order(files, samples, packing.shuffle_seed, dropped).buckets(), packing)
    shards, done = list[Shard](), 0
    watch("writing", done, total)
    for shard in run_tasks(SecondPass(files, packing.name), tasks, workers):
        shards.append(shard)
        done += shard.num_samples
        watch("writing", done, total)
    return sorted(shards, key=lambda shard: shard.name)


def _report(source: Source, parts: Sequence[Part], packing: Packing, tally: Tally) -> dict[str, Any]:
    # Names and numbers of rows, not times: the same data elsewhere give the same file.
    rows = json.dumps([[part.label, part.count] for part in parts])
    return {
        **tally.to_json(),
        "source": {"title": source.title, **source.settings},
        "source_fingerprint": hashlib.sha256(rows.encode()).hexdigest(),
        "packing": dataclasses.asdict(packing),
    }


def _spoken(tally: Tally) -> str:
    numbers = ", ".join(f"{number} {counter}" for counter, number in tally.counts.items() if number)
    first = next((lines[0] for lines in tally.examples.values() if lines), "")
    return f"{numbers or 'the input is empty'}{f'; for instance {first}' if first else ''}"
