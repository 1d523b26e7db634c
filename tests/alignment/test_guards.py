"""The guard stops what collapses and puts the best adapter back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_gen.alignment.guards import DivergenceGuard
from lightning_gen.flow.schedules import double_shift_grid
from lightning_gen.flow.transitions import Stochasticity, gaussian_divergence
from lightning_gen.shapes.render import render
from lightning_gen.training.ema import EMA
from lightning_gen.training.optim import AdamW
from tests.alignment.test_online import module, prompts, train
from tests.shapes.worlds import scenes


def watch(
    guard: DivergenceGuard, model: Any, rewards: list[float], callbacks: tuple[Any, ...] = (), **rest: float
) -> SimpleNamespace:
    """Steps with these rewards; the trained adapter holds the number of the step, the old one that plus 100."""
    trainer = SimpleNamespace(callback_metrics={}, should_stop=False, global_step=0, callbacks=[*callbacks, guard])
    guard.on_train_start(trainer, model)  # type: ignore[arg-type]
    for step, reward in enumerate(rewards):
        with torch.no_grad():
            for name, more in (("default", 0.0), ("old", 100.0)):
                for parameter in model.bank.parameters(name):
                    parameter.fill_(float(step) + more)
        trainer.callback_metrics = {
            name: torch.tensor(value)
            for name, value in {
                "rewards/total": reward,
                "train/drift": 0.05,
                "train/contrast": 0.2,
                "train/roughness": 0.2,
                **rest,
            }.items()  # fmt: skip
        }
        trainer.global_step = step
        guard.on_train_batch_end(trainer, model, None, None, step)  # type: ignore[arg-type]
        if trainer.should_stop:
            break
    return trainer


def test_a_reward_that_falls_stops_the_run_at_the_best_adapter() -> None:
    model, guard = module("nft"), DivergenceGuard(reward_drop=0.3, patience=2)
    with pytest.warns(UserWarning, match=r"mean reward of 2 steps fell to .* best 2 steps \(mean reward 0.8\) is back"):
        trainer = watch(guard, model, [0.1, 0.5, 0.9, 0.7, 0.6, 0.3, 0.2, 0.1])
    assert trainer.global_step == 5
    assert all(bool((parameter == 3.0).all()) for parameter in model.bank.parameters("default"))
    assert all(bool((parameter == 103.0).all()) for parameter in model.bank.parameters("old"))


def test_averages_are_put_back_too() -> None:
    """What is validated and exported is the average."""
    model, guard, average = module("nft"), DivergenceGuard(reward_drop=0.3, patience=2), EMA((0.9,))
    average.restart(model)
    with pytest.warns(UserWarning, match="is back"):
        watch(guard, model, [0.9, 0.9, 0.1, 0.1], callbacks=(average,))
    with average.averaged(model):
        assert all(bool((parameter == 1.0).all()) for parameter in model.bank.parameters("default"))


def test_without_a_better_one_the_first_adapter_comes_back() -> None:
    model = module("nft")
    start = [parameter.detach().clone() for parameter in model.bank.parameters("default")]
    with pytest.warns(UserWarning, match="the adapter of the start is back"):
        watch(DivergenceGuard(patience=3), model, [0.1], **{"train/loss": float("nan")})
    assert all(map(torch.equal, model.bank.parameters("default"), start)) and any(bool(p.any()) for p in start)


def test_a_steady_run_goes_on() -> None:
    model = module("nft")
    trainer = watch(DivergenceGuard(reward_drop=0.3, patience=2), model, [0.1, 0.5, 0.4, 0.6, 0.5])
    assert not trainer.should_stop and bool((model.bank.parameters("default")[0] == 4.0).all())


@pytest.mark.parametrize(
    ("rest", "message", "steps"),
    [
        ({"train/drift": 2.0}, "train/drift is 2, above 0.1", 3),
        ({"train/contrast": 0.001}, "train/contrast is 0.001, below 0.02", 3),
        ({"train/contrast": 0.6}, "train/contrast is 0.6, above 0.45", 3),
        ({"train/roughness": 1.1}, "train/roughness is 1.1, above 0.8", 3),
        ({"train/loss": float("nan")}, "train/loss is nan", 1),
        ({"train/kl": float("inf")}, "train/kl is inf", 1),
    ],
)
def test_what_else_stops_a_run(rest: dict[str, float], message: str, steps: int) -> None:
    with pytest.warns(UserWarning, match=message):
        trainer = watch(DivergenceGuard(patience=3), module("nft"), [0.1] * 10, **rest)
    assert trainer.global_step == steps - 1


def test_what_is_not_watched_stops_nothing() -> None:
    rest = {"train/drift": 9.0, "train/roughness": 9.0}
    guard = DivergenceGuard(largest_drift=None, largest_roughness=None, patience=1)
    assert not watch(guard, module("nft"), [0.1] * 3, **rest).should_stop


def test_a_step_that_ends_the_run_is_not_kept_as_the_best() -> None:
    model = module("nft")
    start = [parameter.detach().clone() for parameter in model.bank.parameters("default")]
    with pytest.warns(UserWarning, match="the adapter of the start is back"):
        watch(DivergenceGuard(patience=1), model, [0.9], **{"train/drift": 1.0})
    assert all(map(torch.equal, model.bank.parameters("default"), start))


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_a_policy_that_really_diverges_is_stopped_before_it_is_ruined(kind: str, tmp_path: Path) -> None:
    """Steps ten times too large; toys have pictures of four pixels, whose look says nothing."""
    guard = DivergenceGuard(patience=2, least_contrast=0.0, largest_contrast=1.0, largest_roughness=None)
    model = module(kind, optimizer=AdamW(0.3, weight_decay=0.0))
    with pytest.warns(
        UserWarning, match=r"training stops because train/drift is .*, above 0.1; the adapter .* is back"
    ):
        trainer = train(model, prompts(tmp_path), tmp_path, steps=60, callbacks=[guard])
    assert 2 <= trainer.global_step < 60
    assert float(trainer.callback_metrics["train/kl"]) < 1.0, "a limit of 1 on the divergence would have said nothing"
    kept = guard.state_dict()["good"]["default"]
    for name, factors in model.bank.weights("default").factors.items():
        assert all(map(torch.equal, factors, kept[name]))


def test_no_one_limit_of_the_divergence_fits_all_steps() -> None:
    """Per mean squared change of the velocity, on the grid of Stable Diffusion 3.5 with the published noise."""
    times, x = double_shift_grid(10), torch.zeros(1, 1, dtype=torch.float64)
    found = []
    for step in range(9):
        here, there = (Stochasticity("sde", 0.7).transition(x, v, times, step) for v in (x, x + 1))
        found.append(float(gaussian_divergence(here, there)))
    assert min(found) == pytest.approx(6.5e-5, rel=0.1) and max(found) == pytest.approx(0.297, rel=0.01)
    assert (9 / sum(found)) ** 0.5 == pytest.approx(4.79, abs=0.01), "the change at which the mean divergence is 1"


def noisy(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "uniform":
        return torch.rand(8, 3, 32, 32, generator=generator)
    return (0.5 + float(kind) * torch.randn(8, 3, 32, 32, generator=generator)).clamp(0, 1)


def shown(images: torch.Tensor, tmp_path: Path) -> dict[str, float]:
    """What is logged of a rollout with these pictures, which were all paid alike."""
    model, seen, data = module("nft"), dict[str, float](), prompts(tmp_path)
    model.log_all = lambda values, _: seen.update({k: float(v) for k, v in values.items()})  # type: ignore[method-assign]
    data.setup("fit")
    rollout = replace(model.make(next(iter(data.train_dataloader()))), images=images)
    model.advantages(model.rewards.combine_scores({"redness": torch.ones(8)}), rollout)
    return seen


@pytest.mark.parametrize("kind", ["0.15", "0.5", "1.0", "uniform"])
def test_noise_is_told_by_its_roughness_and_not_by_its_contrast(kind: str, tmp_path: Path) -> None:
    guard, seen = DivergenceGuard(patience=1), shown(noisy(kind), tmp_path)
    assert 0.02 < seen["train/contrast"] < 0.45 and 1.05 < seen["train/roughness"] < 1.2
    with pytest.warns(UserWarning, match="train/roughness is 1.1.*above 0.8"):
        assert watch(guard, module("nft"), [0.1], **seen).should_stop


def test_pictures_are_smooth_and_grey_is_not_rough(tmp_path: Path) -> None:
    pictures = torch.stack([render(scene, (32, 32)) for _, scene in scenes(8, words=True)]).float() / 255
    assert 0.02 < shown(pictures, tmp_path)["train/roughness"] < 0.3
    assert shown(torch.full((8, 3, 4, 4), 0.5), tmp_path)["train/roughness"] == 0.0


def test_a_resumed_guard_goes_on_watching() -> None:
    model, first, second = module("nft"), *(DivergenceGuard(reward_drop=0.3, patience=2) for _ in range(2))
    watch(first, model, [0.9, 0.9])
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="fell to"):
        assert watch(second, model, [0.1, 0.1]).should_stop
    assert bool((model.bank.parameters("default")[0] == 1.0).all()), "the adapter from before the interruption"


def test_other_models_and_odd_limits_are_refused() -> None:
    with pytest.raises(TypeError, match="not BoringModel"):
        DivergenceGuard().setup(SimpleNamespace(), BoringModel(), "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="least_contrast below largest_contrast"):
        DivergenceGuard(least_contrast=0.5)
    with pytest.raises(ValueError, match="largest_drift and largest_roughness are positive"):
        DivergenceGuard(largest_drift=0.0)
