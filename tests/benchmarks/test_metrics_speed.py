"""The metrics' benchmark runs as a command. Its times mean nothing at the quick sizes and are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "metrics.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_quick_run_prints_the_table_and_saves_it(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "speed.json"
    done = run("--out", str(out))
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert saved["settings"]["size"] == 64 and saved["settings"]["threads"] == 1
    rows = saved["rows"]
    assert {row["part"] for row in rows} == set("abcd")
    assert all(row["ratio"] > 0 and row["case"] in done.stdout for row in rows)
    targets = {part: {row["target"] for row in rows if row["part"] == part} for part in "abcd"}
    assert targets == {"a": {1.5}, "b": {3}, "c": {None}, "d": {1}}
    # Both sides found the same moments and the same distance.
    compared = [row for row in rows if row["part"] in "ab"]
    assert len(compared) == 4 and all(row["difference"] < 1e-10 for row in compared)


def test_parts_can_be_chosen(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    assert run("--part", "d", "--out", str(out)).returncode == 0
    assert {row["part"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]} == {"d"}
