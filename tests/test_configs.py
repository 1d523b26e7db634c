"""Every shipped configuration is built; every tiny one is trained for two steps by the verb that a user types."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_gen.cli import main
from lightning_gen.commands.trainer import read_config
from lightning_gen.data.synth.options import SynthOptions
from tests.data.samples import shards

CONFIGS = [p for p in sorted((Path(__file__).parent.parent / "configs").glob("*.yaml")) if "evaluate_" not in p.stem]
ON_SHAPES_LATENTS = ("dit_shapes_tiny", "lightningdit_shapes_tiny")
PARAMETERS = {"5b": 4_994_721_600, "350m": 354_548_032}

# The paper's values, typed from its tables: section 3.3 of the requirement.
PAPER_5B = {
    "trainer": {"max_steps": 300_000, "gradient_clip_val": 1.0, "precision": "bf16-mixed"},
    "model": {
        "variant": "5B-f16x64",
        "bottleneck": "layernorm",
        "layer_scale": 1e-4,
        "rope_theta": 10000.0,
        "drop_path": 0.0,
        "charbonnier_weight": 1.0,
        "charbonnier_eps": 1e-3,
        "ssim_weight": 0.1,
        "dino_weight": 500.0,
        "dino_model": "S",
        "tile_size": 224,
        "tiles_per_image": 1,
        "activation_checkpointing": True,
        "window_radius": None,
    },
}


def sections(path: Path) -> dict[str, Any]:
    config = read_config(["fit", "--config", str(path)])
    return {"trainer": config["trainer"], "model": config["model"], "data": config["data"]}


def latents_of_shapes() -> None:
    """What the comment at the head of dit_shapes_tiny.yaml makes, with an untrained tokenizer, in this folder."""
    from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
    from lightning_gen.data.latents.caching import Caching, cache_latents
    from lightning_gen.data.latents.reading import PictureSize
    from lightning_gen.data.writing import write_shards
    from lightning_gen.shapes.synth import picture_samples

    tokenizer = ViTokV2("w16_d1_h1-w16_d1_h1/1x16x64", dino_weight=0.0)
    tokenizer.configure_model()
    tokenizer.save_pretrained("weights/vitok_v2_shapes")
    manifest = write_shards(picture_samples(SynthOptions(count=8, size=64)), "data/shards/shapes")
    cache_latents(manifest, "latents/shapes", tokenizer.eval(), Caching(PictureSize(16)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_built(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sections(path)
    if path.stem in ON_SHAPES_LATENTS:
        monkeypatch.chdir(tmp_path)
        latents_of_shapes()
    if path.stem.startswith("pae_lightningdit"):
        # The tokenizer would be read from weights that are not here: patches of pixels stand in for its latents.
        space = {"class_path": "lightning_gen.generators.spaces.PixelSpace", "init_args": {"patch": 16}}
        found["model"]["init_args"]["space"] = space
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    built = parser.instantiate(parser.parse_object({"model": found["model"], "data": found["data"]}))
    assert all(p.device.type == "meta" for p in built.model.parameters()), "building a model allocates nothing"
    for size, count in PARAMETERS.items():
        if f"_{size}" in path.stem:
            assert sum(p.numel() for p in built.model.parameters()) == count
    if path.stem.startswith("vitok"):
        assert built.data.patch_size == built.model.variant.patch


@pytest.mark.parametrize("name", ["vitok_v2_5b", "vitok_v2_5b_stage2"])
def test_the_large_configs_hold_the_papers_values(name: str) -> None:
    found = sections(next(path for path in CONFIGS if path.stem == name))
    for section, values in PAPER_5B.items():
        given = found[section].get("init_args", found[section])
        assert {key: given[key] for key in values} == values
    arguments = found["model"]["init_args"]
    optimizer, schedule = arguments["optimizer"], arguments["schedule"]
    found_optimizer = (optimizer["learning_rate"], tuple(optimizer["betas"]), optimizer["weight_decay"])
    assert found_optimizer == (5e-4, (0.9, 0.95), 0.05)
    assert (schedule["warmup_fraction"], schedule["final_learning_rate"]) == (0.05, 1e-5)
    stages = [(s["tokens"], s["global_batch_size"], s["until_step"]) for s in found["data"]["init_args"]["stages"]]
    assert stages == [(256, 6144, 270_000), (1024, 1536, None)]
    assert "FSDP2Strategy" in str(found["trainer"]["strategy"])


def test_stage_two_starts_where_stage_one_kept_its_end() -> None:
    first, second = (next(path for path in CONFIGS if path.stem == f"vitok_v2_5b{end}") for end in ("", "_stage2"))
    keeper = next(c for c in sections(first)["trainer"]["callbacks"] if "ModelCheckpoint" in c["class_path"])
    assert (keeper["init_args"]["filename"], keeper["init_args"]["every_n_train_steps"]) == ("stage1", 270_000)
    found = read_config(["fit", "--config", str(second)])
    assert found["ckpt_path"] == "runs/vitok_v2_5b/checkpoints/stage1.ckpt"
    assert found["data"]["init_args"]["stages"] == sections(first)["data"]["init_args"]["stages"]


def test_the_release_config_holds_the_published_trainers_values() -> None:
    found = sections(next(path for path in CONFIGS if path.stem == "vitok_v2_350m_release"))
    model, data = found["model"]["init_args"], found["data"]["init_args"]
    optimizer = model["optimizer"]
    given = (optimizer["learning_rate"], tuple(optimizer["betas"]), optimizer["weight_decay"])
    assert given == (3e-4, (0.9, 0.99), 0.01)
    assert (model["tile_size"], model["dino_weight"], model["ssim_weight"]) == (256, 500.0, 0.1)
    assert (found["trainer"]["max_steps"], data["budget_rule"]) == (100_000, "vitok_release")
    assert [(s["tokens"], s["global_batch_size"]) for s in data["stages"]] == [(256, 256)]


def test_overrides_reach_interpolated_values() -> None:
    path = str(next(path for path in CONFIGS if path.stem == "vitok_v2_5b"))
    found = read_config(["fit", "--config", path, "--seed_everything", "7"])
    assert found["model"]["init_args"]["seed"] == found["data"]["init_args"]["seed"] == 7


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_of_a_config_is_commented(path: Path) -> None:
    """A comment above the key, above the first of a run of keys of one thought, or above the item it belongs to."""
    lines = path.read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        above = lines[number - 1].strip() if number else ""
        if not above:
            bare.append(text)  # a new paragraph without a word
    sections_only = {"trainer:", "checkpoint:", "model:", "data:", "vars:"}
    assert [text for text in bare if text not in sections_only] == []


SMALL = [path for path in CONFIGS if path.stem.endswith("_tiny") or "_shapes" in path.stem]


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_tiny_config_trains_two_steps(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    if path.stem.startswith("vitok"):
        for split in ("train", "val"):
            shards(tmp_path / split, 12, per_shard=12, name=split)
            folders += [f"--data.init_args.{split}", str(tmp_path / split)]
    if path.stem in ON_SHAPES_LATENTS:
        latents_of_shapes()
        folders = ["--data.init_args.global_batch_size", "4"]
    if path.stem.startswith(("flow_grpo", "diffusion_nft")):
        folders = ["--data.init_args.global_batch_size", "8", "--data.init_args.repeats", "4"]
    limits = ["--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
    # A second process would start this test run again.
    limits += ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    main(["fit", "--config", str(path), *folders, *limits])
    run = tmp_path / "runs" / path.stem
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    # Flow-GRPO takes both of its optimiser steps on one rollout.
    assert len(losses) == (1 if path.stem.startswith("flow_grpo") else 2) and all(torch.tensor(losses).isfinite())
    assert (run / "checkpoints" / "last.ckpt").exists() and (run / "config.yaml").exists()
