"""The cache of remote shards: checked, resumed, shared, limited; and indexed reads through it."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import logging
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.remote.cache import CacheError, ShardCache
from lightning_gen.data.remote.cache_locks import hold, locked, remove_unless_held
from lightning_gen.data.remote.retrying import RemoteOptions
from lightning_gen.data.shards import IndexedShards
from tests.data.samples import sample, shards
from tests.harness.faulty_server import IMPATIENT, FaultyServer

SHARDS = [f"train-{number:06d}.tar" for number in range(5)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    shards(tmp_path / "served", 42, 9)
    with FaultyServer(tmp_path / "served") as running:
        yield running


def remote(server: FaultyServer) -> Manifest:
    return Manifest.load(server.url("manifest.json"), IMPATIENT)


def cache(tmp_path: Path, max_bytes: int = 1 << 30, **options: float) -> ShardCache:
    return ShardCache(tmp_path / "cache", max_bytes, IMPATIENT, **options)


def stored(tmp_path: Path) -> list[str]:
    return sorted(path.name.split("-", 1)[1] for path in (tmp_path / "cache" / "shards").iterdir())


def fetch(one: ShardCache, manifest: Manifest, shard: int) -> bytes:
    handle = one.open(manifest, shard)
    with os.fdopen(handle, "rb") as file:
        return file.read()


def test_every_sample_comes_through_and_each_file_is_fetched_once(tmp_path: Path, server: FaultyServer) -> None:
    for _ in range(2):
        reader = IndexedShards(remote(server), cache=cache(tmp_path))
        assert [reader[n] for n in range(42)] == [sample(n)[1] for n in range(42)]
        assert reader.key(17) == sample(17)[0]
        reader.close()
    assert [server.count(name) for name in SHARDS] == [1] * 5
    assert [server.count(name.replace(".tar", ".idx")) for name in SHARDS] == [1] * 5
    assert stored(tmp_path) == SHARDS
    assert list((tmp_path / "cache" / "parts").iterdir()) == []


def test_a_copy_of_the_reader_and_of_the_cache_works(tmp_path: Path, server: FaultyServer) -> None:
    reader = pickle.loads(pickle.dumps(IndexedShards(remote(server), cache=cache(tmp_path))))
    assert reader[30] == sample(30)[1]


def test_remote_shards_need_a_cache(server: FaultyServer) -> None:
    with pytest.raises(ValueError, match="remote: give a cache folder"):
        IndexedShards(remote(server))
    with pytest.raises(ShardError, match="is remote: read it through a cache"):
        remote(server).tar_path(0)
    with pytest.raises(ValueError, match="positive number of bytes"):
        ShardCache("x", 0)


def test_a_download_goes_on_where_a_crash_left_it(tmp_path: Path, server: FaultyServer) -> None:
    manifest, impatient = remote(server), dataclasses.replace(IMPATIENT, retries=0)
    server.fail(SHARDS[0], "truncate")
    with pytest.raises(ShardError, match="ended at byte"):
        ShardCache(tmp_path / "cache", 1 << 30, impatient).open(manifest, 0)
    part = next((tmp_path / "cache" / "parts").glob("*.part"))
    have = part.stat().st_size
    assert 0 < have < manifest.shards[0].bytes
    again = cache(tmp_path)
    assert fetch(again, manifest, 0) == (server.folder / SHARDS[0]).read_bytes()
    assert server.requests[-1] == (SHARDS[0], f"bytes={have}-", "")
    assert "If-Range" in server.headers[-1]
    assert again.bytes_fetched == manifest.shards[0].bytes - have


def test_a_part_of_something_else_is_not_built_upon(tmp_path: Path, server: FaultyServer) -> None:
    manifest, one = remote(server), cache(tmp_path)
    entry = one._entry(manifest, 0)
    one._make_folders()
    for part, origin in ((b"x" * 99, None), (b"x" * 99, {"url": "another", "tag": "t"}), (b"x" * 10_000_000, None)):
        entry.part.write_bytes(part)
        if origin is not None:
            entry.origin.write_text(json.dumps(origin))
        assert fetch(one, manifest, 0) == (server.folder / SHARDS[0]).read_bytes()
        entry.path.unlink()
    # Without a hash a part whose origin is unknown is not even begun with.
    bare = dataclasses.replace(manifest, shards=(dataclasses.replace(manifest.shards[0], sha256=""),))
    one._entry(bare, 0).part.write_bytes(b"x" * 99)
    assert fetch(one, bare, 0) == (server.folder / SHARDS[0]).read_bytes()


def corrupt(server: FaultyServer, name: str) -> bytes:
    data = (server.folder / name).read_bytes()
    (server.folder / name).write_bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])
    return data


def test_other_content_is_fetched_once_more_and_then_given_up(tmp_path: Path, server: FaultyServer) -> None:
    manifest = remote(server)
    corrupt(server, SHARDS[1])
    reader = IndexedShards(manifest, cache=cache(tmp_path))
    for _ in range(2):
        with pytest.raises(ShardError, match=rf"{SHARDS[1]} has other content .*sha256 differs.* fetched again"):
            _ = reader[9]
    assert server.count(SHARDS[1]) == 2
    assert reader[0] == sample(0)[1]
    assert stored(tmp_path) == [SHARDS[0]]
    assert reader.retried == 1


def test_content_that_is_right_the_second_time_is_used(tmp_path: Path, server: FaultyServer) -> None:
    manifest, one = remote(server), cache(tmp_path)
    server.fail(SHARDS[1], "html")
    assert fetch(one, manifest, 1) == (server.folder / SHARDS[1]).read_bytes()
    assert server.count(SHARDS[1]) == 2
    server.fail_always(SHARDS[2], "html")
    with pytest.raises(ShardError, match=rf"{SHARDS[2]} has 35 bytes, the manifest says"):
        one.open(manifest, 2)


def test_a_server_that_says_no_length_is_held_to_the_manifests(tmp_path: Path, server: FaultyServer) -> None:
    manifest = remote(server)
    server.fail_always(SHARDS[0], "endless")
    assert fetch(cache(tmp_path), manifest, 0) == (server.folder / SHARDS[0]).read_bytes()
    size = manifest.shards[1].bytes
    server.fail_always(SHARDS[1], "endless")
    (server.folder / SHARDS[1]).write_bytes((server.folder / SHARDS[1]).read_bytes()[: size // 2])
    with pytest.raises(ShardError, match=rf"{size // 2} bytes now.*fetched again"):
        cache(tmp_path).open(manifest, 1)


def test_a_web_page_of_the_right_length_is_called_one(tmp_path: Path, server: FaultyServer) -> None:
    size = (server.folder / SHARDS[0]).stat().st_size
    (server.folder / SHARDS[0]).write_bytes(b"<html>".ljust(size))
    with pytest.raises(ShardError, match="sha256 differs.*starts like a web page"):
        cache(tmp_path).open(remote(server), 0)


def test_a_file_replaced_during_the_download_is_begun_again(
    tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, one = remote(server), cache(tmp_path)
    good = corrupt(server, SHARDS[0])
    server.fail(SHARDS[0], "truncate")
    real = server._next_fault

    def repair(name: str) -> str:
        if server.count(SHARDS[0]) == 1:
            (server.folder / SHARDS[0]).write_bytes(good)
        return real(name)

    monkeypatch.setattr(server, "_next_fault", repair)
    assert fetch(one, manifest, 0) == good
    asked = [place for name, place, _ in server.requests if name == SHARDS[0]]
    assert len(asked) == 3 and asked[1] != "" == asked[2], "begun, found to be another file, begun again"


def test_alternates_are_tried_in_order(tmp_path: Path, server: FaultyServer) -> None:
    with FaultyServer(server.folder) as second:
        manifest = remote(server)
        gone, other = server.url("gone.tar"), second.url(SHARDS[0])
        first = dataclasses.replace(manifest.shards[0], alternates=(gone, other))
        manifest = dataclasses.replace(manifest, shards=(first,))
        server.fail_always(SHARDS[0], "status 503")
        assert fetch(cache(tmp_path), manifest, 0) == (server.folder / SHARDS[0]).read_bytes()
        assert (server.count(SHARDS[0]), server.count("gone.tar"), second.count(SHARDS[0])) == (3, 1, 1)
        second.fail_always(SHARDS[0], "status 404")
        for path in (tmp_path / "cache" / "shards").iterdir():
            path.unlink()
        with pytest.raises(ShardError, match=r"503.*gone.tar answers 404.*answers 404"):
            cache(tmp_path).open(manifest, 0)


def test_a_failure_is_believed_by_others_of_the_run_and_not_by_the_next_run(
    tmp_path: Path, server: FaultyServer
) -> None:
    manifest, one = remote(server), cache(tmp_path)
    worker = pickle.loads(pickle.dumps(one))
    server.fail_always(SHARDS[0], "status 404")
    for each in (one, worker):
        with pytest.raises(ShardError, match="answers 404"):
            each.open(manifest, 0)
    assert server.count(SHARDS[0]) == 1
    server.fail_always(SHARDS[0], "")
    assert fetch(cache(tmp_path), manifest, 0)
    assert list((tmp_path / "cache" / "failed").iterdir()) == []


def sizes(tmp_path: Path) -> int:
    kept = (path for name in ("shards", "parts", "indices") for path in (tmp_path / "cache" / name).iterdir())
    return sum(path.stat().st_size for path in kept)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, server: FaultyServer) -> None:
    manifest = remote(server)
    largest = max(shard.bytes for shard in manifest.shards)
    one = cache(tmp_path, 3 * largest)
    for number, age in ((0, 300), (1, 200), (2, 100)):
        os.close(one.open(manifest, number))
        os.utime(one._entry(manifest, number).path, (0, time.time() - age))
    os.close(one.open(manifest, 0))  # used again: 1 is the oldest now
    os.close(one.open(manifest, 3))
    assert stored(tmp_path) == [SHARDS[0], SHARDS[2], SHARDS[3]]
    assert sizes(tmp_path) <= 3 * largest


def test_a_shard_in_use_is_never_removed(tmp_path: Path, server: FaultyServer) -> None:
    manifest = remote(server)
    one = cache(tmp_path, max(shard.bytes for shard in manifest.shards))
    handle = one.open(manifest, 0)
    os.close(one.open(manifest, 1))
    assert SHARDS[0] in stored(tmp_path)
    os.close(handle)
    os.close(one.open(manifest, 2))
    assert stored(tmp_path) == [SHARDS[2]]


def test_a_reader_keeps_no_more_than_it_reads(tmp_path: Path, server: FaultyServer) -> None:
    manifest = remote(server)
    largest = max(shard.bytes for shard in manifest.shards)
    indices = sum((server.folder / name.replace(".tar", ".idx")).stat().st_size for name in SHARDS)
    reader = IndexedShards(manifest, cache=cache(tmp_path, largest + indices))
    for number in (0, 10, 20, 30, 40, 1, 11):
        assert reader[number] == sample(number)[1]
        assert len(stored(tmp_path)) == 1
        assert sizes(tmp_path) <= largest + indices
    del reader
    assert remove_unless_held(next((tmp_path / "cache" / "shards").iterdir())), "a reader that is gone holds nothing"


def test_shards_that_come_and_go_are_mentioned_once(
    tmp_path: Path, server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = remote(server)
    one = cache(tmp_path, max(shard.bytes for shard in manifest.shards))
    with caplog.at_level(logging.WARNING):
        for number in (0, 1, 0, 1, 0):
            os.close(one.open(manifest, number))
    messages = [record.message for record in caplog.records if "fetched again" in record.message]
    assert len(messages) == 2 and "block_shards x canonical_streams" in messages[0]


def test_a_shard_larger_than_the_cache_and_a_full_disk_stop_the_run(
    tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = remote(server)
    with pytest.raises(CacheError, match=r"has \d+ bytes, the whole cache .* may have 100: raise"):
        cache(tmp_path, 100).open(manifest, 0)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lightning_gen.data.remote.cache.os.fsync", full)
        with pytest.raises(CacheError, match=rf"the disk of the cache folder .* is full, {SHARDS[0]} does not fit"):
            cache(tmp_path).open(manifest, 0)
    assert not isinstance(CacheError(), ShardError), "a full disk is not a bad sample"
    assert list((tmp_path / "cache" / "parts").glob("*.part")) == [], "its bytes are given back"
    assert fetch(cache(tmp_path), manifest, 0)


def test_an_index_that_is_not_the_manifests_is_refused(tmp_path: Path, server: FaultyServer) -> None:
    manifest = remote(server)
    name = SHARDS[0].replace(".tar", ".idx")
    server.fail(name, "html")
    reader = IndexedShards(manifest, cache=cache(tmp_path))
    assert reader[0] == sample(0)[1]
    kept = next((tmp_path / "cache" / "indices").glob("*.idx"))
    kept.write_bytes(kept.read_bytes()[:-1])
    assert len(IndexedShards(manifest, cache=cache(tmp_path)).index(0)) == 9, "a damaged copy is fetched again"
    server.fail_always(SHARDS[1].replace(".tar", ".idx"), "html")
    with pytest.raises(ShardError, match="index .* is not the manifest's"):
        reader.index(1)


def take(folder: Path, url: str, numbers: list[int], answers: object) -> None:
    reader = IndexedShards(Manifest.load(url, IMPATIENT), cache=ShardCache(folder, 1 << 30, IMPATIENT))
    answers.put([reader[number] == sample(number)[1] for number in numbers])  # type: ignore[attr-defined]


def test_processes_share_one_download(tmp_path: Path, server: FaultyServer) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    arguments = (tmp_path / "cache", server.url("manifest.json"), list(range(0, 42, 5)), answers)
    processes = [context.Process(target=take, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    assert all(all(answers.get(timeout=20)) for _ in processes)
    for process in processes:
        process.join(10)
    assert [server.count(name) for name in SHARDS] == [1] * 5


def grab(path: Path, ready: object) -> None:
    with locked(path, 1.0, lambda: 0, "x"):
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_locks_die_with_their_owner_and_are_waited_for_no_longer_than_allowed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    owner = context.Process(target=grab, args=(tmp_path / "lock", ready), daemon=True)
    owner.start()
    assert ready.wait(10)
    began = time.monotonic()
    why = rf"process {owner.pid} has the thing locked and did not get on for 0 s"
    with pytest.raises(ShardError, match=why), locked(tmp_path / "lock", 0.3, lambda: 0, "the thing"):
        pass
    assert 0.3 <= time.monotonic() - began < 3
    steps = iter([0, 0, 1, 1, 2, 2, 3, 3, *[4] * 10_000])
    with pytest.raises(ShardError), locked(tmp_path / "lock", 0.1, lambda: next(steps), "the thing"):
        pass
    assert next(steps) == 4, "one who gets on is waited for"
    owner.kill()
    owner.join(10)
    with locked(tmp_path / "lock", 1.0, lambda: 0, "the thing"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_held_file_stays_and_a_removed_one_is_not_given_out(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    handle = hold(tmp_path / "x")
    assert handle is not None
    assert not remove_unless_held(tmp_path / "x")
    os.close(handle)
    assert remove_unless_held(tmp_path / "x")
    assert hold(tmp_path / "x") is None
    # Opened just before it was removed: the name is gone although the lock is granted.
    (tmp_path / "y").write_bytes(b"y")
    real = fcntl.flock

    def late(handle: int, kind: int) -> None:
        (tmp_path / "y").unlink(missing_ok=True)
        real(handle, kind)

    fcntl.flock = late  # type: ignore[assignment]
    try:
        assert hold(tmp_path / "y") is None
    finally:
        fcntl.flock = real


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("lightning_gen.data.remote.cache_locks.fcntl.flock", none)
    why = "file system without locks: put the cache on a local disk"
    with pytest.raises(OSError, match=why), locked(tmp_path / "lock", 1.0, lambda: 0, "x"):
        pass


def test_what_another_process_is_fetching_counts_in_full(tmp_path: Path, server: FaultyServer) -> None:
    manifest = remote(server)
    largest = max(shard.bytes for shard in manifest.shards)
    one = cache(tmp_path, 2 * largest + largest // 2)
    os.close(one.open(manifest, 0))
    other = one._entry(manifest, 1)
    with locked(other.lock, 1.0, lambda: 0, "x"):  # as if another process had just begun with shard 1
        one._make_room(other)
        other.part.write_bytes(b"x" * 10)
        os.close(one.open(manifest, 2))
        assert stored(tmp_path) == [SHARDS[2]], "two and the one that comes do not fit"
        assert other.part.exists(), "what is being fetched is not removed"
    for number in (3, 4):
        os.close(one.open(manifest, number))
    assert not other.part.exists(), "what nobody goes on fetching is"
    assert RemoteOptions() == ShardCache(tmp_path / "z", 1).opener.options
