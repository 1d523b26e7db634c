"""The configurations of Flow-GRPO and DiffusionNFT at full size hold the published values, and fit their model.

Published values are typed here from the tables of the published configurations, not read from the package.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_gen.alignment.diffusion_nft.module import DiffusionNFT
from lightning_gen.alignment.flow_grpo.module import FlowGRPO
from lightning_gen.alignment.online import OnlineTraining
from lightning_gen.backbones.lora import AdapterBank, LoRASettings
from lightning_gen.backbones.pipelines.description import described_networks
from lightning_gen.cli import main
from lightning_gen.commands.trainer import read_config
from tests.alignment.sd35_medium import PARAMETERS, write_sd35_medium_configs
from tests.harness.tiny_clip import write_tiny_clip
from tests.harness.tiny_detectors import save_mask2former
from tests.harness.tiny_pipelines import write_tiny_pipeline

ROOT = Path(__file__).parent.parent.parent / "configs"
GRPO = {name: f"flow_grpo_sd35m_{name}" for name in ("geneval", "ocr", "pickscore", "geneval_fast", "geneval_24gb")}
NFT = {name: f"diffusion_nft_sd35m_{name}" for name in ("geneval", "ocr", "pickscore", "multi", "geneval_24gb")}
KINDS: dict[str, type[OnlineTraining]] = {"FlowGRPO": FlowGRPO, "DiffusionNFT": DiffusionNFT}

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
BOTH = {
    "policy": {
        "pipeline": "stabilityai/stable-diffusion-3.5-medium", "canvas": [512, 512], "text_length": 128,
        "dtype": "bfloat16",
    },
    "advantage_clip": 5.0,
    "advantages": {"deviation": "global", "epsilon": 1e-4},
    "lora": {"rank": 32, "alpha": 64.0, "targets": [f"attn.{name}" for name in TARGETS]},
    "optimizer": {"learning_rate": 3e-4, "betas": [0.9, 0.999], "weight_decay": 1e-4, "epsilon": 1e-8},
    "updates": {"clip": 1.0},
    "evaluation": {"steps": 40, "solver": "euler"},
}  # fmt: skip
EVERY_GRPO = {
    "rollout": {"steps": 10, "guidance": 4.5, "kind": "sde", "noise_level": 0.7},
    "clip": 1e-4, "kl_form": "published", "evaluation": {"guidance": 4.5},
    "updates": {"per_rollout": 2, "skip_worthless": True},
}  # fmt: skip
GRPO_VALUES: dict[str, Any] = {
    "geneval": {"kl": 0.04, "rollout": {"window_size": 0}, "updates": {"micro_batch_size": 9}},
    "ocr": {"kl": 0.04, "rollout": {"window_size": 0}, "updates": {"micro_batch_size": 9}},
    "pickscore": {"kl": 0.01, "rollout": {"window_size": 0}, "updates": {"micro_batch_size": 9}},
    "geneval_fast": {
        "kl": 0.04, "rollout": {"window_size": 2, "window": [0, 10]}, "updates": {"micro_batch_size": 9},
    },
    "geneval_24gb": {"kl": 0.04, "rollout": {"window_size": 2, "window": [0, 10]}},
}  # fmt: skip
EVERY_NFT = {
    "rollout": {"solver": "dpm_solver", "guidance": 1.0}, "loss": {"weighting": "adaptive", "mode": "all", "kl": 1e-4},
    "evaluation": {"guidance": 1.0}, "updates": {"skip_worthless": False}, "old_policy_ceiling": None,
    "old_policy_slope": None,
}  # fmt: skip
NFT_TABLE = {  # steps, b, old policy, updates per rollout
    "geneval": (10, 1.0, "ramp", 1), "ocr": (10, 0.1, "delayed_ramp", 2), "pickscore": (10, 1.0, "ramp", 1),
    "multi": (25, 0.1, "ramp", 1), "geneval_24gb": (10, 1.0, "ramp", 1),
}  # fmt: skip
REWARDS = {
    "geneval": {"dense": 1.0, "strict": 0.0}, "geneval_fast": {"dense": 1.0, "strict": 0.0},
    "geneval_24gb": {"dense": 1.0}, "ocr": {"ocr": 1.0}, "pickscore": {"pickscore": 1.0},
    "multi": {"pickscore": 1.0, "hpsv2": 1.0, "clipscore": 1.0},
}  # fmt: skip
EVERY = [*((name, file) for name, file in GRPO.items()), *((name, file) for name, file in NFT.items())]


def read(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / f"{file}.yaml").read_text())
    return found


def arguments(file: str) -> dict[str, Any]:
    found: dict[str, Any] = read(file)["model"]["init_args"]
    return found


def assert_holds(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    for key, value in wanted.items():
        assert key in found, f"{where}.{key} is not written down"
        if isinstance(value, dict):
            assert_holds(found[key], value, f"{where}.{key}")
        else:
            assert found[key] == value, f"{where}.{key}"


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The advantage clip is an argument of one method and a setting of the other's loss."""
    return {key: value for key, value in values.items() if key != "advantage_clip"}


@pytest.mark.parametrize("name", GRPO)
def test_flow_grpo_holds_the_published_values(name: str) -> None:
    found = arguments(GRPO[name])
    for values in (BOTH, EVERY_GRPO, GRPO_VALUES[name]):
        assert_holds(found, values, GRPO[name])


@pytest.mark.parametrize("name", NFT)
def test_diffusion_nft_holds_the_published_values(name: str) -> None:
    found = arguments(NFT[name])
    steps, strength, old_policy, updates = NFT_TABLE[name]
    table = {
        "rollout": {"steps": steps, "trained_times": 2 if name == "geneval_24gb" else None},
        "loss": {"strength": strength, "advantage_clip": BOTH["advantage_clip"]},
        "old_policy": old_policy,
        "updates": {"per_rollout": updates, "micro_batch_size": 8 if name == "geneval_24gb" else 9},
    }
    for values in (flat(BOTH), EVERY_NFT, table):
        assert_holds(found, values, NFT[name])


@pytest.mark.parametrize(("name", "file"), EVERY)
def test_groups_devices_averages_and_rewards(name: str, file: str) -> None:
    found, small = read(file), name.endswith("_24gb")
    trainer, data = found["trainer"], found["data"]["init_args"]
    assert (data["global_batch_size"], data["repeats"]) == ((256, 16) if small else (48 * 24, 24))
    assert trainer["devices"] * trainer.get("num_nodes", 1) == (1 if small else 32 if file in GRPO.values() else 8)
    assert trainer["precision"] == "bf16-mixed", "published: fp16; gradients of a scaler would be clipped as they are"
    average = next(c["init_args"] for c in trainer["callbacks"] if c["class_path"] == "EMA")
    assert average == {"decays": [0.9], "ramp": True} | ({"every": 8} if file in GRPO.values() else {})
    suite = arguments(file)["rewards"]["init_args"]
    assert {entry["name"]: entry["weight"] for entry in suite["entries"]} == REWARDS[name]
    assert suite.get("combine", "sum") == "sum"
    if file in NFT.values() and not small:
        updates = arguments(file)["updates"]["per_rollout"]
        assert trainer["val_check_interval"] == 10 and found["checkpoint"]["every_n_train_steps"] == 30 * updates


@pytest.mark.parametrize("file", [GRPO["geneval_24gb"], NFT["geneval_24gb"]])
def test_validation_on_one_gpu_takes_less_than_a_tenth_of_the_passes(file: str) -> None:
    trainer, data, found = read(file)["trainer"], read(file)["data"]["init_args"], arguments(file)
    rollout, old = found["rollout"], int("old_policy" in found)
    guided = 2 if rollout["guidance"] != 1 else 1
    # The policy forward, once more in the backward pass, and twice a pass backward; the base, and the old policy.
    trained = rollout.get("window_size", rollout.get("trained_times")) * (4 + 1 + old)
    learning = trainer["val_check_interval"] * data["global_batch_size"] * guided * (rollout["steps"] + trained)
    pictures = trainer["limit_val_batches"] * data["val_batch_size"]
    validation = pictures * found["evaluation"]["steps"] * guided
    assert validation < 0.1 * (validation + learning) and pictures == 192


def merged(*names: str) -> dict[str, Any]:
    return read_config(["fit", *(part for name in names for part in ("--config", str(ROOT / f"{name}.yaml")))])


def test_variants_change_what_they_say_and_nothing_else() -> None:
    fast = merged(GRPO["geneval_fast"], "overrides/flow_grpo_no_guidance")["model"]["init_args"]
    assert (fast["clip"], fast["rollout"]["guidance"], fast["evaluation"]["guidance"]) == (1e-5, 1.0, 1.0)
    assert (fast["rollout"]["window_size"], fast["rollout"]["noise_level"], fast["kl"]) == (2, 0.7, 0.04)
    assert fast["evaluation"]["steps"] == 40
    few = merged(GRPO["ocr"], "overrides/flow_grpo_4gpu")
    rows, data = few["model"]["init_args"]["updates"], few["data"]["init_args"]
    assert few["trainer"]["devices"] * few["trainer"]["num_nodes"] == 4
    assert (rows["micro_batch_size"], data["global_batch_size"], data["repeats"]) == (8, 16 * 16, 16)
    assert rows["per_rollout"] == 2 and "ocr" in data["train"]


# ------------------------------------------------------------------ at full size, on the meta device


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd35_medium_configs(tmp_path_factory.mktemp("sd35m") / "model")


def test_the_adapter_of_every_config_has_191_layers_and_18776064_parameters(described: Path) -> None:
    networks = described_networks(described)
    sizes = {part: sum(p.numel() for p in network.parameters()) for part, network in networks.items()}
    assert sizes == PARAMETERS
    assert all(p.device.type == "meta" for network in networks.values() for p in network.parameters())
    shape = arguments(GRPO["ocr"])["lora"]
    assert all(arguments(file)["lora"] == shape for _, file in EVERY)
    bank = AdapterBank(networks["transformer"], LoRASettings(**{**shape, "targets": tuple(shape["targets"])}))
    assert len(bank.modules("default")) == 191 and bank.num_parameters("default") == 18_776_064


@pytest.mark.parametrize("file", [GRPO["pickscore"], NFT["geneval_24gb"]])
def test_the_preflight_counts_the_policy_and_names_what_lacks(file: str, described: Path) -> None:
    found = read(file)["model"]
    policy = {**found["init_args"]["policy"], "pipeline": str(described)}
    needs = KINDS[found["class_path"]].needs({**found["init_args"], "policy": policy})
    stay = [size for part, size in PARAMETERS.items() if not (part.startswith("text_encoder") and "24gb" in file)]
    assert needs.trainable == 18_776_064 and needs.frozen == sum(stay) and needs.frozen_bytes == 2 * sum(stay)
    lacking = [need.what for need in needs.weights if not need.found]
    judges = ["PickScore"] if "pickscore" in file else ["GenEval's detector", "CLIP of GenEval's colours"]
    assert lacking == ["the policy's pipeline", *judges]
    assert "no folder scheduler" in needs.weights[0].hint


def test_a_pipeline_that_is_not_here_is_named() -> None:
    needs = FlowGRPO.needs(arguments(GRPO["ocr"]))
    assert needs.trainable == needs.frozen == 0
    assert [(need.source, need.found) for need in needs.weights] == [
        ("stabilityai/stable-diffusion-3.5-medium", False),
        ("PaddleOCR", False),
    ]
    assert "lightning-gen[ocr]" in needs.weights[1].hint


# ------------------------------------------------------------------ the same keys, a tiny pipeline


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A pipeline, a detector and a CLIP."""
    folder = tmp_path_factory.mktemp("weights")
    model, detector = write_tiny_pipeline(folder / "model", "sd3"), save_mask2former(folder / "m2f")
    return str(model), str(detector), str(write_tiny_clip(folder / "clip"))


@pytest.mark.parametrize(("file", "updates"), [(GRPO["geneval_24gb"], 2), (NFT["geneval_24gb"], 1)])
def test_a_published_config_trains_a_tiny_pipeline(
    file: str, updates: int, weights: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All keys of the file are in use; what is laid over it are places, sizes and the device."""
    monkeypatch.chdir(tmp_path)
    model, detector, clip = weights
    record = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(record)}\n" for _ in range(2)))
    judge = {"score": "dense", "detector": detector, "color_clip": clip}
    entries = [
        {"name": "dense", "reward": {"class_path": "lightning_gen.GenEvalReward", "init_args": judge}, "weight": 1.0},
        # What a random detector finds may be the same in all pictures.
        {"name": "clip", "reward": {"class_path": "lightning_gen.CLIPScoreReward", "init_args": {"clip": clip}}},
    ]
    places = {"train": "prompts.jsonl", "val": "prompts.jsonl", "global_batch_size": 4, "repeats": 2}
    window = {"window": [0, 3]} if "grpo" in file else {}
    laid_over = {
        "trainer": {"accelerator": "cpu", "max_steps": updates, "val_check_interval": 1, "enable_progress_bar": False},
        "model": {
            "class_path": read(file)["model"]["class_path"],
            "init_args": {
                "policy": {"pipeline": model, "canvas": [16, 16], "text_length": 8},
                "rewards": {"class_path": "RewardSuite", "init_args": {"entries": entries}},
                "rollout": {"steps": 3, **window},
                "evaluation": {"steps": 2},
            },
        },
        "data": {"class_path": "PromptDataModule", "init_args": {**places, "val_batch_size": 2}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(laid_over))
    main(["fit", "--config", str(ROOT / f"{file}.yaml"), "--config", "tiny.yaml"])
    run = tmp_path / "runs" / file
    [row] = [row for row in csv.DictReader((run / "metrics.csv").open()) if row.get("train/loss")]
    assert math.isfinite(float(row["train/loss"])) and math.isfinite(float(row["rewards/dense/raw"]))
    assert list((run / "samples").glob("*.png")) and list((tmp_path / "prompt_cache").rglob("*.safetensors"))
    used = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert used["policy"]["text_offload"] and used["policy"]["dtype"] == "bfloat16"
