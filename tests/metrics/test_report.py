"""The table and the JSON that an evaluation leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lightning_gen.metrics.protocol import Measurement, Protocol
from lightning_gen.metrics.report import as_table, failed_rules_table, write_report, write_samples

GFID = Protocol("gfid", "adm-tf1", 2048, 50_000, {"reference": "ab" * 32})


def text(table: object) -> str:
    console = Console(width=160)
    with console.capture() as caught:
        console.print(table)
    return caught.get()


def test_the_table_shows_value_error_interval_count_protocol_and_note() -> None:
    shown = text(
        as_table(
            "samples.npz",
            [
                Measurement(3.94256, GFID, error=0.02, note="N is not 50,000 [biased]"),
                Measurement(0.5, Protocol("geneval", "m2f"), interval=(0.4, 0.6)),
                Measurement(1.5e-5, Protocol("kid", "clean", 2000)),
                Measurement(24.5, Protocol("psnr", "8-bit"), unit="dB"),
            ],
            "written to here",
        )
    )
    for part in ("3.9426", "0.0200", "0.4000 .. 0.6000", "2,048", "gfid@2048/adm-tf1", "[biased]", "1.5e-05", "dB"):
        assert part in shown
    assert "written to here" in shown


def test_brackets_are_no_markup() -> None:
    given = Measurement(1.0, Protocol("a", "m[b]"), unit="[red]", note="[/i]")
    shown = text(as_table("ten[cfg=4] t[/b] :cat:", [given], "see [bold]x[/b]"))
    assert all(part in shown for part in ("ten[cfg=4] t[/b] :cat:", "see [bold]x[/b]", "1.0000 [red]", "m[b]", "[/i]"))
    assert "colour [/red] :cat:" in text(failed_rules_table({"colour [/red] :cat:": 1}))


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("gfid", -2.18e-09, "0.0000"),
        ("rfdd", -9e-4, "0.0000"),
        ("gfid", -0.5, "-0.5000"),
        ("kid", -2.18e-09, "-2.18e-09"),
        ("gfid-infinity", -2.18e-09, "-2.18e-09"),
    ],
)
def test_a_distance_below_0_by_rounding_is_shown_as_0_and_kept_as_it_is(
    tmp_path: Path, metric: str, value: float, shown: str
) -> None:
    given = Measurement(value, Protocol(metric, "x"))
    table = text(as_table("t", [given]))
    assert f" {shown} " in f" {table} ".replace("\n", " ")
    assert value == json.loads(write_report(tmp_path, "gfid", [given], {}).read_text())["metrics"][0]["value"]


def test_rules_that_fail_most_come_first() -> None:
    shown = text(failed_rules_table({"colour": 2, "count": 1200, "position": 2}))
    assert shown.index("count") < shown.index("colour") < shown.index("position")
    assert "1,200" in shown


def test_the_report_holds_the_protocol_cards(tmp_path: Path) -> None:
    path = write_report(tmp_path / "out", "gfid", [Measurement(3.5, GFID)], {"samples": "a.npz"}, failures={"x": 1})
    found = json.loads(path.read_text())
    assert found["verb"] == "gfid"
    assert found["metrics"][0]["value"] == 3.5
    assert found["metrics"][0]["protocol"]["id"] == "gfid@2048/adm-tf1"
    assert found["metrics"][0]["protocol"]["details"] == {"reference": "ab" * 32}
    assert (found["inputs"], found["failures"]) == ({"samples": "a.npz"}, {"x": 1})


def test_a_value_that_is_no_number_is_null_and_says_so(tmp_path: Path) -> None:
    given = Measurement(float("nan"), GFID, error=float("inf"), note="no sample")
    text = write_report(tmp_path, "gfid", [given], {"seen": [float("nan")]}).read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    entry = json.loads(text)["metrics"][0]
    assert (entry["value"], entry["error"]) == (None, None)
    assert entry["note"] == "no sample; the value is nan"


def test_samples_are_one_line_each(tmp_path: Path) -> None:
    path = write_samples(tmp_path, [{"name": "ü.png", "score": 0.5}, {"name": "b", "score": float("nan")}])
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"name": "ü.png", "score": 0.5},
        {"name": "b", "score": None},
    ]


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_ordinary_numbers_have_four_decimals(value: float) -> None:
    assert f"{value:.4f}" in text(as_table("t", [Measurement(value, GFID)]))
