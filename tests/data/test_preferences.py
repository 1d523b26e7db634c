"""Preference pairs: the winner comes first, ties and unsure or mismatched pairs are left out and counted."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gen.data.batches import PreferenceBatch
from lightning_gen.data.pixels import Framing
from lightning_gen.data.preferences import PickAPicDataModule, PreferenceDataModule, PreferenceFields
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.data.writing import write_shards
from tests.data import kinds
from tests.data.samples import encoded, picture


def fields(**record: Any) -> dict[str, bytes]:
    return {"0.jpg": b"first", "1.jpg": b"second", "json": json.dumps(record).encode()}


def test_label_zero_means_that_picture_one_won() -> None:
    parse = PreferenceFields()
    won = parse(fields(label_0=1.0, model_0="a", model_1="b", caption="c", gap=0.5))
    assert (won.winner, won.loser, won.models, won.preference, won.gap) == (b"first", b"second", ("a", "b"), 1.0, 0.5)
    lost = parse(fields(label_0=0.0, model_0="a", model_1="b", gap=0.5))
    assert (lost.winner, lost.loser, lost.models, lost.gap) == (b"second", b"first", ("b", "a"), -0.5)
    tie = parse(fields(label_0=0.5, confidence=0.9))
    assert (tie.winner, tie.preference) == (b"first", 0.5)
    sure = parse(fields(label_0=0, confidence=0.75))
    assert (sure.winner, sure.preference, sure.weight) == (b"second", 0.75, 1.0)
    assert math.isnan(sure.gap)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"caption": "x"}, "no label_0, only caption"),
        ({"label_0": 0.3}, r"label_0 is 0\.3"),
        ({"label_0": True}, "label_0 is True"),
        ({"label_0": "1"}, "label_0 is '1'"),
        ({"label_0": 1, "confidence": "high"}, "confidence in json is 'high'"),
        ({"label_0": 1, "model_0": 3}, "model_0 in json is 3"),
    ],
)
def test_records_without_a_meaning_are_bad_samples(record: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        PreferenceFields()(fields(**record))


def test_a_pair_needs_both_pictures() -> None:
    with pytest.raises(SampleError, match=r"found 0\.jpg, json"):
        PreferenceFields()({"0.jpg": b"", "json": b"{}"})


def test_batches_hold_the_winner_first(tmp_path: Path) -> None:
    made = kinds.pick_a_pic(tmp_path, random_crop=False, flip_probability=0.0)
    for batch in made.train_loader(0):
        assert isinstance(batch, PreferenceBatch)
        for row, number in enumerate(batch.winner.index.tolist()):
            label = (1.0, 0.0, 0.5, 1.0)[number % 4]
            first = 2 * number if label == 1.0 else 2 * number + 1
            assert label != 0.5 and number % 7
            size = kinds.WIDE if number % 3 else kinds.TALL
            shape = tuple(batch.winner.images.shape[2:])
            assert (size[0] < size[1]) == (shape[0] < shape[1])
            winner = signed_to_uint8(batch.winner.images[row]).permute(1, 2, 0).numpy()
            assert tuple(batch.winner.original_size[row].tolist()) == size
            stored = Framing().decode(encoded(picture(first, size)), shape)
            assert np.array_equal(winner, Framing().frame(stored, shape, None).pixels.numpy())
            assert batch.winner.caption[row] == f"prompt {number}"
            names = kinds.MODELS[number % 3], kinds.MODELS[(number + 1) % 3]
            assert batch.models[row] == (names if label == 1.0 else names[::-1])
            assert batch.gap[row].item() == pytest.approx(number / 10 * (1 if label == 1.0 else -1))


def test_the_winner_decides_the_bucket(tmp_path: Path) -> None:
    wide, tall = encoded(picture(0, kinds.WIDE)), encoded(picture(1, kinds.TALL))
    labels = (1.0, 0.0, 0.5, 0, 1)
    records = [json.dumps({"label_0": label, "caption": "c"}).encode() for label in labels]
    pairs = [(f"p{n}", {"0.png": wide, "1.png": tall, "json": record}) for n, record in enumerate(records)]
    write_shards(pairs, tmp_path)
    options = {"resolution": 32, "global_batch_size": 1, "bucket_step": 8, "max_ratio_gap": 9.0, "ties": "keep"}
    made = PreferenceDataModule(str(tmp_path), **options)
    source = made._set("train").source
    expected = [kinds.WIDE if label >= 0.5 else kinds.TALL for label in labels]
    assert source.sizes(np.arange(5)).tolist() == [list(size) for size in expected]
    assert source.sizes(np.array([3, 0])).tolist() == [list(kinds.TALL), list(kinds.WIDE)]
    for batch in made.train_loader():
        height, width = batch.winner.images.shape[2:]
        assert (height > width) == (labels[int(batch.winner.index[0])] < 0.5)


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning_gen.data.preferences"):
        made = kinds.pick_a_pic(tmp_path, min_confidence=0.7)
        used = {int(n) for batch in made.train_loader(0) for n in batch.winner.index}
    numbers = range(44)
    assert used <= {n for n in numbers if n % 4 != 2 and n % 7 and 0.5 + n % 10 / 20 >= 0.7}
    assert "11 of 44 pairs are left out: ties" in caplog.text
    assert "20 of 44 pairs are left out: pairs with confidence below 0.7" in caplog.text
    assert "7 of 44 pairs are left out: pairs whose shapes differ by more than 10%" in caplog.text


def test_a_confidence_of_a_half_says_as_little_as_a_tie(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning_gen.data.preferences"):
        made = kinds.pick_a_pic(tmp_path)
        batches = list(made.train_loader(0))
    assert "5 of 44 pairs are left out: pairs with confidence 0.5, which says nothing" in caplog.text
    assert not any(bool((batch.preference == 0.5).any()) for batch in batches)


def test_ties_may_be_kept_and_squares_take_pairs_of_any_shape(tmp_path: Path) -> None:
    kinds.pairs(tmp_path)
    made = PreferenceDataModule(str(tmp_path), resolution=16, global_batch_size=4, ties="keep")
    batches = list(made.train_loader(0))
    used = np.concatenate([batch.winner.index.numpy() for batch in batches])
    assert sorted(used) == list(range(44))
    preference = dict(zip(used, np.concatenate([batch.preference.numpy() for batch in batches]), strict=True))
    assert all((value == 0.5) == (n % 4 == 2 or n % 10 == 0) for n, value in preference.items())


def test_mirrors_are_independent_or_shared(tmp_path: Path) -> None:
    kinds.pairs(tmp_path)

    def flips(flip: str) -> tuple[float, float]:
        made = PickAPicDataModule(
            str(tmp_path),
            resolution=16,
            global_batch_size=4,
            flip=flip,
            ties="keep",
            passes=3,  # type: ignore[arg-type]
        )
        recipe = made._recipe("train")
        draws = recipe.draws(0, 0, list(range(4000)))
        assert draws is not None
        mirrored = draws[:, [2, 5]] < 0.5
        return float((mirrored[:, 0] == mirrored[:, 1]).mean()), float(mirrored.mean())

    shared, independent = flips("shared"), flips("independent")
    assert shared[0] == 1.0 and abs(shared[1] - 0.5) < 0.05
    assert abs(independent[0] - 0.5) < 0.05 and abs(independent[1] - 0.5) < 0.05


def test_nothing_left_is_an_error_with_counts(tmp_path: Path) -> None:
    record = {"label_0": 0.5}
    pairs = [
        (f"p{n}", {"0.png": encoded(picture(n)), "1.png": encoded(picture(n)), "json": json.dumps(record).encode()})
        for n in range(5)
    ]
    write_shards(pairs, tmp_path)
    made = PreferenceDataModule(str(tmp_path), resolution=16, global_batch_size=2)
    with pytest.raises(DataError, match="none of 5 pairs is left: 5 ties"):
        made.train_loader(0)


def test_a_damaged_picture_loses_the_pair_and_is_replaced_by_a_used_one(tmp_path: Path) -> None:
    samples = [kinds.pair(number) for number in range(20)]
    samples[4][1]["1.png"] = b""
    write_shards(samples, tmp_path)
    made = PickAPicDataModule(str(tmp_path), resolution=16, global_batch_size=2, max_bad_fraction=0.5)
    used = [int(n) for batch in made.train_loader(0) for n in batch.winner.index]
    assert 4 not in used and len(used) == 14
    assert all(n % 4 != 2 for n in used)  # a tie does not come back as a replacement
    assert made.counters()["bad"] == 1


def test_validation_leaves_the_same_pairs_out(tmp_path: Path) -> None:
    made = kinds.pick_a_pic(tmp_path, min_confidence=0.7)
    used = [n for batch in made.evaluation_loader() for n, ok in _rows(batch) if ok]
    assert used == [n for n in range(44) if n % 4 != 2 and n % 7 and 0.5 + n % 10 / 20 >= 0.7]


def _rows(batch: PreferenceBatch) -> list[tuple[int, bool]]:
    return list(zip(batch.winner.index.tolist(), batch.winner.valid.tolist(), strict=True))


def test_whole_numbers_are_confidences_too(tmp_path: Path) -> None:
    samples = [kinds.pair(number) for number in range(1, 21)]
    for number, (_, stored) in enumerate(samples):
        record = {**json.loads(stored["json"]), "label_0": 1, "confidence": number % 2}
        stored["json"] = json.dumps(record).encode()
    write_shards(samples, tmp_path)
    made = PreferenceDataModule(str(tmp_path), resolution=16, global_batch_size=2, min_confidence=0.95)
    used = {int(n) for batch in made.train_loader() for n in batch.winner.index}
    assert used == set(range(1, 20, 2))
