"""The arena's benchmark runs as a command. Its times mean nothing at the quick sizes and are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "arena.py"


def test_quick_run_prints_the_table_and_saves_it(tmp_path: Path) -> None:
    pytest.importorskip("trueskill", reason="trueskill is not installed: pip install trueskill")
    out = tmp_path / "new folder" / "speed.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert saved["settings"]["rows"] == 20_000 and saved["settings"]["quick"]
    rows = saved["rows"]
    assert [row["part"] for row in rows] == ["a", "b", "b", "b", "b"]
    assert [row["target"] for row in rows] == [50, 1, None, 1, None]
    assert all(row["ratio"] > 0 and row["case"] in done.stdout for row in rows)
    assert rows[0]["difference"] < 1e-6, "both sides found the same ratings"
