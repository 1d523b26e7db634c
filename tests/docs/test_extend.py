"""The page "Extend it in your own research", executed as it stands: files written, commands run, a class trained."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_gen.commands.photographs import photographs

PAGE = (Path(__file__).parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page and nothing else."""
    pytest.importorskip("hatchling", reason="the page's package is built with hatchling: install the dev extra")
    for photograph in photographs():
        try:
            photograph.path()
        except ModuleNotFoundError as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("research")
    for name, text in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page(workshop: Path) -> None:
    commands = re.search(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert commands
    lines = commands.group(1).splitlines()
    assert lines[0] == "pip install --editable my_research"
    # The same installation without touching the environment of the tests or the network.
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--target", "site"]
    run(workshop, "-m", "pip", "install", *offline, "./my_research")
    for line in lines[1:]:
        program, *arguments = shlex.split(line)
        assert program == "lightning"
        run(workshop, "-m", "lightning_gen", *arguments)
    with (workshop / "runs/noisy/metrics.csv").open(newline="") as file:
        losses = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    assert sorted(losses) == [4, 9, 14, 19, 24, 29]
    assert losses[29] < losses[4]
    assert (workshop / "runs/noisy/samples/step_00000010.png").is_file()
    assert "NoisyLatentViTokV2" in (workshop / "runs/noisy/config.yaml").read_text()
    assert run(workshop, "use.py").split("\n")[-2] == "(1, 3, 40, 56)"


def test_the_class_is_checked_like_any_other(workshop: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(workshop / "site")}
    command = [sys.executable, "-m", "lightning_gen", "fit", "--config", "noisy.yaml", "--model.init_args.noises", "1"]
    done = subprocess.run(command, cwd=workshop, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "noises" in done.stderr
    assert "Traceback" not in done.stderr
