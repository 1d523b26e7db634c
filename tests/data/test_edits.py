"""Edit pairs: one crop and one mirror for both pictures, tasks kept apart, frames that do not match left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_gen.data.edits import EditFields, EditPairsDataModule
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.writing import write_shards
from tests.data import kinds
from tests.data.samples import encoded, picture


def test_both_pictures_are_cropped_and_mirrored_alike(tmp_path: Path) -> None:
    made = kinds.edits(tmp_path)
    mirrored = set[bool]()
    for k in range(2):
        for batch in made.train_loader(k):
            # The target of `kinds.edit` is the source with its channels in the reverse order.
            assert np.array_equal(batch.target.images.numpy(), batch.source.images.numpy()[:, ::-1])
            assert batch.source.crop_top_left.equal(batch.target.crop_top_left)
            for row, number in enumerate(batch.source.index.tolist()):
                assert batch.source.caption[row] == f"swap {number}" and batch.task[row] == f"task {number % 4}"
            draws = made._recipe("train").draws(0, batch.source.epoch, batch.source.index.tolist())
            assert draws is not None
            mirrored |= set((draws[:, 2] < 0.5).tolist())
    assert mirrored == {True, False}


def test_unseen_tasks_never_reach_training(tmp_path: Path) -> None:
    made = kinds.edits(tmp_path)
    tasks = {task for k in range(3) for batch in made.train_loader(k) for task in batch.task}
    assert tasks == {"task 0", "task 1", "task 2"}
    assert {task for batch in made.evaluation_loader("val") for task in batch.task} == tasks | {"task 3"}


def edit_of(source: Image.Image, target: Image.Image, number: int) -> tuple[str, dict[str, bytes]]:
    record = json.dumps({"task": "t", "instruction": "i"}).encode()
    return f"e{number}", {"src.png": encoded(source), "tgt.jpg": encoded(target, "JPEG"), "json": record}


def test_frames_of_other_ratios_are_left_out_and_other_sizes_are_resampled(tmp_path: Path) -> None:
    samples = [edit_of(picture(n, (40, 60)), picture(n, (80, 120)), n) for n in range(6)]
    samples += [edit_of(picture(n, (40, 60)), picture(n, (40, 63)), n) for n in range(6, 9)]
    write_shards(samples, tmp_path)
    made = EditPairsDataModule(str(tmp_path), resolution=24, global_batch_size=2)
    batches = list(made.train_loader(0))
    assert sorted(int(n) for batch in batches for n in batch.source.index) == list(range(6))
    for batch in batches:
        assert (batch.source.images - batch.target.images).abs().mean() < 0.1
    wide = EditPairsDataModule(str(tmp_path), resolution=24, global_batch_size=3, max_ratio_gap=0.1)
    assert len(list(wide.train_loader(0))) == 3
    loose = EditPairsDataModule(None, str(tmp_path), resolution=24, global_batch_size=3, max_bad_fraction=1.0)
    valid = [ok for batch in loose.evaluation_loader() for ok in batch.source.valid.tolist()]
    assert valid.count(True) == 6  # pairs that do not match are left out of an evaluation too


def test_missing_pictures_and_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"found src\.png, json"):
        EditFields()({"src.png": b"", "json": b"{}"})
    write_shards([edit_of(picture(n), picture(n), n) for n in range(3)], tmp_path)
    made = EditPairsDataModule(str(tmp_path), resolution=16, global_batch_size=1, unseen_tasks=("t",))
    with pytest.raises(DataError, match="none of 3 edit pairs is left"):
        made.train_loader()
