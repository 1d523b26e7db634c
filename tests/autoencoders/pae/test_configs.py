"""The paper's values in the large configurations, and every ablation on top of the one that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from jsonargparse import ArgumentParser

from lightning_gen.autoencoders.pae.module import PAE
from lightning_gen.commands.trainer import read_config

ROOT = Path(__file__).parent.parent.parent.parent / "configs"
ABLATIONS = sorted((ROOT / "overrides").glob("pae_*.yaml"))
BASE = {"pae_raw_target": "pae_refine", "pae_refine_shapes": "pae_refine_tiny", "pae_shapes": "pae_tiny"}


def model(*names: Path) -> dict[str, Any]:
    arguments = [part for name in names for part in ("--config", str(name))]
    found: dict[str, Any] = read_config(["fit", *arguments])["model"]
    return found


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_changes_its_base_and_is_built(path: Path) -> None:
    base = ROOT / f"{BASE.get(path.stem, 'pae_dinov2l_d32')}.yaml"
    before, after = model(base), model(base, path)
    assert before["class_path"] == after["class_path"] and before["init_args"] != after["init_args"]
    # what an ablation does not name stays
    assert after["init_args"]["optimizer"] == before["init_args"]["optimizer"]
    assert after["init_args"]["shape"]["grid"] == before["init_args"]["shape"]["grid"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    built = parser.instantiate(parser.parse_object({"model": after})).model
    assert all(parameter.device.type == "meta" for parameter in built.parameters())


@pytest.mark.parametrize("name", ["pae_dinov2l_d32", "pae_dinov2l_d32_24gb"])
def test_the_large_configs_hold_the_papers_values(name: str) -> None:
    given = model(ROOT / f"{name}.yaml")["init_args"]
    losses = {key: given["losses"][key] for key in ("l1", "lpips", "adversarial", "ssr", "mcr", "scr", "kl", "vf")}
    assert losses == {"l1": 1, "lpips": 1, "adversarial": 0.5, "ssr": 0.2, "mcr": 0.5, "scr": 1, "kl": 0, "vf": 0}
    assert list(given["cascade"]["angles"]) == [42.5, 85.0]
    shape = given["shape"]
    assert (shape["channels"], shape["prior_width"], shape["grid"], shape["patch"]) == (32, 1024, 16, 16)
    assert (shape["modulator_depth"], shape["fusion"], shape["decoder"]) == (6, "sft", "L")
    assert given["encoder"]["class_path"].endswith("DINOv2Patches")


def test_stage_zero_holds_the_papers_values() -> None:
    given = model(ROOT / "pae_refine.yaml")["init_args"]
    assert (given["restorer"], given["fine_size"], given["strength"]) == ("w1024_d4_h16", 256, 0.4)
    assert given["reference"] == "refined"


def test_what_a_run_lacks_is_said_before_it_starts() -> None:
    needs = PAE.needs(model(ROOT / "pae_dinov2l_d32.yaml")["init_args"])
    lacking = [need.what.split(" ")[0] for need in needs.weights if not need.found]
    assert lacking == ["DINOv2", "refined", "VGG16", "DINO"]
    assert needs.trainable > 400_000_000
