"""The benchmark of training by rewards runs as a command. Its times mean nothing at the quick sizes."""

from __future__ import annotations

import collections
import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.alignment.diffusion_nft.module import CleanRollout, DiffusionNFT
from lightning_gen.alignment.flow_grpo.module import FlowGRPO, StochasticRollout
from lightning_gen.alignment.online import OnlineTraining, Updates
from lightning_gen.interfaces import Conditioning
from tests.alignment.test_online import LORA, prompts, rewards, train
from tests.alignment.worlds import ToyPolicy

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "rl.py"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of the benchmark; their folder comes last, since a file there has the name of a package."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(SCRIPT.parent)])
    return importlib.import_module


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)


def test_quick_run_prints_the_table_and_saves_it(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "speed.json"
    done = run("--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "part e was left out" in done.stdout and "images/s" in done.stdout
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert saved["settings"] == {"threads": 1, "repetitions": 1, "quick": True, "clock": "process_time"}
    rows = saved["rows"]
    assert all(row["ratio"] >= 0 and row["ours"] > 0 and row["case"] in done.stdout for row in rows)
    cases = {part: [row["case"] for row in rows if row["part"] == part] for part in "abcd"}
    # Two algorithms with two policies, each as a whole and in three parts, and held against each other.
    assert [len(cases[part]) for part in "abcd"] == [2 * (2 * 4 + 1), 4, 5, 3]
    for what in ("sampling", "scoring", "training on"):
        assert sum(f": {what}" in case for case in cases["a"]) == 4
    assert sum(": a step of" in case for case in cases["a"]) == 4 + 2
    # What must agree was compared, to the last bit.
    compared = [row["difference"] for row in rows if row["difference"] is not None]
    assert compared == [0.0, 0.0]


def test_the_large_step_is_refused_without_a_gpu_and_runs_small_without_one(tmp_path: Path) -> None:
    refused = run("--part", "e")
    assert refused.returncode == 2 and "SD3.5-Medium needs a GPU: --device cuda" in refused.stderr
    out = tmp_path / "speed.json"
    done = run("--quick", "--part", "e", "--micro-batch", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.read_text(encoding="utf-8"))
    wanted = {"device": "cpu", "size": "tiny", "pictures": 4, "group": 2, "micro_batch": 1}
    assert {name: saved["settings"][name] for name in wanted} == wanted
    assert [row["part"] for row in saved["rows"]] == ["e"] * 9


def described(kind: str) -> OnlineTraining:
    how: dict[str, Any] = {"lora": LORA, "updates": Updates(2, 3, skip_worthless=False)}
    if kind == "grpo":
        return FlowGRPO(ToyPolicy(), rewards(), StochasticRollout(4, 2.0), **how)
    return DiffusionNFT(ToyPolicy(), rewards(), CleanRollout(4), **how)


@pytest.mark.parametrize("kind", ["grpo", "nft"])
def test_the_passes_by_hand_are_those_of_the_step(kind: str, commands: Any, tmp_path: Path) -> None:
    """As many, of as many rows, by the same adapters, with gradients where the step has them; so are the decodings."""
    steps = commands("rl_steps")
    model = described(kind)
    model.configure_model()
    seen: list[tuple[Any, ...]] = []
    velocity, decode = model.policy.velocity, model.policy.latents_to_images

    def watched(x: Tensor, *rest: Any) -> Tensor:
        seen.append((model.bank.active, torch.is_grad_enabled(), len(x)))
        return velocity(x, *rest)

    def watched_decode(latents: Tensor) -> Tensor:
        seen.append(("decoded", len(latents)))
        return decode(latents)

    model.policy.velocity, model.policy.latents_to_images = watched, watched_decode  # type: ignore[method-assign]
    before_hand: list[int] = []
    sample = steps._sample
    steps._sample = lambda *arguments: before_hand.append(len(seen)) or sample(*arguments)
    try:
        start = len(seen)
        turns = steps.outer_steps(model, prompts(tmp_path), 1, steps.Machine())
    finally:
        steps._sample = sample
    assert len(turns.ours) == len(turns.bare) == 1 and turns.pictures == 8 and turns.learned == [8]
    # The first step only warms up, and nothing is made by hand after it.
    both = seen[start : before_hand[0]]
    warm, step = both[: len(both) // 2], both[len(both) // 2 :]
    assert collections.Counter(warm) == collections.Counter(step)
    assert collections.Counter(seen[before_hand[0] :]) == collections.Counter(step)
    assert all(parameter.grad is None for parameter in model.bank.parameters("default"))


def test_a_step_is_asked_for_its_prompts_as_training_asks(commands: Any, tmp_path: Path) -> None:
    asked: list[int] = []

    class Watched(ToyPolicy):
        def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
            asked.append(len(prompts))
            return super().encode_prompts(prompts)

    model = FlowGRPO(Watched(), rewards(), StochasticRollout(4, 2.0), lora=LORA, updates=Updates(1, 4, 1.0, False))
    train(model, prompts(tmp_path), tmp_path, steps=1)
    training = list(asked)
    asked.clear()
    rl = commands("rl")
    rl.ask_as_flow_grpo(Watched(), ["x"] * 8, rl.Rows(8, 4, 4))
    # Two micro-batches, in sampling and in learning, each with its prompts and with the empty one.
    assert asked == training == [4] * 8


def test_seconds_of_the_parts_are_those_of_the_log(commands: Any, tmp_path: Path) -> None:
    steps = commands("rl_steps")
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    turns = steps.outer_steps(described("nft"), prompts(tmp_path), 2, steps.Machine(clock=clock))
    # Every look at the clock is a second: two looks per part, two around the step. Three micro-batches are sampled and
    # handed over, and their scores waited for.
    assert turns.ours == [{"sampling": 3.0, "scoring": 4.0, "training": 1.0, "step": 17.0}] * 2
    assert turns.bare == [{"sampling": 1.0, "scoring": 1.0, "training": 1.0, "step": 3.0}] * 2
    whole, sampling, *_ = steps.split("a", "name", turns)
    assert (whole.ratio, sampling.ratio, whole.rates) == (3 / 17, 1 / 3, (8 / 17, 8 / 3))
    assert sampling.case == "name: sampling, 17.6%; bare passes"


def test_adapters_of_sd35_medium_are_counted(commands: Any) -> None:
    memory, models = commands("rl_memory"), commands("rl_models")
    network, adapter = 2 * 2_243_171_520, 4 * 18_776_064
    assert memory.bytes_of_policies(models.SD35M, ("default",)) == (network + adapter, 2 * network + adapter)
    found = memory.bytes_of_policies(models.SD35M, ("default", "old"))
    assert found == (network + 2 * adapter, 3 * network + 2 * adapter)


def test_both_sides_of_the_memory_compute_the_same(commands: Any) -> None:
    memory, models = commands("rl_memory"), commands("rl_models")
    for learn in (False, True):
        sides = [
            side(models.TINY, ("default", "old"), learn)().detach()
            for side in (memory.adapters_of_one, memory.copies_of_network)
        ]
        assert torch.equal(*sides) and float(sides[0].abs().sum()) > 0


def test_a_peak_is_that_of_the_call_in_a_process_of_its_own(commands: Any) -> None:
    measure = commands("measure")
    found = measure.peak_apart(functools.partial(functools.partial, torch.ones, 16_000_000))
    assert 64e6 <= found < 80e6
