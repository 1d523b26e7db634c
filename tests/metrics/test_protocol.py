"""Names under which values may be quoted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lightning_gen.metrics.protocol import Measurement, Protocol, file_sha256


@pytest.mark.parametrize(
    ("count", "expected", "name"),
    [
        (50_000, 50_000, "gfid/adm-tf1/50k"),
        (2048, 50_000, "gfid@2048/adm-tf1"),
        (50_001, 50_000, "gfid@50001/adm-tf1"),
        (553, 553, "gfid/adm-tf1/553"),
        (2212, 2212, "gfid/adm-tf1/2212"),
        (2212, None, "gfid/adm-tf1"),
        (None, 50_000, "gfid/adm-tf1"),
        (None, None, "gfid/adm-tf1"),
        (0, 50_000, "gfid@0/adm-tf1"),
    ],
)
def test_the_number_of_samples_is_part_of_the_name(count: int | None, expected: int | None, name: str) -> None:
    assert Protocol("gfid", "adm-tf1", count, expected).id == name


@pytest.mark.parametrize(("metric", "method"), [("", "a"), ("a", ""), ("a/b", "c"), ("a", "b/c")])
def test_a_name_has_two_parts_without_slashes(metric: str, method: str) -> None:
    with pytest.raises(ValueError, match="without a slash"):
        Protocol(metric, method)


def test_the_card_survives_json() -> None:
    protocol = Protocol("gfid", "adm-tf1", 50_000, 50_000, {"rounding": "half-even", "k": 3})
    one = Measurement(2.5, protocol, error=0.1, interval=(2.3, 2.7), unit="", note="note")
    assert json.loads(json.dumps(one.to_json())) == {
        "value": 2.5,
        "error": 0.1,
        "interval": [2.3, 2.7],
        "unit": "",
        "note": "note",
        "protocol": {
            "id": "gfid/adm-tf1/50k",
            "metric": "gfid",
            "method": "adm-tf1",
            "count": 50_000,
            "expected": 50_000,
            "details": {"rounding": "half-even", "k": 3},
        },
    }
    assert Measurement(1.0, protocol).to_json()["interval"] is None


def test_hash_of_a_file_in_pieces(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # more than two pieces
    (tmp_path / "a").write_bytes(data)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
