"""`lightning data`: what it prints, what it ends with, and that what it writes can be trained on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_gen.cli import main
from lightning_gen.commands.data_packing import _size
from lightning_gen.data.finding import find_manifest
from tests.data.conversions import content, folder, jpeg, pair_row, parquet, read
from tests.data.samples import shards
from tests.data.test_convert_sources import tar

VERBS = ("convert", "index", "verify", "stats", "repack", "cache-latents", "synth")
Run = Callable[..., str]
Refused = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lightning data ...` in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int = 0) -> str:
        assert main(["data", *arguments]) == code
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The message with which it ends; with code 2 and without a stack trace."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["data", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == 2
        assert "Traceback" not in message
        return message.splitlines()[-1]

    return call


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", verb, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert f"  lightning data {verb} " in text
    for line in re.findall(r"^  lightning data .*$", text, re.MULTILINE):
        assert line.split()[2] in VERBS


def test_the_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {verb}\s", text, re.MULTILINE) for verb in VERBS)
    assert main([]) == 0
    assert "  data " in capsys.readouterr().out


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys\nfrom lightning_gen.cli import main\ntry: main(['data', 'convert', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'lightning', 'pyarrow', 'matplotlib', 'rich', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_from_practice_files_to_training_batches(run: Run) -> None:
    run("synth", "preference", "practice", "--as", "parquet", "--count", "40", "--size", "32", "--flaws", "2")
    out = run("convert", "--from", "parquet", "practice", "shards", "--shuffle-seed", "0", "--max-samples", "16")
    counts = {line.split()[0]: int(line.split()[1]) for line in out.splitlines() if re.match(r"\w+ +\d+  ", line)}
    assert (counts["read"], counts["written"], counts["dead"], counts["bad_label"]) == (48, 42, 2, 2)
    assert "for instance row 4" in out
    assert json.loads(Path("shards/conversion.json").read_text())["counts"]["written"] == 42
    assert "all is well" in run("verify", "shards", "--decode", "all")
    table = run("stats", "shards", "--out", "pictures")
    assert re.search(r"ties +\d+ ", table)
    assert re.search(r"^ 1 fine ", table, re.MULTILINE), "the strongest model first"
    assert sorted(path.name for path in Path("pictures").iterdir()) == [
        "labels.png", "sizes.png", "stats.json", "wins.png",
    ]  # fmt: skip

    from lightning_gen.data.preferences import PickAPicDataModule

    module = PickAPicDataModule("shards", resolution=16, global_batch_size=4)
    batch = next(iter(module.train_loader()))
    assert batch.winner.images.shape == (4, 3, 16, 16)
    assert all(caption.startswith("a ") for caption in batch.winner.caption)


def test_repack_writes_what_is_asked_for(run: Run, tmp_path: Path) -> None:
    before = shards(tmp_path / "set", 30, 9)
    run("repack", "set", "mixed", "--shuffle-seed", "3", "--max-samples", "7", "--workers", "1")
    assert dict(sorted(read(find_manifest("mixed")).items())) == read(before)
    (tmp_path / "keys").write_text("s00004\ns00021\n")
    out = run("repack", "set", "some", "--key-list", "keys", "--only", "cls", "--name", "few")
    assert "not_wanted" in out
    assert read(find_manifest("some")) == {"s00004": {"cls": b"4"}, "s00021": {"cls": b"1"}}
    assert find_manifest("some").name == "few"
    run("repack", "set", "small", "--resize-short", "8", "--reencode", "webp", "--limit", "3")
    sizes = [json.loads(fields["json"]) for fields in read(find_manifest("small")).values()]
    assert [min(size["h"], size["w"]) for size in sizes] == [8, 8, 8]
    assert all("webp" in fields for fields in read(find_manifest("small")).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "cls", "nosuch"), "no sample has nosuch: the fields are cls, json, png"),
        (("--limit", "0"), "limit is at least 1, got 0"),
        (("--max-samples", "0"), "max_samples is at least 1, got 0"),
        (("--key-list", "keys"), "no sample is left"),
        (("--workers", "-1"), "'-1' is no number of processes: give 0 (this one alone) or more"),
    ],
)
def test_a_refused_repack_says_why_and_leaves_nothing(
    refused: Refused, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    shards(tmp_path / "set", 6, 3)
    (tmp_path / "keys").write_text("nobody\n")
    assert message in refused("repack", "set", "out", *options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    refused("repack", "set", "mine", *options)
    assert list((tmp_path / "mine").iterdir()) == [], "a folder that was there stays, as it was"


def test_index_makes_foreign_tars_a_data_set(run: Run, refused: Refused, tmp_path: Path) -> None:
    made = shards(tmp_path / "set", 20, 9)
    for path in (tmp_path / "set").iterdir():
        if path.suffix != ".tar":
            path.unlink()
    assert "20 samples in 3 shards" in run("index", "set", "--hashes")
    assert find_manifest("set").fingerprint == made.fingerprint
    assert find_manifest("set").name == "train"
    assert "already holds a manifest.json" in refused("index", "set")
    assert "20 samples" in run("index", "set", "--overwrite", "--name", "again")
    assert find_manifest("set").name == "again"
    assert "20 samples" in run("index", "set/train-{000000..000002}.tar", "--out", "elsewhere")
    assert find_manifest("elsewhere").total == 20
    assert "there is no tar" in refused("index", "set/*.zip*")


def test_verify_ends_with_1_and_the_list(run: Run, tmp_path: Path) -> None:
    manifest = shards(tmp_path / "set", 20, 9)
    manifest.tar_path(1).write_bytes(b"")
    manifest.idx_path(2).unlink()
    out = run("verify", "set", code=1)
    assert "train-000001.tar has 0 bytes" in out
    assert "train-000002.idx is missing" in out
    assert "2 faults" in out
    assert "20 samples in 3 shards, 9 decoded" in out, "those of the shard that is sound"
    run("verify", "set", "--no-hashes", "--decode", "3", code=1)


def test_stats_names_damaged_shards_prints_the_rest_and_ends_with_1(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = shards(tmp_path / "set", 20, 9)
    manifest.tar_path(1).write_bytes(b"")
    assert main(["data", "stats", "set"]) == 1
    out, err = capsys.readouterr()
    assert "train-000001.tar has 0 bytes, the manifest says" in err
    assert "classes: 5" in out
    assert "unreadable" not in out


def test_stats_against_another_set_counts_what_both_have(run: Run, tmp_path: Path) -> None:
    for split, numbers in (("train", range(5)), ("test", range(4, 6))):
        parquet(tmp_path / f"{split}.parquet", [pair_row(number) for number in numbers])
        run("convert", "--from", "parquet", f"{split}.parquet", split, "--keys", "number", "--name", split)
    table = run("stats", "train", "--against", "test", "--out", "out")
    for kind, numbers in {"keys": (5, 2, 2), "uids": (10, 4, 2), "captions": (5, 2, 1)}.items():
        assert re.search(rf"^  {kind} +{numbers[0]} +{numbers[1]} +{numbers[2]}$", table, re.MULTILINE)
    assert re.search(r"^  pictures \(sha1\) +10 +4 +2$", table, re.MULTILINE)
    assert json.loads(Path("out/stats.json").read_text())["against"]["counts"]["captions"]["shared"] == 1
    assert "shared" not in run("stats", "train")
    find_manifest("test").tar_path(0).unlink()
    run("stats", "train", "--against", "test", code=1)


def test_index_warns_of_keys_with_a_dot(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = jpeg(1)
    members = {f"photo.v{number}.jpg": data for number in range(4)}
    tar(tmp_path / "dotted" / "a.tar", members)
    tar(tmp_path / "plain" / "a.tar", {"photo.jpg": data})
    assert main(["data", "index", "dotted"]) == 0
    message = capsys.readouterr().err
    assert "warning: shard " in message
    assert "1 samples have several pictures" in message
    assert "convert --from wds" in message
    assert main(["data", "index", "plain"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_convert_says_whether_a_value_or_a_file_is_not_there(run: Run, tmp_path: Path) -> None:
    folder(tmp_path, 2)
    rows = [{"image": "dog/0000.jpg", "caption": "a"}, {"image": "gone.jpg", "caption": "b"}]
    rows.append({"image": "cat/0001.jpg", "caption": None})
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = run("convert", "--from", "csv", "list.jsonl", "out")
    assert re.search(r"^no_value +1  a value is null or not of its kind, left out$", out, re.MULTILINE)
    assert re.search(r"^missing +1  a file that the row names is not there, left out$", out, re.MULTILINE)


def test_bad_input_gives_one_line(refused: Refused, tmp_path: Path) -> None:
    rows = [{name: value for name, value in pair_row(0).items() if name != "caption"}]
    parquet(tmp_path / "in.parquet", rows)
    convert = ("convert", "--from", "parquet", "in.parquet", "out")
    assert "has no column caption or prompt or text for caption; it has:" in refused(*convert, "--rows", "pairs")
    assert "write FIELD=COLUMN" in refused(*convert, "--fields", "caption")
    assert "known are never, png" in refused(
        *convert, "--rows", "prompts", "--fields", "prompt=model_0", "--reencode", "gif"
    )
    assert "'1X' is no size" in refused(*convert, "--max-size", "1X")
    assert "there is no nowhere" in refused("convert", "--from", "csv", "nowhere", "out")
    assert "nowhere: " in refused("stats", "nowhere")
    assert "neither a number nor all" in refused("verify", "x", "--decode", "some")
    assert "--ties lies in [0, 1)" in refused("synth", "preference", "out", "--ties", "1")
    names = ("--class-names", "gone.txt")
    folder(tmp_path / "pictures", 2)
    assert "gone.txt: No such file" in refused("convert", "--from", "imagefolder", "pictures", "out", *names)
    shards(tmp_path / "set", 4)
    assert "is the data set that is read" in refused("repack", "set", "set", "--overwrite")
    assert not (tmp_path / "out").exists()


def test_an_interrupt_keeps_what_was_done(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "pictures", 20)
    convert = ("convert", "--from", "imagefolder", "pictures", "out", "--shuffle-seed", "1")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lightning_gen.data.convert.pipeline._second_pass", interrupt)
        run(*convert, code=130)
    assert [path.name for path in Path("out").iterdir()] == [".convert"]
    run(*convert)
    run(*convert[:4], "whole", *convert[5:])
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_a_defect_is_not(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "pictures", 2)
    convert = ("convert", "--from", "imagefolder", "pictures", "out")
    monkeypatch.setattr(
        "lightning_gen.data.convert.spool.ShardWriter.add", lambda *a: raising(OSError(28, "No space left"))
    )
    assert refused(*convert) == "lightning data convert: error: disk: No space left"
    monkeypatch.setattr(
        "lightning_gen.data.convert.spool.ShardWriter.add", lambda *a: raising(ZeroDivisionError("oops"))
    )
    with pytest.raises(ZeroDivisionError):
        main(["data", *convert])


def raising(error: Exception) -> None:
    raise error


def test_sizes_as_people_write_them() -> None:
    assert [_size(text) for text in ("512M", "1G", "1.5k", "100", "2GiB", "3MB")] == [
        512 << 20, 1 << 30, 1536, 100, 2 << 30, 3 << 20,
    ]  # fmt: skip


def test_an_error_of_a_worker_is_one_line_too(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"image": "../secret.jpg", "caption": "a"}\n')
    message = refused("convert", "--from", "csv", "list.jsonl", "out", "--workers", "2")
    assert "row 0 (list.jsonl, rows 0 to 0): a row names the file '../secret.jpg'" in message
