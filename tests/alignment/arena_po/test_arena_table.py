"""Reading annotations: orientation, redundant fields, names, softness, faults. Check 15 of the requirement."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gen.alignment.arena_po import arena_rows
from lightning_gen.alignment.arena_po.arena_table import (
    UNKNOWN,
    Comparisons,
    TableOptions,
    canonical_name,
    read_comparisons,
)
from lightning_gen.data.quarantine import DataError

from .tables import pickapic, write

PAIR = {"model_0": ["x", "x", "x"], "model_1": ["y", "y", "y"], "label_0": [1.0, 0.0, 0.5]}


def read(tmp_path: Path, columns: dict[str, Any], **options: Any) -> Comparisons:
    return read_comparisons(write(tmp_path / "t.parquet", columns), TableOptions(**options))


def test_orientation_of_pick_a_pic(tmp_path: Path) -> None:
    table = read(tmp_path, PAIR)
    assert table.names == ("x", "y")
    assert table.outcome.tolist() == [1.0, 0.0, 0.5], "0.0 = picture 1 won, 0.5 = a tie"
    assert table.counts["ties"] == 1 and table.counts["rows"] == 3
    assert table.pair_ids(np.array([2])) == ["000000002"]


def test_hpdv3_keeps_path1_first(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "path1": "a", "path2": "b", "model1": "sd2", "model2": "flux", "confidence": 0.9,
         "choice_dist": [7, 2]},
        {"prompt": "p", "path1": "c", "path2": "d", "model1": "flux", "model2": "sd2", "confidence": 0.6,
         "choice_dist": [3, 6]},
    ]  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(rows))
    table = read_comparisons(tmp_path / "train.json")
    assert table.outcome.tolist() == [1.0, 1.0] and table.certainty.tolist() == [1.0, 1.0]
    assert [table.names[number] for number in table.first] == ["sd2", "flux"]
    assert table.counts["votes_against"] == 1
    soft = read_comparisons(tmp_path / "train.json", TableOptions(soft="votes"))
    assert soft.certainty.tolist() == pytest.approx([7.5 / 10, 3.5 / 10])
    told = read_comparisons(tmp_path / "train.json", TableOptions(soft="confidence"))
    assert told.certainty.tolist() == [0.9, 0.6]
    sure = read_comparisons(tmp_path / "train.json", TableOptions(min_confidence=0.8))
    assert len(sure) == 1 and sure.counts["low_confidence"] == 1


def test_any_table(tmp_path: Path) -> None:
    path = tmp_path / "duels.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["left", "right", "better", "name"])
        for row in ("x y model_a p1", "x y tie p2", "x z z p3", "x y 0 p4", "x y maybe p5"):
            writer.writerow(row.split())
    fields = {"model_a": "left", "model_b": "right", "outcome": "better", "pair_id": "name"}
    table = read_comparisons(path, TableOptions(fields))
    assert table.outcome.tolist() == [1.0, 0.5, 0.0, 0.0], "words, a winner's name, numbers as text"
    assert table.pair_ids(np.arange(4)) == ["p1", "p2", "p3", "p4"]
    assert table.counts["bad_label"] == 1


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = pickapic(700)
    columns["has_label"][3] = False
    whole = read(tmp_path, columns)
    monkeypatch.setattr(arena_rows, "_ROWS", 64)
    parts = read(tmp_path, columns)
    assert parts.fingerprint == whole.fingerprint and parts.counts == whole.counts
    assert parts.row.tolist() == whole.row.tolist() == [n for n in range(700) if n != 3]


def test_redundant_fields_are_compared_and_counted(tmp_path: Path) -> None:
    columns = pickapic(100, ties=0)
    columns["label_1"][0] = columns["label_0"][0]  # both won
    columns["label_0"][1] = 0.7
    columns["best_image_uid"][2] = columns["image_0_uid" if columns["label_0"][2] == 0 else "image_1_uid"][2]
    columns["has_label"][3] = False
    columns["image_1_uid"][4] = columns["image_0_uid"][4]
    columns["are_different"][5] = False
    columns["best_image_uid"][6] = "somebody else's"
    columns["label_0"][7] = columns["label_1"][7] = None
    table = read(tmp_path, columns)
    assert len(table) == 96
    found = {name: count for name, count in table.counts.items() if count}
    assert found["bad_label"] == 2 and found["best_is_loser"] == 1 and found["unlabelled"] == 2
    assert found["labels_differ_from_has_label"] == 1
    # Both pictures of row 4 have one uid, and are said to be different; those of row 5 are, and are said not to be.
    assert found["same_picture"] == 1 and found["are_different"] == 2
    said = " ".join(table.remarks())
    assert "2 of 100 rows: outcomes that are none" in said
    assert "1 of 100 rows: best_image_uid names the loser, or a picture of a tie: the label is believed" in said


def test_one_name_per_model_and_the_raw_ones_kept(tmp_path: Path) -> None:
    columns = {
        "model_a": ["Org/SD XL", "sd-xl/", "SDXL", " org2/sd  xl"],
        "model_b": ["flux", "flux", "flux", "Flux"],
        "outcome": [1, 1, 0, 1],
    }
    table = read(tmp_path, columns, aliases={"sdxl": "sd-xl"})
    assert table.names == ("flux", "sd-xl")
    raw = table.raw_counts
    assert raw["sd-xl"] == {"Org/SD XL": 1, "sd-xl/": 1, "SDXL": 1, " org2/sd  xl": 1}
    assert raw["flux"] == {"flux": 3, "Flux": 1}
    assert canonical_name(None) == canonical_name("  ") == canonical_name("NaN") == UNKNOWN


def test_blank_models_are_counted(tmp_path: Path) -> None:
    columns = {**PAIR, "model_0": ["x", None, " "]}
    table = read(tmp_path, columns)
    assert set(table.names) == {UNKNOWN, "x", "y"}
    assert table.counts["blank_model_a"] == 2 and table.counts["blank_model_b"] == 0
    assert "no model is named: 2 in model_a of 3 rows" in table.remarks()


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    table = read(tmp_path, PAIR)
    (tmp_path / "t.jsonl").write_text(
        "\n".join(json.dumps(dict(zip(PAIR, row, strict=True))) for row in zip(*PAIR.values(), strict=True))
    )
    assert read_comparisons(tmp_path / "t.jsonl").fingerprint == table.fingerprint
    turned = {name: values[::-1] for name, values in PAIR.items()}
    assert read(tmp_path, turned).fingerprint == table.fingerprint, "shards may hold them in another order"
    assert read(tmp_path, {name: values * 2 for name, values in PAIR.items()}).fingerprint != table.fingerprint
    for name, changed in (("label_0", [1.0, 1.0, 0.5]), ("model_1", ["y", "y", "z"])):
        assert read(tmp_path, {**PAIR, name: changed}).fingerprint != table.fingerprint


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column model_b or model_1 or model2 for model_b"):
        read(tmp_path, {"model_0": ["x"], "label_0": [1.0]})
    with pytest.raises(DataError, match="no column outcome or label_0 or winner that says who won"):
        read(tmp_path, {"model_0": ["x"], "model_1": ["y"]})
    with pytest.raises(DataError, match=r"none of 2 rows says who won: 0 have no label, 2 have one .*'left', 'right'"):
        read(tmp_path, {"model_a": ["x", "x"], "model_b": ["y", "y"], "outcome": ["left", "right"]})
    with pytest.raises(DataError, match="no column confidence, which was asked for"):
        read(tmp_path, PAIR, soft="confidence")
    with pytest.raises(DataError, match=r"1 confidences .* outside \[0, 1\], the first is 1.5"):
        read(tmp_path, {**PAIR, "confidence": [0.5, 1.5, 1.0]}, soft="confidence")
    with pytest.raises(FileNotFoundError, match="there is no"):
        read_comparisons(tmp_path / "nothing.json")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_comparisons(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="soft is one of"):
        TableOptions(soft="maybe")  # type: ignore[arg-type]


def test_a_split_must_be_chosen(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}-00000-of-00001.parquet", pickapic(20, seed=len(split)))
    with pytest.raises(DataError, match="has the splits test, train: choose one with --split"):
        read_comparisons(tmp_path)
    assert read_comparisons(tmp_path, TableOptions(split="train")).counts["rows"] == 20


def test_votes_are_the_winners_whoever_stands_first(tmp_path: Path) -> None:
    columns = {**PAIR, "votes": [[7, 3], [2, 8], [5, 5]]}
    assert read(tmp_path, columns, soft="votes").certainty.tolist() == pytest.approx([7.5 / 11, 8.5 / 11, 1.0])
    some = read(tmp_path, {**columns, "label_0": [1.0, 0.0, 1.0], "votes": [None, [0, 0], [7, 3]]}, soft="votes")
    assert some.certainty.tolist() == pytest.approx([1, 1, 7.5 / 11])
    assert (
        "2 of 3 rows: confidence or votes are missing or unreadable: the outcome is taken as certain" in some.remarks()
    )
    with pytest.raises(DataError, match=r"none of 2 outcomes has votes, two numbers .* \(--fields votes=COLUMN\)"):
        read(tmp_path, {**columns, "votes": [None, [0, 0], [1]]}, soft="votes")
    part = read(tmp_path, {**PAIR, "confidence": [0.9, None, None]}, soft="confidence")
    assert part.certainty.tolist() == [0.9, 1, 1] and part.counts["no_certainty"] == 1, "a tie needs no confidence"


def test_votes_of_tables_of_text_and_of_mappings(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('model_a,model_b,outcome,votes\nx,y,a,"[7, 2]"\ny,x,b,"[7, 2, 1]"\n')
    table = read_comparisons(tmp_path / "t.csv", TableOptions(soft="votes"))
    assert table.certainty.tolist() == [0.75, 1.0] and table.counts["no_certainty"] == 1
    rows = [{"model_a": "x", "model_b": "y", "outcome": 1, "votes": {"a": 3, "b": [1]}}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert len(read_comparisons(tmp_path / "t.json")) == 1, "what is not asked for is not in the way"


def test_winners_that_can_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    def table(*lines: str) -> Comparisons:
        (tmp_path / "t.csv").write_text("\n".join(("model_a,model_b,winner", *lines)))
        return read_comparisons(tmp_path / "t.csv")

    assert table("x,y,x", "y,x,x", "y,x,tie", "y,x,b").outcome.tolist() == [1.0, 0.0, 0.5, 0.0], "names and sides"
    with pytest.raises(DataError, match=r"1 outcomes can be read in two ways, the first is 'a' of 'b' against 'a'"):
        table("x,y,x", "b,a,a")
    with pytest.raises(DataError, match=r"'1' of '3' against '1'"):
        table("3,1,1")
    with pytest.raises(DataError, match=r"2 values of the column winner are numbers: does 1 mean .* outcome=winner"):
        table("x,y,1", "x,y,0")
    assert read_comparisons(tmp_path / "t.csv", TableOptions({"outcome": "winner"})).outcome.tolist() == [1.0, 0.0]
    numbers = {"model_0": [0, 1], "model_1": [1, 0], "label_0": [1.0, 0.0]}
    assert read(tmp_path, numbers).outcome.tolist() == [1.0, 0.0], "a label is never a name"


def test_models_of_several_owners_are_told(tmp_path: Path) -> None:
    columns = {**PAIR, "model_0": ["org/x", "other/x", "x"]}
    (remark,) = read(tmp_path, columns).remarks()
    assert remark == "1 models are annotated with several owners and count as one each: x"
    assert not read(tmp_path, {**PAIR, "model_0": ["org/x", "Org/x", "x"]}).remarks()


def test_many_votes_say_more_than_few(tmp_path: Path) -> None:
    columns = {**PAIR, "label_0": [1.0] * 3, "votes": [[1, 0], [2, 1], [20, 10]]}
    one, three, thirty = read(tmp_path, columns, soft="votes").certainty.tolist()
    assert one == 0.75, "a single vote is not certain"
    assert three == 0.625 and thirty == pytest.approx(20.5 / 31), "the same share of more votes says more"
    even = read(tmp_path, {**columns, "votes": [[3, 3]] * 3}, soft="votes")
    assert even.certainty.tolist() == [0.5] * 3 and not even.counts["votes_against"]
