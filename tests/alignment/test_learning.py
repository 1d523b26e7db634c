"""What a training step does with its numbers: each term, each draw and each log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from lightning_gen.alignment.flow_grpo.module import FlowGRPO, StochasticRollout
from lightning_gen.alignment.online import OnlineTraining
from lightning_gen.alignment.rollout import Rollout, row_keys, step_noise
from lightning_gen.alignment.settings import Evaluation, Updates
from lightning_gen.alignment.shares import RunningMeans, Share
from lightning_gen.rewards.rewards import RewardEntry, RewardSuite
from lightning_gen.training.optim import AdamW
from tests.alignment.test_online import (
    LORA,
    Redness,
    _batch,
    _training_batch,
    adapters,
    module,
    prompts,
    rewards,
    train,
)
from tests.alignment.worlds import ToyPolicy

ALL = Share(torch.arange(8), torch.full((8,), 1 / 8))
WHOLE = Updates(1, 8, skip_worthless=False)


def stepped(kind: str, tmp_path: Path, steps: int = 1, limit_val_batches: int = 0, **changed: Any) -> OnlineTraining:
    """A model after some steps, big enough to be seen."""
    model = module(kind, **({"updates": WHOLE, "optimizer": AdamW(3e-2, weight_decay=0.0)} | changed))
    model.trainer = train(model, prompts(tmp_path), tmp_path, steps=steps, limit_val_batches=limit_val_batches)
    return model


def logged(model: OnlineTraining) -> dict[str, float]:
    return {name: float(value) for name, value in model.trainer.callback_metrics.items()}


def watched(model: Any, rollout: Rollout, worth: Tensor) -> tuple[float, dict[str, float]]:
    """Sum of the gradient's magnitude after learning from eight rows, and what was watched."""
    found: dict[str, float] = {}
    model.watch = lambda name, values, weights: found.__setitem__(name, float((weights * values.detach()).sum()))
    model.manual_backward = lambda loss: loss.backward()
    model.zero_grad()
    model.learn(rollout, worth, ALL)
    parts = [p.grad.abs().sum() for p in model.bank.parameters("default") if p.grad is not None]
    return float(sum(parts)), found


# ------------------------------------------------------------------ Flow-GRPO


def test_the_first_update_is_on_the_policy(tmp_path: Path) -> None:
    """Every action is as likely as when it was taken, and the loss is minus the mean advantage: 0."""
    model = FlowGRPO(
        ToyPolicy(), rewards(), StochasticRollout(4, 2.0), clip=1e-6, lora=LORA, updates=WHOLE, seed=3,
        evaluation=Evaluation(4, "euler", 1.0),
    )  # fmt: skip
    model.configure_model()
    found = logged(model) if train(model, prompts(tmp_path), tmp_path, steps=1) else {}
    assert found["train/clipped"] == 0.0 and found["train/kl"] == 0.0
    assert found["train/loss"] == pytest.approx(0.0, abs=1e-6) and found["train/reward_gradient"] > 0
    assert found["train/gradient_norm"] > 0


def test_noise_of_every_step_and_row_is_its_own() -> None:
    drawn = step_noise((3, 2, 2), 7, 0, torch.tensor([0, 1]))
    values = [drawn(0)[0], drawn(0)[1], drawn(1)[0], drawn(1)[1], step_noise((3, 2, 2), 7, 1, torch.tensor([0]))(0)[0]]
    assert len({tuple(value.flatten().tolist()) for value in values}) == len(values)


def test_the_divergence_counts_by_its_weight_and_is_watched_without_one(tmp_path: Path) -> None:
    model: Any = stepped("grpo", tmp_path, steps=3)
    rollout, nothing = model.sample(_batch(prompts(tmp_path))), torch.zeros(8)
    model.kl = 0.5
    with_it, found = watched(model, rollout, nothing)
    model.kl = 1.0
    twice, _ = watched(model, rollout, nothing)
    model.kl = 0.0
    without, still = watched(model, rollout, nothing)
    assert with_it > 0 and twice == pytest.approx(2 * with_it, rel=1e-4) and without == 0.0
    assert found["train/kl"] > 0 and still["train/kl"] == pytest.approx(found["train/kl"], rel=1e-5)
    assert still["train/reward_gradient"] == 0.0, "nothing was worth anything"


def test_a_noise_level_for_every_step(tmp_path: Path) -> None:
    how = StochasticRollout(4, noise_level=(0.9, 0.7, 0.2, 0.0))
    times = ToyPolicy().times(4)
    x, v = torch.ones(1, 3), torch.zeros(1, 3)
    for step, level in enumerate((0.9, 0.7, 0.2, 0.0)):
        one = StochasticRollout(4, noise_level=level or 0.1).stochasticity()
        expected = one.transition(x, v, times, step, stochastic=level > 0)
        found = how.stochasticity().transition(x, v, times, step)
        assert torch.equal(found.mean, expected.mean) and found[1:] == expected[1:]
    with pytest.raises(ValueError, match="noise_level is 0 at step 1"):
        StochasticRollout(4, noise_level=(0.9, 0.0, 0.2, 0.2))
    with pytest.raises(ValueError, match="3 numbers for a grid of 4 steps"):
        StochasticRollout(4, noise_level=(0.9, 0.7, 0.2))
    with pytest.raises(ValueError, match="noise_level must be at least 0"):
        StochasticRollout(4, noise_level=(0.9, -0.7, 0.2, 0.2))


def test_a_window_of_cps_ends_before_the_deterministic_step() -> None:
    assert StochasticRollout(4, kind="cps", window_size=2).where == (0, 3)
    assert StochasticRollout(4, window_size=2).where == (0, 4)
    with pytest.raises(ValueError, match="reaches the last of 4 steps, which is deterministic with cps: end it at 3"):
        StochasticRollout(4, kind="cps", window_size=2, window=(1, 4))


def flow_grpo(how: StochasticRollout, tmp_path: Path, **changed: Any) -> Any:
    """A model after one step, and a training batch: two groups of four."""
    model: Any = FlowGRPO(
        ToyPolicy(), rewards(), how, lora=LORA, updates=WHOLE, seed=3, evaluation=Evaluation(4, "euler", 1.0),
        optimizer=AdamW(3e-2, weight_decay=0.0), **changed,
    )  # fmt: skip
    model.configure_model()
    model.trainer = train(model, prompts(tmp_path), tmp_path, steps=1)
    return model


@pytest.mark.parametrize("same", [True, False])
def test_members_of_a_group_may_begin_with_the_same_noise(same: bool, tmp_path: Path) -> None:
    model, batch = flow_grpo(StochasticRollout(4, 1.0, same_noise=same), tmp_path), _training_batch(prompts(tmp_path))
    walk = model.sample(batch).trajectory
    for group in batch.group.unique():
        first = walk.states[batch.group == group, 0]
        assert len(first) == 4 and all(torch.equal(one, first[0]) is same for one in first[1:])
    assert not torch.equal(walk.states[0, 0], walk.states[-1, 0]), "groups differ"
    assert not torch.equal(walk.actions[0, 0], walk.actions[1, 0]), "noise of the steps is everyone's own"


def test_forms_of_the_divergence_differ_by_the_length_of_the_step_and_both_come_from_the_drift(tmp_path: Path) -> None:
    model = flow_grpo(StochasticRollout(4, 1.0), tmp_path, kl=0.0)
    rollout, found = model.sample(_training_batch(prompts(tmp_path))), {}
    for form in ("published", "exact"):
        model.kl_form = form
        _, found[form] = watched(model, rollout, torch.zeros(8))
    step = rollout.steps[-1]  # without a weight the last trained one is watched
    t, length = float(rollout.times[step]), float(rollout.times[step] - rollout.times[step + 1])
    assert found["exact"]["train/kl"] == pytest.approx(found["published"]["train/kl"] / length, rel=1e-5)
    rate = 0.7 * math.sqrt(t / (1 - t))
    share = length * (1 + rate**2 * (1 - t) / (2 * t))
    drift = found["published"]["train/drift"]
    assert drift > 0 and found["published"]["train/kl"] == pytest.approx(share**2 * drift / (2 * rate**2), rel=1e-4)


def test_a_step_of_coefficient_preserving_sampling(tmp_path: Path) -> None:
    """Its log-probability is minus the mean square of what was added: deviation t' sin(a pi / 2)."""
    model = flow_grpo(StochasticRollout(4, 1.0, kind="cps", noise_level=0.5), tmp_path)
    found = logged(model)
    assert found["train/clipped"] == 0.0 and found["train/gradient_norm"] > 0
    rollout = model.sample(batch := _training_batch(prompts(tmp_path)))
    drawn = step_noise((3, 2, 2), 3, batch.epoch, row_keys(batch))
    for place, step in enumerate(rollout.steps):
        deviation = float(rollout.times[step + 1]) * math.sin(math.pi / 4)
        expected = -((deviation * drawn(step)) ** 2).flatten(1).mean(1)
        torch.testing.assert_close(rollout.trajectory.log_probs[:, place], expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------ DiffusionNFT


def test_trained_times_are_the_grid_in_an_order_of_each_picture(tmp_path: Path) -> None:
    model: Any = stepped("nft", tmp_path)
    rollout = model.sample(_batch(prompts(tmp_path)))
    found = model.trained_times(rollout, torch.arange(8))
    grid = rollout.times[:-1].float()
    assert found.shape == (8, 4) and torch.equal(found.sort(1, descending=True).values, grid.expand(8, 4))
    assert len({tuple(row) for row in found.tolist()}) > 3
    assert torch.equal(model.trained_times(rollout, torch.tensor([5])), found[5:6])
    other = stepped("nft", tmp_path, steps=2)
    assert not torch.equal(other.trained_times(rollout, torch.arange(8)), found)  # type: ignore[operator]


def test_every_time_of_every_picture_has_noise_of_its_own(tmp_path: Path) -> None:
    model: Any = stepped("nft", tmp_path)
    rollout = model.sample(_batch(prompts(tmp_path)))
    seen: list[Tensor] = []
    velocity = model.policy.velocity

    def noted(x: Tensor, t: Tensor, text: Any) -> Tensor:
        # x = (1 - t) x_0 + t eps
        wide = t[:, None, None, None]
        seen.append((x - (1 - wide) * rollout.latents) / wide)
        found: Tensor = velocity(x, t, text)
        return found

    model.policy.velocity = noted
    watched(model, rollout, torch.ones(8))
    [first, second, third] = [noise for noise, again in zip(seen[::3], seen[1::3], strict=True) if noise.equal(again)]
    for one, two in ((first, second), (second, third)):
        assert not torch.allclose(one, two, atol=0.1) and not torch.allclose(one[0], one[1], atol=0.1)
    assert abs(float(torch.cat(seen).std()) - 1) < 0.15


def test_the_distance_counts_by_its_weight_and_is_watched_without_one(tmp_path: Path) -> None:
    from dataclasses import replace

    model: Any = stepped("nft", tmp_path, steps=3)
    rollout, nothing = model.sample(_batch(prompts(tmp_path))), torch.zeros(8)
    model.bank.copy("default", "old")  # an uninformative picture then has no gradient of its own
    found = {}
    for weight in (0.0, 1.0, 2.0):
        model.loss = replace(model.loss, kl=weight)
        found[weight] = watched(model, rollout, nothing)
    assert found[0.0][0] < 1e-5 and found[1.0][0] > 1e-3
    assert found[2.0][0] == pytest.approx(2 * found[1.0][0], rel=1e-3)
    assert found[0.0][1]["train/kl"] > 0 and found[0.0][1]["train/reward_gradient"] == 0.0
    model.loss = replace(model.loss, kl=0.0)
    size, worth = watched(model, rollout, torch.linspace(-2, 2, 8))
    # The old policy is a copy, so the loss knows nothing of the reward; its gradient does.
    assert size > 1e-3 and worth["train/reward_gradient"] > 0 and worth["train/old_distance"] == 0.0


@pytest.mark.parametrize(("schedule", "kept"), [("copy", 0.0), ("ramp", 0.001)])
def test_the_old_policy_follows_after_every_rollout(schedule: str, kept: float, tmp_path: Path) -> None:
    start = [p.detach().clone() for p in module("nft").bank.parameters("old")]
    model = stepped("nft", tmp_path, old_policy=schedule)
    for old, new, before in zip(model.bank.parameters("old"), model.bank.parameters("default"), start, strict=True):
        torch.testing.assert_close(old, kept * before + (1 - kept) * new)
    assert any(not torch.equal(new, before) for new, before in zip(model.bank.parameters("old"), start, strict=True))
    assert logged(model)["train/old_policy_decay"] == pytest.approx(kept)


def test_ceiling_and_slope_of_the_old_policy_are_passed_on(tmp_path: Path) -> None:
    short = stepped("nft", tmp_path, steps=1, old_policy="ramp", old_policy_slope=0.2)
    assert logged(short)["train/old_policy_decay"] == pytest.approx(0.2)
    start = [p.detach().clone() for p in module("nft").bank.parameters("old")]
    model = stepped("nft", tmp_path, old_policy="ramp", old_policy_slope=0.9, old_policy_ceiling=0.25)
    assert logged(model)["train/old_policy_decay"] == pytest.approx(0.25)
    for old, new, before in zip(model.bank.parameters("old"), model.bank.parameters("default"), start, strict=True):
        torch.testing.assert_close(old, 0.25 * before + 0.75 * new)
    with pytest.raises(ValueError, match="old_policy_slope is positive"):
        module("nft", old_policy_slope=-1.0)


# ------------------------------------------------------------------ both


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_the_gap_between_the_samplers_is_logged(kind: str, tmp_path: Path) -> None:
    how = Evaluation(12, "euler", 1.0, gap_batches=1)
    model: Any = stepped(kind, tmp_path, evaluation=how, limit_val_batches=1)
    with torch.no_grad():
        for parameter in model.bank.parameters("default"):
            parameter.add_(0.3)
    [found] = model.trainer.validate(model, datamodule=prompts(tmp_path), verbose=False)
    batch = _batch(prompts(tmp_path))
    best, rolled = (float(model.score(made).total.mean()) for made in (model.make(batch), model.explore(batch)))
    assert found["val/rollout_total"] == pytest.approx(rolled) and found["val/total"] == pytest.approx(best)
    assert found["val/reward_gap"] == pytest.approx(best - rolled, abs=1e-6) and abs(best - rolled) > 1e-4
    if kind == "nft":
        assert rolled != pytest.approx(float(model.score(model.sample(batch)).total.mean())), "another adapter"
    model.evaluation = Evaluation(12, "euler", 1.0, gap_batches=0)
    assert "val/reward_gap" not in model.trainer.validate(model, datamodule=prompts(tmp_path), verbose=False)[0]
    with pytest.raises(ValueError, match="gap_batches is 0 for none"):
        Evaluation(gap_batches=-1)


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_float16_clips_the_gradient_and_not_its_scaled_copy(kind: str, tmp_path: Path) -> None:
    norms = []
    for plugins in ([], [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]):
        model = module(kind, updates=WHOLE)
        model.trainer = train(model, prompts(tmp_path), tmp_path, steps=1, plugins=plugins)
        norms.append(logged(model)["train/gradient_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.05) and norms[0] > 0


class Nothing(Redness):
    """Pays the same for everything."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return torch.zeros(len(images))


def test_a_rollout_that_is_worth_nothing_is_a_step_without_gradient_in_float16_too(tmp_path: Path) -> None:
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    still = AdamW(1e-2, weight_decay=0.0)
    for plugins in ([], [scaler]):
        poor = RewardSuite([RewardEntry("nothing", Nothing())])
        model = module("grpo", rewards=poor, updates=Updates(2, 4), optimizer=still)
        before = adapters(model)
        model.trainer = train(model, prompts(tmp_path), tmp_path, steps=2, plugins=plugins)
        assert model.trainer.global_step == 2 and logged(model)["train/gradient_norm"] == 0.0
        assert all(torch.equal(adapters(model)[name], value) for name, value in before.items())


@pytest.mark.parametrize(("kind", "guidance"), [("grpo", 1), ("nft", 0)])
def test_prompts_are_encoded_once_for_all_passes_of_a_micro_batch(kind: str, guidance: int, tmp_path: Path) -> None:
    model: Any = stepped(kind, tmp_path)
    rollout, encode, seen = model.sample(_batch(prompts(tmp_path))), model.policy.encode_prompts, []
    model.policy.encode_prompts = lambda texts: seen.append(tuple(texts)) or encode(texts)
    watched(model, rollout, torch.ones(8))
    assert seen[0] == tuple(rollout.prompts) and seen[1:] == [("",) * 8] * guidance


def test_means_are_weighted_and_begin_anew() -> None:
    means = RunningMeans()
    means.add("b", torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0]))
    means.add("b", torch.tensor([4.0]), torch.tensor([2.0]))
    means.add("a", torch.tensor([5.0]), torch.tensor([0.0]))
    found = means.take()
    assert list(found) == ["a", "b"] and float(found["b"]) == 3.0 and float(found["a"]) == 0.0
    assert means.take() == {}
