"""The guard stops what collapses and puts the best adapter back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_gen.alignment.guards import DivergenceGuard
from lightning_gen.training.ema import EMA
from tests.alignment.test_online import module


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
            for name, value in {"rewards/total": reward, "train/kl": 0.1, "train/contrast": 0.2, **rest}.items()
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
        ({"train/kl": 2.0}, "the divergence from the reference is 2, above 1", 3),
        ({"train/contrast": 0.001}, "a contrast of 0.001", 3),
        ({"train/contrast": 0.6}, "a contrast of 0.600", 3),
        ({"train/loss": float("nan")}, "the loss is nan", 1),
    ],
)
def test_what_else_stops_a_run(rest: dict[str, float], message: str, steps: int) -> None:
    with pytest.warns(UserWarning, match=message):
        trainer = watch(DivergenceGuard(patience=3), module("nft"), [0.1] * 10, **rest)
    assert trainer.global_step == steps - 1


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
