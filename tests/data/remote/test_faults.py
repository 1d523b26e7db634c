"""The fault drill: a real server fails in every way there is; nothing hangs, and nothing is lost without a word.

Every test reads the same data set through both kinds of shards. What a server does for a while costs nothing; what it
does for ever costs the shard, which is then in quarantine.jsonl with the number of its samples.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from lightning_gen.data.access import Consumer, Pass, SampleReader, StreamSample
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import BadSample, DataError, Quarantine, ShardError
from lightning_gen.data.remote.cache import ShardCache
from lightning_gen.data.remote.retrying import RemoteOptions
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.streaming import StreamShards
from tests.data.samples import sample, shards
from tests.harness.faulty_server import HASTY, IMPATIENT, FaultyServer

TOTAL, PER_SHARD = 36, 6
NAMES = [f"train-{number:06d}.tar" for number in range(TOTAL // PER_SHARD)]
BAD = NAMES[2]
SAMPLES_OF_BAD = {sample(n)[0] for n in range(12, 18)}
WHOLE = {sample(n)[0]: sample(n)[1] for n in range(TOTAL)}
PASSING = ["silent", "stall", "reset", "truncate", "drip", "status 503", "status 429 0", "status 500", "no-range"]
LASTING = ["silent", "stall", "truncate", "drip", "status 503", "status 404", "html"]
SLOW = ("silent", "stall", "drip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    shards(folder, TOTAL, PER_SHARD)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with FaultyServer(folder) as running:
        yield running


def reader(server: FaultyServer, kind: str, tmp_path: Path, options: RemoteOptions = IMPATIENT) -> SampleReader:
    if kind == "indexed":
        manifest = Manifest.load(server.url("manifest.json"), options)
        return IndexedShards(manifest, cache=ShardCache(tmp_path / "cache", 1 << 30, options))
    return StreamShards.find(server.url("manifest.json"), shuffle_buffer=0, options=options)


def read(source: SampleReader, quarantine: Quarantine) -> list[StreamSample]:
    return list(source.sample_stream(Consumer(), quarantine, Pass(0, 0)))


def lost(path: Path) -> dict[str, int]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["shard"]: line["samples"] for line in lines}


@pytest.mark.parametrize("kind", ["indexed", "stream"])
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_costs_nothing(server: FaultyServer, tmp_path: Path, kind: str, fault: str) -> None:
    server.fail(BAD, fault)
    quarantine = Quarantine(TOTAL, 0.0, path=tmp_path / "quarantine.jsonl")
    source = reader(server, kind, tmp_path, HASTY if fault in SLOW else IMPATIENT)
    began = time.monotonic()
    found = read(source, quarantine)
    assert time.monotonic() - began < 8
    assert {one.key: one.fields for one in found} == WHOLE
    assert lost(tmp_path / "quarantine.jsonl") == {}
    assert source.retried >= (fault != "no-range")


@pytest.mark.parametrize("kind", ["indexed", "stream"])
@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_costs_the_shard_and_is_accounted_for(
    server: FaultyServer, tmp_path: Path, kind: str, fault: str
) -> None:
    server.fail_always(BAD, fault)
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(TOTAL, 0.2, path=path)
    began = time.monotonic()
    options = dataclasses.replace(HASTY if fault in SLOW else IMPATIENT, retries=1)
    found = read(reader(server, kind, tmp_path, options), quarantine)
    assert time.monotonic() - began < 8
    assert len(found) == TOTAL, "every rank gets its number of samples, whatever happens to one shard"
    assert all(one.fields == WHOLE[one.key] for one in found)
    missing = set(WHOLE) - {one.key for one in found}
    # A stream delivers what came before the damage.
    assert missing == SAMPLES_OF_BAD or (kind == "stream" and missing < SAMPLES_OF_BAD)
    assert lost(path) == {BAD: len(missing)}
    assert quarantine.bad == len(missing)
    assert server.count(BAD) <= 8


@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_the_limit_stops_the_run_with_the_shards_named(server: FaultyServer, tmp_path: Path, kind: str) -> None:
    for name in (BAD, NAMES[4]):
        server.fail_always(name, "status 503")
    quarantine = Quarantine(TOTAL, 0.2, path=tmp_path / "quarantine.jsonl")
    with pytest.raises(DataError, match=rf"12 of 36 samples are bad.*Shards: {BAD}, {NAMES[4]}.*503"):
        read(reader(server, kind, tmp_path), quarantine)
    assert lost(tmp_path / "quarantine.jsonl") == {BAD: 6, NAMES[4]: 6}


@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_a_server_that_is_gone_stops_the_run(server: FaultyServer, tmp_path: Path, kind: str) -> None:
    source = reader(server, kind, tmp_path)
    server.__exit__(None, None, None)
    began = time.monotonic()
    with pytest.raises(DataError, match="Connection refused"):
        read(source, Quarantine(TOTAL, 1.0))
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_a_file_that_changes_between_requests_is_never_mixed(
    server: FaultyServer, folder: Path, tmp_path: Path, kind: str
) -> None:
    good = (folder / BAD).read_bytes()
    source = reader(server, kind, tmp_path)
    server.fail(BAD, "truncate")
    real = server._next_fault

    def change(name: str) -> str:
        if name == BAD and server.count(BAD) == 1:
            (folder / BAD).write_bytes((folder / NAMES[3]).read_bytes().ljust(len(good) + 10_240, b"\0"))
        return real(name)

    server._next_fault = change  # type: ignore[method-assign]
    try:
        quarantine = Quarantine(TOTAL, 0.2, path=tmp_path / "quarantine.jsonl")
        found = read(source, quarantine)
    finally:
        (folder / BAD).write_bytes(good)
    assert all(one.fields == WHOLE[one.key] for one in found)
    missing = set(WHOLE) - {one.key for one in found}
    assert missing and lost(tmp_path / "quarantine.jsonl") == {BAD: len(missing)}
    reason = (tmp_path / "quarantine.jsonl").read_text()
    assert ("the manifest says" if kind == "indexed" else "changed while it was read") in reason


class Map(Dataset[Any]):
    """Samples by their number; a bad one is replaced by the next and reported."""

    def __init__(self, source: IndexedShards) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, int, list[BadSample]]:
        bad = list[BadSample]()
        for step in range(len(self.source)):
            number = (index + step) % len(self.source)
            record = self.source.manifest.shards[self.source.locate(number)[0]]
            try:
                assert self.source[number] == WHOLE[self.source.key(number)]
                return index, number, bad
            except ShardError as error:
                bad.append(BadSample(record.name, "", number, "shard", str(error), record.num_samples))
        raise DataError("nothing can be read")


class Stream(IterableDataset[Any]):
    """A worker's part of a stream."""

    def __init__(self, source: StreamShards, quarantine: Quarantine) -> None:
        self.source, self.quarantine = source, quarantine

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        consumer = Consumer(worker=info.id, workers=info.num_workers)
        for one in self.source.sample_stream(consumer, self.quarantine, Pass(0, 0)):
            assert one.fields == WHOLE[one.key]
            yield one.key


def as_it_is(items: Any) -> Any:
    return items


def test_workers_read_indexed_shards_through_a_failing_server(server: FaultyServer, tmp_path: Path) -> None:
    server.fail(NAMES[0], "reset")
    server.fail(NAMES[1], "status 503", "stall")
    server.fail_always(BAD, "html")
    source = reader(server, "indexed", tmp_path, HASTY)
    assert isinstance(source, IndexedShards)
    quarantine = Quarantine(TOTAL, 0.2, path=tmp_path / "quarantine.jsonl")
    loader = DataLoader(Map(source), 4, num_workers=2, collate_fn=as_it_is, timeout=20)
    replaced = dict[int, int]()
    for batch in loader:
        for index, number, bad in batch:
            replaced |= {index: number} if index != number else {}
            for one in bad:
                quarantine.report(one)
    assert sorted(replaced) == list(range(12, 18))
    assert lost(tmp_path / "quarantine.jsonl") == {BAD: 6}
    assert server.count(BAD) == 2, "the second worker believes the first"
    assert server.count(NAMES[0]) >= 2 and server.count(NAMES[1]) >= 3


def test_workers_read_a_stream_through_a_failing_server_and_stop_together(server: FaultyServer, tmp_path: Path) -> None:
    server.fail(NAMES[0], "reset")
    server.fail(NAMES[1], "status 503", "stall")
    server.fail_always(BAD, "html")
    source = reader(server, "stream", tmp_path, HASTY)
    assert isinstance(source, StreamShards)
    path = tmp_path / "quarantine.jsonl"
    stream = Stream(source, Quarantine(TOTAL, 0.2, path=path))
    found = [key for batch in DataLoader(stream, 4, num_workers=2, collate_fn=as_it_is, timeout=20) for key in batch]
    assert len(found) == TOTAL
    assert set(WHOLE) - set(found) == SAMPLES_OF_BAD
    assert lost(path) == {BAD: 6}
    server.fail_always(NAMES[4], "status 503")
    with pytest.raises(DataError, match=rf"12 of 36 samples are bad.*{BAD}, {NAMES[4]}"):
        list(DataLoader(stream, 4, num_workers=2, collate_fn=as_it_is, timeout=20))
