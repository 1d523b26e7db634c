"""Every kind of data under the real Trainer: a checkpoint of any step, also one of two processes, goes on exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_gen.data.modules import ShardDataModule
from lightning_gen.training.curriculum import BudgetStage
from tests.data.kind_jobs import train_kind
from tests.data.kinds import KINDS
from tests.data.samples import shards
from tests.harness import two_processes

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
STEPS = 12  # more than one plan of every kind


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_any_checkpoint_goes_on_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    KINDS[kind](data)
    whole = train_kind(kind, data, tmp_path / "whole", STEPS)
    assert len(whole) == STEPS
    for done in (1, 5, 6, 7, 8, 9, 11):
        again = train_kind(kind, data, tmp_path / f"again{done}", STEPS, tmp_path / "whole" / f"step={done}.ckpt")
        assert again == whole[done:], f"after step {done}"


@pytest.mark.parametrize("kind", ["pick_a_pic", "mixture", "prompts"])
def test_two_processes_see_the_same_and_one_goes_on(kind: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    KINDS[kind](data)
    whole = train_kind(kind, data, tmp_path / "whole", STEPS)
    pair = two_processes(train_kind, kind, data, tmp_path / "pair", 7, None, 2)
    for number in range(7):
        assert pair[0][number][0] + pair[1][number][0] == whole[number][0]
        assert pair[0][number][1] + pair[1][number][1] == pytest.approx(whole[number][1], rel=1e-12)
    again = train_kind(kind, data, tmp_path / "again", STEPS, tmp_path / "pair" / "step=7.ckpt", num_workers=2)
    assert again == whole[7:]


def test_a_ladder_goes_on_inside_a_plan(tmp_path: Path) -> None:
    shards(tmp_path, 42, 9)
    made = ShardDataModule(
        str(tmp_path), patch_size=8, stages=[BudgetStage(9, 4, ladder=(4, 9, 16))], crop_probability=0.0
    )
    loader = made.train_loader(1)
    whole = [(batch.key, batch.images.values.shape[1]) for batch in loader]
    assert {(len(key), tokens) for key, tokens in whole} == {(9, 4), (4, 9), (2, 16)}
    for done in range(len(whole)):
        loader.seek(0)
        iterator = iter(loader)
        for _ in range(done):
            next(iterator)
        again = made.train_loader(0)
        again.load_state_dict(loader.state_dict())
        assert [(batch.key, batch.images.values.shape[1]) for batch in again] == whole[done:]
