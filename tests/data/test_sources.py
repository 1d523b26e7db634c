"""From fields to records: what is a label and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.quarantine import SampleError
from lightning_gen.data.sources import PictureFields
from lightning_gen.data.writing import write_shards
from tests.data.samples import sample

HUGE = b"9" * 23
LABELS = [
    ({"cls": HUGE}, "holds b'99999999999999999999'"),
    ({"cls": str(2**63).encode()}, "not a class number"),
    ({"cls": b"-7"}, "holds b'-7', not a class number"),
    ({"cls": b"1_0"}, "holds b'1_0', not a class number"),
    ({"cls": "٣".encode()}, "not a class number"),
    ({"cls": b"3.0"}, "holds b'3.0', not a class number"),
    ({"cls": b""}, "holds b'', not a class number"),
    ({"cls.txt": b"+3"}, "field cls.txt holds b'\\+3', not a class number"),
    ({"json": b'{"label": 1e30}'}, r"label in json is 1e\+30, not a class number"),
    ({"json": b'{"label": 3.0}'}, r"label in json is 3\.0, not a class number"),
    ({"json": b'{"label": ' + HUGE + b"}"}, "label in json is 999.*, not a class number"),
    ({"json": b'{"label": ' + b"9" * 5000 + b"}"}, "the field json cannot be read"),
    ({"json": b'{"label": NaN}'}, "label in json is nan, not a class number"),
    ({"json": b'{"label": 1e400}'}, "label in json is inf, not a class number"),
    ({"json": b'{"label": "3"}'}, "label in json is '3', not a class number"),
    ({"json": b'{"label": true}'}, "label in json is True, not a class number"),
    ({"json": b'{"label": -1}'}, "label in json is -1, not a class number"),
    ({"json": b"[" * 100_000}, "the field json cannot be read"),
]


@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize(("fields", "message"), LABELS)
def test_a_label_is_a_class_number_or_the_sample_is_bad(
    fields: dict[str, bytes], message: str, classes: int | None
) -> None:
    with pytest.raises(SampleError, match=message):
        PictureFields(classes)({"png": b"x", **fields})


@pytest.mark.parametrize("fields", [{"cls": b" 2 \n"}, {"cls.txt": b"02"}, {"json": b'{"label": 2}'}])
def test_digits_and_json_integers_are_labels(fields: dict[str, bytes]) -> None:
    for classes in (None, 5):
        assert PictureFields(classes)({"png": b"x", **fields}).label == 2
    for none in ({}, {"json": b'{"label": null}'}):
        assert PictureFields()({"png": b"x", **none}).label == -1
    assert PictureFields()({"png": b"x", "cls": str(2**63 - 1).encode()}).label == 2**63 - 1


def test_a_label_beyond_every_number_costs_its_sample_alone(tmp_path: Path) -> None:
    data = [sample(number) for number in range(20)]
    data[7][1]["cls"] = HUGE
    write_shards(data, tmp_path)
    made = ShardDataModule(str(tmp_path), patch_size=8, tokens=9, global_batch_size=4, max_bad_fraction=0.1)
    assert 7 not in {n for batch in made.train_loader() for n in batch.index.tolist()}
    assert made.counters()["bad"] == 1
