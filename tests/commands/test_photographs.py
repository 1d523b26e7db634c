"""Packing: the split is a file, nothing leaks from one side to the other, and bytes stay what they are."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

import lightning_gen
from lightning_gen.cli import main
from lightning_gen.commands.photographs import SHARDS, Photograph, pack_photographs, photographs
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.shards import IndexedShards

ROOT = Path(lightning_gen.__file__).parent.parent


@pytest.fixture
def installed():
    for photograph in photographs():
        pytest.importorskip(photograph.module)


def test_split_is_the_file_of_the_repository():
    with (ROOT / "data/photographs/split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line._asdict() for line in photographs()] == rows
    assert {line.split for line in photographs()} == {"train", "val"}
    assert len({line.key for line in photographs()}) == len(rows) == 11
    assert len({(line.module, line.file) for line in photographs()}) == len(rows)


def test_stereo_pictures_are_on_one_side():
    sides = {line.split for line in photographs() if line.key.startswith("motorcycle")}
    assert sides == {"train"}
    assert {line.key for line in photographs("val")} == {"chelsea", "astronaut", "flower"}


def test_bytes_pass_through(installed, tmp_path):
    packed = pack_photographs(tmp_path)
    for folder in packed:
        shards = IndexedShards(Manifest.load(folder / "manifest.json"))
        lines = photographs(folder.name)
        assert shards.manifest.total == len(lines)
        for index, line in enumerate(lines):
            assert shards.key(index) == line.key
            sample = shards[index]
            ending = line.path().suffix[1:]
            assert set(sample) == {ending, "json"}
            assert sample[ending] == line.path().read_bytes()


def test_packing_again_gives_the_same_shards(installed, tmp_path):
    def contents():
        return {path.name: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}

    pack_photographs(tmp_path)
    first = contents()
    pack_photographs(tmp_path)
    assert contents() == first


def test_pack_alone(installed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--pack"]) == 0
    assert Manifest.load(SHARDS / "train" / "manifest.json").total == 8
    assert not Path("runs").exists()
    assert "photographs packed" in capsys.readouterr().out


def test_recipe_reads_what_is_packed():
    recipe = (ROOT / "configs/vitok_v2_tiny.yaml").read_text()
    for split in ("train", "val"):
        assert f"{split}: {SHARDS.as_posix()}/{split}\n" in recipe


@pytest.mark.parametrize("missing", ["skimage", "sklearn"])
def test_missing_extra(missing, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    monkeypatch.chdir(tmp_path)
    if find("sklearn" if missing == "skimage" else "skimage") is None:
        pytest.skip("needs the other package")
    with pytest.raises(SystemExit) as end:
        main(["demo"])
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert 'pip install "lightning-gen[demo]"' in message
    assert "scikit-" in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_package_without_the_picture(installed):
    with pytest.raises(FileNotFoundError, match=r"scikit-image \S+ comes without data/gone.png"):
        Photograph("gone", "train", "scikit-image", "skimage", "data/gone.png").path()
