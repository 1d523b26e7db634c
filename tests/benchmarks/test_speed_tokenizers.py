"""The benchmark of the three tokenizers runs as a command. Its times mean nothing at the quick sizes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "tokenizers.py"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The parts; the folder comes last, since it has a file with the name of a package that transformers imports."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(SCRIPT.parent)])
    return importlib.import_module("tokenizer_speed")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def test_quick_run_prints_the_table_and_saves_it(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "speed.json"
    done = run("--out", str(out))
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert saved["settings"]["edge"] == 32 and saved["settings"]["threads"] == 1
    rows = saved["rows"]
    assert [row["part"] for row in rows] == ["a", "a", "a", "b", "b", "c", "c"]
    assert all(row["ratio"] > 0 and min(row["rates"]) > 0 and row["case"] in done.stdout for row in rows)
    assert [row["case"].split(":")[0] for row in rows[:3]] == ["ViTok-v2", "MUSE", "PAE"]
    assert "images/s" in done.stdout


def test_the_package_of_this_name_is_found_by_the_other_commands_of_the_folder() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); before = list(sys.path); import tokenizers as found; "
    code += "print(found.__file__, hasattr(found, 'Tokenizer'), sys.path == before)"
    command = [sys.executable, "-c", code, str(SCRIPT.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    file, is_package, is_restored = done.stdout.split()
    assert (is_package, is_restored) == ("True", "True") and Path(file).parent != SCRIPT.parent


@pytest.mark.parametrize("name", ["ViTok-v2", "MUSE", "PAE"])
def test_a_step_is_a_whole_step_and_an_idea_adds_its_losses(commands: Any, name: str) -> None:
    terms: dict[bool, set[str]] = {True: set(), False: set()}
    for idea in (True, False):
        model = commands.TOKENIZERS[name](commands.QUICK, idea)
        step = commands.training_step(model, commands.QUICK)
        before = [p.detach().clone() for p in model.network.parameters() if p.requires_grad]
        step()
        after = [p for p in model.network.parameters() if p.requires_grad]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert sum(moved) > len(moved) / 2
        model.log = lambda key, *_, found=terms[idea], **__: found.add(key)
        step()
    added = {key.removeprefix("train/") for key in terms[True] - terms[False]}
    wanted = {"ViTok-v2": {"ssim", "ssim_weighted"}, "MUSE": {"structure", "semantics"}, "PAE": {"ssr", "mcr", "scr"}}
    assert added == wanted[name] and not terms[False] - terms[True]
