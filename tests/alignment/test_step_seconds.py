"""What a part of an outer step takes is in the log of every run by rewards."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from lightning_gen.alignment.online import OnlineTraining, Updates
from tests.alignment.test_online import module, prompts, train


class Seen(pl.Callback):
    """Numbers that are there when a step has ended, by the beginning of their names."""

    def __init__(self, beginning: str = "seconds/") -> None:
        self.beginning = beginning
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.found.append({name: value for name, value in logged.items() if name.startswith(self.beginning)})


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_sampling_scoring_and_training_are_timed_apart(kind: str, tmp_path: Path) -> None:
    model: OnlineTraining = module(kind, updates=Updates(2, 4, skip_worthless=False))
    now = [100.0]

    def slow(do: Any, seconds: float, *arguments: Any) -> Any:
        now[0] += seconds
        return do(*arguments)

    for owner, name, seconds in (
        (model, "sample", 3.0), (model.rewards, "submit", 2.0), (model.rewards, "results", 1.0),
        (model, "advantages", 11.0), (model, "learn", 7.0),
    ):  # fmt: skip
        setattr(owner, name, functools.partial(slow, getattr(owner, name), seconds))
    model.clock = lambda: now[0]
    seen = Seen()
    train(model, prompts(tmp_path), tmp_path, steps=2, callbacks=[seen])
    # Two micro-batches. Also at the first step of a pass, before anything else has been logged twice.
    assert seen.found == [{"seconds/sampling": 6.0, "seconds/scoring": 5.0, "seconds/training": 14.0}]


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_every_step_logs_the_same_numbers(kind: str, tmp_path: Path) -> None:
    """The first step of a pass is where Lightning may lose some."""
    seen = Seen("")
    train(module(kind), prompts(tmp_path), tmp_path, steps=3, callbacks=[seen])
    assert len(seen.found) == 3 and {"rewards/total", "train/gradient_norm", "train/loss"} < set(seen.found[0])
    assert set(seen.found[0]) == set(seen.found[1]) == set(seen.found[2])
