"""The sets of the embedded world: the same bytes for the same options, true captions, answers and winners."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gen.cli import main
from lightning_gen.data.edits import EditPairsDataModule
from lightning_gen.data.images import ImageDataModule
from lightning_gen.data.preferences import PreferenceDataModule
from lightning_gen.data.synth import SynthOptions
from lightning_gen.shapes.detector import ShapesDetector
from lightning_gen.shapes.edits import apply_edit
from lightning_gen.shapes.grammar import parse_prompt
from lightning_gen.shapes.render import render
from lightning_gen.shapes.scene import Scene
from lightning_gen.shapes.vocabulary import KINDS

NAMES = ("shapes", "shapes_preference", "shapes_edits")


def samples(name: str, **options: Any) -> Iterator[tuple[str, dict[str, bytes]]]:
    # Imported here: importing it adds to the table over which other tests run.
    from lightning_gen.shapes.synth import SETS

    return SETS[name].samples(SynthOptions(**{"size": 32, "count": 24, **options}))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_options_give_the_same_bytes(name: str) -> None:
    assert list(samples(name)) == list(samples(name))
    assert list(samples(name)) != list(samples(name, seed=1))
    longer = dict(samples(name, count=26))
    assert all(longer[key] == fields for key, fields in samples(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_writes_them_and_the_data_modules_read_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "synth", name, "set", "--count", "24", "--size", "32"]) == 0
    truth = json.loads(Path("set/truth.json").read_text())
    assert truth["kind"] == name
    module = {"shapes": ImageDataModule, "shapes_preference": PreferenceDataModule, "shapes_edits": EditPairsDataModule}
    data = module[name]("set", resolution=32, global_batch_size=8, flip_probability=0.0)
    assert len(next(iter(data.train_loader()))) == 8
    if name == "shapes":
        assert len(truth["rare"]["pairs"]) == 12
        assert truth["tags"]["counting"] == 0.2
    if name == "shapes_preference":
        assert set(truth["fault_probability"]) == set(truth["strengths"])


def test_pictures_show_their_captions() -> None:
    from lightning_gen.data.decode import decode

    words = 0
    for _, fields in samples("shapes", count=160):
        record = json.loads(fields["json"])
        request = parse_prompt(record["caption"])
        assert record["metadata"] == request.metadata()
        assert record["specification"]["prompt"] == fields["txt"].decode() == record["caption"]
        scene = Scene.from_json(record["scene"])
        image = torch.from_numpy(np.array(decode(fields["jpg"]))).permute(2, 0, 1)
        assert float((image.float() - render(scene, (32, 32)).float()).abs().mean()) < 4
        if not request.word:
            (found,) = ShapesDetector()(image[None].float() / 255, KINDS)
            assert sorted(found.classes) == sorted(one.kind for one in scene.objects)
            assert int(fields["cls"]) == record["label"] == KINDS.index(scene.objects[0].kind)
        else:
            words += 1
            assert "cls" not in fields
            assert "label" not in record
    assert words


def test_edits_have_true_answers_and_partners() -> None:
    from lightning_gen.data.decode import decode

    found = {key: (fields, json.loads(fields["json"])) for key, fields in samples("shapes_edits")}
    assert len({record["task"] for _, record in found.values()}) >= 4
    for key, (fields, record) in found.items():
        scene = Scene.from_json(record["scene"])
        answer = apply_edit(record["edit"], scene)
        assert answer == Scene.from_json(record["answer"])
        for field, drawn in (("src.png", scene), ("tgt.png", answer)):
            assert np.array_equal(np.array(decode(fields[field])), render(drawn, (32, 32)).permute(1, 2, 0).numpy())
        partner = found[record["partner"]][1]
        assert (partner["partner"], partner["instruction"]) == (key, record["instruction"])
        assert (partner["edit"], partner["scene"] != record["scene"]) == (record["edit"], True)


def test_pairs_have_models_labels_and_prompts() -> None:
    labels = set()
    for _, fields in samples("shapes_preference", count=60, ties=0.3):
        record = json.loads(fields["json"])
        labels.add(record["label_0"])
        assert record["model_0"] != record["model_1"]
        assert fields["0.jpg"] != fields["1.jpg"]
        assert parse_prompt(record["caption"]).metadata() == record["metadata"]
    assert labels == {0.0, 0.5, 1.0}


def test_pictures_that_are_too_small_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        raise SystemExit(main(["data", "synth", "shapes", str(tmp_path / "set"), "--size", "16"]))
    assert "32 x 32 pixels or more" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
