"""Every other source: lists, HPDv3 and v2, folders, foreign tars, Relation252K, Pico-Banana, prompts, the hub."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_gen.data.convert import Packing, PictureRule, Request, open_source
from lightning_gen.data.convert.lists import ListTable
from lightning_gen.data.convert.relation252k import split_halves
from lightning_gen.data.convert.wds import safe_key
from lightning_gen.data.decode import decode
from lightning_gen.data.edits import EditFields
from lightning_gen.data.quarantine import DataError, SampleError, ShardError
from tests.data.conversions import folder, jpeg, pair_row, parquet, read, records, run
from tests.data.samples import encoded, picture

AWKWARD = 'a "quoted", comma\nand a new line, é 你好 🎈 [x]{y}'


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv"])
def test_lists_are_read_in_pieces_from_any_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr("lightning_gen.data.convert.lists._PART_ROWS", 7)
    monkeypatch.setattr("lightning_gen.data.convert.lists._CHUNK", 50)  # records straddle reads
    rows = [{"image": f"{n}.jpg", "caption": f"{AWKWARD} {n}" if n % 3 else f"plain {n}"} for n in range(40)]
    path = tmp_path / f"list.{ending}"
    if ending == "json":
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8-sig")
    elif ending == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8-sig")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["image", "caption"], delimiter="," if ending == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    table = ListTable(tmp_path, path.name)
    assert table.columns() == ["image", "caption"]
    parts = table.parts()
    assert [(part.first, part.count) for part in parts] == [(0, 7), (7, 7), (14, 7), (21, 7), (28, 7), (35, 5)]
    for part in reversed(parts):
        assert list(table.rows(part, [])) == rows[part.first : part.first + part.count]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"a": 1}', "does not start with"),
        ("a.json", '[{"a": 1}, {"a": ', "the record at byte 11"),
        ("a.json", '[{"a": 1}, 5]', "at byte 11 stands '5', not a record"),
        ("a.json", "[]", "holds no record"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "the line at byte 9"),
        ("a.csv", "image,caption\nx.jpg\n", "has 1 values, the header has 2"),
        ("a.csv", "", "holds no record"),
        ("a.jsonl", b'{"a": "\xff"}\n', "is damaged: 'utf-8' codec"),
    ],
)
def test_damaged_lists_are_named(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"{name} .*{message}"):
        open_source("csv", Request(str(tmp_path / name)))


def test_a_list_names_files_below_its_folder_or_another(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", 4)
    rows = [{"file": f"{'cat' if n % 3 else 'dog'}/{n:04d}.jpg", "title": f"t{n}"} for n in range(5)]
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    words = {"fields": {"image": "file", "caption": "title"}, "images": tmp_path / "pictures"}
    done = run("csv", path, tmp_path / "out", **words)
    assert [fields["txt"] for fields in read(done.manifest).values()] == [b"t0", b"t1", b"t2", b"t3"]
    assert done.tally.counts["missing"] == 1
    assert "0004.jpg: No such file" in done.tally.examples["missing"][0]


def hpdv3(root: Path, count: int = 6, **changes: Any) -> Path:
    (root / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        for side in "ab":
            (root / "images" / f"{number}{side}.jpg").write_bytes(jpeg(10 * number + ord(side)))
        paths = {"path1": f"images/{number}a.jpg", "path2": f"images/{number}b.jpg"}
        votes = {"model1": "x", "model2": "y", "confidence": 0.9, "choice_dist": [8, 1]}
        rows.append({"prompt": f"p{number}", **paths, **(votes if number else {})})
    rows[1].update(changes)
    (root / "train.json").write_text(json.dumps(rows))
    return root


def test_hpdv3_prefers_the_first_path_always(tmp_path: Path) -> None:
    root = hpdv3(tmp_path / "in")
    (root / "images" / "3b.jpg").unlink()
    done = run("hpdv3", root, tmp_path / "out", split="train")
    found = records(done.manifest)
    assert [record["row"] for record in found] == [0, 1, 2, 4, 5]
    assert {record["label_0"] for record in found} == {1.0}
    assert "model_0" not in found[0], "older rows have no models"
    wanted = {"model_0": "x", "model_1": "y", "confidence": 0.9, "choice_dist": [8, 1], "caption": "p1"}
    assert wanted.items() <= found[1].items()
    assert (done.tally.counts["missing"], done.tally.counts["written"]) == (1, 5)
    assert read(done.manifest)["000000004"]["0.jpg"] == jpeg(10 * 4 + ord("a"))


@pytest.mark.parametrize(("given", "stored"), [(1, 1.0), (0, 0.0), ("0.5", 0.5), (0.95, 0.95)])
def test_hpdv3_has_its_confidence_as_a_float(tmp_path: Path, given: Any, stored: float) -> None:
    found = records(run("hpdv3", hpdv3(tmp_path / "in", confidence=given), tmp_path / "out").manifest)
    assert (type(found[1]["confidence"]), found[1]["confidence"]) == (float, stored)


@pytest.mark.parametrize("given", ["high", 1.5, -0.1, True, [0.9], "nan"])
def test_hpdv3_counts_a_confidence_that_is_none(tmp_path: Path, given: Any) -> None:
    done = run("hpdv3", hpdv3(tmp_path / "in", confidence=given), tmp_path / "out")
    assert (done.tally.counts["bad_label"], done.tally.counts["written"]) == (1, 5)
    assert f"confidence is {given!r}" in done.tally.examples["bad_label"][0]


def test_hpdv3_refuses_a_path_that_climbs_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 \(train.json, rows 0 to 5\): a row names the file '../x.jpg'"):
        run("hpdv3", hpdv3(tmp_path / "in", path2="../x.jpg"), tmp_path / "out")
    with pytest.raises(DataError, match="name the file, or the split with --split"):
        run("hpdv3", tmp_path / "in", tmp_path / "out", split="test")


def test_hpdv2_says_which_file_won(tmp_path: Path) -> None:
    root = hpdv3(tmp_path / "in")
    rows = [
        {"prompt": f"p{n}", "file_path": [f"{n}a.jpg", f"{n}b.jpg"], "human_preference": choice}
        for n, choice in enumerate(([1, 0], [0, 1], [1, 1]))
    ]
    (root / "train.json").write_text(json.dumps(rows))
    done = run("hpdv2", root, tmp_path / "out")
    assert [record["label_0"] for record in records(done.manifest)] == [1.0, 0.0]
    assert done.tally.counts["bad_label"] == 1


def test_relation252k_is_split_at_half_its_width(tmp_path: Path) -> None:
    (tmp_path / "recolour").mkdir()
    rows, whole = [], {}
    for number, width in enumerate((40, 41)):
        image = picture(number, (20, width))
        whole[number] = np.asarray(image)
        (tmp_path / "recolour" / f"{number}.png").write_bytes(encoded(image))
        rows.append({
            "left_image_description": "l", "right_image_description": "r", "edit_instruction": f"do {number}",
            "img_name": f"recolour/{number}.png",
        })  # fmt: skip
    rows.append({**rows[0], "img_name": "recolour/gone.png"})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run("relation252k", tmp_path, tmp_path / "out")
    samples = list(read(done.manifest).values())
    for number, fields in enumerate(samples):
        stored = EditFields()(fields)
        left, right = (np.asarray(decode(data)) for data in (stored.source, stored.target))
        assert np.array_equal(left, whole[number][:, :20])
        assert np.array_equal(right, whole[number][:, -20:]), "of an odd width the middle column is dropped"
        assert (stored.task, stored.instruction) == ("recolour", f"do {number}")
    assert done.tally.counts["missing"] == 1
    smaller = run("relation252k", tmp_path, tmp_path / "jpeg", Packing(pictures=PictureRule(reencode="jpeg95")))
    assert set(read(smaller.manifest)["000000000"]) == {"src.jpg", "tgt.jpg", "json"}
    with pytest.raises(SampleError, match="one pixel wide"):
        split_halves(Image.new("RGB", (1, 5)))


def test_pico_banana_takes_mapped_single_edits_only(tmp_path: Path) -> None:
    for name in ("in/1.jpg", "images/positive-edit/1.png", "images/negative-edit/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    good = {
        "open_image_input_url": "https://x.org/1.jpg", "output_image": "images/positive-edit/1.png",
        "text": "make it so", "summarized_text": "so", "edit_type": "Add an object", "local_input_image": "in/1.jpg",
    }  # fmt: skip
    rows = [
        good,
        {**good, "local_input_image": None},
        {**good, "output_image": "images/negative-edit/2.png"},
        {**good, "files": [{"id": "original_input_image", "url": ""}]},
    ]
    (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run("picobanana", tmp_path / "sft.jsonl", tmp_path / "out")
    wanted = {"task": "Add an object", "instruction": "make it so", "summary": "so", "source_set": "pico_banana"}
    assert wanted.items() <= records(done.manifest)[0].items()
    counts = done.tally.counts
    assert [counts[name] for name in ("written", "missing", "preference", "multi_turn")] == [1, 1, 1, 1]
    (tmp_path / "sft.jsonl").rename(tmp_path / "preference.jsonl")
    with pytest.raises(DataError, match="failed edits or several turns"):
        open_source("picobanana", Request(str(tmp_path / "preference.jsonl")))
    del good["local_input_image"]
    (tmp_path / "raw.jsonl").write_text(json.dumps(good))
    with pytest.raises(DataError, match="run the set's own mapping script"):
        open_source("picobanana", Request(str(tmp_path / "raw.jsonl")))


def test_two_folders_of_edits(tmp_path: Path) -> None:
    for name, number in {"source/add/a.jpg": 1, "target/add/a.png": 2, "source/b.jpg": 3}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(number) if name.endswith("jpg") else encoded(picture(number)))
    (tmp_path / "target" / "add" / "a.txt").write_text("add a hat\n")
    done = run("editfolders", tmp_path, tmp_path / "out")
    fields = read(done.manifest)["add_a"]
    assert (fields["src.jpg"], fields["tgt.png"]) == (jpeg(1), encoded(picture(2)))
    assert {"task": "add", "instruction": "add a hat"}.items() <= json.loads(fields["json"]).items()
    assert done.tally.examples["missing"] == ["b: there is no such file in target"]
    with pytest.raises(DataError, match="holds no two folders source and target"):
        open_source("editfolders", Request(str(tmp_path / "source")))


def test_classes_of_a_folder(tmp_path: Path) -> None:
    folder(tmp_path / "in", 6)
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    found = read(run("imagefolder", tmp_path / "in", tmp_path / "a", classes=True).manifest)
    assert {key: fields["cls"] for key, fields in found.items()}["dog_0000"] == b"1"
    words = {"classes": True, "class_names": tmp_path / "names.txt"}
    found = read(run("imagefolder", tmp_path / "in", tmp_path / "b", **words).manifest)
    assert {key: fields["cls"] for key, fields in found.items()}["dog_0000"] == b"0"
    (tmp_path / "in" / "astray.jpg").write_bytes(jpeg(1))
    with pytest.raises(ValueError, match="astray.jpg lies in no class folder: the classes are cat, dog"):
        open_source("imagefolder", Request(str(tmp_path / "in"), classes=True))


def test_prompts_of_text_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.txt").write_text("one\n\ntwo\none\n")
    done = run("prompts", tmp_path / "set" / "train.txt", tmp_path / "out", Packing(dedupe=True))
    assert [fields["txt"] for fields in read(done.manifest).values()] == [b"one", b"two"]
    assert records(done.manifest)[0]["source"] == "set"
    row = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"}
    (tmp_path / "geneval.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"tag": "x"}))
    done = run("prompts", tmp_path / "geneval.jsonl", tmp_path / "geneval")
    assert row.items() <= records(done.manifest)[0].items()
    assert (done.tally.counts["no_value"], done.tally.counts["missing"]) == (1, 0)


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar as anybody writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def keys_and_fields(path: Path, out: Path, **words: Any) -> dict[str, list[str]]:
    return {key: sorted(fields) for key, fields in read(run("wds", path, out, **words).manifest).items()}


def test_foreign_tars_keep_their_fields(tmp_path: Path) -> None:
    members = {
        "n/im1.jpg": jpeg(1), "n/im1.cls": b"3", "n/im1.json": b'{"caption": "x"}', "n/im1.latents.npz": b"1",
        "n/im2.JPG": jpeg(2), "n/im2.Seg-Map": b"2", "__meta__.json": b"{}",
    }  # fmt: skip
    for number in range(2):
        names = {name.replace("im", f"im{number}-"): data for name, data in members.items()}
        tar(tmp_path / "set" / f"part-{number}.tar", names)
    done = run("wds", tmp_path / "set", tmp_path / "out")
    found = {key: sorted(fields) for key, fields in read(done.manifest).items()}
    assert len(found) == 4
    first = next(key for key in found if key.startswith("n_im0-1-"))
    assert found[first] == ["cls", "jpg", "json", "latents.npz"]
    assert json.loads(read(done.manifest)[first]["json"])["caption"] == "x"
    assert ["jpg", "json", "seg_map"] in found.values()


def test_a_class_that_is_no_number_is_left_out_of_foreign_tars(tmp_path: Path) -> None:
    members = {"a.jpg": jpeg(1), "a.cls": b"cat", "b.jpg": jpeg(2), "b.cls": b" 7\n", "c.jpg": jpeg(3), "c.cls": b"-1"}
    done = run("wds", tar(tmp_path / "a.tar", members), tmp_path / "out")
    assert list(read(done.manifest)) == ["b"]
    assert (done.tally.counts["read"], done.tally.counts["bad_label"]) == (3, 2)
    assert done.tally.examples["bad_label"][0] == "a (a.tar): cls is b'cat', not a class number"


def test_a_dot_in_a_key_never_merges_two_samples(tmp_path: Path) -> None:
    dotted = {f"photo.v{n}.{field}": data for n in (1, 2) for field, data in (("jpg", jpeg(n)), ("txt", b"t"))}
    path = tar(tmp_path / "a.tar", dotted)
    assert keys_and_fields(path, tmp_path / "a") == {
        safe_key("photo.v1"): ["jpg", "json", "txt"],
        safe_key("photo.v2"): ["jpg", "json", "txt"],
    }
    assert safe_key("photo.v1").startswith("photo_v1-")
    assert len({safe_key(key) for key in ("a.b", "a_b", "a/b", "a b")}) == 4, "two keys never become one"
    # What WebDataset would make of it, on request: two pictures want one place and are refused.
    merged = run(
        "wds",
        tar(tmp_path / "b.tar", {"p.1.jpg": jpeg(1), "p.2.png": encoded(picture(2))}),
        tmp_path / "b",
        dots="field",
    )
    assert [sorted(fields) for fields in read(merged.manifest).values()] == [["1.jpg", "2.png", "json"]]


def test_pairs_and_masks_of_foreign_tars_stay_one_sample(tmp_path: Path) -> None:
    pair = {"d_1.0.jpg": jpeg(1), "d_1.1.jpg": jpeg(2), "d_1.json": b"{}", "e.src.jpg": jpeg(1), "e.tgt.jpg": jpeg(2)}
    found = keys_and_fields(tar(tmp_path / "a.tar", pair), tmp_path / "a")
    assert found == {"d_1": ["0.jpg", "1.jpg", "json"], "e": ["json", "src.jpg", "tgt.jpg"]}
    scores = {"n01_1.0.jpg": jpeg(1), "n01_1.1.jpg": jpeg(2)}
    assert len(keys_and_fields(tar(tmp_path / "b.tar", scores), tmp_path / "b")) == 2, "names with a decimal point"
    mask = tar(tmp_path / "c.tar", {"x.jpg": jpeg(1), "x.mask.png": encoded(picture(1))})
    with pytest.raises(ShardError, match=r"x.jpg and x.mask.png may be one sample or two. --dots field"):
        run("wds", mask, tmp_path / "c")
    assert keys_and_fields(mask, tmp_path / "d", dots="field") == {"x": ["jpg", "json", "mask.png"]}
    assert len(keys_and_fields(mask, tmp_path / "e", dots="key")) == 2


def test_foreign_tars_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    apart = tar(tmp_path / "apart.tar", {"a.jpg": jpeg(1), "b.jpg": jpeg(2), "a.json": b"{}"})
    with pytest.raises(ShardError, match="apart.tar has the members of a apart"):
        run("wds", apart, tmp_path / "out")
    twice = tar(tmp_path / "twice.tar", {"a.jpg": jpeg(1), "a.JPG": jpeg(2)})
    with pytest.raises(ShardError, match="holds a.JPG twice"):
        run("wds", twice, tmp_path / "out")
    for number in range(2):
        tar(tmp_path / "same" / f"{number}.tar", {"0.jpg": jpeg(number)})
    with pytest.raises(DataError, match="key '0' comes twice"):
        run("wds", tmp_path / "same", tmp_path / "same-out")
    assert run("wds", tmp_path / "same", tmp_path / "numbered", Packing(keys="number")).manifest.total == 2
    climbing = tar(tmp_path / "climbing.tar", {"../a.jpg": jpeg(1)})
    with pytest.raises(ShardError, match="climbs out of the archive"):
        run("wds", climbing, tmp_path / "out")
    both = tar(tmp_path / "both.tar", {"a.jpg": encoded(picture(1)), "a.png": encoded(picture(2)), "b.jpg": jpeg(3)})
    done = run("wds", both, tmp_path / "both")
    assert "two pictures want the field png" in done.tally.examples["undecodable"][0]
    assert done.manifest.total == 1


def test_a_hub_folder_is_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar(tmp_path / "tars" / "a.tar", {"a.jpg": jpeg(1)})
    assert run("hf", tmp_path / "tars", tmp_path / "a").manifest.total == 1
    assert run("hf", folder(tmp_path / "pictures", 3), tmp_path / "b").manifest.total == 3
    assert run("hf", hpdv3(tmp_path / "hpd"), tmp_path / "c").manifest.total == 6
    parquet(tmp_path / "clone" / "data" / "train-00000-of-00001.parquet", [pair_row(n) for n in range(3)])
    assert run("hf", tmp_path / "clone", tmp_path / "e").manifest.total == 3
    pointer = tmp_path / "pointers" / "train.parquet"
    pointer.parent.mkdir()
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(DataError, match="train.parquet cannot be read .*pointer of git-lfs, run `git lfs pull`"):
        open_source("hf", Request(str(pointer.parent)))
    with pytest.raises(FileNotFoundError, match="neither a folder nor the name"):
        open_source("hf", Request("no/such/folder"))
    with pytest.raises(
        FileNotFoundError, match="nobody/nothing cannot be fetched.*hf download nobody/nothing --repo-type"
    ):
        open_source("hf", Request("nobody/nothing"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **words: str(tmp_path / "pictures"))
    assert run("hf", "somebody/pictures", tmp_path / "d").manifest.source == "somebody/pictures"


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--from zip: known are hf, parquet"):
        open_source("zip", Request(str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="there is no tar file"):
        open_source("wds", Request(str(tmp_path)))
