"""Synthetic sets: the same every time, read by everything, and what is said to be true of them is."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gen.data.decode import decode
from lightning_gen.data.edits import EditFields
from lightning_gen.data.finding import find_manifest
from lightning_gen.data.inspection.statistics import gather_statistics
from lightning_gen.data.inspection.verifying import verify
from lightning_gen.data.preferences import PreferenceFields
from lightning_gen.data.synth import KINDS, LAYOUTS, Kind, SynthOptions, register, write_synthetic
from lightning_gen.data.synth.drawing import Scene
from lightning_gen.data.synth.edits import EDITS, apply_edit
from lightning_gen.data.synth.preference import STRENGTHS
from tests.data.conversions import content, read, records, run


def pair_of(kind: str, **words: Any) -> list[dict[str, Any]]:
    return [json.loads(fields["json"]) for _, fields in KINDS[kind].samples(SynthOptions(size=16, **words))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_options_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_synthetic(kind, tmp_path / name, SynthOptions(count=12, size=32, seed=seed), per_file=5)
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")
    manifest = find_manifest(tmp_path / "a")
    assert [shard.num_samples for shard in manifest.shards] == [5, 5, 2]
    assert verify(manifest, samples=None) == []
    # A longer set begins with a shorter one.
    longer = dict(KINDS[kind].samples(SynthOptions(count=14, size=32)))
    shorter = dict(KINDS[kind].samples(SynthOptions(count=12, size=32)))
    if kind != "edits":
        assert {key: longer[key] for key in shorter} == shorter


def test_winners_follow_the_strengths_that_are_written_down(tmp_path: Path) -> None:
    options = SynthOptions(count=4000, size=16, ties=0.2)
    assert len(STRENGTHS) >= 3
    found = pair_of("preference", count=4000, ties=0.2)
    assert sum(record["label_0"] == 0.5 for record in found) / 4000 == pytest.approx(0.2, abs=0.03)
    wins, games = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for record in found:
        if record["label_0"] != 0.5:
            pair = record["model_0"], record["model_1"]
            games[pair] += 1
            wins[pair] += int(record["label_0"])
    truth = KINDS["preference"].truth(options)["strengths"]
    assert len(games) == len(truth) * (len(truth) - 1), "every model meets every other on either side"
    for (first, second), number in games.items():
        chance = 1 / (1 + math.exp(truth[second] - truth[first]))
        assert wins[first, second] / number == pytest.approx(chance, abs=4 * math.sqrt(0.25 / number))


def test_without_noise_the_stronger_model_wins(tmp_path: Path) -> None:
    for record in pair_of("preference", count=200, noise=0, ties=0):
        assert record["label_0"] == float(STRENGTHS[record["model_0"]] > STRENGTHS[record["model_1"]])


def test_a_weaker_model_paints_more_grain() -> None:
    rough: dict[str, list[float]] = {name: [] for name in STRENGTHS}
    for _, fields in KINDS["preference"].samples(SynthOptions(count=60, size=48)):
        record = json.loads(fields["json"])
        for stem in "01":
            pixels = np.asarray(decode(fields[f"{stem}.jpg"]), np.float32)
            rough[record[f"model_{stem}"]].append(float(np.abs(np.diff(pixels, axis=1)).mean()))
    means = [np.mean(rough[name]) for name in sorted(STRENGTHS, key=STRENGTHS.__getitem__)]
    assert means == sorted(means, reverse=True)


def test_hpdv3_puts_the_preferred_picture_first() -> None:
    for record in pair_of("hpdv3", count=100):
        assert record["label_0"] == 1.0
        assert record["choice_dist"][0] > record["choice_dist"][1]
        assert record["confidence"] == pytest.approx(record["choice_dist"][0] / sum(record["choice_dist"]))


def test_classes_are_all_there_and_have_patterns_of_their_own() -> None:
    pictures: dict[int, list[Any]] = {}
    for _, fields in KINDS["imagenet"].samples(SynthOptions(count=40, size=32, classes=3)):
        label = int(fields["cls"])
        assert json.loads(fields["json"])["label"] == label
        grey = np.asarray(decode(fields["jpg"]).convert("L"), np.float32)[:32, :32]
        pictures.setdefault(label, []).append(np.abs(np.fft.rfft2(grey - grey.mean())))
    assert set(pictures) == {0, 1, 2}
    means = {label: np.mean(spectra, axis=0) for label, spectra in pictures.items()}
    right = sum(
        min(means, key=lambda other: np.linalg.norm(means[other] / means[other].sum() - one / one.sum())) == label
        for label, spectra in pictures.items()
        for one in spectra
    )
    assert right >= 36, "the mean spectrum of a class finds its pictures"


def test_the_answer_of_an_edit_can_be_computed_for_any_scene() -> None:
    samples = list(KINDS["edits"].samples(SynthOptions(count=40, size=32)))
    seen = set()
    for key, fields in samples:
        record = json.loads(fields["json"])
        stored = EditFields()(fields)
        seen.add(record["task"])
        answer = np.asarray(apply_edit(Scene.from_json(record["scene"]), record["edit"]))
        assert np.array_equal(answer, np.asarray(decode(stored.target)))
        assert not np.array_equal(np.asarray(decode(stored.source)), answer), "every edit changes something"
        partner = json.loads(dict(samples)[record["partner"]]["json"])
        assert partner["partner"] == key
        assert (partner["edit"], partner["instruction"]) == (record["edit"], record["instruction"])
        assert partner["scene"] != record["scene"]
    assert seen == set(EDITS)
    with pytest.raises(ValueError, match="there is no edit 'fold'"):
        apply_edit(Scene.from_json(record["scene"]), {"kind": "fold"})


def test_captions_name_what_is_drawn() -> None:
    for _, fields in KINDS["text_image"].samples(SynthOptions(count=20, size=32)):
        record = json.loads(fields["json"])
        assert fields["txt"].decode() == record["caption"]
        assert all(f"{shape['colour']} {shape['kind']}" in record["caption"] for shape in record["scene"]["shapes"])


@pytest.mark.parametrize(
    ("kind", "layout", "source"),
    [
        ("preference", "parquet", "parquet"), ("preference", "hpdv3", "hpdv3"), ("preference", "folder", "csv"),
        ("hpdv3", "hpdv3", "hpdv3"), ("imagenet", "folder", "imagefolder"), ("imagenet", "parquet", "parquet"),
        ("text_image", "folder", "csv"), ("text_image", "parquet", "parquet"), ("edits", "folder", "editfolders"),
        ("edits", "parquet", "parquet"), ("edits", "shards", "wds"), ("text_image", "shards", "wds"),
    ],
)  # fmt: skip
def test_convert_brings_every_layout_back(tmp_path: Path, kind: str, layout: str, source: str) -> None:
    options = SynthOptions(count=20, size=16, ties=0.0 if layout == "hpdv3" else 0.2)
    write_synthetic(kind, tmp_path / "raw", options, layout, per_file=9)
    words = {"classes": True} if source == "imagefolder" else {}
    manifest = run(source, tmp_path / "raw", tmp_path / "out", **words).manifest
    before = {fields["json"]: fields for _, fields in KINDS[kind].samples(options)}
    pictures = {data for fields in before.values() for name, data in fields.items() if name.endswith(("jpg", "png"))}
    after = [
        data for fields in read(manifest).values() for name, data in fields.items() if name.endswith(("jpg", "png"))
    ]
    assert manifest.total == 20
    assert set(after) == pictures
    if "label_0" in records(manifest)[0]:
        for fields in read(manifest).values():
            won = PreferenceFields()(fields)
            known = next(one for one in before.values() if won.winner in one.values())
            assert PreferenceFields()(known).winner == won.winner
            assert PreferenceFields()(known).models == won.models


def test_the_truth_lies_beside_the_set_and_statistics_find_it(tmp_path: Path) -> None:
    write_synthetic("preference", tmp_path, SynthOptions(count=400, size=16, noise=0.5), flaws=3)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert (truth["kind"], truth["options"]["noise"], truth["flaws"]) == ("preference", 0.5, 3)
    pairs = gather_statistics(find_manifest(tmp_path)).pairs
    assert pairs is not None
    assert pairs.models() == sorted(truth["strengths"], key=truth["strengths"].get, reverse=True)


def test_nothing_of_anybody_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("chapter 1")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is not empty"):
            write_synthetic("edits", tmp_path / "mine", SynthOptions(count=2), overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    write_synthetic("edits", tmp_path / "set", SynthOptions(count=2))
    with pytest.raises(FileExistsError, match="or --overwrite for a synthetic set"):
        write_synthetic("edits", tmp_path / "set", SynthOptions(count=3))
    write_synthetic("edits", tmp_path / "set", SynthOptions(count=3), overwrite=True)
    assert find_manifest(tmp_path / "set").total == 3


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    for wrong in ({"count": 0}, {"size": 8}, {"classes": 1}, {"ties": 1.0}, {"noise": -1.0}):
        with pytest.raises(ValueError, match="got"):
            SynthOptions(**wrong)
    with pytest.raises(ValueError, match="no synthetic set 'x'"):
        write_synthetic("x", tmp_path, SynthOptions())
    with pytest.raises(ValueError, match="--as x: known are shards"):
        write_synthetic("edits", tmp_path, SynthOptions(), "x")
    with pytest.raises(ValueError, match="writes preference pairs, edits has none"):
        write_synthetic("edits", tmp_path / "new", SynthOptions(), "hpdv3")
    assert not (tmp_path / "new").exists()
    assert set(LAYOUTS) == {"shards", "parquet", "hpdv3", "folder"}


def test_another_room_adds_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gen.data.synth.kinds.KINDS", table := dict(KINDS))
    monkeypatch.setattr("lightning_gen.data.synth.layouts.KINDS", table)
    mine = Kind("mine", lambda options: iter([("a", {"txt": b"x", "json": b"{}"})]), lambda options: {"answer": 42})
    register("mine", mine)
    assert write_synthetic("mine", tmp_path, SynthOptions())["answer"] == 42
    assert find_manifest(tmp_path).total == 1
    with pytest.raises(ValueError, match="there is a synthetic set 'mine' already"):
        register("mine", mine)
