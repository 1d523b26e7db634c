"""Data sets that lack what every one of their samples should have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_gen.data.checks import require_labels
from lightning_gen.data.imagenet import ImageNetDataModule
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import PictureFields, ShardSource
from lightning_gen.data.writing import write_shards
from tests.data.samples import encoded, picture


def source(folder: Path, labels: list[dict[str, bytes]]) -> ShardSource[Any]:
    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for number, fields in enumerate(labels):
            yield f"s{number:05d}", {"png": encoded(picture(number)), **fields}

    manifest: Manifest = write_shards(samples(), folder, name="train", max_samples=5)
    return ShardSource(IndexedShards(manifest), PictureFields(1000))


NONE: dict[str, bytes] = {"json": json.dumps({"height": 3}).encode()}
LABELS: list[dict[str, bytes]] = [{"cls": b"3"}, {"cls.txt": b"3"}, {"json": b'{"label": 3}'}]


def test_shards_without_labels_are_refused(tmp_path: Path) -> None:
    unlabelled = source(tmp_path, [NONE] * 9)
    with pytest.raises(DataError, match=r"data\.val: .* first 8 samples \(key s00000 of train.* Use ShardDataModule"):
        require_labels(unlabelled, "val")


@pytest.mark.parametrize("label", LABELS)
def test_one_label_of_any_kind_is_enough(tmp_path: Path, label: dict[str, bytes]) -> None:
    labelled = source(tmp_path, [NONE, NONE, label])
    require_labels(labelled, "train")
    assert labelled.read(2).label == 3
    with pytest.raises(DataError, match="none of the first 2 samples"):
        require_labels(labelled, "train", samples=2)


def test_a_bad_sample_is_not_taken_for_a_missing_label(tmp_path: Path) -> None:
    spoiled = source(tmp_path, [{"cls": b"dog"}, NONE])
    require_labels(spoiled, "train")
    with pytest.raises(SampleError, match="not a class number"):
        spoiled.read(0)


def test_imagenet_says_so_before_anything_is_decoded(tmp_path: Path) -> None:
    """Training shards with labels, validation shards without."""
    source(tmp_path / "train", [LABELS[0]] * 9)
    source(tmp_path / "val", [NONE] * 9)
    module = ImageNetDataModule(train=str(tmp_path / "train"), tokens=64, global_batch_size=2)
    module.prepare_data()
    module = ImageNetDataModule(str(tmp_path / "train"), str(tmp_path / "val"), tokens=64, global_batch_size=2)
    with pytest.raises(DataError, match=r"data\.val: the shards have no labels"):
        module.prepare_data()


def test_other_sources_are_not_judged() -> None:
    class Unread:
        def read(self, index: int) -> Any:
            raise AssertionError(f"sample {index} was looked at")

        def __len__(self) -> int:
            return 9

    require_labels(Unread(), "train")  # type: ignore[arg-type]
    assert not isinstance(Unread(), ShardSource)
