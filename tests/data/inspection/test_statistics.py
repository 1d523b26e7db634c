"""Counts of data sets, and the pictures of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_gen.data.inspection.statistics import PairStatistics, gather_statistics
from lightning_gen.data.inspection.statistics_pictures import draw_statistics
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.synth import SynthOptions, write_synthetic
from lightning_gen.data.writing import write_shards
from tests.data.samples import encoded, picture, shards


def pair(number: int, label: object, models: tuple[str, str] | None = ("a", "b")) -> tuple[str, dict[str, bytes]]:
    record = {"caption": "x" * number, "label_0": label}
    if models is not None:
        record |= {"model_0": models[0], "model_1": models[1]}
    data = encoded(picture(number))
    return f"k{number}", {"0.png": data, "1.png": data, "json": json.dumps(record).encode()}


def test_pairs_are_counted(tmp_path: Path) -> None:
    labels = [(1, ("a", "b")), (0, ("a", "b")), (0, ("b", "a")), (0.5, ("a", "c")), (1, None), ("left", ("a", "b"))]
    found = gather_statistics(write_shards((pair(n, *one) for n, one in enumerate(labels)), tmp_path))
    assert found.pairs is not None
    assert dict(found.pairs.labels) == {1.0: 2, 0.0: 2, 0.5: 1}
    assert found.unreadable == 1
    assert found.pairs.models() == ["a", "c", "b"]
    rates, games = found.pairs.wins(["a", "b", "c"])
    assert rates[0, 1] == pytest.approx(2 / 3)
    assert rates[1, 0] == pytest.approx(1 / 3)
    assert rates[0, 2] == rates[2, 0] == 0.5
    assert np.isnan(rates[1, 2])
    assert games.tolist() == [[0, 3, 1], [3, 0, 0], [1, 0, 0]]
    assert found.pairs.models(most=2) == ["a", "b"], "those with the most pairs"
    data = found.to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["labels"] == {"0": 2, "0.5": 1, "1": 2}
    assert data["win_rate"][0][0] is None
    assert data["sizes"]["0"]["pictures"] == 6


def test_classes_sizes_and_fields_are_counted(tmp_path: Path) -> None:
    found = gather_statistics(shards(tmp_path, 21, 6))
    assert dict(found.classes) == {0: 5, 1: 4, 2: 4, 3: 4, 4: 4}
    assert found.class_entropy == pytest.approx(np.log(5), rel=0.01)
    assert dict(found.fields) == {"cls": 21, "json": 21, "png": 21}
    assert sorted(map(tuple, found.sizes[""].tolist())) == sorted(
        (picture(n).height, picture(n).width) for n in range(21)
    )
    assert found.pairs is None
    assert found.unknown_sizes == 0


def test_no_pixel_is_decoded_and_pictures_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = shards(tmp_path, 12, 6)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a whole sample was read")

    monkeypatch.setattr("lightning_gen.data.shards.IndexedShards.__getitem__", never)
    monkeypatch.setattr("PIL.Image.open", never)
    assert sum(gather_statistics(manifest).classes.values()) == 12


def test_what_cannot_be_read_is_counted_not_hidden(tmp_path: Path) -> None:
    samples = [("a", {"png": b"broken", "json": b"{}"}), ("b", {"png": encoded(picture(1)), "json": b"{"})]
    found = gather_statistics(write_shards([*samples, ("c", {"json": b"[1]"})], tmp_path))
    assert (found.unknown_sizes, found.unreadable) == (1, 2)
    assert found.to_json()["sizes"]["picture"]["pictures"] == 1


def test_shards_that_are_gone_are_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 24, 6)
    manifest.tar_path(0).unlink()
    manifest.tar_path(2).write_bytes(manifest.tar_path(2).read_bytes()[:-512])
    manifest.idx_path(3).write_bytes(b"damaged")
    found = gather_statistics(manifest)
    assert sum(found.classes.values()) == found.fields["json"] == 6
    assert found.unreadable == 0, "it is the shard that cannot be read"
    for sentence, words in zip(
        found.damaged,
        (
            "train-000000.tar is missing",
            "the manifest says",
            "train-000003.idx has other content than the manifest says",
        ),
        strict=True,
    ):
        assert words in sentence
        assert sentence.endswith("not all of its 6 samples are counted")


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("preference", ["labels.png", "sizes.png", "wins.png"]),
        ("imagenet", ["labels.png", "sizes.png"]),
        ("edits", ["labels.png", "sizes.png"]),
        ("text_image", ["sizes.png"]),
    ],
)
def test_pictures_show_something(tmp_path: Path, kind: str, files: list[str]) -> None:
    write_synthetic(kind, tmp_path / "set", SynthOptions(count=30, size=16))
    found = gather_statistics(Manifest.load(tmp_path / "set" / "manifest.json"))
    written = draw_statistics(found, tmp_path / "out")
    assert sorted(path.name for path in written) == files
    for path in written:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 5, "an empty sheet"


def test_the_win_matrix_has_a_row_per_model_and_the_better_one_first() -> None:
    pairs = PairStatistics(meetings={("weak", "strong"): (10, 1.0), ("strong", "middle"): (10, 7.0)})
    assert pairs.models() == ["strong", "middle", "weak"]
