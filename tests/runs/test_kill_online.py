"""kill -9 between two updates of one rollout: ``--ckpt_path last`` goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.runs.test_kill import ROOT, diary, finish, kill_when, start

STEPS = 8


def config(folder: Path, recipe: str, name: str, stall: Path | None = None) -> Path:
    """A shipped recipe with few and small rollouts of two updates, a checkpoint after each, a reward and a diary."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{recipe}.yaml").read_text())
    content |= {"name": name, "runs": str(folder / "runs"), "checkpoint": {"every_n_train_steps": 2, "keep": 1}}
    content["trainer"] |= {"max_steps": STEPS, "val_check_interval": 1, "enable_progress_bar": False}
    callbacks = content["trainer"]["callbacks"]
    callbacks += [{"class_path": "tests.runs.crash.AdapterDiary", "init_args": {"path": str(folder / f"{name}.jsonl")}}]
    if stall is not None:
        arguments = {"step": 5, "marker": str(stall)}
        callbacks += [{"class_path": "tests.runs.crash.StallingUpdate", "init_args": arguments}]
    model = content["model"]["init_args"]
    model["rollout"]["steps"], model["evaluation"]["steps"] = 3, 2
    model["updates"] |= {"per_rollout": 2, "micro_batch_size": 4}
    model["rewards"]["init_args"]["entries"][0]["reward"] = {"class_path": "tests.runs.crash.Brightness"}
    model["lora"] = {"rank": 2, "alpha": 4.0}
    content["data"]["init_args"] |= {"global_batch_size": 8, "repeats": 4, "val_every": 300}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for part, inside in value.items() for key, leaf in leaves(inside, f"{name}/{part}").items()}
    if isinstance(value, (list, tuple)):
        return {key: leaf for n, inside in enumerate(value) for key, leaf in leaves(inside, f"{name}/{n}").items()}
    return {name: value}


@pytest.mark.parametrize("recipe", ["flow_grpo_shapes_tiny", "diffusion_nft_shapes_tiny"])
def test_killed_between_two_updates_of_a_rollout(recipe: str, tmp_path: Path) -> None:
    path = config(tmp_path, recipe, "whole")
    finish(start(path), path)
    whole = diary(tmp_path, "whole")
    assert [line["step"] for line in whole] == [2, 4, 6, 8]
    for name in whole[0]["adapters"]:
        assert len({line["adapters"][name] for line in whole}) == 4, "an adapter that does not move shows nothing"

    marker = tmp_path / "half a rollout"
    path = config(tmp_path, recipe, "killed", marker)
    kill_when(start(path), marker.exists)
    checkpoints = tmp_path / "runs" / "killed" / "checkpoints"
    assert (checkpoints / "last.ckpt").resolve().name == "step=0000004.ckpt", "half a rollout was saved"
    assert diary(tmp_path, "killed") == whole[:2]
    config(tmp_path, recipe, "killed")
    finish(start(path, "--ckpt_path", "last"), path)
    assert diary(tmp_path, "killed") == whole, "rows, logs and adapters, bit for bit"

    first, second = (
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "killed")
    )
    assert all(".lora_" in name for name in first["state_dict"])
    assert len(first["ema"]) == len(first["state_dict"]) / len(whole[0]["adapters"])
    for part in ("state_dict", "ema", "optimizer_states"):
        one, two = leaves(first[part]), leaves(second[part])
        assert one.keys() == two.keys() and len(one) > 10
        for name, value in one.items():
            assert torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name], name
