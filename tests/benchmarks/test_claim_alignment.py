"""Claims of training by rewards: prompts, arms, measures, the learning curve, and their runs at the quick budget."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gen.alignment.flow_grpo.module import FlowGRPO
from lightning_gen.alignment.rollout import Rollout
from lightning_gen.data.transforms import uint8_to_unit
from lightning_gen.shapes.benchmark import COUNTS, benchmark_requests
from lightning_gen.shapes.grammar import Phrase, Request
from lightning_gen.shapes.render import render
from lightning_gen.shapes.scene import Scene, SceneObject

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "claims"


@pytest.fixture(autouse=True)
def importable() -> None:
    """The commands of that folder import each other by name; the path is put back after the test."""
    sys.path.insert(0, str(FOLDER))


def part(name: str) -> Any:
    return importlib.import_module(name)


# ------------------------------------------------------------------ what is compared


def test_what_decides_is_fixed() -> None:
    commands = part("alignment")
    score, samples = commands.CLAIMS
    deciding = {
        (one.measure, one.first, one.second, one.expects, one.margin)
        for claim in (score, samples)
        for one in claim.comparisons
        if one.expects
    }
    assert deciding == {
        ("score@plain", "flow_grpo", "base", "higher", 0.1),
        ("score@plain", "diffusion_nft", "base", "higher", 0.1),
        ("ln samples@5", "flow_grpo", "diffusion_nft", "higher", math.log(1.5)),
    }
    assert set(samples.arms) == {"flow_grpo", "diffusion_nft"} < set(score.arms)
    for claim in commands.CLAIMS:
        assert len(claim.seeds) >= 3 and claim.budget == commands.FULL
        # A whole number of rollouts, of groups in each, and of rollouts between two points; the last one is a point.
        training = part("alignment_training")
        rollouts, rows = claim.budget.steps // training.UPDATES, claim.budget.batch * training.UPDATES
        assert claim.budget.steps % training.UPDATES == rows % training.GROUP == rollouts % training.POINTS == 0
        # A checkpoint holds whole rollouts, and one is written at the end.
        assert training.SAVE_EVERY % training.UPDATES == 0
    assert commands.FULL.measured_on == len(benchmark_requests())


def test_arms_differ_by_their_method_alone() -> None:
    training = part("alignment_training")
    nft, plain, guided = (training.model_of(arm, 3) for arm in ("diffusion_nft", "flow_grpo", "flow_grpo_guided"))
    for model in (nft, plain, guided):
        assert model.seed == 3 and model.evaluation.guidance == 1 and model.evaluation.steps == 10
        assert model.updates.per_rollout == training.UPDATES and model.how.steps == training.STEPS
        assert (model._lora, model.optimizer, model.advantage_settings) == (
            plain._lora,
            plain.optimizer,
            plain.advantage_settings,
        )
        assert [(one.name, one.weight) for one in model.rewards.entries] == [("dense", 1.0)]
    assert guided.how.guidance == training.GUIDANCE
    # "Fast" makes the guided arm as cheap as the others; its window leaves out the last step, as theirs do.
    assert dataclasses.replace(guided.how, guidance=1.0, window_size=0, window=None) == plain.how
    assert guided.how.window == (0, training.STEPS - 1) and plain.how.window_size == 0
    assert (plain.kl, guided.kl, nft.loss.kl) == (0, 0, 0) and plain.clip == guided.clip


# ------------------------------------------------------------------ prompts


def test_no_prompt_of_the_benchmark_is_trained_on_or_held_out() -> None:
    training = part("alignment_training")
    benchmark = {one.prompt() for one in benchmark_requests()}
    held_out = training.held_out_requests(42)
    seen = {seed: [one.prompt() for one in training.training_requests(seed, 300, held_out)] for seed in (0, 1)}
    again = [one.prompt() for one in training.training_requests(0, 300, held_out)]
    assert again == seen[0] != seen[1]
    for prompts in (*seen.values(), [one.prompt() for one in held_out]):
        assert len(set(prompts)) == len(prompts) and not benchmark & set(prompts)
        assert not any('"' in prompt for prompt in prompts)
    assert not {one.prompt() for one in held_out} & {prompt for prompts in seen.values() for prompt in prompts}
    # Without the exclusion a fifth of them would be there: the grammar is small.
    drawn = [one.prompt() for one in training.fresh_requests(0, "training prompts", 300, ())]
    assert 0.1 < sum(prompt in benchmark for prompt in drawn) / len(drawn) < 0.3
    # All tasks weigh the same on the curve, as they do in the score.
    assert [one.tag for one in held_out] == [tag for tag in COUNTS for _ in range(7)]


def test_pictures_of_a_prompt_have_noise_of_their_own() -> None:
    training = part("alignment_training")
    requests = training.held_out_requests(6)[:3]
    batch = training.asked(requests, 2)
    assert batch.prompt == tuple(one.prompt() for one in requests for _ in range(2))
    assert batch.index.tolist() == [0, 0, 1, 1, 2, 2] and batch.member.tolist() == [0, 1, 0, 1, 0, 1]
    assert json.loads(batch.metadata[4]) == requests[2].metadata()


# ------------------------------------------------------------------ the learning curve


def points(*scores: float) -> list[dict[str, float]]:
    return [{"sampled": 100.0 * number, "score": score} for number, score in enumerate(scores)]


def test_samples_to_reach_a_score() -> None:
    reach = part("alignment_training").samples_to_reach
    assert reach(points(0.4, 0.42, 0.46, 0.5), 0.05) == (pytest.approx(175.0), True)
    assert reach(points(0.4, 0.5), 0.05) == (pytest.approx(50.0), True)
    # Never reached: all that were sampled.
    assert reach(points(0.4, 0.42, 0.44), 0.05) == (200.0, False)
    # A point above that the next ones do not confirm: the rising curve is flat at their mean, 0.03.
    assert reach(points(0.4, 0.46, 0.41, 0.42), 0.05) == (300.0, False)
    assert reach(points(0.4, 0.46, 0.41, 0.42, 0.5), 0.05) == (pytest.approx(300 + 100 * 2 / 7), True)
    # A dip below the base counts as none.
    assert reach(points(0.4, 0.3, 0.5), 0.05) == (pytest.approx(150.0), True)


# ------------------------------------------------------------------ measures


def drawn(kind: str, color: str, x: float = 0.5, radius: float = 0.3, background: str = "gray") -> torch.Tensor:
    """A clean picture of 32 x 32 pixels."""
    scene = Scene((SceneObject(kind, color, x, 0.5, radius),), background)
    return uint8_to_unit(render(scene, (32, 32)))


def rollout_of(requests: list[Request], images: list[torch.Tensor]) -> Rollout:
    count = len(images)
    return Rollout(
        trajectory=None,
        latents=torch.zeros(count, 1, 1),
        times=torch.tensor([1.0, 0.0]),
        steps=(),
        images=torch.stack(images),
        prompts=tuple(one.prompt() for one in requests),
        metadata=tuple(one.metadata() for one in requests),
        keys=torch.arange(count),
        group=torch.zeros(count, dtype=torch.int64),
        valid=torch.ones(count, dtype=torch.bool),
    )


def test_the_score_is_the_mean_of_the_tasks() -> None:
    measures = part("alignment_measures")
    requests = [Request((Phrase("circle"),)), Request((Phrase("circle"),)), Request((Phrase("star", "red"),))]
    assert measures.of_task(torch.tensor([1.0, 0.0, 1.0]), requests) == {"single_object": 0.5, "colors": 1.0}
    assert measures.overall(torch.tensor([1.0, 0.0, 1.0]), requests) == 0.75


def test_second_opinions_are_harder_to_please() -> None:
    measures, training = part("alignment_measures"), part("alignment_training")
    request = Request((Phrase("star", "red"),))
    clean = drawn("star", "red")
    # Blurred, the detector is less sure of the kind.
    worn = torch.nn.functional.avg_pool2d(clean[None], 3, 1, 1, count_include_pad=False)[0]
    rollout = rollout_of([request] * 2, [clean, worn])
    assert training.verdicts(rollout.images, rollout).tolist() == [1.0, 1.0]
    found = measures.second_opinions(rollout, seed=0)
    assert found["sure"].tolist() == [1.0, 0.0]
    assert found["noised"][0] == 1.0
    # Noise depends on the seed and the picture's key alone.
    assert torch.equal(found["noised"], measures.second_opinions(rollout, seed=0)["noised"])


def test_variety_compares_pictures_of_one_prompt() -> None:
    measures = part("alignment_measures")
    red, moved, blue = (drawn("circle", color, x) for color, x in (("red", 0.5), ("red", 0.4), ("blue", 0.5)))
    wrong = drawn("square", "red")
    circle, square = Request((Phrase("circle"),)), Request((Phrase("square"),))
    prompts = [circle] * 4 + [square] * 4
    found = measures.variety(rollout_of(prompts, [red, moved, blue, wrong, *[wrong] * 4]), 4)
    # First prompt: of 6 pairs one is alike (places do not count), of the 3 pairs of right ones too; second: all alike.
    assert found["variety@all"] == pytest.approx(5 / 12) and found["variety@right"] == pytest.approx(2 / 9)
    pair = measures.variety(rollout_of([circle] * 2, [red, blue]), 2)
    assert pair["variety@right"] == 1 and pair["spread"] == pytest.approx(
        float((red - blue).square().mean().sqrt()) / 2
    )
    none = measures.variety(rollout_of([circle] * 2, [wrong, wrong]), 2)
    assert none == {"variety@all": 0.0, "variety@right": 0.0, "spread": 0.0}
    other = measures.variety(rollout_of([circle] * 2, [red, drawn("circle", "red", background="sand")]), 2)
    assert other["variety@right"] == 1


def test_distance_from_the_base_is_zero_until_something_is_learned() -> None:
    measures, training = part("alignment_measures"), part("alignment_training")
    model = training.model_of("flow_grpo", 0)
    model.configure_model()
    made = model.make(training.asked(training.held_out_requests(6)[:2]))
    assert measures.drift(model, made, slice(None)) == {"drift": 0.0, "kl": 0.0}
    with torch.no_grad():
        for up in model.bank.parameters("default")[1::2]:
            up.fill_(0.05)
    once = measures.drift(model, made, slice(None))
    assert 0 < once["drift"] < 1 and once["kl"] > 0
    assert measures.drift(model, made, slice(0, 1)) != once
    # For a given distance of velocities at a step, |step|^2 w^2 / (2 deviation^2) nats per number.
    model.policy.velocity = lambda x, t, text: torch.full_like(x, float(model.bank.active is not None))  # type: ignore
    plain = measures.drift(model, made, slice(None))
    times = model.policy.times(10).double()
    nats = 0.0
    for t, after in zip(times[:-2].tolist(), times[1:-1].tolist(), strict=True):
        rate = 0.7 * math.sqrt(t / (1 - (float(times[1]) if t == 1 else t)))
        step = after - t
        moved = (1 + rate**2 * (1 - t) / (2 * t)) * step
        nats += 3072 * moved**2 / (2 * rate**2 * -step)
    assert plain["drift"] == pytest.approx(1.0) and plain["kl"] == pytest.approx(nats, rel=1e-4)


# ------------------------------------------------------------------ runs


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("OPTIMIZER", lambda training: dataclasses.replace(training.OPTIMIZER, learning_rate=1.0)),
        ("PLAIN", lambda training: dataclasses.replace(training.PLAIN, noise_level=0.5)),
        ("CLIP", lambda training: 7.0),
    ],
)
def test_both_claims_look_at_the_same_policies(
    name: str, changed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = part("alignment")
    folders = [
        commands.policy_folder("diffusion_nft", 1, commands.FULL, tmp_path / claim.name / "diffusion_nft-seed1")
        for claim in commands.CLAIMS
    ]
    assert folders[0] == folders[1] == tmp_path / "alignment_policies" / "diffusion_nft-seed1"
    longer = dataclasses.replace(commands.FULL, steps=1000)
    with pytest.raises(ValueError, match="another setting of this claim"):
        commands.policy_folder("diffusion_nft", 1, longer, tmp_path / "a" / "b")
    # Quick runs begin anew, so they share nothing.
    assert commands.policy_folder("flow_grpo", 0, commands.QUICK, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    # What was trained in another way is another policy.
    training = part("alignment_training")
    monkeypatch.setattr(training, name, changed(training))
    with pytest.raises(ValueError, match="another setting of this claim"):
        commands.policy_folder("diffusion_nft", 1, commands.FULL, tmp_path / "a" / "b")


@pytest.mark.slow
def test_a_policy_that_is_stopped_goes_on_and_is_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, training = part("alignment"), part("alignment_training")
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    whole = training.trained("flow_grpo", 0, commands.QUICK, tmp_path / "whole")
    sample, calls = FlowGRPO.sample, []

    def stopping(self: FlowGRPO, batch: Any) -> Rollout:
        calls.append(batch.prompt)
        if len(calls) == 2:
            raise OSError("the disk is full")
        return sample(self, batch)

    monkeypatch.setattr(FlowGRPO, "sample", stopping)
    with pytest.raises(OSError, match="disk is full"):
        training.trained("flow_grpo", 0, commands.QUICK, tmp_path / "broken")
    rest = training.trained("flow_grpo", 0, commands.QUICK, tmp_path / "broken")
    assert len(calls) == 3 and calls[1] == calls[2] != calls[0]
    again = training.trained("flow_grpo", 0, commands.QUICK, tmp_path / "broken")
    assert len(calls) == 3
    assert whole.points == rest.points == again.points
    assert [point["sampled"] for point in whole.points] == [0, 16, 32]
    for other in (rest, again):
        for decay in ("raw", "averaged"):
            sides = []
            for one in (whole, other):
                if decay == "raw":
                    sides.append([p.clone() for p in one.model.bank.parameters("default")])
                else:
                    with one.average.averaged(one.model):
                        sides.append([p.clone() for p in one.model.bank.parameters("default")])
            assert all(torch.equal(a, b) for a, b in zip(*sides, strict=True)), decay


@pytest.mark.slow
def test_quick_runs_both_claims(tmp_path: Path) -> None:
    commands = part("alignment")
    assert commands.main(commands.CLAIMS, ["--quick", "--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out").exists() and not (tmp_path / "alignment_policies").exists()
    found = json.loads((tmp_path / "alignment_score_quick" / "result.json").read_text(encoding="utf-8"))
    base, nft = (found["numbers"][arm]["0"] for arm in ("base", "diffusion_nft"))
    assert base["drift"] == base["kl"] == 0 and nft["drift"] > 0 and nft["kl"] > 0
    assert nft["sampled"] == found["numbers"]["flow_grpo_guided"]["0"]["sampled"] == 32
    for name in ("score@plain", "score@guided", "score@sure", "score@noised", "counting@plain", "variety@right"):
        assert 0 <= nft[name] <= 1 and 0 <= base[name] <= 1
    found = json.loads((tmp_path / "alignment_samples_quick" / "result.json").read_text(encoding="utf-8"))
    ours, theirs = (found["numbers"][arm]["0"] for arm in ("diffusion_nft", "flow_grpo"))
    # Both begin at the base, on the same prompts with the same noise.
    assert ours["point@0"] == theirs["point@0"] and {"point@16", "point@32", "gain"} <= set(ours)
    assert ours["held out@100%"] == ours["point@32"] and ours["held out@50%"] == ours["point@16"]
    assert ours["held out@25%"] == pytest.approx((ours["point@0"] + ours["point@16"]) / 2)
    assert (tmp_path / "alignment_samples_quick" / "plot.png").read_bytes().startswith(b"\x89PNG")
