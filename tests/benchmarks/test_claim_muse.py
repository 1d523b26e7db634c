"""MUSE's claim: what is compared, that arms differ by their routing alone, and its runs at the quick budget."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gen.backbones import shipped
from lightning_gen.nn.routing import GradientRouter

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "claims"


@pytest.fixture(autouse=True)
def importable() -> None:
    """The commands of that folder import each other by name; the path is put back after the test."""
    sys.path.insert(0, str(FOLDER))


def part(name: str) -> Any:
    return importlib.import_module(name)


def the_claim() -> Any:
    (claim,) = part("muse").CLAIMS
    return claim


def test_what_decides_is_fixed() -> None:
    muse, claim = part("muse"), the_claim()
    deciding = {
        (one.measure, one.first, one.second, one.expects, one.margin) for one in claim.comparisons if one.expects
    }
    assert deciding == {
        ("conflict@rec-itc", "joint", None, "higher", 0.05),
        ("conflict@topo-itc", "joint", None, "higher", 0.05),
        ("shared@topo-itc", "strict", None, "not higher", 0.5),
        ("psnr", "strict", "joint", "higher", 0.1),
        ("probe@kind", "strict", "joint", "higher", 0.02),
    }
    assert claim.baseline == "joint" and len(claim.seeds) >= 3 and set(claim.arms) == {"strict", "joint", "official"}
    assert claim.budget.steps * claim.budget.batch < part("pictures").SCENES
    for budget in (claim.budget, claim.quick):
        stages = muse.stages(budget.steps)
        assert [stage.kind for stage in stages] == [1, 2, 3]
        assert sum(stage.steps for stage in stages) == budget.steps
        # The gradients of all three losses are compared in the last quarter.
        assert stages[0].steps + stages[1].steps <= budget.steps - budget.steps // 4
        assert not any(stage.uses_discriminator or stage.perceptual_weight for stage in stages)


def test_arms_differ_by_their_routing_and_official_by_its_faults() -> None:
    muse = part("muse")
    made = {arm: muse.model_of(arm, 40, "encoder", "teacher", 3) for arm in the_claim().arms}
    assert {arm: model.settings.routing for arm, model in made.items()} == {arm: arm for arm in made}

    def rest(arm: str) -> Any:
        model = made[arm]
        names = ("topo_heads", "psi", "gather_negatives", "clamp_logit_scale", "stages", "building", "clip", "betas")
        return [model.settings.topo_layers, *(getattr(model, name) for name in names)]

    assert rest("strict") == rest("joint")
    official = ["last", "mean", "official_transposed", False, False]
    assert rest("official") == official + rest("joint")[len(official) :]


def three_losses() -> Any:
    """rec on a and b, topo on c, itc on a and d, against rec on a."""
    a, b, c, d = (nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)) for _ in range(4))
    losses = {"rec": 3 * a.sum() + b.sum(), "topo": c.sum(), "itc": -a[0] + d.sum()}
    return GradientRouter({"ab": [a, b], "cd": [c, d]}).measure(losses)


def test_conflict_is_minus_the_cosine_over_what_is_shared() -> None:
    found = part("muse").conflicts(three_losses())
    assert set(found) == {
        f"{name}@{pair}"
        for name in ("conflict", "negative", "cos_full", "shared")
        for pair in ("rec-topo", "rec-itc", "topo-itc")
    }
    assert found["conflict@rec-itc"] == pytest.approx(3**-0.5) and found["negative@rec-itc"] == 1
    assert found["cos_full@rec-itc"] == pytest.approx(-3 / (30**0.5 * 2))
    assert found["shared@rec-itc"] == 3
    for pair in ("rec-topo", "topo-itc"):
        # Nothing is shared, although topo and itc have parameters in one group.
        assert [found[f"{name}@{pair}"] for name in ("conflict", "negative", "cos_full", "shared")] == [0, 0, 0, 0]


def test_measurements_survive_an_interruption(tmp_path: Path) -> None:
    watch = part("muse").Conflicts(10, 5)
    with pytest.raises(RuntimeError, match="no gradients were compared from step 10 on"):
        watch.numbers()
    watch.found = {10: {"conflict@a-b": 0.5, "shared@a-b": 0.0}, 15: {"conflict@a-b": -0.1, "shared@a-b": 7.0}}
    torch.save(watch.state_dict(), tmp_path / "state")
    again = part("muse").Conflicts(10, 5)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    # Means of cosines; one measurement with a shared parameter is one too many.
    assert again.numbers() == pytest.approx({"conflict@a-b": 0.2, "shared@a-b": 7.0})


def test_every_arm_starts_from_the_same_encoder(tmp_path: Path) -> None:
    from lightning_gen.backbones.intern_vit import read_intern_vit

    muse, pretrained = part("muse"), part("pretrained_encoder").pretrained_encoder
    weights = muse.teacher_weights(muse.QUICK, tmp_path)
    budget = muse.Budget(8, 2, 2)
    made = [
        read_intern_vit(pretrained(muse.SHAPE.encoder, weights, muse.SIZE, 2, budget, seed, tmp_path / str(number)))
        for number, seed in enumerate((0, 0, 1))
    ]
    (_, first), (_, second), (_, other) = made
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def quick_run(arm: str, tmp_path: Path) -> dict[str, float]:
    muse = part("muse")
    code = part("harness").main(
        muse.CLAIMS, ["--quick", "--seed", "0", "--arm", arm, "--runs", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    assert code == 0
    content = json.loads((tmp_path / "muse_routing_quick" / f"{arm}-seed0.json").read_text(encoding="utf-8"))
    numbers: dict[str, float] = content["numbers"]
    return numbers


def test_strict_routing_leaves_structure_and_semantics_no_parameter_in_common(tmp_path: Path) -> None:
    strict, joint = quick_run("strict", tmp_path), quick_run("joint", tmp_path)
    assert set(strict) == set(joint)
    assert {one.measure for one in the_claim().comparisons} <= set(strict)
    for pair in ("rec-topo", "rec-itc", "topo-itc"):
        assert strict[f"shared@{pair}"] == strict[f"cos_full@{pair}"] == strict[f"conflict@{pair}"] == 0
        assert joint[f"shared@{pair}"] > 0 and joint[f"cos_full@{pair}"] != 0
    assert strict["parameters"] == joint["parameters"]
    assert all(0 <= strict[name] <= 1 for name in strict if name.startswith(("probe", "zero_shot", "negative", "ssim")))
    assert not (tmp_path / "out").exists()


def test_a_full_run_without_the_weights_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "lightning_gen")
    code = part("harness").main(part("muse").CLAIMS, ["--seed", "0", "--runs", str(tmp_path / "runs")])
    assert code == 2
    message = capsys.readouterr().err
    assert "the weights shapes_encoder are not in this installation" in message and "README.md" in message
    assert not list((tmp_path / "runs").rglob("*.ckpt"))
