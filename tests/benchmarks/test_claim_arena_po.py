"""Claims of ArenaPO: arms, worlds, measures, and their runs at the quick budget."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightning_gen.alignment.arena_po.arena_table import read_comparisons
from lightning_gen.alignment.arena_po.objectives import GAP_MODES, LossMode
from lightning_gen.alignment.arena_po.sources import drawn_comparisons
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.grammar import parse_prompt
from lightning_gen.shapes.preferences import ShapesPreferenceDataModule

FOLDER = Path(__file__).parents[2] / "benchmarks" / "claims"


@pytest.fixture(autouse=True)
def importable() -> None:
    """The commands of that folder import each other by name; the path is put back after the test."""
    sys.path.insert(0, str(FOLDER))


def part(name: str) -> Any:
    return importlib.import_module(name)


def claim(name: str) -> Any:
    return next(one for one in part("arena_po").CLAIMS if one.name == f"arena_po_{name}")


# ------------------------------------------------------------------ what is compared


def test_what_decides_is_fixed() -> None:
    deciding = {
        (one.name, asked.measure, asked.first, asked.second, asked.expects, asked.margin)
        for one in part("arena_po").CLAIMS
        for asked in one.comparisons
        if asked.expects
    }
    assert deciding == {
        ("arena_po_capabilities", "correlation@usual", "ep_sequential", None, "higher", 0.97),
        ("arena_po_capabilities", "correlation@noisy", "ep_sequential", None, "higher", 0.9),
        ("arena_po_reward", "reward", "arena_po", "diffusion_dpo", "higher", 0.01),
        ("arena_po_reward", "reward", "arena_po", "fixed_margin", "higher", 0.01),
        ("arena_po_noise", "above dpo", "noisy", "sure", "higher", 0.01),
        ("arena_po_noise", "above fixed", "noisy", "sure", "higher", 0.01),
        ("arena_po_spread", "above dpo", "wide", "narrow", "higher", 0.01),
        ("arena_po_spread", "above fixed", "wide", "narrow", "higher", 0.01),
    }
    for one in part("arena_po").CLAIMS:
        assert len(one.seeds) >= 3
    assert claim("reward").budget.measured_on == len(benchmark_requests())


def test_every_loss_and_both_readings_are_arms() -> None:
    arms = part("preference_training").ARMS.values()
    assert {arm.mode for arm in arms} == set(get_args(LossMode)) and len(set(arms)) == len(arms)
    for mode in GAP_MODES:
        assert {arm.variance for arm in arms if arm.mode == mode} == {"performance", "capability"}
    assert set(claim("reward").arms) == {"base", *part("preference_training").ARMS}


def test_arms_differ_by_their_loss_alone() -> None:
    training = part("preference_training")
    cache = training.CacheSettings("somewhere", draws=1)
    models = {name: training.model_of(arm, 3, cache) for name, arm in training.ARMS.items()}
    plain = models["diffusion_dpo"]
    for name, model in models.items():
        assert model.loss == dataclasses.replace(plain.loss, mode=training.ARMS[name].mode)
        for same in ("_lora", "optimizer", "warmup", "times", "error", "drop_rate", "samples", "seed"):
            assert getattr(model, same) == getattr(plain, same)
        # What a cache cannot know is computed.
        assert (model._caching is None) == (training.ARMS[name].mode in ("dspo", "sft", "mapo"))
    assert models["arena_po"].gap_source.how.variance == "performance"
    assert models["arena_po_capability"].gap_source.how.variance == "capability"
    # A fixed margin is the mean of the gaps.
    assert models["arena_po"].gap_source.how.normalisation == "mean" and plain.loss.strength == 1.0


# ------------------------------------------------------------------ worlds


@pytest.fixture(scope="module")
def base() -> Any:
    sys.path.insert(0, str(FOLDER))
    model = part("preference_training").model_of(part("preference_training").ARMS["diffusion_dpo"], 0)
    model.configure_model()
    return model


def test_pairs_are_by_copies_for_other_prompts_and_labels_follow_the_rewards(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = part("copies")
    monkeypatch.setattr(copies, "HELD_OUT", 16)
    worlds = [dataclasses.replace(copies.WORLDS["usual"], noise=noise) for noise in (0.001, 1000.0)]
    sure, noisy = (copies.pairs_of(base, world, 1, 32, tmp_path) for world in worlds)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and sure != noisy
    [painted] = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    names = np.array(copies.WORLDS["usual"].copies)[painted["who"].numpy()]
    assert (names[:, 0] != names[:, 1]).all() and {*names.flat} == set(copies.WORLDS["usual"].copies)
    rewards = painted["rewards"].numpy()
    better = np.where(rewards[:, 0] == rewards[:, 1], 0.5, rewards[:, 0] > rewards[:, 1])
    table, other = (read_comparisons(folder / "train") for folder in (sure, noisy))
    assert np.array(table.names)[table.first].tolist() == names[:32, 0].tolist()
    assert 0.5 in better[:32] and table.outcome.tolist() == better[:32].tolist()
    assert not np.array_equal(table.outcome, other.outcome)
    # Labels of held-out pairs have no noise.
    assert read_comparisons(noisy / "held_out").outcome.tolist() == better[32:].tolist()
    data = part("preference_training").data_of(sure, 0, part("arena_po").QUICK)
    data.setup("fit")
    seen = list(data.train_loader(0))[0]
    benchmark = {one.prompt() for one in benchmark_requests()}
    assert not benchmark & set(seen.winner.caption)
    # Pictures come as they were painted, the preferred one first; ties do not come.
    row = int(seen.winner.index[0])
    assert better[row] != 0.5
    first = painted["images"][row, 0 if better[row] == 1 else 1]
    assert torch.equal(seen.winner.images[0].add(1).mul(127.5).round().byte(), first)
    told = copies.qualities(sure)
    assert told["guided"] == pytest.approx(rewards[names == "guided"].mean())
    assert told["guided"] > told["confused"] + 0.1
    # Made once.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    copies.pairs_of(base, worlds[0], 1, 32, tmp_path)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_who_misreads_more_misreads_all_that_others_do() -> None:
    copies = part("copies")
    asked = benchmark_requests()[::7]
    read = {
        chance: [
            copies.misread(one, chance, np.random.default_rng(number)) for number, one in enumerate(asked)
        ]
        for chance in (0.0, 0.3, 0.9, 1.0)
    }  # fmt: skip
    assert read[0.0] == list(asked)

    def words(request: Any) -> list[Any]:
        return [word for phrase in request.phrases for word in (phrase.kind, phrase.color, phrase.count)]

    wrong = {
        chance: [one != other for request, heard in zip(asked, found, strict=True)
                 for one, other in zip(words(request), words(heard), strict=True)]
        for chance, found in read.items()
    }  # fmt: skip
    assert all(often for often, seldom in zip(wrong[0.9], wrong[0.3], strict=True) if seldom)
    assert 0 < sum(wrong[0.3]) < sum(wrong[0.9]) < sum(wrong[1.0])
    for request, heard in zip(asked, read[1.0], strict=True):
        assert parse_prompt(heard.prompt()) == heard and heard.relation == request.relation
        for phrase, other in zip(request.phrases, heard.phrases, strict=True):
            assert phrase.kind != other.kind and (phrase.color is None) == (other.color is None)
            assert (phrase.count == other.count) == (len(request.phrases) == 2)


# ------------------------------------------------------------------ measures


@pytest.fixture(scope="module")
def pairs(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copies, folder = part("copies"), tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "HELD_OUT", 40)
        found: Path = copies.pairs_of(base, copies.WORLDS["usual"], 0, 4, folder)
    return found


def test_accuracy_and_order_of_a_policy_that_knows(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, copies = part("preference_training"), part("copies")
    quality = copies.qualities(pairs)

    def right(model: Any, batch: Any, draw: int) -> torch.Tensor:
        return torch.tensor([[-1.0], [1.0]]).expand(2, len(batch)) + (-1) ** draw  # noise that the mean takes out

    def knows(model: Any, batch: Any, draw: int) -> torch.Tensor:
        return torch.tensor([[-quality[one] for one in side] for side in zip(*batch.models, strict=True)])

    monkeypatch.setattr(training, "_drifts", right)
    found = training.judged(None, pairs)
    assert found["accuracy"] == 1 and found["drift@first"] == -1 and found["drift@second"] == 1
    monkeypatch.setattr(training, "_drifts", lambda *arguments: -right(*arguments))
    assert training.judged(None, pairs)["accuracy"] == 0
    monkeypatch.setattr(training, "_drifts", knows)
    found = training.judged(None, pairs)
    assert found["order"] == pytest.approx(1) and 0.5 < found["accuracy"] < 1 and found["logit"] > 0
    assert found["drift@guided"] == pytest.approx(-quality["guided"])


def test_an_untrained_policy_has_no_preference_and_a_changed_one_has(pairs: Path) -> None:
    training = part("preference_training")
    model = training.model_of(training.ARMS["sft"], 0)
    model.configure_model()
    asked = benchmark_requests()[::100]

    def numbers() -> dict[str, float]:
        return {**training.measured(model, asked, 0), **training.judged(model, pairs)}

    start = numbers()
    assert start["accuracy"] == 0.5 and start["order"] == start["drift@first"] == start["drift@second"] == 0
    assert 0 <= start["score"] <= 1 and 0 <= start["reward"] <= 1
    with torch.no_grad():
        for name, value in model.policy.network.named_parameters():
            if value.requires_grad and "lora" in name.lower():
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    changed = numbers()
    assert changed["drift@first"] != 0 != changed["drift@plain"] and changed["reward"] != start["reward"]


def test_the_averaged_adapter_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, order = part("preference_training"), list[str]()

    class Average:
        @contextlib.contextmanager
        def averaged(self, model: Any) -> Iterator[None]:
            order.append("in")
            yield
            order.append("out")

    monkeypatch.setattr(training, "measured", lambda *rest: order.append("measured") or {"reward": 0.5})
    monkeypatch.setattr(training, "judged", lambda *rest: order.append("judged") or {"accuracy": 0.6})
    policy = training.Tuned(None, tmp_path, Average(), tmp_path / "policy")
    found = training.numbers_of(policy, [], 0)
    assert found == {"reward": 0.5, "accuracy": 0.6} and order == ["in", "measured", "judged", "out"]
    assert training.numbers_of(policy, [], 0) == found and len(order) == 4, "another claim measures the policy again"
    training.numbers_of(policy, [None], 0)
    assert len(order) == 8, "numbers by other prompts are taken for these"


def test_advantage_is_what_arena_po_has_above_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = part("arena_po")
    rewards = {"arena_po": 0.7, "diffusion_dpo": 0.6, "fixed_margin": 0.8}
    monkeypatch.setattr(commands, "tuned", lambda arm, *rest: arm)
    monkeypatch.setattr(
        commands, "numbers_of", lambda found, *rest: {"reward": rewards[found], "accuracy": rewards[found] / 2}
    )
    found = commands.advantage("noisy", 0, commands.QUICK, tmp_path)
    assert found["above dpo"] == pytest.approx(0.1) and found["above fixed"] == pytest.approx(-0.1)
    assert found["accuracy above dpo"] == pytest.approx(0.05) and found["reward@fixed_margin"] == 0.8


def test_an_arena_is_held_against_the_true_probabilities() -> None:
    commands = part("arena_po")
    data = ShapesPreferenceDataModule(samples=4096, strengths=[1.0, 0.0, -0.5])
    data.setup("fit")
    table = drawn_comparisons(data.comparisons())
    arena = commands.fit_arena(table)
    true = np.array([data.painters[name] for name in table.names])
    right, wrong = commands.told(arena, true), commands.told(arena, -true)
    assert right["error"] < 0.03 and right["covered"] >= 2 / 3
    assert wrong["error"] > 0.2 and wrong["covered"] == 0
    rates = commands._win_rates(table, 3)
    assert np.argsort(rates).tolist() == np.argsort(true).tolist() and rates.mean() == pytest.approx(0.5, abs=0.02)


# ------------------------------------------------------------------ runs


def test_all_claims_look_at_the_same_policies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands, training = part("arena_po"), part("preference_training")
    trained: list[Path] = []
    monkeypatch.setattr(training, "train", lambda model, data, steps, folder, **rest: trained.append(folder))
    monkeypatch.setattr(training, "pairs_of", lambda base, world, seed, count, folder: folder)
    monkeypatch.setattr(commands, "numbers_of", lambda found, *rest: {"reward": 0.5, "accuracy": 0.5})
    commands.reward("diffusion_dpo", 1, commands.FULL, tmp_path / "arena_po_reward" / "diffusion_dpo-seed1")
    commands.advantage("usual", 1, commands.FULL, tmp_path / "arena_po_noise" / "usual-seed1")
    assert len(trained) == 4 and len(set(trained)) == 3 and trained[0] == trained[2]
    assert trained[0].parent == tmp_path / "arena_po_policies"
    monkeypatch.setattr(training, "BETA", 7.0)
    with pytest.raises(ValueError, match="belongs to another setting"):
        commands.reward("diffusion_dpo", 1, commands.FULL, tmp_path / "arena_po_reward" / "diffusion_dpo-seed1")


def test_quick_runs_every_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = part("arena_po")
    monkeypatch.setattr(part("copies"), "HELD_OUT", 12)

    def run(name: str, *arms: str) -> dict[str, Any]:
        chosen = [word for arm in arms for word in ("--arm", arm)]
        options = ["--quick", "--seed", "0", "--runs", str(tmp_path), "--out", str(tmp_path / "out")]
        assert commands.main([claim(name)], [*chosen, *options]) == 0
        return {
            arm: json.loads((tmp_path / f"arena_po_{name}_quick" / f"{arm}-seed0.json").read_text())["numbers"]
            for arm in arms
        }

    found = run("reward", "base", "arena_po")
    assert found["arena_po"]["drift@first"] != 0 and {"score@sure", "harmony", "reward", "reward@plain"} <= set(
        found["base"]
    )
    assert -1 <= found["arena_po"]["capabilities"] <= 1 and "capabilities" not in found["base"]
    assert set(run("noise", "noisy")["noisy"]) >= {"above dpo", "above fixed", "reward@arena_po"}
    found = run("capabilities", "ep_sequential", "win_rate")
    assert found["ep_sequential"]["correlation@sure"] > 0.9 and "covered@usual" not in found["win_rate"]
    assert not (tmp_path / "out").exists() and not (tmp_path / "arena_po_policies").exists()
