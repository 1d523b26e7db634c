"""The speed benchmark runs as a command. Its times mean nothing at the quick sizes and are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "vitok_v2.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_quick_run_prints_the_table_and_saves_it(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "speed.json"
    done = run("--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert saved["settings"] == {
        "threads": 1,
        "repetitions": 1,
        "quick": True,
        "clock": "process_time",
    }
    rows = saved["rows"]
    assert {row["part"] for row in rows} == set("abcd")
    assert all(row["ratio"] > 0 and row["case"] in done.stdout for row in rows)
    # Rows that must agree were compared: a number below the tolerance, not an empty field.
    compared = [row for row in rows if row["part"] == "a" or row["case"].endswith(("plain PyTorch", "time"))]
    assert len(compared) >= 4 and all(row["difference"] <= 1e-5 for row in compared)
    targets = {row["target"] for row in rows if row["part"] == "a"}
    assert targets == {1.5, 0.95} and {row["target"] for row in rows if row["part"] == "c"} == {1.3, None}
    assert all((row["met"] is None) == (row["target"] is None) for row in rows)
    assert f"of {sum(row['target'] is not None for row in rows)} targets met" in done.stdout


def test_parts_can_be_chosen(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    assert run("--quick", "--part", "b", "--out", str(out)).returncode == 0
    assert {row["part"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]} == {"b"}
    refused = run("--part", "z")
    assert refused.returncode == 2 and "invalid choice: 'z'" in refused.stderr


def test_a_wrong_kernel_is_not_measured(tmp_path: Path) -> None:
    """Packed attention that sees the padding of a bucket: the run must end with the difference instead of a ratio."""
    script = tmp_path / "faulty.py"
    script.write_text(
        "import runpy, sys\n"
        "from lightning_gen.nn import packed\n"
        "kernel = packed.dot_product_attention\n"
        "packed.dot_product_attention = lambda q, k, v, mask: kernel(q, k, v)\n"
        f"sys.argv = ['vitok_v2.py', '--quick', '--part', 'a', '--out', {str(tmp_path / 'speed.json')!r}]\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "the two sides differ by" in done.stderr, done.stderr
    assert not (tmp_path / "speed.json").exists()
