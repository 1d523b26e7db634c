"""A latent in a shard: written, read, and damaged in every way."""

from __future__ import annotations

import io
import json
import pickle
import struct
from typing import Any

import numpy as np
import pytest

from lightning_gen.data.latents.fields import LatentFields, StoredLatent, array_bytes, latent_sample, read_array
from lightning_gen.data.quarantine import SampleError
from lightning_gen.data.sources import PictureFields

ARRAY = np.arange(24, dtype=np.float16).reshape(6, 4)
STORED = StoredLatent(array_bytes(ARRAY), None, (2, 3), (15, 24), (30, 50), (1, 0), 3, "a cat")
READ = LatentFields(8, PictureFields(None, "optional"))


def npy(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def with_header(text: str, length: int = 117) -> bytes:
    header = text.encode().ljust(length) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_an_array_comes_back_and_numpy_can_read_it(kind: type) -> None:
    array = ARRAY.astype(kind)
    data = array_bytes(array)
    assert data == array_bytes(array.copy())
    for found in (read_array(data, (6, 4)), np.load(io.BytesIO(data), allow_pickle=False)):
        assert found.dtype == kind and np.array_equal(found, array)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


DAMAGED = {
    "a pickle": (pickle.dumps(Evil()), "not a .npy file"),
    "pickled objects": (npy(np.array([Evil()], dtype=object), allow_pickle=True), "object"),
    "nothing": (b"", "not a .npy file"),
    "text": (b"<html>", "not a .npy file"),
    "integers": (npy(ARRAY.astype(np.int16)), "int16"),
    "float64": (npy(ARRAY.astype(np.float64)), "float64"),
    "the other byte order": (npy(ARRAY.astype(">f2")), ">f2"),
    "by columns": (npy(np.asfortranarray(ARRAY)), "by columns"),
    "another shape": (npy(ARRAY.reshape(4, 6)), r"shape \(4, 6\)"),
    "one dimension": (npy(ARRAY.reshape(-1)), r"shape \(24,\)"),
    "cut short": (npy(ARRAY)[:-1], "47 bytes of numbers instead of 48"),
    "too long": (npy(ARRAY) + b"0", "49 bytes"),
    "NaN": (npy(np.where(ARRAY == 5, np.nan, ARRAY).astype(np.float16)), "not finite"),
    "infinity": (npy(np.where(ARRAY == 5, np.inf, ARRAY).astype(np.float16)), "not finite"),
    "a lie about the size": (
        with_header("{'descr': '<f2', 'fortran_order': False, 'shape': (1000000000000, 4), }"),
        "shape",
    ),
    "a lie that fits": (with_header("{'descr': '<f2', 'fortran_order': False, 'shape': (6, 4), }"), "0 bytes"),
    "no dictionary": (with_header("[1, 2]"), "not a .npy file"),
    "code": (with_header("__import__('os').abort()"), "not a .npy file"),
    "a long header": (
        with_header("{'descr': '<f2', 'fortran_order': False, 'shape': (6, 4), }", 2000) + ARRAY.tobytes(),
        "not a .npy file",
    ),
    "version 3": (b"\x93NUMPY\x03\x00" + npy(ARRAY)[8:], "version"),
}


@pytest.mark.parametrize("how", sorted(DAMAGED))
def test_a_damaged_array_is_a_bad_sample(how: str) -> None:
    data, message = DAMAGED[how]
    with pytest.raises(SampleError, match=message):
        read_array(data, (6, 4))


def test_a_sample_comes_back() -> None:
    assert READ(latent_sample(STORED, {})) == STORED
    mirrored = STORED._replace(mirrored=array_bytes(ARRAY[::-1].copy()))
    fields = latent_sample(mirrored, {"cls": b"3\n", "txt": b"a cat", "png": b"...", "json": b"{}"})
    assert sorted(fields) == ["cls", "json", "mirror.npy", "npy", "txt"]
    assert fields["cls"] == b"3\n" and READ(fields) == mirrored
    assert READ(latent_sample(STORED._replace(label=-1, caption=""), {}))[-2:] == (-1, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 3}, r"3 x 3 tokens of 8 pixels do not make a picture of 15 x 24"),
        ({"height": 17}, r"2 x 3 tokens of 8 pixels do not make a picture of 17 x 24"),
        ({"rows": 2.0}, r"rows and cols in json .* found \[2\.0, 3\]"),
        ({"cols": None}, "rows and cols"),
        ({"height": True}, "height and width"),
        ({"width": 0, "cols": 0}, "rows and cols"),
        ({"original_size": [30]}, r"original_size in json .* found \[30\]"),
        ({"original_size": None}, "original_size"),
        ({"crop_top_left": [-1, 0]}, "crop_top_left"),
        ({"caption": 7}, "caption in json is 7"),
    ],
)
def test_json_that_contradicts_itself_is_a_bad_sample(change: dict[str, Any], message: str) -> None:
    fields = latent_sample(STORED, {})
    record = {**json.loads(fields["json"]), **change}
    with pytest.raises(SampleError, match=message):
        READ({**fields, "json": json.dumps(record).encode()})


def test_missing_fields_are_named() -> None:
    with pytest.raises(SampleError, match="no latent .npy., only cls, json"):
        READ({"cls": b"1", "json": b"{}"})
    with pytest.raises(SampleError, match="label 3 is not one of 3 classes"):
        LatentFields(8, PictureFields(3))(latent_sample(STORED, {}))
