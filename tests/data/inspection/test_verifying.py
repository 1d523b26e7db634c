"""Faults that `verify` must find, and indices that are written beside existing tars."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_gen.data.finding import find_manifest
from lightning_gen.data.index import ShardIndex, replace_file
from lightning_gen.data.inspection.indexing import doubtful_shards, index_in_place
from lightning_gen.data.inspection.verifying import verify
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import ShardError
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.writing import write_shards
from tests.data.samples import encoded, picture, sample, samples, shards


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)


def swap_indices(manifest: Manifest) -> None:
    """An index of another tar, with a manifest that believes it."""
    import dataclasses

    first = ShardIndex.from_bytes(manifest.idx_path(0).read_bytes())
    other = dataclasses.replace(first, offsets=first.offsets + 512)
    digest = replace_file(manifest.idx_path(0), other.to_bytes())
    rows = (dataclasses.replace(manifest.shards[0], idx_sha256=digest), *manifest.shards[1:])
    dataclasses.replace(manifest, shards=rows).write()


def fewer_samples(manifest: Manifest) -> None:
    import dataclasses

    rows = (dataclasses.replace(manifest.shards[0], num_samples=5), *manifest.shards[1:])
    dataclasses.replace(manifest, shards=rows).write()


FAULTS: dict[str, tuple[Callable[[Manifest], object], str]] = {
    "missing": (lambda m: m.tar_path(1).unlink(), "train-000001.tar is missing"),
    "cut": (lambda m: m.tar_path(1).write_bytes(m.tar_path(1).read_bytes()[:-512]), "bytes, the manifest says"),
    "flipped": (lambda m: flip(m.tar_path(1), 700), "train-000001.tar has other content than the manifest says"),
    "no index": (lambda m: m.idx_path(2).unlink(), "train-000002.idx is missing"),
    "index": (lambda m: flip(m.idx_path(2), -1), "train-000002.idx has other content than the manifest says"),
    "wrong index": (swap_indices, "train-000000.idx does not belong to its tar"),
    "wrong count": (fewer_samples, "train-000000.tar holds 6 samples, the manifest says 5"),
    "stranger": (lambda m: (m.folder / "train-000003.tar").write_bytes(b""), "train-000003.tar is not in the manifest"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(tmp_path: Path, fault: str) -> None:
    break_it, message = FAULTS[fault]
    manifest = shards(tmp_path, 18, 6)
    assert verify(manifest, samples=None) == []
    break_it(manifest)
    problems = verify(find_manifest(tmp_path))
    assert len(problems) == 1, problems
    assert message in problems[0]


def test_samples_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    def fields(**changes: bytes) -> dict[str, bytes]:
        return {"0.png": encoded(picture(1)), "1.png": encoded(picture(2)), "json": b'{"label_0": 1}', **changes}

    whole = encoded(picture(5), "JPEG")
    bad = [
        ("good", fields()),
        ("cut", fields(**{"0.jpg": whole[: len(whole) // 2]})),
        ("web", fields(**{"1.png": b"<html>"})),
        ("label", fields(json=b'{"label_0": 0.3}')),
        ("json", fields(json=b"{")),
        ("list", fields(json=b"[]")),
        ("cls", fields(cls=b"cat")),
        ("txt", fields(txt=b"\xff")),
    ]
    problems = verify(write_shards(bad, tmp_path))
    assert [problem.split()[1] for problem in problems] == [key for key, _ in bad[1:]]
    for problem, word in zip(
        problems, ("0.jpg:", "a web page", "0.3", "json:", "no object", "b'cat'", "UTF-8"), strict=True
    ):
        assert word in problem
        assert "of train-000000.tar" in problem


def test_the_number_of_decoded_samples_is_what_was_decoded(tmp_path: Path) -> None:
    bad = [(f"k{n}", {"png": b"<html>" if n == 3 else encoded(picture(n))}) for n in range(12)]
    manifest = write_shards(bad, tmp_path, max_samples=4)
    assert [verify(manifest, samples=number).decoded for number in (0, 1, 12, 50, None)] == [0, 1, 11, 11, 11]
    manifest.tar_path(2).unlink()
    assert verify(manifest, samples=None).decoded == 7


def test_samples_with_nothing_to_use_are_named(tmp_path: Path) -> None:
    data, other = encoded(picture(1)), encoded(picture(2))
    fine = [{"png": data}, {"0.png": data, "1.png": other}, {"src.png": data, "tgt.png": other}, {"txt": b"t"}]
    fine += [{"npy": b"n", "mirror.npy": b"n"}, {"webp": data, "mask.png": other}]
    assert verify(write_shards(((f"k{n}", one) for n, one in enumerate(fine)), tmp_path / "a"), samples=0) == []
    bare = [{"json": b"{}"}, {"v0.png": data, "v1.png": other}, {"0.png": data, "json": b"{}"}]
    samples = ((f"k{n}", one) for n, one in enumerate([*bare, *fine]))
    problems = verify(write_shards(samples, tmp_path / "b", max_samples=3), samples=0)
    assert len(problems) == 1
    assert problems[0].startswith("sample k0 of train-000000.tar: no picture, no pair")
    assert problems[0].endswith("only json; 2 more like it")


def test_merged_keys_are_told_from_pairs_and_masks(tmp_path: Path) -> None:
    data = encoded(picture(1))

    def doubts(name: str, *samples: tuple[str, ...]) -> list[str]:
        made = write_shards(((f"k{n}", dict.fromkeys(one, data)) for n, one in enumerate(samples)), tmp_path / name)
        return doubtful_shards(made)

    pairs = (("0.png", "1.png"), ("src.png", "tgt.png", "mask.png", "edge.png"), ("png", "v0.png", "v1.png"))
    assert doubts("fine", *pairs, ("depth.png",), ("a.png", "b.webp")) == []
    found = doubts("merged", *pairs, ("v0.png", "v1.png", "v2.png"))
    assert len(found) == 1
    assert "train-000000.tar: 1 samples have" in found[0]
    assert "'k3' with v0.png, v1.png, v2.png" in found[0]
    assert "lightning data convert --from wds" in found[0]


def test_the_samples_that_are_decoded_are_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = shards(tmp_path, 40, 9)
    asked: list[int] = []
    real = IndexedShards.__getitem__
    monkeypatch.setattr(IndexedShards, "__getitem__", lambda self, index: (asked.append(index), real(self, index))[1])
    verify(manifest, samples=5)
    assert asked == [0, 9, 19, 29, 39]
    asked.clear()
    verify(manifest, samples=None)
    assert asked == list(range(40))


def test_without_hashes_the_tars_are_not_read_in_full(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 18, 6)
    record = json.dumps({"label": 7 % 5}).encode()
    place = manifest.tar_path(1).read_bytes().index(record[:9])
    flip(manifest.tar_path(1), place)
    assert verify(manifest, hashes=False, samples=0) == []
    assert len(verify(manifest, samples=0)) == 1


def test_tars_get_an_index_beside_them(tmp_path: Path) -> None:
    made = shards(tmp_path, 20, 9)
    tars = [made.tar_path(number) for number in range(3)]
    before = made.fingerprint
    with pytest.raises(FileExistsError, match="already holds a manifest.json"):
        index_in_place(tars, tmp_path, "train")
    for path in tmp_path.glob("*.idx"):
        path.unlink()
    with pytest.raises(FileExistsError, match=r"but no train-000000.idx: --overwrite makes every index again"):
        index_in_place(tars, tmp_path, "train")
    seen: list[tuple[str, int, int]] = []
    again = index_in_place(
        tars, tmp_path, "train", hashes=True, overwrite=True, watch=lambda *progress: seen.append(progress)
    )
    assert again.fingerprint == before, "the same index as the writer's"
    assert [(shard.sha256, shard.md5) for shard in again.shards] == [(s.sha256, s.md5) for s in made.shards]
    assert seen == [("shards", n, 3) for n in (1, 2, 3)]
    assert [shard.url for shard in again.shards] == [tar.name for tar in tars]
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in list(tmp_path.glob("*.*")):
        path.rename(moved / path.name)
    assert IndexedShards(find_manifest(moved))[11] == sample(11)[1], "relative: the folder may move"


def test_an_interrupted_indexing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_shards(samples(20), tmp_path, max_samples=5)
    tars = [made.tar_path(number) for number in range(4)]
    (tmp_path / "manifest.json").unlink()
    made.idx_path(2).unlink()
    made.idx_path(3).write_bytes(b"damaged")
    walked: list[str] = []
    from lightning_gen.data.inspection import indexing

    real = indexing.index_tar
    monkeypatch.setattr(indexing, "index_tar", lambda tar, measure: (walked.append(tar.name), real(tar, measure))[1])
    assert index_in_place(tars, tmp_path, "train").fingerprint == made.fingerprint
    assert walked == ["train-000002.tar", "train-000003.tar"]


def test_tars_that_cannot_be_indexed_are_named(tmp_path: Path) -> None:
    made = shards(tmp_path / "a", 6, 6)
    twin = tmp_path / "b" / "train-000000.tar"
    twin.parent.mkdir()
    twin.write_bytes(made.tar_path(0).read_bytes())
    with pytest.raises(ShardError, match="two tars are called train-000000.tar"):
        index_in_place([made.tar_path(0), twin], tmp_path / "out", "train")
    twin.write_bytes(bytes(10240))
    with pytest.raises(ShardError, match="holds no sample"):
        index_in_place([twin], tmp_path / "out", "train")
    away = index_in_place([made.tar_path(0)], tmp_path / "away", "train")
    assert away.shards[0].url == str(made.tar_path(0).resolve())
