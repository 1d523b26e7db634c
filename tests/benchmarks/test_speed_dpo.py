"""The benchmark of Diffusion-DPO runs as a command. Its times mean nothing at the quick sizes and are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "dpo.py"


def test_quick_run_prints_the_table_and_saves_it(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "dpo.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["part"]: row for row in saved["rows"]}
    assert list(rows) == ["a", "b", "c", "d", "m", "n"] and saved["settings"]["quick"]
    assert all(row["ratio"] > 0 and row["case"] in done.stdout for row in rows.values())
    targets = [rows[part]["target"] for part in "abcd"]
    assert targets == pytest.approx([1 / 1.36, 1 / 1.05] * 2)
    # A copy of the network on the other side; and gradients and moments of the whole network besides.
    assert rows["m"]["ours"] == rows["n"]["ours"] < rows["m"]["other"] < rows["n"]["other"]
