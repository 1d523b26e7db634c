"""The data layer's benchmark runs as a command. Its times mean nothing at the quick sizes and are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "data.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_quick_run_prints_the_table_and_saves_it(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "speed.json"
    done = run("--out", str(out))
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.read_text(encoding="utf-8"))
    rows = saved["rows"]
    assert {row["part"] for row in rows} == set("abcde")
    assert all(row["ratio"] > 0 and row["case"] in done.stdout for row in rows)
    targets = {part: {row["target"] for row in rows if row["part"] == part} for part in "abcde"}
    assert targets == {"a": {10, None}, "b": {1.4, None}, "c": {1 / 1.1}, "d": {0.95, 1.0}, "e": {1}}
    # Both sides of (b) made the same pictures of the same files, but for the DCT's own low-pass filter.
    images = [row for row in rows if row["part"] == "b"]
    assert all(row["difference"] < (1e-2 if "DCT" in row["case"] else 1e-4) and row["rates"] for row in images)
    assert "images/s" in done.stdout and any("DCT scaling" in row["case"] for row in images)
    # Neither memory nor open files grow from pass to pass, with and without workers.
    level = [row for row in rows if row["part"] == "d"]
    assert len(level) == 4 and all(row["met"] for row in level if "open files" in row["case"])
    apart = saved["settings"]["levels"]
    assert apart["torch"][0] < 0.05 and apart["torch"][1] <= 2
    assert 0.5 < apart["torch and DCT scaling"][0] < 10


def test_parts_can_be_chosen(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    assert run("--part", "e", "--out", str(out)).returncode == 0
    assert {row["part"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]} == {"e"}
