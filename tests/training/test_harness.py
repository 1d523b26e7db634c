"""The shared checks run on the toy here, and are shown to fail where they must."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.harness import NetworkChecks, TrainingChecks, WorkerError, two_processes
from tests.harness.pair_jobs import die_on_rank_one, fail_on_rank_one, pids, rank_of_this, sleep_on_rank_zero
from tests.harness.toy import ToyData, ToyModule, ToyNetwork, toy_batch


class TestToyNetwork(NetworkChecks):
    def network(self) -> nn.Module:
        return ToyNetwork()

    def batch(self) -> Any:
        return toy_batch(torch.arange(3)).images


class TestToyTraining(TrainingChecks):
    def module(self) -> ToyModule:
        return ToyModule(checkpointing=True)

    def data(self) -> ToyData:
        return ToyData()

    def config(self) -> dict[str, Any]:
        return {
            "class_path": "tests.harness.toy.ToyModule",
            "init_args": {"width": 8, "optimizer": {"learning_rate": 0.02, "betas": [0.9, 0.99]}},
        }


def test_pair_computes_together_and_is_reused() -> None:
    assert two_processes(rank_of_this) == [(0, 3.0), (1, 3.0)]
    assert two_processes(pids) == two_processes(pids)


def test_pair_reports_failures_and_starts_again() -> None:
    with pytest.raises(WorkerError, match="rank 1(?s:.*)rank one has had enough"):
        two_processes(fail_on_rank_one)
    with pytest.raises(WorkerError, match="rank 1: its process ended with exit code 7"):
        two_processes(die_on_rank_one)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="sleep_on_rank_zero"):
        two_processes(sleep_on_rank_zero, limit=1.0)
    assert time.monotonic() - start < 30.0
    assert two_processes(rank_of_this) == [(0, 3.0), (1, 3.0)]


class _LateBound(ToyNetwork):
    """The classic defect: recomputation uses the last block for all of them."""

    def forward(self, tokens: Any) -> Tensor:
        x = self.embed(tokens.values)
        blocks = list(self.layers)
        for layer in blocks:
            if not hasattr(layer, "_checkpoint_wrapped_module"):
                x = layer(x, tokens.mask)
            else:
                inner = layer._checkpoint_wrapped_module
                x = checkpoint(lambda s: inner(s, tokens.mask), x, use_reentrant=False)  # noqa: B023
        out: Tensor = self.head(x)
        return out


class _Forgetful(ToyNetwork):
    """Draws from the process's generator in its forward pass."""

    def forward(self, tokens: Any) -> Tensor:
        return super().forward(tokens) + torch.randn(())


class _Hidden(ToyNetwork):
    """Keeps a weight outside of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.secret = torch.rand(())

    def forward(self, tokens: Any) -> Tensor:
        return super().forward(tokens) * self.secret


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (_LateBound, "test_checkpointing_gives_bit_equal_gradients"),
        (_Forgetful, "test_equal_seeds_give_equal_losses_and_gradients"),
        (_Hidden, "test_saved_weights_load_into_a_fresh_network"),
    ],
)
def test_checks_catch_broken_networks(broken: type[nn.Module], check: str) -> None:
    class Case(TestToyNetwork):
        def network(self) -> nn.Module:
            return broken()

    with pytest.raises(AssertionError):
        getattr(Case(), check)()
