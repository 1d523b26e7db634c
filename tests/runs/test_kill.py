"""kill -9 at some step, and in a checkpoint write: ``--ckpt_path last`` goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.samples import shards

ROOT = Path(__file__).parents[2]
STEPS = 12
LIMIT = 400.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    shards(folder / "train", 23, per_shard=7)
    shards(folder / "val", 3, per_shard=3, name="val")
    return folder


def config(folder: Path, name: str, plugins: list[dict[str, Any]]) -> Path:
    """A ViTok-v2 run with a curriculum that changes at step 7, a checkpoint every 2 steps and a diary."""
    diary = {"class_path": "tests.runs.crash.Diary", "init_args": {"path": str(folder / f"{name}.jsonl")}}
    content = {
        "name": name,
        "runs": str(folder / "runs"),
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [diary],
            "plugins": plugins,
        },
        "checkpoint": {"every_n_train_steps": 2},
        "model": {
            "class_path": "ViTokV2",
            "init_args": {"variant": "w32_d1_h2-w32_d1_h2/1x4x8", "dino_weight": 0.0, "tile_size": 16},
        },
        "data": {
            "class_path": "ShardDataModule",
            "init_args": {
                "train": str(folder / "train"),
                "val": str(folder / "val"),
                "patch_size": 4,
                "stages": [
                    {"tokens": 32, "global_batch_size": 4, "until_step": 7},
                    {"tokens": 64, "global_batch_size": 2, "until_step": None},
                ],
            },
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lightning_gen", "fit", "--config", str(path), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = path.with_suffix(".log").open("a")
    return subprocess.Popen(command, stdout=output, stderr=output, cwd=path.parent, env=environment, text=True)


def finish(process: subprocess.Popen[str], path: Path) -> None:
    assert process.wait(LIMIT) == 0, path.with_suffix(".log").read_text()[-3000:]


def kill_when(process: subprocess.Popen[str], ready: Any) -> None:
    end = time.monotonic() + LIMIT
    while not ready():
        assert process.poll() is None and time.monotonic() < end, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT)


def diary(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> list[dict[str, Any]]:
    path = config(folder, "whole", [])
    finish(start(path), path)
    lines = diary(folder, "whole")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [len(line["keys"]) for line in lines] == [4] * 7 + [2] * 5, "the budget changes where it should"
    return lines


def assert_continues(folder: Path, name: str, whole: list[dict[str, Any]], killed_after: int) -> int:
    lines = diary(folder, name)
    again = lines[killed_after:]
    first: int = again[0]["step"]
    assert lines[:killed_after] == whole[:killed_after]
    assert again == whole[first - 1 :], "keys and losses, bit for bit"
    return first


def test_kill_at_a_random_step(folder: Path, undisturbed: list[dict[str, Any]]) -> None:
    step = random.SystemRandom().randint(3, STEPS - 1)
    path = config(folder, f"step{step}", [])
    process = start(path)
    kill_when(process, lambda: len(diary(folder, path.stem)) >= step)
    seen = len(diary(folder, path.stem))
    again = start(path, "--ckpt_path", "last")
    finish(again, path)
    first = assert_continues(folder, path.stem, undisturbed, seen)
    assert 3 <= first <= seen + 1 and first % 2 == 1, f"killed after step {seen}, went on with step {first}"


def test_kill_in_the_middle_of_a_checkpoint_write(folder: Path, undisturbed: list[dict[str, Any]]) -> None:
    marker = folder / "half-written"
    stalling = {"class_path": "tests.runs.crash.StallingIO", "init_args": {"stall_at": 3, "marker": str(marker)}}
    path = config(folder, "write", [stalling])
    process = start(path)
    kill_when(process, marker.exists)
    checkpoints = folder / "runs" / "write" / "checkpoints"
    assert [file.name for file in checkpoints.glob("*.partial")] == ["step=0000006.ckpt.partial"]
    assert (checkpoints / "last.ckpt").resolve().name == "step=0000004.ckpt"
    seen = len(diary(folder, "write"))
    config(folder, "write", [])
    finish(start(path, "--ckpt_path", "last"), path)
    assert assert_continues(folder, "write", undisturbed, seen) == 5
    assert (checkpoints / "last.ckpt").resolve().name == f"step={STEPS:07d}.ckpt"
    assert not list(checkpoints.glob("*.partial")), "the half-written file is cleared away"
