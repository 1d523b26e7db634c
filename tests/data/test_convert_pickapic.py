"""Parquet in Pick-a-Pic's columns, and parquet in general: labels, faults, memory."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_gen.data.convert import Packing, Request, convert, open_source
from lightning_gen.data.convert.parquet import BATCH_ROWS, ParquetTable
from lightning_gen.data.preferences import PreferenceFields
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.synth import SynthOptions, write_synthetic
from lightning_gen.data.synth.parquet import PICKAPIC_COLUMNS
from tests.data.conversions import jpeg, pair_row, parquet, read, records, run
from tests.data.samples import encoded, picture

pyarrow = pytest.importorskip("pyarrow")


def test_bytes_of_both_pictures_are_those_of_the_table(tmp_path: Path) -> None:
    rows = [pair_row(number) for number in range(9)]
    done = run("parquet", parquet(tmp_path / "in.parquet", rows), tmp_path / "out")
    samples = read(done.manifest)
    assert len(samples) == 9
    for number, fields in enumerate(samples.values()):
        # The second picture is a PNG in a column called jpg_1: its content decides.
        assert (fields["0.jpg"], fields["1.png"]) == (rows[number]["jpg_0"], rows[number]["jpg_1"])
        known = json.loads(fields["json"])
        assert (known["caption"], known["model_0"], known["model_1"]) == (f"prompt {number}", "m0", "m1")
        assert (known["uid_0"], known["uid_1"]) == (f"{number}-a", f"{number}-b")
        assert (known["row"], known["split"], known["source"]) == (number, "train", "in.parquet")
        for stem in (0, 1):
            image = picture(2 * number + stem)
            assert (known[f"h_{stem}"], known[f"w_{stem}"]) == (image.height, image.width)
            assert {f"mode_{stem}", f"sha1_{stem}"} <= known.keys()


@pytest.mark.parametrize("kind", ["double", "float", "int64", "string"])
def test_labels_of_any_type(tmp_path: Path, kind: str) -> None:
    values = [1, 0] if kind == "int64" else [1, 0, 0.5]
    text = kind == "string"
    rows = [
        pair_row(n, label_0=str(v) if text else v, label_1=str(1 - v) if text else 1 - v, best_image_uid="")
        for n, v in enumerate(values)
    ]
    columns = {**dict(PICKAPIC_COLUMNS), "label_0": kind, "label_1": kind}
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(one)) for name, one in columns.items()])
    done = run("parquet", parquet(tmp_path / "in.parquet", rows, schema=schema), tmp_path / "out")
    assert [record["label_0"] for record in records(done.manifest)] == values
    assert done.tally.counts["ties"] == (0 if kind == "int64" else 1)


def test_the_winner_is_the_one_that_the_label_says(tmp_path: Path) -> None:
    rows = [pair_row(0), pair_row(1, label_0=0.0, label_1=1.0, best_image_uid="1-b")]
    samples = read(run("parquet", parquet(tmp_path / "in.parquet", rows), tmp_path / "out").manifest)
    first, second = (PreferenceFields()(fields) for fields in samples.values())
    assert first.winner == rows[0]["jpg_0"]
    assert second.winner == rows[1]["jpg_1"]
    assert second.models == ("m1", "m0")


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no label": ({"has_label": False, "label_0": None, "label_1": None}, "unlabelled", "has_label is false"),
    "null label": ({"label_0": None, "label_1": None}, "unlabelled", "label_0 is null"),
    "null picture": ({"jpg_1": None}, "dead", "image_1 is null"),
    "empty picture": ({"jpg_0": b""}, "dead", "image_0 is empty"),
    "a third": ({"label_0": 0.3, "label_1": 0.7}, "bad_label", "label_0 is 0.3; known are 1, 0 and 0.5"),
    "two winners": ({"label_1": 1.0}, "bad_label", "do not add up to 1"),
    "web page": ({"jpg_0": b"<html>gone</html>"}, "undecodable", "0: these 17 bytes are not a picture"),
    "no prompt": ({"caption": None}, "no_value", "caption is None, not a text"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_row_is_left_out_counted_and_named(tmp_path: Path, fault: str) -> None:
    changes, counter, reason = FAULTS[fault]
    path = parquet(tmp_path / "in.parquet", [pair_row(0), pair_row(1, **changes), pair_row(2)])
    done = run("parquet", path, tmp_path / "out")
    assert [record["row"] for record in records(done.manifest)] == [0, 2]
    assert {name: n for name, n in done.tally.counts.items() if n} == {"read": 3, "written": 2, counter: 1}
    example = json.loads((tmp_path / "out" / "conversion.json").read_text())["examples"][counter][0]
    assert example.startswith("row 1 (in.parquet, row groups ")
    assert reason in example
    with pytest.raises(SampleError, match=r"row 1 \(in.parquet"):
        run("parquet", path, tmp_path / "strict", Packing(strict=True))


def test_a_label_that_is_a_word_is_no_label(tmp_path: Path) -> None:
    rows = [pair_row(0, label_0="left", label_1="right"), pair_row(1, label_0="1", label_1="0")]
    done = run("parquet", parquet(tmp_path / "in.parquet", rows), tmp_path / "out")
    assert done.tally.counts["bad_label"] == 1
    assert "label_0 is 'left'" in done.tally.examples["bad_label"][0]


def test_a_contradiction_is_kept_counted_and_marked(tmp_path: Path) -> None:
    rows = [
        pair_row(0),
        pair_row(1, best_image_uid="1-b"),  # the label says picture 0
        pair_row(2, label_0=0.5, label_1=0.5, best_image_uid="tie"),
        pair_row(3, label_0=0.5, label_1=0.5),  # a tie with a winner
        pair_row(4, image_1_uid="4-a"),  # both uids are the same: says nothing
        pair_row(5, best_image_uid=None),
    ]
    done = run("parquet", parquet(tmp_path / "in.parquet", rows), tmp_path / "out")
    assert done.tally.counts["contradictory"] == 2
    assert done.tally.counts["ties"] == 2
    assert [record.get("contradictory", False) for record in records(done.manifest)] == [
        False,
        True,
        False,
        True,
    ] + 2 * [False]
    assert records(done.manifest)[1]["label_0"] == 1.0, "the label columns are believed"


def test_annotators_get_a_pseudonym_or_nothing(tmp_path: Path) -> None:
    rows = [pair_row(0, user_id=5), pair_row(1, user_id=5), pair_row(2, user_id=6)]
    path = parquet(tmp_path / "in.parquet", rows)
    users = [record["user"] for record in records(run("parquet", path, tmp_path / "hash").manifest)]
    assert users[0] == users[1] != users[2]
    assert all(len(user) == 16 and user != "5" for user in users)
    dropped = records(run("parquet", path, tmp_path / "drop", user="drop").manifest)
    assert not any("user" in name for record in dropped for name in record)


def test_times_keep_their_nanoseconds(tmp_path: Path) -> None:
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in PICKAPIC_COLUMNS])
    rows = [pair_row(0, created_at=1_675_209_600_123_456_789), pair_row(1), pair_row(2, created_at=0)]
    rows[2]["created_at"] = datetime.datetime(2023, 2, 1, 12)
    path = tmp_path / "in.parquet"
    table = [pyarrow.Table.from_pylist([row], schema) for row in rows]
    pyarrow.parquet.write_table(pyarrow.concat_tables(table), path)
    found = [record.get("created_at") for record in records(run("parquet", path, tmp_path / "out").manifest)]
    assert found == ["2023-02-01T00:00:00.123456789", None, "2023-02-01T12:00:00"]


def test_the_same_pair_again_is_left_out_on_request(tmp_path: Path) -> None:
    turned = {"image_0_uid": "1-b", "image_1_uid": "1-a", "caption": "another"}
    rows = [pair_row(0), pair_row(1), pair_row(2), pair_row(3, **turned)]
    path = parquet(tmp_path / "in.parquet", rows)
    done = run("parquet", path, tmp_path / "out", Packing(dedupe=True))
    assert [record["row"] for record in records(done.manifest)] == [0, 1, 2]
    assert done.tally.counts["duplicates"] == 1
    assert run("parquet", path, tmp_path / "all").manifest.total == 4


def test_a_missing_column_is_named_with_what_was_found(tmp_path: Path) -> None:
    rows = [{name: value for name, value in pair_row(0).items() if name != "label_0"}]
    path = parquet(tmp_path / "in.parquet", rows)
    with pytest.raises(
        DataError, match=r"has no column label_0 for label_0; it has: are_different, .*label_1, model_0"
    ):
        open_source("parquet", Request(str(path), rows="pairs"))
    with pytest.raises(DataError, match="are none of pairs, edits or pictures: say with --rows"):
        open_source("parquet", Request(str(path)))
    renamed = [{("winner" if name == "label_0" else name): value for name, value in pair_row(0).items()}]
    path = parquet(tmp_path / "renamed.parquet", renamed)
    assert run("parquet", path, tmp_path / "out", fields={"label_0": "winner"}).manifest.total == 1
    with pytest.raises(DataError, match="no column label_0"):
        open_source("parquet", Request(str(path), rows="pairs", fields={"label_0": "label_0"}))
    with pytest.raises(ValueError, match="the fields here are image_0, image_1, caption"):
        open_source("parquet", Request(str(path), rows="pairs", fields={"winner": "label_0"}))
    with pytest.raises(DataError, match="no column seen to keep; it has"):
        run("parquet", path, tmp_path / "keep", fields={"label_0": "winner"}, keep=("seen",))


def test_splits_are_told_by_file_names(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2), ("test_unique", 1)):
        for part in range(2):
            rows = [pair_row(number) for number in range(count)]
            parquet(tmp_path / "set" / "data" / f"{split}-{part:05d}-of-00002-0123abcd.parquet", rows)
    with pytest.raises(DataError, match="has the splits test, test_unique, train: choose one with --split"):
        open_source("parquet", Request(str(tmp_path / "set")))
    with pytest.raises(DataError, match="has no split val; it has: test, test_unique, train"):
        open_source("parquet", Request(str(tmp_path / "set"), split="val"))
    done = run("parquet", tmp_path / "set", tmp_path / "out", split="test")
    assert [record["row"] for record in records(done.manifest)] == [0, 1, 2, 3]
    assert {record["split"] for record in records(done.manifest)} == {"test"}
    pattern = str(tmp_path / "set" / "data" / "train-{00000..00001}-of-00002-0123abcd.parquet")
    assert run("parquet", pattern, tmp_path / "pattern").manifest.total == 6


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "in.parquet", [pair_row(number) for number in range(8)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="in.parquet cannot be read as parquet.*fetch it again"):
        open_source("parquet", Request(str(path)))
    path.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])  # the footer is sound
    with pytest.raises(DataError, match="in.parquet cannot be read as parquet"):
        run("parquet", path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no .*nothing"):
        open_source("parquet", Request(str(tmp_path / "nothing")))


def test_a_file_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [pair_row(number, jpg_0=jpeg(number) + bytes(60_000), jpg_1=jpeg(number)) for number in range(400)]
    path = parquet(tmp_path / "in.parquet", rows, groups=8)
    size = sum(len(row["jpg_0"]) + len(row["jpg_1"]) for row in rows)

    def whole(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a file or a row group was read as a whole")

    monkeypatch.setattr("pyarrow.parquet.read_table", whole)
    for name in ("read", "read_row_group", "read_row_groups"):
        monkeypatch.setattr(f"pyarrow.parquet.ParquetFile.{name}", whole)
    before, most, count = pyarrow.total_allocated_bytes(), 0, 0
    table = ParquetTable(tmp_path, ("in.parquet",))
    for part in table.parts():
        for _ in table.rows(part, ["jpg_0", "jpg_1"]):
            most, count = max(most, pyarrow.total_allocated_bytes() - before), count + 1
    assert count == 400
    assert most < 2 * (BATCH_ROWS + 50) / 400 * size, "more than the batch and the pages of a row group"
    assert run("parquet", path, tmp_path / "out").manifest.total == 400


def test_large_files_are_cut_at_row_groups_and_go_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gen.data.convert.parquet._PART_BYTES", 1)
    path = parquet(tmp_path / "in.parquet", [pair_row(number) for number in range(10)], groups=5)
    source = open_source("parquet", Request(str(path)))
    assert [(part.first, part.count) for part in source.parts()] == [(0, 2), (2, 2), (4, 2), (6, 2), (8, 2)]
    assert [item.row for item in source.read(source.parts()[3])] == [6, 7]
    done = convert(source, tmp_path / "out", Packing(shuffle_seed=0))
    assert [record["caption"] for record in records(done.manifest)] == [f"prompt {number}" for number in range(10)]


def test_synthetic_flaws_are_found_again(tmp_path: Path) -> None:
    write_synthetic("preference", tmp_path / "in", SynthOptions(count=40, size=16), "parquet", per_file=20, flaws=2)
    counts = run("parquet", tmp_path / "in", tmp_path / "out", Packing(shuffle_seed=0)).tally.counts
    found = {name: n for name, n in counts.items() if n and name not in ("ties", "read", "written")}
    assert found == {"contradictory": 2, "unlabelled": 2, "dead": 2, "bad_label": 2}
    assert (counts["read"], counts["written"]) == (48, 42)


def image(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    """A cell of an Image feature of the datasets library."""
    return {"bytes": data, "path": path}


def test_pictures_with_captions_and_classes(tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(encoded(picture(3)))
    rows = [
        {"image": image(jpeg(0), "somewhere/else.jpg"), "text": "zero", "label": 0, "score": 0.5},
        {"image": image(jpeg(1)), "text": "one", "label": 11, "score": float("nan")},
        {"image": image(None), "text": "two", "label": 2, "score": 0.0},
        {"image": image(None, "beside.png"), "text": "three", "label": 3, "score": 0.0},
        {"image": image(None, "gone.png"), "text": "four", "label": 3, "score": 0.0},
        {"image": image(jpeg(5)), "text": "five", "label": -1, "score": 0.0},
    ]
    done = run("parquet", parquet(tmp_path / "in.parquet", rows), tmp_path / "out", keep=("score",))
    samples = list(read(done.manifest).values())
    assert [sample["txt"] for sample in samples] == [b"zero", b"one", b"three"]
    assert [sample["cls"] for sample in samples] == [b"0", b"11", b"3"]
    assert (samples[0]["jpg"], samples[2]["png"]) == (jpeg(0), encoded(picture(3)))
    assert [json.loads(sample["json"])["score"] for sample in samples] == [0.5, None, 0.0]
    counts = done.tally.counts
    assert (counts["dead"], counts["missing"], counts["bad_label"]) == (1, 1, 1)


def test_a_path_that_climbs_out_stops_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(picture(0)))
    for name in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "a/../../secret.png",
        "..\\secret.png",
        "C:/secret.png",
    ):
        rows = [{"image": image(jpeg(0)), "text": "a"}, {"image": image(None, name), "text": "b"}]
        path = parquet(tmp_path / "set" / "in.parquet", rows)
        with pytest.raises(DataError, match=r"row 1 \(in.parquet.*does not lie below"):
            run("parquet", path, tmp_path / "out", Packing())
        import shutil

        shutil.rmtree(tmp_path / "out")


def test_edit_pairs(tmp_path: Path) -> None:
    rows = [
        {"original_image": image(jpeg(n)), "edited_image": image(encoded(picture(n))), "edit_prompt": f"do {n}",
         "edit_type": "add"} for n in range(3)
    ]  # fmt: skip
    done = run("parquet", parquet(tmp_path / "in.parquet", rows), tmp_path / "out", title="mine")
    for number, fields in enumerate(read(done.manifest).values()):
        assert (fields["src.jpg"], fields["tgt.png"]) == (jpeg(number), encoded(picture(number)))
        known = json.loads(fields["json"])
        wanted = {"task": "add", "edit_type": "add", "instruction": f"do {number}", "source_set": "mine"}
        assert wanted.items() <= known.items()
        assert {"w_src", "h_src", "w_tgt", "h_tgt", "sha1_src"} <= known.keys()


def test_a_confidence_is_a_share_or_the_row_is_left_out(tmp_path: Path) -> None:
    rows = [pair_row(n, confidence=value) for n, value in enumerate(["1", "0.75", "7", "high"])]
    done = run("parquet", parquet(tmp_path / "in.parquet", rows), tmp_path / "out")
    assert [record["confidence"] for record in records(done.manifest)] == [1.0, 0.75]
    assert done.tally.counts["bad_label"] == 2
