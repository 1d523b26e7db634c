"""Writing, indexing and reading tar shards: bytes, order, other readers, hostile and damaged files."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import pickle
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lightning_gen.data.convert.image_folder import write_image_folder
from lightning_gen.data.dataset import Request, SampleDataset
from lightning_gen.data.decode import picture_size
from lightning_gen.data.finding import expand_pattern, find_manifest, missing_data
from lightning_gen.data.index import ShardIndex, index_tar
from lightning_gen.data.manifest import Manifest, verify_shards
from lightning_gen.data.native import NativeRecipe
from lightning_gen.data.quarantine import SampleError, ShardError
from lightning_gen.data.remote.cache import ShardCache
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import PictureFields, ShardSource
from lightning_gen.data.tarfiles import split_name
from lightning_gen.data.writing import write_shards
from tests.data.samples import encoded, picture, sample, samples, shards
from tests.harness.faulty_server import IMPATIENT, FaultyServer


def test_round_trip_keeps_every_byte_and_the_order(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 42, 9)
    assert [shard.num_samples for shard in manifest.shards] == [9, 9, 9, 9, 6]
    reader = IndexedShards(Manifest.load(tmp_path / "manifest.json"))
    assert len(reader) == 42
    for number in (41, 0, 17, 9, 8):  # any order
        key, fields = sample(number)
        assert reader.key(number) == key
        assert reader[number] == fields
    sizes = reader.sizes(np.arange(42))
    assert sizes.tolist() == [[picture(n).height, picture(n).width] for n in range(42)]


def test_same_samples_give_the_same_bytes_and_plain_ustar(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shards(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert not [name for name in files if "tmp" in name]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:6]] == [f"s0000{i}.{f}" for i in (0, 1) for f in ("cls", "json", "png")]
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
    assert (tmp_path / "a" / "train-000000.tar").read_bytes()[257:263] == b"ustar\0"


def test_webdataset_and_tarfile_read_our_shards(tmp_path: Path) -> None:
    import webdataset

    manifest = shards(tmp_path, 20, 9)
    urls = [str(manifest.tar_path(number)) for number in range(3)]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in read] == [sample(n)[0] for n in range(20)]
    for number, found in enumerate(read):
        assert {k: v for k, v in found.items() if not k.startswith("__")} == sample(number)[1]


def test_long_keys_use_pax_headers_that_we_and_tarfile_understand(tmp_path: Path) -> None:
    key = "k" * 180
    write_shards([(key, {"png": encoded(picture(1)), "txt": "é".encode()})], tmp_path)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames() == [f"{key}.png", f"{key}.txt"]
    index = index_tar(tmp_path / "train-000000.tar")
    assert index.key(0) == key
    assert IndexedShards(find_manifest(tmp_path))[0]["txt"] == "é".encode()


def test_manifest_serves_timm_and_wids_too(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 20, 9)
    data = json.loads((tmp_path / "manifest.json").read_text())
    assert data["__kind__"] == "wids-shard-index-v1"
    assert [row["nsamples"] for row in data["shardlist"]] == [9, 9, 2]
    assert [row["filesize"] for row in data["shardlist"]] == [os.path.getsize(manifest.tar_path(n)) for n in range(3)]
    info = json.loads((tmp_path / "_info.json").read_text())["splits"]["train"]
    assert info["num_samples"] == 20
    assert info["shard_lengths"] == [9, 9, 2]

    from timm.data.readers.reader_wds import _load_info, _parse_split_info

    split = _parse_split_info("train", _load_info(str(tmp_path)))
    assert (split.num_samples, split.filenames) == (20, ("train-000000.tar", "train-000001.tar", "train-000002.tar"))


def foreign(folder: Path, count: int = 12, per_shard: int = 5) -> list[Path]:
    """Shards as timm packs them: ``n/KEY.jpg``, ``.cls``, ``.json``, owners and times as tar puts them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, count, per_shard)):
        paths.append(folder / f"set-train-{number:04d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.GNU_FORMAT) as tar:
            tar.addfile(tarfile.TarInfo("n"), None)
            for n in range(start, min(start + per_shard, count)):
                record = json.dumps({"filename": f"{n}", "label": n, "height": 1, "width": 1})
                fields = {"jpg": encoded(picture(n), "JPEG"), "cls": str(n).encode(), "json": record.encode()}
                for field, data in fields.items():
                    info = tarfile.TarInfo(f"n/im{n}.{field}")
                    info.size, info.mtime, info.uid, info.uname = len(data), 1234567, 1000, "somebody"
                    tar.addfile(info, io.BytesIO(data))
    return paths


@pytest.mark.parametrize("how", ["info", "info_file", "pattern", "pattern_count", "folder", "long_names"])
def test_foreign_shards_with_and_without_info(tmp_path: Path, how: str) -> None:
    paths = foreign(tmp_path / "set")
    where = str(tmp_path / "set")
    if how.startswith("info"):
        names = [path.name for path in paths]
        train = {"name": "train", "num_samples": 12, "filenames": names, "shard_lengths": [5, 5, 2]}
        other = {"name": "validation", "num_samples": 0, "filenames": [], "shard_lengths": []}
        (tmp_path / "set" / "_info.json").write_text(json.dumps({"splits": {"train": train, "validation": other}}))
        where += "/_info.json#train" if how == "info_file" else "#train"
    elif how.startswith("pattern"):
        where += "/set-train-{0000..0002}.tar" + ("|12" if how == "pattern_count" else "")
    reader = IndexedShards(find_manifest(where))
    assert len(reader) == 12
    assert [reader.key(n) for n in range(12)] == [f"n/im{n}" for n in range(12)]
    assert reader[7]["jpg"] == encoded(picture(7), "JPEG")
    # The size comes from the picture, not from the JSON beside it, which lies.
    assert reader.sizes([7]).tolist() == [[picture(7).height, picture(7).width]]
    # The second time the index is read, not made.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set" / ".lightning_gen").rglob("*")}
    find_manifest(where)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "set" / ".lightning_gen").rglob("*")}


def test_wrong_counts_splits_and_patterns_are_named(tmp_path: Path) -> None:
    paths = foreign(tmp_path / "set")
    with pytest.raises(ShardError, match=r"13 samples were announced .* holds 12"):
        find_manifest(str(tmp_path / "set" / "set-train-{0000..0002}.tar|13"))
    with pytest.raises(ShardError, match=r"1 of 4 shards are missing, the first is .*set-train-0003.tar"):
        find_manifest(str(tmp_path / "set" / "set-train-{0000..0003}.tar|12"))
    split = {"filenames": [p.name for p in paths], "shard_lengths": [5, 4, 2], "num_samples": 11, "name": "train"}
    (tmp_path / "set" / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    with pytest.raises(ShardError, match=r"set-train-0001.tar holds 5 samples, _info.json says 4"):
        find_manifest(str(tmp_path / "set"))
    with pytest.raises(ShardError, match="has the splits train: write .*#SPLIT"):
        find_manifest(str(tmp_path / "set") + "#val")
    split["filenames"] = ["../secret.tar"]
    (tmp_path / "set" / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    with pytest.raises(ShardError, match="outside its folder"):
        find_manifest(str(tmp_path / "set"))
    with pytest.raises(ShardError, match="pipe:cat ... x.tar has no random access"):
        find_manifest("pipe:cat x.tar")
    with pytest.raises(ShardError, match="not from ftp"):
        find_manifest("ftp://host/{00..01}.tar")
    assert expand_pattern("a-{08..11}/b{0..1}") == [f"a-{n}/b{m}" for n in ("08", "09", "10", "11") for m in (0, 1)]


def damaged(tmp_path: Path, kind: str) -> Path:
    manifest = shards(tmp_path / "set", 9, 9)
    path = manifest.tar_path(0)
    data = path.read_bytes()
    gzip = __import__("gzip")
    path.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "no end mark": data[: index_end(path)],
            "html": b"<!DOCTYPE html><html><body>403 Forbidden</body></html>" + b" " * 2000,
            "empty": b"",
            "gzip": gzip.compress(data),
            "checksum": data[:100] + b"X" + data[101:],
        }[kind]
    )
    return path


def index_end(path: Path) -> int:
    index = index_tar(path)
    end = int((index.offsets + index.sizes).max())
    return end + -end % 512


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"train-000000.tar is truncated: member s\d+.\w+ needs bytes"),
        ("no end mark", "is truncated: no end mark"),
        ("html", "is not a tar at byte 0: it starts like a web page"),
        ("empty", r"is empty \(0 bytes\)"),
        ("gzip", "it is compressed"),
        ("checksum", "checksum is wrong"),
    ],
)
def test_damaged_tars_are_named_when_they_are_indexed(tmp_path: Path, kind: str, message: str) -> None:
    path = damaged(tmp_path, kind)
    with pytest.raises(ShardError, match=message):
        find_manifest(str(path))


@pytest.mark.parametrize("kind", ["truncated", "html", "empty", "no end mark"])
def test_damaged_tars_are_named_when_they_are_read(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path, kind)
    manifest = Manifest.load(path.parent / "manifest.json")
    reader = IndexedShards(manifest)
    for _ in range(2):
        with pytest.raises(ShardError, match=r"train-000000.tar has \d+ bytes, the manifest says \d+"):
            _ = reader[3]
    assert "has" in verify_shards(manifest)[0]


def test_a_tar_cut_short_while_it_is_open_is_an_error_not_a_crash(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 9, 9)
    reader = IndexedShards(manifest)
    assert reader[0]
    os.truncate(manifest.tar_path(0), 2048)
    with pytest.raises(ShardError, match="was cut short"):
        _ = reader[8]


def test_verify_finds_a_changed_byte_only_with_hashes(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 9, 9)
    data = bytearray(manifest.tar_path(0).read_bytes())
    data[2000] ^= 1
    manifest.tar_path(0).write_bytes(data)
    assert verify_shards(manifest) == []
    assert "sha256 differs" in verify_shards(manifest, hashes=True)[0]


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"])
def test_names_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(ShardError, match="climbs out of the archive"):
        find_manifest(str(path))
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["evil.tar"]


def test_links_and_meta_members_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("__meta__.json", "._b.png", "README", "./b.png"):
            info = tarfile.TarInfo(name)
            data = encoded(picture(2))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    reader = IndexedShards(find_manifest(str(path)))
    assert (len(reader), reader.key(0), list(reader[0])) == (1, "b", ["png"])


def test_members_that_are_apart_or_double_are_refused(tmp_path: Path) -> None:
    for name, members in {"apart": ["a.png", "b.png", "a.cls"], "double": ["a.png", "a.png"]}.items():
        path = tmp_path / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            for member in members:
                tar.addfile(tarfile.TarInfo(member), io.BytesIO(b""))
        with pytest.raises(ShardError, match="apart" if name == "apart" else "twice"):
            index_tar(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.b.jpg", ("a", "b.jpg")),
        ("d_1.0.jpg", ("d_1", "0.jpg")),
        ("x/y.z/k.cls.txt", ("x/y.z/k", "cls.txt")),
        ("README", None),
        (".hidden", None),
    ],
)
def test_the_key_ends_at_the_first_dot_as_in_webdataset(name: str, expected: tuple[str, str] | None) -> None:
    from webdataset.tariterators import base_plus_ext

    assert split_name(name) == expected
    assert base_plus_ext(name) == (expected or (None, None))


@pytest.mark.parametrize("key", ["n01440764_1.5", "a b", "", "ä", "a/b", "../a"])
def test_keys_that_would_split_a_sample_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        write_shards([(key, {"png": b"x"})], tmp_path)
    assert list(tmp_path.glob(".*tmp")) == []


def test_writer_refuses_what_it_should(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes twice"):
        write_shards([("a", {"png": b""}), ("a", {"png": b""})], tmp_path)
    with pytest.raises(ValueError, match="has the field 'PNG'"):
        write_shards([("a", {"PNG": b""})], tmp_path)
    with pytest.raises(ValueError, match="no field"):
        write_shards([("a", {})], tmp_path)
    with pytest.raises(ValueError, match="no sample"):
        write_shards([], tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix == ".tar" or "tmp" in path.name] == []
    shards(tmp_path, 3)
    with pytest.raises(FileExistsError, match="already holds a data set"):
        shards(tmp_path, 3)
    assert write_shards(samples(4), tmp_path, overwrite=True).total == 4


def test_a_crash_while_writing_leaves_no_manifest_and_no_tar(tmp_path: Path) -> None:
    def failing() -> object:
        yield from samples(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(failing(), tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_shards_close_at_the_byte_limit(tmp_path: Path) -> None:
    manifest = write_shards(samples(10), tmp_path, max_bytes=20_000)
    assert len(manifest.shards) > 1
    assert all(shard.bytes <= 20_000 + 10_240 for shard in manifest.shards)
    assert manifest.total == 10


def test_image_folder_passes_bytes_through_and_numbers_classes(tmp_path: Path) -> None:
    for n, name in enumerate(["cat/one.png", "cat/two words.png", "dog/a.b.png"]):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(encoded(picture(n)))
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    reader = IndexedShards(write_image_folder(tmp_path / "pictures", tmp_path / "out", classes=True))
    assert [reader.key(n) for n in range(3)] == ["cat_one", "cat_two_words", "dog_a_b"]
    assert [reader[n]["cls"] for n in range(3)] == [b"0", b"0", b"1"]
    assert reader[1]["png"] == encoded(picture(1))
    record = json.loads(reader[2]["json"])
    assert {"filename": "dog/a.b.png", "height": 16, "label": 1, "width": 16}.items() <= record.items()
    mixed = [write_image_folder(tmp_path / "pictures", tmp_path / f"m{s}", shuffle_seed=s) for s in range(4)]
    orders = {tuple(IndexedShards(one).key(n) for n in range(3)) for one in mixed}
    assert len(orders) > 1
    assert {frozenset(order) for order in orders} == {frozenset(["cat_one", "cat_two_words", "dog_a_b"])}
    kept = write_image_folder(tmp_path / "pictures", tmp_path / "half", keep=lambda p: p.parts[0] == "dog")
    assert kept.total == 1
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"")
    with pytest.raises(SampleError, match="broken.jpg: the picture has 0 bytes"):
        write_image_folder(tmp_path / "pictures", tmp_path / "again")


def test_changed_manifest_and_index_are_noticed(tmp_path: Path) -> None:
    shards(tmp_path, 9, 9)
    path = tmp_path / "manifest.json"
    data = json.loads(path.read_text())
    data["shards"][0]["num_samples"] = 8
    path.write_text(json.dumps(data))
    with pytest.raises(ShardError, match="changed by hand"):
        Manifest.load(path)
    data["shards"][0]["url"] = "../train-000000.tar"
    path.write_text(json.dumps(data))
    with pytest.raises(ShardError, match="climbs out of its folder"):
        Manifest.load(path)
    path.write_text("{")
    with pytest.raises(ShardError, match="not JSON"):
        Manifest.load(path)
    idx = (tmp_path / "train-000000.idx").read_bytes()
    for bad in (idx[:-1], idx[:40], b"x" + idx, idx + b"x"):
        with pytest.raises(ShardError, match=r"some\.idx is damaged .* lightning data index"):
            ShardIndex.from_bytes(bad, "some.idx")


def changed(idx: bytes, how: str) -> bytes:
    """An index of the same length with something else in it."""
    head = idx.index(b"\n", idx.index(b"\n") + 1) + 1
    table = ShardIndex.from_bytes(idx)
    heights = head + 2 * table.offsets.nbytes
    place = {"offset": head, "size": head + table.offsets.nbytes, "height": heights, "key": len(idx) - 2}[how]
    value = {"offset": (1 << 60), "size": (1 << 62), "height": 300 << 32 | 300}.get(how)
    new = b"\xff" if value is None else value.to_bytes(8, "little")
    return idx[:place] + new + idx[place + len(new) :]


@pytest.mark.parametrize("how", ["offset", "size", "height", "key", "cut", "missing"])
def test_a_local_index_that_is_not_the_manifests_is_named_and_nothing_waits(tmp_path: Path, how: str) -> None:
    manifest = shards(tmp_path, 27, 9)
    path = manifest.idx_path(1)
    idx = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(idx[:-3] if how == "cut" else changed(idx, how))
    reader = IndexedShards(manifest, timeout=5.0)
    began = time.monotonic()
    for ask in (lambda: reader[12], lambda: reader.key(12), lambda: reader.sizes([12])):
        with pytest.raises(ShardError, match=r"train-000001\.idx .*lightning data index FOLDER --overwrite"):
            ask()
    assert time.monotonic() - began < 4
    assert reader[0] == sample(0)[1] and reader[26] == sample(26)[1], "other shards are as good as before"
    assert [problem.split(" has ")[0].split(" is ")[0] for problem in verify_shards(manifest)] == [f"index {path}"]
    # The same shard is bad in a loader: by its name, with all its samples.
    source = ShardSource(reader, PictureFields())
    assert source.name(12) == ("train-000001.tar", "row 3")
    found = SampleDataset(source, NativeRecipe(8), 0)[Request(12, 0, 9, 9, True)]
    assert {(bad.shard, bad.key, bad.kind, bad.samples) for bad in found.bad} == {("train-000001.tar", "", "shard", 9)}


@pytest.mark.parametrize("how", ["offset", "size", "key", "ends", "fields", "samples"])
def test_an_index_that_points_out_of_its_tar_is_damaged_whatever_its_hash(tmp_path: Path, how: str) -> None:
    """Also where somebody has written hash and manifest for it."""
    index = ShardIndex.from_bytes(shards(tmp_path, 9, 9).idx_path(0).read_bytes())
    lies = {
        "offset": {"offsets": np.where(np.arange(9)[:, None] == 4, -1, index.offsets)},
        "size": {"sizes": np.full_like(index.sizes, index.tar_bytes)},
        "key": {"key_block": index.key_block[:-1] + b"\xff"},
        "ends": {"key_ends": index.key_ends[::-1]},
    }
    data = ShardIndex(**{**vars(index), **lies.get(how, {})}).to_bytes()
    if how == "fields":
        data = data.replace(b'"fields": ["cls", ', b'"fields": [1, ')
    if how == "samples":
        data = data.replace(b'"num_samples": 9', b'"num_samples": -1')
    with pytest.raises(ShardError, match=r"some\.idx is damaged"):
        ShardIndex.from_bytes(data, "some.idx")
    halves = dataclasses.replace(index, key_block="äbcdefghi".encode(), key_ends=np.arange(1, 10) + (np.arange(9) == 8))
    with pytest.raises(ShardError, match="begins inside a letter"):
        ShardIndex.from_bytes(halves.to_bytes(), "some.idx")


@pytest.mark.parametrize("error", [MemoryError, OverflowError("too large"), KeyboardInterrupt])
def test_whatever_a_read_raises_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def broken(*arguments: int) -> bytes:
        raise error

    reader = IndexedShards(shards(tmp_path, 9, 9), timeout=20.0, retries=0)
    monkeypatch.setattr("lightning_gen.data.shards._NOWAIT", 0)
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr("lightning_gen.data.reading.os.pread", broken)
        with pytest.raises((ShardError, KeyboardInterrupt)):
            _ = reader[4]
    assert time.monotonic() - began < 5, "the thread answers and goes on"
    assert reader[4] == sample(4)[1]


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    first = shards(tmp_path / "a", 12)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert Manifest.load(tmp_path / "moved" / "manifest.json").fingerprint == first.fingerprint
    assert shards(tmp_path / "b", 13).fingerprint != first.fingerprint


def readers() -> int:
    return sum(thread.name == "shard-read" for thread in threading.enumerate())


def test_file_descriptors_do_not_grow_and_stay_bounded(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 60, 3)
    gc.collect()
    others = readers()
    reader = IndexedShards(manifest, max_open=4)
    order = np.random.default_rng(0).permutation(60)
    for n in order:
        _ = reader[int(n)]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for n in order:
            _ = reader[int(n)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(reader._files) == 4
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before - 8, "a file and a map of each"
    deadline = time.monotonic() + 5
    while readers() > others and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert readers() == others, "the reading thread ends too"
    copy = pickle.loads(pickle.dumps(reader))
    assert copy[5] == reader[5]


def test_bytes_are_the_same_from_the_page_cache_and_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for timeout in (10.0, None):
        reader = IndexedShards(shards(tmp_path / str(timeout), 20, 9), timeout=timeout)
        assert [reader[n] for n in range(20)] == [sample(n)[1] for n in range(20)]
        with monkeypatch.context() as patch:
            patch.setattr("lightning_gen.data.shards._NOWAIT", 0)
            assert [reader[n] for n in range(20)] == [sample(n)[1] for n in range(20)]


def test_a_read_that_hangs_is_given_up_with_the_shards_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = IndexedShards(shards(tmp_path, 9, 9), timeout=0.1, retries=1)
    monkeypatch.setattr("lightning_gen.data.shards._NOWAIT", 0)  # as if nothing were in the page cache
    monkeypatch.setattr("lightning_gen.data.shards.os.pread", lambda *args: time.sleep(30))
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"train-000000.tar: \d+ bytes at \d+ cannot be read: no answer in 0.1 s"):
        _ = reader[0]
    assert time.monotonic() - began < 5
    assert reader.retried == 1


def test_a_read_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = os.pread, [OSError(5, "Input/output error")]

    def flaky(*args: int) -> bytes:
        if failures:
            raise failures.pop()
        return real(*args)

    reader = IndexedShards(shards(tmp_path, 9, 9))
    monkeypatch.setattr("lightning_gen.data.shards._NOWAIT", 0)
    monkeypatch.setattr("lightning_gen.data.shards.os.pread", flaky)
    assert reader[4] == sample(4)[1]
    assert reader.retried == 1


def test_missing_data_speaks_before_anything_is_opened(tmp_path: Path) -> None:
    assert missing_data("train", None) == []
    manifest = shards(tmp_path / "set", 9, 3)
    assert missing_data("train", str(tmp_path / "set")) == []
    manifest.tar_path(1).unlink()
    assert "1 of 3 shards are missing" in missing_data("train", str(tmp_path / "set"))[0]
    assert "`lightning data convert` makes one" in missing_data("val", str(tmp_path / "nothing"))[0]


def test_alternates_are_written_only_where_there_are_some(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 20, 9)
    rows = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    assert all({"alternates", "set"}.isdisjoint(row) for row in rows), "older versions could not read them"
    first = dataclasses.replace(manifest.shards[0], alternates=("https://host/a.tar", "b.tar"))
    dataclasses.replace(manifest, shards=(first, *manifest.shards[1:])).write()
    loaded = Manifest.load(tmp_path / "manifest.json")
    assert loaded.shards[0].alternates == ("https://host/a.tar", "b.tar")
    assert loaded.tar_locations(0)[1:] == ("https://host/a.tar", str(tmp_path / "b.tar"))
    assert loaded.fingerprint == manifest.fingerprint, "it is the same data"


@pytest.mark.parametrize("field", ["url", "idx", "alternates"])
@pytest.mark.parametrize(("bad", "why"), [("pipe:cat x.tar", "pipe: is taken"), ("/etc/x.tar", "on this machine")])
def test_a_remote_manifest_asks_for_no_command_and_no_local_file(
    tmp_path: Path, field: str, bad: str, why: str
) -> None:
    manifest = shards(tmp_path, 9, 9)
    value = (bad,) if field == "alternates" else bad
    dataclasses.replace(manifest, shards=(dataclasses.replace(manifest.shards[0], **{field: value}),)).write()
    with FaultyServer(tmp_path) as server, pytest.raises(ShardError, match=why):
        Manifest.load(server.url("manifest.json"), IMPATIENT)
    if bad.startswith("pipe"):
        with pytest.raises(ShardError, match=why):
            Manifest.load(tmp_path / "manifest.json")


@pytest.mark.parametrize("how", ["manifest.json", "", "?sig=1"])
def test_a_remote_manifest_is_found_and_its_shards_are_relative_to_it(tmp_path: Path, how: str) -> None:
    local = shards(tmp_path / "set", 20, 9)
    with FaultyServer(tmp_path) as server:
        where = server.url("set") + ("/" + how if how.endswith("json") else f"/manifest.json{how}" if how else "")
        manifest = find_manifest(where, options=IMPATIENT)
        assert manifest.fingerprint == local.fingerprint
        assert manifest.tar_location(1) == server.url("set/train-000001.tar")
        assert manifest.idx_location(1) == server.url("set/train-000001.idx")
        assert manifest.has_remote and not local.has_remote
        assert verify_shards(manifest, hashes=True, options=IMPATIENT) == []
        local.tar_path(0).write_bytes(b"x")
        local.tar_path(2).unlink()
        problems = verify_shards(manifest, options=IMPATIENT)
        assert len(problems) == 2 and "has 1 bytes, the manifest says" in problems[0] and "404" in problems[1]


def remote_foreign(where: str, index: Path, cache: ShardCache | None = None) -> Manifest:
    return find_manifest(where, index, options=IMPATIENT, cache=cache)


@pytest.mark.parametrize("how", ["info", "info_file", "pattern", "pattern_count", "one"])
@pytest.mark.parametrize("cached", [False, True])
def test_remote_foreign_shards_get_the_index_that_local_ones_get(tmp_path: Path, how: str, cached: bool) -> None:
    paths = foreign(tmp_path / "set")
    split = {"filenames": [p.name for p in paths], "shard_lengths": [5, 5, 2], "num_samples": 12, "name": "train"}
    (tmp_path / "set" / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    with FaultyServer(tmp_path / "set") as server:
        where = {
            "info": server.url("#train"),
            "info_file": server.url("_info.json"),
            "pattern": server.url("set-train-{0000..0002}.tar"),
            "pattern_count": server.url("set-train-{0000..0002}.tar") + "|12",
            "one": server.url("set-train-0001.tar"),
        }[how]
        cache = ShardCache(tmp_path / "cache", 1 << 30, IMPATIENT)
        manifest = remote_foreign(where, tmp_path / "index", cache if cached else None)
        expected = [index_tar(path, picture_size) for path in (paths if how != "one" else paths[1:2])]
        found = [ShardIndex.from_bytes(manifest.idx_path(n).read_bytes()) for n in range(len(manifest.shards))]
        assert [index.to_bytes() for index in found] == [index.to_bytes() for index in expected]
        assert [bool(shard.sha256) for shard in manifest.shards] == [cached] * len(found)
        # Whole tars that came while they were indexed need not come again.
        before = server.count("set-train-0001.tar")
        reader = IndexedShards(manifest, cache=cache)
        assert reader[1 if how == "one" else 6]["jpg"] == encoded(picture(6), "JPEG")
        assert server.count("set-train-0001.tar") - before == (0 if cached else 1)
        # The second time only sizes and tags are asked for.
        again = remote_foreign(where, tmp_path / "index")
        assert again.fingerprint == manifest.fingerprint
        (tmp_path / "set" / "set-train-0001.tar").write_bytes(paths[0].read_bytes())
        if how in ("pattern", "one"):
            assert remote_foreign(where, tmp_path / "index").fingerprint != manifest.fingerprint, "it changed"


def test_signatures_are_used_and_not_kept(tmp_path: Path) -> None:
    foreign(tmp_path / "set")
    with FaultyServer(tmp_path / "set") as server:
        for sign in ("one", "two"):
            where = f"http://me:hush{sign}@{server.address}/set-train-{{0000..0002}}.tar?sig=hush{sign}|12"
            manifest = remote_foreign(where, tmp_path / "index")
            assert manifest.tar_location(1).endswith(f"set-train-0001.tar?sig=hush{sign}")
        kept = list((tmp_path / "index").rglob("*.*"))
        assert len([path for path in kept if path.name == "manifest.json"]) == 1
        assert not [path for path in kept if path.is_file() and b"hush" in path.read_bytes()]


def test_large_members_of_remote_tars_are_jumped_over(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "big.tar", "w") as tar:
        for n in range(3):
            for field, data in {"png": encoded(picture(n)), "npy": os.urandom(3 << 20)}.items():
                info = tarfile.TarInfo(f"k{n}.{field}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with FaultyServer(tmp_path / "set") as server:
        manifest = remote_foreign(server.url("big.tar"), tmp_path / "index")
        assert manifest.total == 3
        ranges = [asked for _, asked, _ in server.requests if asked]
        assert len(ranges) == 3, "one jump over each large member"


def test_an_interrupted_index_goes_on(tmp_path: Path) -> None:
    foreign(tmp_path / "set")
    with FaultyServer(tmp_path / "set") as server:
        where = server.url("set-train-{0000..0002}.tar")
        # The first answer says what is there, the second is to be indexed.
        server.fail("set-train-0002.tar", "", "status 404")
        with pytest.raises(ShardError, match="set-train-0002.tar answers 404"):
            remote_foreign(where, tmp_path / "index")
        before = server.count("set-train-0000.tar")
        manifest = remote_foreign(where, tmp_path / "index")
        assert manifest.total == 12
        assert server.count("set-train-0000.tar") == before + 1, "asked what is there, not read again"
        assert not list((tmp_path / "index").rglob("0*.json"))


def test_what_is_wrong_with_remote_foreign_shards_is_named(tmp_path: Path) -> None:
    paths = foreign(tmp_path / "set")
    with FaultyServer(tmp_path / "set") as server:
        with pytest.raises(ShardError, match=rf"13 samples were announced .* http://{server.address} holds 12"):
            remote_foreign(server.url("set-train-{0000..0002}.tar|13"), tmp_path / "index")
        with pytest.raises(ShardError, match="set-train-0003.tar answers 404"):
            remote_foreign(server.url("set-train-{0000..0003}.tar"), tmp_path / "index")
        with pytest.raises(ShardError, match="neither manifest.json nor _info.json"):
            remote_foreign(server.url("nothing"), tmp_path / "index")
        for names, why in (
            (["../x.tar"], "climbs"),
            (["pipe:cat x.tar"], "wants to run"),
            (["/x.tar"], "this machine"),
        ):
            split = {"filenames": names, "shard_lengths": [1], "num_samples": 1, "name": "train"}
            (tmp_path / "set" / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
            with pytest.raises(ShardError, match=why):
                remote_foreign(server.url("_info.json"), tmp_path / "index")
        paths[1].write_bytes(b"<html>".ljust(2000))
        with pytest.raises(ShardError, match=r"set-train-0001.tar is not a tar .* web page"):
            remote_foreign(server.url("set-train-{0000..0002}.tar"), tmp_path / "index")
        paths[1].write_bytes(paths[0].read_bytes()[:3000])
        with pytest.raises(ShardError, match=r"set-train-0001.tar is truncated"):
            remote_foreign(server.url("set-train-{0000..0002}.tar"), tmp_path / "index")


def test_missing_data_of_remote_places_is_told_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert missing_data("train", "https://host/{00..01}.tar") == []
    assert "need the package s3fs" in missing_data("train", "s3://bucket/x.tar")[0]
    assert "access: stream" in missing_data("train", "pipe:cat x.tar")[0]
    assert missing_data("train", "pipe:cat x.tar", streamed=True) == []
    assert "not from ftp" in missing_data("train", "ftp://host/x.tar")[0]


def test_a_reader_that_is_forgotten_closes_its_files(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 9, 3)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    reader = IndexedShards(manifest)
    assert [reader[n] for n in range(9)]
    assert len(os.listdir("/proc/self/fd")) == before + 6
    del reader
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
