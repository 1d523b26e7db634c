"""The shipped configurations hold the paper's values, chain, and take their overrides."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lightning_gen.autoencoders.muse.curriculum import revive_stages
from lightning_gen.autoencoders.muse.stages import PAPER_STAGES
from lightning_gen.commands.trainer import read_config

CONFIGS = Path(__file__).parents[3] / "configs"


def arguments(*names: str) -> dict[str, Any]:
    chosen = [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]
    found = read_config(["fit", *chosen])
    return {**found["model"]["init_args"], "max_steps": found["trainer"]["max_steps"], "name": found["name"]}


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_stages_hold_the_published_values_and_chain(kind: int) -> None:
    found = arguments(f"muse_1b_stage{kind}")
    assert revive_stages(found["stages"]) == (PAPER_STAGES[kind - 1],)
    assert found["max_steps"] == 50_000 and found["start"] == "previous_stage"
    before = f"runs/muse_1b_stage{kind - 1}/checkpoints/last.ckpt"
    assert found["init_from"] == (None if kind == 1 else before)
    assert (found["encoder_source"] is None) == (kind > 1)


def test_one_run_has_all_stages() -> None:
    found = arguments("muse_1b")
    assert revive_stages(found["stages"]) == PAPER_STAGES and found["max_steps"] == 150_000
    small = arguments("muse_1b_24gb")
    stages = revive_stages(small["stages"])
    assert tuple(dataclasses.replace(s, steps=50_000) for s in stages) == PAPER_STAGES
    assert sum(s.steps for s in stages) == small["max_steps"] == 60_000


def test_overrides_change_what_they_say_and_nothing_else() -> None:
    plain = arguments("muse_tiny")
    assert sum(s.steps for s in revive_stages(plain["stages"])) == plain["max_steps"]
    changes = {
        "muse_joint": {"name", "routing"},
        "muse_official": {
            "name",
            "routing",
            "topo_layers",
            "topo_heads",
            "psi",
            "gather_negatives",
            "clamp_logit_scale",
        },
        "muse_reversed": {"name", "start", "stages"},
        "muse_no_structure": {"name", "stages"},
    }
    for name, wanted in changes.items():
        found = arguments("muse_tiny", f"overrides/{name}")
        assert {key for key in found if found[key] != plain[key]} == wanted
    without = revive_stages(arguments("muse_tiny", "overrides/muse_no_structure")["stages"])
    assert without == tuple(dataclasses.replace(s, structure_weight=0.0) for s in revive_stages(plain["stages"]))
    reversed_stages = revive_stages(arguments("muse_tiny", "overrides/muse_reversed")["stages"])
    assert [(s.kind, s.uses_discriminator) for s in reversed_stages] == [(3, True), (2, False), (1, False)]
    weights = [(s.kind, s.structure_weight, s.semantic_weight, s.steps) for s in revive_stages(plain["stages"])]
    assert sorted((s.kind, s.structure_weight, s.semantic_weight, s.steps) for s in reversed_stages) == weights
