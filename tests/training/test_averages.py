"""Reading weights out of checkpoints, and filling networks with weights from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_gen.training.averages import read_weights
from lightning_gen.training.weights import load_matching, read_training_state, require_fit
from tests.harness.network import assert_equal_states
from tests.harness.toy import ToyNetwork


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nothing"):
        read_weights(tmp_path / "nothing.ckpt")
    torch.save({"model": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is no Lightning checkpoint.*model"):
        read_weights(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"no \.metadata file"):
        read_weights(tmp_path)


def test_only_average_need_not_be_named(tmp_path: Path) -> None:
    state = {"a": torch.zeros(2, dtype=torch.bfloat16), "frozen": torch.ones(2)}
    torch.save({"state_dict": state, "ema": {"0.9999/a": torch.full((2,), 3.0)}}, tmp_path / "x.ckpt")
    for average in (True, 0.9999):
        read = read_weights(tmp_path / "x.ckpt", average)
        assert torch.equal(read["a"], torch.full((2,), 3.0, dtype=torch.bfloat16))
        assert torch.equal(read["frozen"], torch.ones(2))
    assert_equal_states(read_weights(tmp_path / "x.ckpt"), state)
    torch.save({"state_dict": state}, tmp_path / "y.ckpt")
    with pytest.raises(ValueError, match="holds no averages: 0.5 is not among them"):
        read_weights(tmp_path / "y.ckpt", 0.5)


class Trap:
    def __reduce__(self) -> tuple:
        return (print, ("code in a checkpoint was run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "trap": Trap()}, tmp_path / "x.ckpt")
    with pytest.raises(Exception, match="may run code and is not read"):
        read_weights(tmp_path / "x.ckpt")


def test_training_state_is_told_from_other_sources(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "x.ckpt")
    assert read_training_state(str(tmp_path / "x.ckpt")) == {"a": torch.ones(1)}
    assert read_training_state(str(tmp_path)) is None
    assert read_training_state("350M-f16x64") is None
    with pytest.raises(FileNotFoundError):
        read_training_state(str(tmp_path / "gone.ckpt"))


def test_partial_load_reports_what_became_of_everything() -> None:
    network = ToyNetwork(depth=1)
    given = {f"network.{name}": torch.full_like(value, 2.0) for name, value in network.state_dict().items()}
    given["network.head.bias"] = torch.zeros(3)
    del given["network.embed.bias"]
    given["dino.weight"] = torch.zeros(1)
    report = load_matching(network, given, "somewhere", prefix="network.")
    assert report.missing == ("embed.bias",)
    assert report.ignored == ("head.bias ((3,) for (48,))", "dino.weight")
    assert set(report.loaded) == set(network.state_dict()) - {"embed.bias", "head.bias"}
    assert all((network.state_dict()[name] == 2.0).all() for name in report.loaded)
    with pytest.raises(ValueError, match="no tensor of elsewhere fits ToyNetwork"):
        load_matching(network, {"x": torch.zeros(1)}, "elsewhere")


def test_exact_load_names_every_kind_of_misfit() -> None:
    with torch.device("meta"):
        network = ToyNetwork(depth=1)
    state = {name: torch.zeros(value.shape) for name, value in network.state_dict().items()}
    require_fit(network, state, "somewhere")
    state["extra"], state["head.bias"] = torch.zeros(1), torch.zeros(3)
    del state["embed.bias"]
    with pytest.raises(
        ValueError, match=r"embed\.bias is missing; extra is unknown; head\.bias has shape \(3,\) instead of \(48,\)"
    ):
        require_fit(network, state, "somewhere")
