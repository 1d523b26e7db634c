"""Streamed shards: order, shares, resume, damage; and the interface they share with indexed ones."""

from __future__ import annotations

import gc
import io
import itertools
import os
import pickle
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from lightning_gen.data.access import Consumer, Pass, SampleReader, StreamSample
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import DataError, Quarantine, ShardError, read_quarantine
from lightning_gen.data.shards import IndexedShards, ReadError
from lightning_gen.data.streaming import StreamPosition, StreamShards
from lightning_gen.data.tarfiles import CheckedTar
from tests.data.samples import sample, samples, shards
from tests.harness.faulty_server import IMPATIENT, FaultyServer

ALONE = Consumer()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return shards(tmp_path / "set", 42, 6)  # 7 even shards


def paths(manifest: Manifest) -> list[str]:
    return [str(manifest.tar_path(number)) for number in range(len(manifest.shards))]


def reader(manifest: Manifest, kind: str, **options: int) -> SampleReader:
    if kind == "indexed":
        return IndexedShards(manifest)
    return StreamShards(paths(manifest), manifest.total, shuffle_buffer=options.get("shuffle_buffer", 0))


def keys(source: SampleReader, consumer: Consumer = ALONE, seed: int = 1, epoch: int = 0, seen: int = 0) -> list[str]:
    stream = source.sample_stream(consumer, Quarantine(len(source), 0.0), Pass(seed, epoch, seen))
    return [one.key for one in stream]


def consumers(world: int, workers: int) -> list[Consumer]:
    return [Consumer(rank, world, worker, workers) for rank in range(world) for worker in range(workers)]


ALL = [sample(n)[0] for n in range(42)]


@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_one_interface_gives_the_same_samples(manifest: Manifest, kind: str) -> None:
    source = reader(manifest, kind)
    for one in source.sample_stream(Consumer(), Quarantine(42, 0.0), Pass(0, 0)):
        number = int(one.key[1:])
        assert one == StreamSample(f"train-{number // 6:06d}.tar", *sample(number))
    assert sorted(keys(source)) == ALL
    assert source.bytes_read == 2 * sum(len(data) for _, fields in samples(42) for data in fields.values())
    assert source.retried == 0


@pytest.mark.parametrize("kind", ["indexed", "stream"])
@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 1), (2, 3), (3, 2), (4, 1), (7, 1), (5, 4), (42, 1)])
def test_all_ranks_get_equally_many_samples(manifest: Manifest, kind: str, world: int, workers: int) -> None:
    source = reader(manifest, kind)
    counts = Counter[int]()
    found = Counter[str]()
    for consumer in consumers(world, workers):
        got = keys(source, consumer)
        assert len(got) == consumer.share(42)
        counts[consumer.rank] += len(got)
        found.update(got)
    assert set(counts.values()) == {42 // world}
    if kind == "indexed":
        assert max(found.values()) == 1
    elif (7 % (world * workers) == 0 or world * workers % 7 == 0) and 6 % max(1, world * workers // 7) == 0:
        assert max(found.values()) == 1, "even shards dealt evenly make an exact epoch"


@pytest.mark.parametrize(("kind", "buffer"), [("indexed", 0), ("stream", 0), ("stream", 8)])
def test_the_order_is_a_function_of_its_key_alone(manifest: Manifest, kind: str, buffer: int) -> None:
    source = reader(manifest, kind, shuffle_buffer=buffer)
    first = keys(source, Consumer(1, 2, 0, 2))
    assert keys(pickle.loads(pickle.dumps(source)), Consumer(1, 2, 0, 2)) == first
    assert keys(source, Consumer(1, 2, 0, 2), epoch=1) != first
    assert keys(source, Consumer(1, 2, 0, 2), seed=2) != first
    assert keys(source, Consumer(0, 2, 0, 2)) != first


def test_the_order_is_the_same_in_another_process(manifest: Manifest) -> None:
    code = (
        "import sys; from lightning_gen.data.access import Consumer, Pass;"
        "from lightning_gen.data.quarantine import Quarantine;"
        "from lightning_gen.data.streaming import StreamShards;"
        "s = StreamShards(sys.argv[1:], 42, shuffle_buffer=8);"
        "print(*[x.key for x in s.sample_stream(Consumer(1, 2), Quarantine(42), Pass(1, 3))])"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": "7",
        "RANK": "5",
        "WORLD_SIZE": "9",
        "WORKER": "3",
        "NUM_WORKERS": "4",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *paths(manifest)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == keys(reader(manifest, "stream", shuffle_buffer=8), Consumer(1, 2), epoch=3)


def test_a_buffer_mixes_samples_of_different_shards(manifest: Manifest) -> None:
    plain, mixed = reader(manifest, "stream"), reader(manifest, "stream", shuffle_buffer=20)
    assert sorted(keys(mixed)) == ALL

    def jumps(order: list[str]) -> int:
        numbers = [int(key[1:]) for key in order]
        return sum(b != a + 1 for a, b in itertools.pairwise(numbers))

    assert jumps(keys(plain)) <= 6
    assert jumps(keys(mixed)) > 30


@pytest.mark.parametrize("kind", ["indexed", "stream"])
@pytest.mark.parametrize("consumer", [Consumer(), Consumer(1, 2), Consumer(0, 2, 1, 2), Consumer(3, 14)])
def test_a_run_goes_on_where_it_ended(manifest: Manifest, kind: str, consumer: Consumer) -> None:
    source = reader(manifest, kind)
    whole = keys(source, consumer)
    for seen in range(0, 42, consumer.world):
        assert keys(source, consumer, seen=seen) == whole[consumer.share(seen) :], seen


def test_known_lengths_make_the_resume_exact_for_uneven_shards(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 30, 7)
    lengths = [shard.num_samples for shard in manifest.shards]
    source = StreamShards(paths(manifest), 30, lengths=lengths, shuffle_buffer=0)
    whole = keys(source)
    assert all(keys(source, seen=seen) == whole[seen:] for seen in range(30))
    # Shards that lie wholly before the position are not even opened.
    opened = list[str]()
    real = source.opener.open
    source.opener.open = lambda *args: (opened.append(args[0]), real(*args))[1]  # type: ignore[method-assign]
    keys(source, seen=15)
    assert len(opened) < 5


def test_a_position_belongs_to_its_shards(manifest: Manifest) -> None:
    source = StreamShards(paths(manifest), 42)
    state = source.position(3, 20).state_dict()
    assert set(state) == {"epoch", "samples", "fingerprint"}
    elsewhere = StreamShards([f"https://host/{Path(path).name}" for path in paths(manifest)], 42)
    assert elsewhere.resume(StreamPosition.from_state(state)) == (3, 20)
    with pytest.raises(DataError, match="other streamed shards"):
        StreamShards(paths(manifest)[1:], 42).resume(StreamPosition.from_state(state))
    with pytest.raises(DataError, match="not that of streamed shards"):
        StreamPosition.from_state({"epoch": 1})


def test_an_endless_stream_goes_on_with_further_samples(manifest: Manifest) -> None:
    for kind in ("indexed", "stream"):
        stream = reader(manifest, kind).sample_stream(Consumer(1, 2), Quarantine(42), Pass(1, 0), endless=True)
        got = [one.key for one in itertools.islice(stream, 100)]
        assert got[:21] == keys(reader(manifest, kind), Consumer(1, 2))
        assert len(set(got)) > 35


def test_very_few_samples_for_very_many_consumers_end(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 3, 3)
    source = StreamShards(paths(manifest), 64, shuffle_buffer=0)
    for consumer in consumers(8, 2):
        assert len(keys(source, consumer)) == 4


def damage(path: str, kind: str) -> None:
    data = Path(path).read_bytes()
    middle = (len(data) // 2) // 512 * 512
    with tarfile.open(path) as tar:
        edge = tar.getmembers()[9].offset  # where the fourth sample begins
    Path(path).write_bytes(
        {
            "truncated": data[: middle + 100],
            "cut between members": data[:edge],
            "header": data[:edge] + b"\xff" * 512 + data[edge + 512 :],
            "html": b"<!DOCTYPE html>".ljust(2000),
            "gzip": __import__("gzip").compress(data),
            "empty": b"",
            "no samples": b"\0" * 10240,
        }[kind]
    )


@pytest.mark.parametrize(
    ("kind", "came", "why"),
    [
        ("truncated", None, "truncated|unexpected end"),
        ("cut between members", 2, "is truncated: no end mark"),
        ("header", 2, "is not a tar at byte .* checksum is wrong"),
        ("html", 0, "starts like a web page"),
        ("gzip", 0, "it is compressed"),
        ("empty", 0, "is truncated: no end mark at byte 0"),
        ("no samples", 0, "holds no sample"),
    ],
)
def test_what_is_damaged_is_delivered_up_to_there_and_the_rest_counted(
    tmp_path: Path, manifest: Manifest, kind: str, came: int | None, why: str
) -> None:
    damage(paths(manifest)[2], kind)
    quarantine = Quarantine(42, 0.2, path=tmp_path / "quarantine.jsonl")
    source = StreamShards(paths(manifest), 42, shuffle_buffer=0)
    found = [one.key for one in source.sample_stream(Consumer(), quarantine, Pass(1, 0))]
    assert len(found) == 42, "the share is filled with other samples"
    whole = {key for key in ALL if not 12 <= int(key[1:]) < 18}
    assert whole <= set(found)
    delivered = set(found) - whole
    assert came is None or len(delivered) == came
    line = __import__("json").loads((tmp_path / "quarantine.jsonl").read_text())
    assert (line["shard"], line["key"], line["kind"]) == ("train-000002.tar", "", "shard")
    assert line["samples"] == 6 - len(delivered) == quarantine.bad
    assert __import__("re").search(why, line["reason"]), line["reason"]
    assert " object at 0x" not in line["reason"]
    assert read_quarantine(tmp_path / "quarantine.jsonl") == {("train-000002.tar", "")}


def test_too_much_damage_stops_the_run_with_the_shards_named(manifest: Manifest) -> None:
    damage(paths(manifest)[2], "html")
    source = StreamShards(paths(manifest), 42)
    with pytest.raises(DataError, match=r"6 of 42 samples are bad.*Shards: train-000002.tar"):
        list(source.sample_stream(Consumer(), Quarantine(42, 0.1), Pass(1, 0)))
    for path in paths(manifest):
        Path(path).write_bytes(b"<html>".ljust(2000))
    source = StreamShards(paths(manifest), 42)
    with pytest.raises(DataError, match=r"7 of 7 shards cannot be read. train-000000.tar: .*web page"):
        list(source.sample_stream(Consumer(), Quarantine(42, 1.0), Pass(1, 0)))


def test_a_sample_cut_by_damage_is_not_joined_with_the_next_shard(tmp_path: Path) -> None:
    for number in (0, 1):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for key in ("a", "b"):
                for field in ("jpg", "txt"):
                    info = tarfile.TarInfo(f"{key}.{field}")
                    info.size = 3
                    tar.addfile(info, io.BytesIO(b"%d.." % number))
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data[: 3 * 1024])  # the last sample lacks its second field
    source = StreamShards([str(tmp_path / "0.tar"), str(tmp_path / "1.tar")], 12, shuffle_buffer=0)
    for one in source.sample_stream(Consumer(), Quarantine(12, 1.0), Pass(0, 0)):
        assert set(one.fields) == {"jpg", "txt"}
        assert len(set(one.fields.values())) == 1


def test_names_that_climb_and_double_names_end_a_shard(tmp_path: Path) -> None:
    for name, members in {"climb": ["a.txt", "../b.txt"], "double": ["a.txt", "b.txt", "b.txt"]}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for member in members:
                tar.addfile(tarfile.TarInfo(member))
    for name, why in {"climb": "climbs out of the archive", "double": "duplicate file name"}.items():
        source = StreamShards([str(tmp_path / f"{name}.tar")], 2, shuffle_buffer=0)
        with pytest.raises(DataError, match=why):
            list(source.sample_stream(Consumer(), Quarantine(2, 0.0), Pass(0, 0)))


def test_processes_that_share_a_list_share_the_limit(tmp_path: Path, manifest: Manifest) -> None:
    damage(paths(manifest)[2], "html")
    damage(paths(manifest)[5], "html")
    files = [Quarantine(42, 0.2, path=tmp_path / "quarantine.jsonl") for _ in range(2)]
    sources = [StreamShards([paths(manifest)[bad], paths(manifest)[0]], 42, lengths=[6, 6]) for bad in (2, 5)]
    list(sources[0].sample_stream(Consumer(), files[0], Pass(0, 0)))
    with pytest.raises(DataError, match="12 of 42 samples are bad"):
        list(sources[1].sample_stream(Consumer(), files[1], Pass(0, 0)))
    assert files[0].bad == files[1].bad == 12


@pytest.mark.parametrize("kind", ["folder", "pattern", "counted", "manifest", "info", "http", "pipe", "argument"])
def test_what_a_user_writes(tmp_path: Path, manifest: Manifest, kind: str) -> None:
    pattern = f"{manifest.folder}/train-{{000000..000006}}.tar"
    if kind == "info":
        (manifest.folder / "manifest.json").unlink()
    with FaultyServer(manifest.folder) as server:
        where = {
            "folder": str(manifest.folder),
            "pattern": pattern,
            "counted": f"{pattern}|40",
            "manifest": str(manifest.folder / "manifest.json"),
            "info": f"{manifest.folder}#train",
            "http": server.url("manifest.json"),
            "pipe": f"pipe:cat {pattern} | cat |40",
            "argument": pattern,
        }[kind]
        if kind == "pattern":
            with pytest.raises(ValueError, match="nobody says how many samples"):
                StreamShards.find(where)
            return
        source = StreamShards.find(where, 40 if kind == "argument" else None, options=IMPATIENT)
        assert len(source.locations) == 7
        assert len(source) == (40 if kind in ("counted", "pipe", "argument") else 42)
        assert set(keys(source)) <= set(ALL)
        assert source.lengths == [6] * 7


def test_streams_over_http_resume_and_count(manifest: Manifest) -> None:
    with FaultyServer(manifest.folder) as server:
        source = StreamShards.find(server.url("manifest.json"), options=IMPATIENT)
        server.fail("train-000003.tar", "reset", "truncate")
        assert sorted(keys(source)) == ALL
        assert source.retried == 2
        assert server.count("train-000003.tar") == 3


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="0 shards"):
        StreamShards([], 5)
    with pytest.raises(ValueError, match="0 samples"):
        StreamShards(["a"], 0)
    with pytest.raises(ValueError, match="2 lengths for 1 shards"):
        StreamShards(["a"], 5, lengths=[1, 2])
    with pytest.raises(ValueError, match="out of range"):
        Consumer(2, 2)


def test_indexed_streams_count_what_cannot_be_read(tmp_path: Path, manifest: Manifest) -> None:
    manifest.tar_path(2).write_bytes(b"x")
    quarantine = Quarantine(42, 0.2, path=tmp_path / "quarantine.jsonl")
    found = [one.key for one in IndexedShards(manifest).sample_stream(Consumer(), quarantine, Pass(1, 0))]
    assert len(found) == 42 and quarantine.bad == 6
    assert len(set(found)) == 36


@pytest.mark.parametrize("chunk", [1, 7, 511, 512, 513, 10_240, 1 << 20])
def test_a_checked_tar_passes_everything_in_any_pieces(manifest: Manifest, chunk: int) -> None:
    data = manifest.tar_path(0).read_bytes()

    class Pieces(io.RawIOBase):
        at = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            piece = data[self.at : self.at + min(chunk, len(buffer))]
            buffer[: len(piece)] = piece
            self.at += len(piece)
            return len(piece)

    assert CheckedTar(Pieces(), "x").readall() == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        edge = tar.getmembers()[1].offset
    broken = data[:edge] + b"\xff" * 512 + data[edge + 512 :]
    data = broken
    stream, came = CheckedTar(Pieces(), "x"), 0
    with pytest.raises(ShardError, match=f"not a tar at byte {edge}"):
        while piece := stream.read(4096):
            came += len(piece)
    assert edge <= came < edge + 512 or came == edge


def test_what_is_opened_is_closed(tmp_path: Path, manifest: Manifest) -> None:
    damage(paths(manifest)[2], "html")
    with FaultyServer(manifest.folder) as server:
        urls = [server.url(Path(path).name) for path in paths(manifest)]
        for locations in (paths(manifest), urls, [f"pipe:cat {path}" for path in paths(manifest)]):
            source = StreamShards(locations, 42, options=IMPATIENT)
            counts = list[int]()
            for epoch in range(4):
                stream = source.sample_stream(Consumer(), Quarantine(42, 0.2), Pass(0, epoch))
                next(stream)  # and leave it in the middle
                del stream
                list(source.sample_stream(Consumer(), Quarantine(42, 0.2), Pass(0, epoch)))
                gc.collect()
                counts.append(len(os.listdir("/proc/self/fd")))
            assert counts[-1] <= counts[0], (locations[0], counts)


def test_a_disk_that_does_not_answer_costs_samples_not_shards(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = IndexedShards.__getitem__

    def dead(self: IndexedShards, index: int) -> dict[str, bytes]:
        if index == 20:
            raise ReadError("no answer")
        return real(self, index)

    monkeypatch.setattr(IndexedShards, "__getitem__", dead)
    quarantine = Quarantine(42, 0.1, path=tmp_path / "quarantine.jsonl")
    found = [one.key for one in IndexedShards(manifest).sample_stream(Consumer(), quarantine, Pass(0, 0))]
    assert len(found) == 42 and sample(20)[0] not in found
    assert read_quarantine(tmp_path / "quarantine.jsonl") == {("train-000003.tar", sample(20)[0])}
