"""The linear probe: what is separable is separated, and the protocol is the published one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.labelled_features import FeatureTable
from lightning_gen.metrics.probes import LinearProbe, LinearProbeHead


def separable(count: int, seed: int = 0, noise: float = 0.3) -> FeatureTable:
    """Three directions of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    rows = torch.eye(8)[labels] + noise * torch.randn(count, 8, generator=generator) / 8**0.5
    return FeatureTable(rows * (1 + 99 * torch.rand(count, 1, generator=generator)), labels, torch.arange(count))


def test_separable_features_are_read_without_a_fault() -> None:
    found = LinearProbe(3, epochs=20, batch_size=32).fit(separable(200), separable(90, 1))
    assert found.best == found.last == 1 and found.samples == 90
    random = FeatureTable(torch.randn(90, 8), torch.arange(90) % 3, torch.arange(90))
    assert LinearProbe(3, epochs=5, batch_size=32).fit(separable(200), random).best < 0.7


def test_the_head_normalises_rows_then_columns_and_has_no_weights_for_it() -> None:
    head = LinearProbeHead(8, 3)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    assert head.norm.eps == 1e-6 and not head.norm.affine and head.norm.track_running_stats
    seen: list[Tensor] = []
    head.norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    rows = separable(64).features
    scores = head(rows)
    assert torch.allclose(seen[0].norm(dim=1), torch.ones(64))
    unit = rows / rows.norm(dim=1, keepdim=True)
    columns = (unit - unit.mean(0)) / (unit.var(0, correction=0) + 1e-6).sqrt()
    assert torch.allclose(scores, columns @ head.linear.weight.T + head.linear.bias, atol=1e-5)
    assert not head.linear.bias.any() and head.linear.weight.std().item() == pytest.approx(0.01, rel=0.5)


def test_the_optimiser_and_the_schedule_are_those_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float, momentum: float, **more: Any) -> None:
            made.append({"lr": lr, "momentum": momentum, **more})
            super().__init__(parameters, lr, momentum, **more)

        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    probe = LinearProbe(3, epochs=4, batch_size=30)
    found = probe.fit(separable(100), separable(9, 1))
    assert made == [{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "nesterov": True}]
    # three whole batches per epoch; the ten rows left over are passed over
    assert len(rates) == 12 and rates[0] == 0.1 and rates[6] == pytest.approx(0.05) and rates[11] < 0.005
    assert (LinearProbe().epochs, LinearProbe().batch_size, LinearProbe().validate_every) == (100, 4096, 5)
    assert list(found.history) == [4]


def test_best_and_last_are_both_told() -> None:
    probe = LinearProbe(3, epochs=12, batch_size=16, learning_rate=30, seed=1)
    found = probe.fit(separable(40, noise=2), separable(60, 1, noise=2))
    assert list(found.history) == [5, 10, 12]
    assert found.best == max(found.history.values()) and found.last == found.history[12]
    assert found.best_epoch == min(epoch for epoch, value in found.history.items() if value == found.best)
    best, last = probe.measurements(found, "semantic")
    assert (best.protocol.id, last.protocol.id) == ("semantic-best/bn-sgd", "semantic-last/bn-sgd")
    assert (best.value, last.value) == (found.best, found.last) and "chosen on the samples" in best.note
    assert last.interval is not None and last.interval[0] < last.value < last.interval[1]


def test_it_can_be_fitted_inside_a_test_loop_and_draws_nothing_from_it() -> None:
    state = torch.get_rng_state()
    probe = LinearProbe(3, epochs=2, batch_size=16)
    expected = probe.fit(separable(40), separable(9, 1))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        inside = probe.fit(FeatureTable(*(x * 1 for x in separable(40))), separable(9, 1))
    assert torch.equal(inside.head.linear.weight, expected.head.linear.weight)
    other = LinearProbe(3, epochs=2, batch_size=16, seed=1).fit(separable(40), separable(9, 1))
    assert not torch.equal(other.head.linear.weight, expected.head.linear.weight)


def test_what_cannot_be_fitted_is_refused() -> None:
    nameless = FeatureTable(torch.zeros(4, 8), torch.full((4,), -1), torch.arange(4))
    with pytest.raises(ValueError, match="train: 0 samples with a class"):
        LinearProbe(3).fit(nameless, separable(9))
    with pytest.raises(ValueError, match=r"class 2 is not in \[0, 2\)"):
        LinearProbe(2).fit(separable(9), separable(9))
    with pytest.raises(ValueError, match="8 features to train on, 2"):
        LinearProbe(3).fit(separable(9), FeatureTable(torch.zeros(3, 2), torch.zeros(3).long(), torch.arange(3)))
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        LinearProbe(3, epochs=0)
