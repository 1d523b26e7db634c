"""Prompts of the embedded world: in groups, with the records that the rewards read."""

from __future__ import annotations

import json

import pytest

from lightning_gen.data.quarantine import DataError
from lightning_gen.shapes.benchmark import benchmark_prompts
from lightning_gen.shapes.grammar import parse_prompt
from lightning_gen.shapes.prompts import ShapesPromptDataModule


def test_training_prompts_come_in_groups_and_name_what_they_ask_for() -> None:
    data = ShapesPromptDataModule(global_batch_size=12, repeats=4, samples=30, num_workers=0, seed=3)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 12 and sorted(batch.group.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    for number in range(3):
        rows = [row for row in range(12) if int(batch.group[row]) == number]
        assert len({batch.prompt[row] for row in rows}) == 1
        assert sorted(batch.member[rows].tolist()) == [0, 1, 2, 3]
    for prompt, text in zip(batch.prompt, batch.metadata, strict=True):
        record = json.loads(text)
        assert record["prompt"] == prompt and record["tag"] != "word"
        assert parse_prompt(prompt).metadata()["include"] == record["include"]


def test_validation_is_the_benchmark() -> None:
    data = ShapesPromptDataModule(global_batch_size=12, repeats=4, val_every=50, num_workers=0)
    data.setup("validate")
    found = [
        prompt for batch in data.val_dataloader() for prompt, ok in zip(batch.prompt, batch.valid, strict=True) if ok
    ]
    assert found == [record["prompt"] for record in benchmark_prompts()[::50]]


def test_tags_and_mixtures_are_checked() -> None:
    data = ShapesPromptDataModule(global_batch_size=4, repeats=2, samples=8, tags=["counting"], num_workers=0)
    data.setup("fit")
    assert all(json.loads(text)["tag"] == "counting" for text in next(iter(data.train_dataloader())).metadata)
    with pytest.raises(ValueError, match="data.tags: swirl unknown"):
        ShapesPromptDataModule(tags=["swirl"])
    with pytest.raises(DataError, match="are for measuring"):
        ShapesPromptDataModule(train="benchmark", num_workers=0).setup("fit")
    with pytest.raises(DataError, match="there are no prompts 'odd'"):
        ShapesPromptDataModule(val="odd", num_workers=0).setup("validate")
