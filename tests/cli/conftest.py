"""A folder in which somebody works: their own module, their own configuration, and the command line."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_gen.cli import main

CONFIG = """\
name: toy
vars:
  dim: 4
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
checkpoint:
  every_n_train_steps: 2
model:
  class_path: my_idea.ToyModel
  init_args:
    dim: ${vars.dim}
data:
  class_path: my_idea.ToyData
  init_args:
    dim: ${model.init_args.dim}
"""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `my_idea.py` and `toy.yaml`."""
    shutil.copyfile(Path(__file__).with_name("toys.py"), tmp_path / "my_idea.py")
    (tmp_path / "toy.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parsed(workshop: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What `lightning fit ... --print_config` prints, as a dict."""

    def run(*args: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as end:
            main(["fit", *args, "--print_config"])
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        values: dict[str, Any] = yaml.safe_load(out)
        return values

    return run


@pytest.fixture
def refused(workshop: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The message with which the command line ends; it must end with code 2 and without a stack trace."""

    def run(*args: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(list(args))
        err = capsys.readouterr().err
        assert end.value.code == 2, err
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def metrics(workshop: Path) -> Callable[..., list[dict[str, str]]]:
    """Rows of a run's log that hold a training loss."""

    def read(name: str = "toy", key: str = "loss") -> list[dict[str, str]]:
        with (workshop / "runs" / name / "metrics.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if row.get(key)]

    return read


@pytest.fixture
def start(workshop: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `python -m lightning_gen ...` as a process of its own."""

    def run(*args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lightning_gen", *args]
        return subprocess.Popen(command, cwd=workshop, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return run
