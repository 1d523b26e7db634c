"""A folder of shards from a stranger runs no code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import save

from lightning_gen.training.averages import read_weights
from lightning_gen.training.safe_reading import require_harmless


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    state = {
        "state_dict": {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)},
        "optimizer_0": {"state": {"a": {"step": torch.tensor(1.0)}}, "param_groups": {"lr": 0.1, "betas": (0.9, 0.95)}},
    }
    save(state, checkpoint_id=tmp_path / "shards")
    return tmp_path / "shards"


def test_an_honest_folder_passes(folder: Path) -> None:
    require_harmless(folder)
    assert read_weights(folder)["a"].eq(1).all()


def test_a_bomb_in_the_contents_is_refused(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps({"state": Bomb()}))
    with pytest.raises(ValueError, match=r"posix.mkdir does not belong there|nt.mkdir does not belong there"):
        read_weights(folder)
    assert not Path("exploded").exists()


def test_a_bomb_among_the_values_is_refused(folder: Path) -> None:
    save({"state_dict": {"a": torch.ones(1)}, "optimizer_0": {"trick": Bomb()}}, checkpoint_id=folder)
    with pytest.raises(ValueError, match="no folder of shards to be trusted"):
        require_harmless(folder)
    assert not Path("exploded").exists()


def test_parts_outside_of_the_folder_and_damage_are_refused(folder: Path) -> None:
    contents = pickle.loads((folder / ".metadata").read_bytes())
    for place in contents.storage_data.values():
        object.__setattr__(place, "relative_path", "../elsewhere")
    (folder / ".metadata").write_bytes(pickle.dumps(contents))
    with pytest.raises(ValueError, match="lie outside of it"):
        require_harmless(folder)
    (folder / ".metadata").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="damaged"):
        require_harmless(folder)
