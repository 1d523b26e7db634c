"""The way from any source to shards: bytes, order, crashes, workers, what is in the way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gen.cli import main
from lightning_gen.data.convert import Packing, Part, PictureRule, Record, Request, Skipped, convert, open_source
from lightning_gen.data.convert import order as order_module
from lightning_gen.data.convert.journal import Journal
from lightning_gen.data.decode import decode
from lightning_gen.data.finding import find_manifest
from lightning_gen.data.inspection.verifying import verify
from lightning_gen.data.manifest import verify_shards
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.workers import run_tasks
from tests.data.conversions import Killed, content, folder, jpeg, killed_in_last_steps, read, run
from tests.data.samples import encoded, picture, shards


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A source of numbered samples in small parts; some rows give none."""

    count: int = 20
    per_part: int = 3
    skipped: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    title: str = "numbers"
    place: str = "nowhere"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"count": self.count}

    def parts(self) -> Sequence[Part]:
        starts = range(0, self.count, self.per_part)
        return [Part(f"part {n}", n, min(self.per_part, self.count - n), "", (n,)) for n in starts]

    def read(self, part: Part) -> Iterator[Record | Skipped]:
        for row in range(part.first, part.first + part.count):
            if row in self.skipped:
                yield Skipped(row, "missing", "it is to be skipped")
                continue
            key = self.keys[row] if self.keys else f"k{row:03d}"
            identity = self.identities[row] if self.identities else ""
            yield Record(row, key, {"": jpeg(row)}, {"txt": f"number {row}".encode()}, {"n": row}, identity)


def order(out: Path) -> list[int]:
    """Numbers of the samples in the order of the shards."""
    return [json.loads(fields["json"])["n"] for fields in read(find_manifest(out)).values()]


def test_bytes_pass_through_with_what_is_known_about_them(tmp_path: Path) -> None:
    done = convert(Numbers(), tmp_path, Packing(max_samples=6))
    assert [shard.num_samples for shard in done.manifest.shards] == [6, 6, 6, 2]
    samples = read(done.manifest)
    assert list(samples) == [f"k{row:03d}" for row in range(20)]
    for row, fields in enumerate(samples.values()):
        assert fields["jpg"] == jpeg(row)
        assert fields["txt"] == f"number {row}".encode()
        known = json.loads(fields["json"])
        assert (known["h"], known["w"], known["mode"]) == (picture(row).height, picture(row).width, "RGB")
        assert len(known["sha1"]) == 40
    assert verify_shards(done.manifest, hashes=True) == []
    assert done.manifest.schema == {"jpg": "encoded picture", "json": "metadata", "txt": "caption"}
    report = json.loads((tmp_path / "conversion.json").read_text())
    assert (report["counts"]["read"], report["counts"]["written"]) == (20, 20)
    assert not (tmp_path / ".convert").exists()


def test_the_order_is_a_permutation_that_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("none", None), ("a", 1), ("b", 1), ("c", 2)):
        convert(Numbers(200, per_part=50), tmp_path / name, Packing(shuffle_seed=seed))
    assert order(tmp_path / "none") == list(range(200))
    found = order(tmp_path / "a")
    assert sorted(found) == list(range(200))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert found != order(tmp_path / "c")
    # A uniform permutation moves a sample by a third of the set on average: here the parts are mixed, too.
    assert np.abs(np.array(found) - np.arange(200)).mean() > 200 / 4


def test_the_number_of_buckets_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing = Packing(shuffle_seed=5, max_samples=7, dedupe=True)
    twins = Numbers(40, identities=tuple(f"{row % 35}" for row in range(40)))
    convert(twins, tmp_path / "one", packing)
    sorted_at_a_time: list[int] = []
    real_bucket, real_repeated = order_module.Order._bucket, order_module.repeated

    def bucket(self: order_module.Order, low: int, high: int) -> Any:
        found = real_bucket(self, low, high)
        sorted_at_a_time.append(len(found))
        return found

    monkeypatch.setattr(order_module.Order, "_bucket", bucket)
    monkeypatch.setattr("lightning_gen.data.convert.pipeline.repeated", lambda *a: real_repeated(*a, per_bucket=5))
    monkeypatch.setattr("lightning_gen.data.convert.pipeline.Order", lambda *a: order_module.Order(*a, per_bucket=4))
    convert(twins, tmp_path / "many", packing)
    assert len(sorted_at_a_time) == 10
    assert max(sorted_at_a_time) < 20
    assert sum(sorted_at_a_time) == 35
    assert content(tmp_path / "one") == content(tmp_path / "many")


def test_workers_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gen.data.convert.image_folder._PART_FILES", 10)
    source = folder(tmp_path / "pictures", 55)
    packing = Packing(shuffle_seed=0, max_samples=9)
    for workers in (1, 2):
        opened = open_source("imagefolder", Request(str(source), classes=True))
        convert(opened, tmp_path / str(workers), packing, workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert find_manifest(tmp_path / "1").total == 55


@pytest.mark.parametrize("calls", [0, 1, 30, 56, 57, 61, 80, 113])
def test_a_conversion_that_is_killed_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    from lightning_gen.data import writing

    packing = Packing(shuffle_seed=3, max_samples=6)
    convert(Numbers(skipped=(4,)), tmp_path / "whole", packing)
    done, real = 0, writing.write_member

    def dying(*arguments: Any) -> int:
        nonlocal done
        if done == calls:
            raise Killed
        done += 1
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_member", dying)
        with pytest.raises(Killed):
            convert(Numbers(skipped=(4,)), tmp_path / "out", packing)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".convert"], (
        "nothing appears before everything is there"
    )
    written: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_member", lambda file, name, data: written.append(name) or real(file, name, data))
        convert(Numbers(skipped=(4,)), tmp_path / "out", packing)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    # 19 samples of 3 members are written twice; what was finished is not written again, but for one open file.
    assert len(written) <= 2 * 57 - calls + 18


@pytest.mark.parametrize("replaces", [False, True])
def test_a_conversion_that_is_killed_at_any_of_its_last_steps_ends_complete(tmp_path: Path, replaces: bool) -> None:
    """Also where the manifest is already there and only the working folder is being removed."""
    packing, whole, out, made = Packing(max_samples=3), tmp_path / "whole", tmp_path / "out", tmp_path / "made"
    source = Numbers(6)
    convert(source, whole, packing)
    convert(Numbers(9), tmp_path / "larger", packing)
    with killed_in_last_steps(0), pytest.raises(Killed):
        convert(source, made, packing)  # everything but the last steps
    for step in range(100):
        shutil.rmtree(out, ignore_errors=True)
        if replaces:
            shutil.copytree(tmp_path / "larger", out)
        shutil.copytree(made, out, dirs_exist_ok=True)
        try:
            with killed_in_last_steps(step):
                convert(source, out, packing, overwrite=replaces)
        except Killed:
            if (out / "manifest.json").exists() and not replaces:
                assert not verify(find_manifest(out), samples=None), f"{step}: no manifest before the shards are there"
            try:
                convert(source, out, packing, overwrite=replaces)
            except FileExistsError as error:
                assert "already holds a data set" in str(error)  # noqa: PT017
            assert content(out) == content(whole), f"killed before change {step}"
            assert not verify(find_manifest(out), samples=None)
            continue
        break
    assert step > 20, "every shard, index, report and file of the working folder is a step"
    assert content(out) == content(whole)


def test_another_conversion_may_follow_one_that_only_had_to_tidy_up(tmp_path: Path) -> None:
    packing = Packing(max_samples=6)
    with monkey_rename(), pytest.raises(Killed):
        convert(Numbers(), tmp_path / "out", packing)
    with pytest.raises(FileExistsError, match="already holds a data set"):
        convert(Numbers(30), tmp_path / "out", packing)
    with pytest.raises(FileExistsError, match="already holds a data set"):
        convert(Numbers(), tmp_path / "out", packing, fresh=True)
    assert convert(Numbers(30), tmp_path / "out", packing, overwrite=True).manifest.total == 30
    convert(Numbers(30), tmp_path / "whole", packing)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@contextlib.contextmanager
def monkey_rename() -> Iterator[None]:
    """Die when the working folder is put away."""

    def dying(*arguments: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", dying)
        yield


def test_shards_that_vanished_from_the_working_folder_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = Packing(max_samples=6)
    convert(Numbers(), tmp_path / "whole", packing)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "make_ready", lambda *a: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            convert(Numbers(), tmp_path / "out", packing)
    work = tmp_path / "out" / ".convert"
    (work / "train-000001.tar").unlink()
    (work / "train-000002.idx").unlink()
    next(iter(work.glob("spool.*.tar"))).unlink()
    convert(Numbers(), tmp_path / "out", packing)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_process_that_is_killed_for_real_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = folder(tmp_path / "pictures", 2100)  # three parts

    def arguments(out: str) -> list[str]:
        options = ["--from", "imagefolder", "--classes", "--shuffle-seed", "1", "--max-samples", "700"]
        return ["data", "convert", str(source), str(tmp_path / out), *options, "--resize-short", "9"]

    command = [sys.executable, "-m", "lightning_gen", *arguments("out"), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    first, deadline = tmp_path / "out" / ".convert" / "spool.000000.json", time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert first.exists()
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [worker for worker in workers if alive(worker)], "a worker outlives its owner"
    assert main(arguments("out")) == main(arguments("whole")) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def children(process: int) -> list[int]:
    """Processes that another one started; none where the system does not tell."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def alive(process: int) -> bool:
    path = Path(f"/proc/{process}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_unfinished_work_is_continued_only_as_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lightning_gen.data.convert.pipeline._second_pass", lambda *a: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            convert(Numbers(), tmp_path, Packing())
    with pytest.raises(FileExistsError, match="unfinished conversion with another packing.*--fresh"):
        convert(Numbers(), tmp_path, Packing(shuffle_seed=1))
    with pytest.raises(FileExistsError, match="another input and source"):
        convert(Numbers(21), tmp_path, Packing())
    with pytest.raises(FileExistsError, match="another place"):
        convert(Numbers(place="elsewhere"), tmp_path, Packing())
    assert convert(Numbers(21), tmp_path, Packing(), fresh=True).manifest.total == 21


def test_nothing_that_is_there_is_replaced_unasked(tmp_path: Path) -> None:
    convert(Numbers(), tmp_path, Packing(max_samples=5))
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="already holds a data set"):
        convert(Numbers(4), tmp_path, Packing())
    assert content(tmp_path) == before
    assert convert(Numbers(4), tmp_path, Packing(), overwrite=True).manifest.total == 4
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["train-000000.tar"], "no old shard is left"
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(FileExistsError, match="train-000000.tar, which nobody's manifest names"):
        convert(Numbers(4), tmp_path, Packing())


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with Journal(tmp_path, "train", {"a": 1}).held():
        second = Journal(tmp_path, "train", {"a": 1}).held()
        with pytest.raises(FileExistsError, match="another process is writing"):
            second.__enter__()


def test_equal_keys_are_an_error_and_equal_samples_are_left_out_on_request(tmp_path: Path) -> None:
    near = Numbers(6, keys=("a", "b", "a", "c", "d", "e"))
    with pytest.raises(DataError, match=r"row 2 \(part 0\): key 'a' comes twice.*--keys number"):
        convert(near, tmp_path / "near", Packing())
    far = Numbers(6, keys=("a", "b", "c", "d", "a", "e"))
    with pytest.raises(DataError, match="key 'a' comes twice, in samples 0 and 4"):
        convert(far, tmp_path / "far", Packing())
    assert list(read(convert(far, tmp_path / "n", Packing(keys="number")).manifest)) == [f"{n:09d}" for n in range(6)]
    twins = Numbers(6, keys=("a", "b", "c", "d", "a", "e"), identities=("x", "y", "z", "y", "x", "w"))
    done = convert(twins, tmp_path / "twins", Packing(dedupe=True))
    assert order(tmp_path / "twins") == [0, 1, 2, 5], "the first one stays"
    assert (done.tally.counts["duplicates"], done.tally.counts["written"]) == (2, 4)
    by_bytes = Numbers(6)
    assert convert(by_bytes, tmp_path / "bytes", Packing(dedupe=True)).tally.counts["duplicates"] == 0


def test_rows_without_a_sample_are_counted_or_an_error(tmp_path: Path) -> None:
    done = convert(Numbers(skipped=(1, 7, 19)), tmp_path / "a", Packing())
    assert (done.tally.counts["missing"], done.tally.counts["written"]) == (3, 17)
    assert done.tally.examples["missing"][1] == "row 7 (part 6): it is to be skipped"
    with pytest.raises(SampleError, match=r"row 1 \(part 0\): it is to be skipped"):
        convert(Numbers(skipped=(1,)), tmp_path / "b", Packing(strict=True))
    with pytest.raises(DataError, match="no sample is left.*3 read, 3 missing; for instance row 0"):
        convert(Numbers(3, skipped=(0, 1, 2)), tmp_path / "c", Packing())
    assert not (tmp_path / "c" / ".convert").exists()


def test_limit_takes_the_first_samples_of_the_final_order(tmp_path: Path) -> None:
    convert(Numbers(), tmp_path / "all", Packing(shuffle_seed=1))
    convert(Numbers(), tmp_path / "five", Packing(shuffle_seed=1, limit=5, max_samples=2))
    assert order(tmp_path / "five") == order(tmp_path / "all")[:5]


def test_shards_stay_below_the_limit(tmp_path: Path) -> None:
    manifest = convert(Numbers(40), tmp_path, Packing(max_bytes=25_000)).manifest
    assert len(manifest.shards) > 2
    assert all(shard.bytes <= 25_000 for shard in manifest.shards)


@pytest.mark.parametrize(
    ("rule", "ending", "exact"),
    [
        ("never", "jpg", True),
        ("png", "png", True),
        ("webp", "webp", True),
        ("webp80", "webp", False),
        ("jpeg90", "jpg", False),
    ],
)
def test_pictures_are_encoded_as_asked(tmp_path: Path, rule: str, ending: str, exact: bool) -> None:
    source = folder(tmp_path / "pictures", 3)
    manifest = run("imagefolder", source, tmp_path / "out", Packing(pictures=PictureRule(reencode=rule))).manifest
    for key, fields in read(manifest).items():
        original = (source / key.replace("_", "/")).with_suffix(".jpg").read_bytes()
        assert (fields[ending] == original) == (rule == "never")
        before, after = np.asarray(decode(original, decoder="pil")), np.asarray(decode(fields[ending], decoder="pil"))
        assert np.array_equal(before, after) == exact
        assert np.abs(before.astype(int) - after).mean() < 12


def test_pictures_are_made_smaller_and_never_larger(tmp_path: Path) -> None:
    source = folder(tmp_path / "pictures", 7)
    manifest = run("imagefolder", source, tmp_path / "out", Packing(pictures=PictureRule(resize_short=16))).manifest
    for key, fields in read(manifest).items():
        number, known = int(key[-4:]), json.loads(fields["json"])
        image, original = decode(fields["jpg"]), picture(int(key[-4:]))
        assert (image.height, image.width) == (known["h"], known["w"])
        assert min(image.size) == min(16, min(original.size))
        assert image.width / image.height == pytest.approx(original.width / original.height, rel=0.1)
        if min(original.size) <= 16:
            assert fields["jpg"] == jpeg(number), "small pictures pass through"
        else:
            assert (known["original_h"], known["original_w"]) == (original.height, original.width)


def test_content_tells_the_ending_and_a_broken_picture_is_counted(tmp_path: Path) -> None:
    for name, data in {"a.jpg": encoded(picture(1)), "b.jpg": b"<html>", "c.png": b"", "d.jpg": jpeg(4)}.items():
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(data)
    done = run("imagefolder", tmp_path / "pictures", tmp_path / "out")
    assert {key: sorted(fields) for key, fields in read(done.manifest).items()} == {
        "a": ["json", "png"],
        "d": ["jpg", "json"],
    }
    assert done.tally.counts["undecodable"] == 2
    assert "b.jpg" in done.tally.examples["undecodable"][0]
    assert "a web page" in done.tally.examples["undecodable"][0]


def test_unknown_rules_are_refused() -> None:
    for wrong in ("jpg", "jpeg101", "jpeg", "gif", ""):
        with pytest.raises(ValueError, match="known are never, png, webp"):
            PictureRule(reencode=wrong)
    with pytest.raises(ValueError, match="number of pixels"):
        PictureRule(resize_short=0)
    with pytest.raises(ValueError, match="at least 1"):
        Packing(max_samples=0)
    with pytest.raises(ValueError, match="split's name"):
        Packing(name="a.b")


def test_shards_are_packed_again(tmp_path: Path) -> None:
    from lightning_gen.data.convert.shards import ShardsSource

    before = shards(tmp_path / "before", 30, 9)
    after = convert(ShardsSource(before), tmp_path / "after", Packing(shuffle_seed=1, max_samples=4)).manifest
    assert read(after).keys() != read(before).keys() or list(read(after)) != list(read(before))
    assert dict(sorted(read(after).items())) == read(before), "every byte passes through"
    assert len(after.shards) == 8
    keys = frozenset(["s00003", "s00017"])
    some = convert(ShardsSource(before, fields=frozenset(["cls"]), keys=keys), tmp_path / "some", Packing(strict=True))
    assert read(some.manifest) == {"s00003": {"cls": b"3"}, "s00017": {"cls": b"2"}}
    assert some.tally.counts["not_wanted"] == 28
    small = Packing(pictures=PictureRule(resize_short=8))
    for key, fields in read(convert(ShardsSource(before, touch=True), tmp_path / "small", small).manifest).items():
        known = json.loads(fields["json"])
        assert min(known["h"], known["w"]) == 8
        assert known["label"] == int(key[1:]) % 5, "what was known stays known"


def double(number: int) -> int:
    if number == 13:
        raise DataError("thirteen")
    if number == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 15:
        time.sleep(60)
    return 2 * number


def test_work_in_other_processes_ends_with_a_word(tmp_path: Path) -> None:
    assert sorted(run_tasks(double, range(10), workers=2)) == list(range(0, 20, 2))
    with pytest.raises(DataError, match="^thirteen$"):
        list(run_tasks(double, [1, 13, 2], workers=2))
    with pytest.raises(DataError, match="a worker process was killed.*goes on where it was"):
        list(run_tasks(double, [14], workers=2))
    began = time.monotonic()
    with pytest.raises(DataError, match="no result in 1 s"):
        list(run_tasks(double, [15], workers=2, patience=1.0))
    assert time.monotonic() - began < 30


def test_a_full_disk_is_told_before_the_shards_are_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lightning_gen.data.convert.journal.shutil.disk_usage", lambda path: Usage(1000))
        with pytest.raises(DataError, match="make room and start the same command again"):
            convert(Numbers(), tmp_path, Packing())
    assert convert(Numbers(), tmp_path, Packing()).manifest.total == 20


@dataclasses.dataclass
class Usage:
    free: int


def test_webdataset_reads_converted_pairs(tmp_path: Path) -> None:
    import webdataset

    manifest = convert(Numbers(), tmp_path, Packing(shuffle_seed=1, max_samples=8)).manifest
    urls = [str(manifest.tar_path(number)) for number in range(len(manifest.shards))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = IndexedShards(manifest)
    assert len(found) == 20
    for index, sample in enumerate(found):
        assert sample["__key__"] == ours.key(index)
        assert {name: data for name, data in sample.items() if not name.startswith("__")} == ours[index]


def test_wids_reads_converted_pairs(tmp_path: Path) -> None:
    wids = pytest.importorskip("wids")
    manifest = convert(Numbers(), tmp_path / "out", Packing(shuffle_seed=1, max_samples=8)).manifest
    path = str(tmp_path / "out" / "manifest.json")
    found = wids.ShardListDataset(path, cache_dir=str(tmp_path / "cache"), transformations=[])
    ours = IndexedShards(manifest)
    assert len(found) == len(ours)
    for index in (0, 7, 8, 19):
        sample = {name.lstrip("."): data.read() for name, data in found[index].items() if not name.startswith("__")}
        assert sample == ours[index]
