"""Prompts: groups of k rows, every prompt once per pass, files with flaws."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lightning_gen.data.prompts import PromptDataModule, PromptFields, PromptFile
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.writing import write_shards
from tests.data import kinds


def test_every_prompt_comes_k_times_in_one_step_and_once_per_pass(tmp_path: Path) -> None:
    made = kinds.prompts(tmp_path)
    seen = Counter[int]()
    for batch in made.train_loader(0):
        assert len(batch) == 12
        assert set(Counter(batch.index.tolist()).values()) == {3}
        for group in range(4):
            rows = np.flatnonzero(batch.group.numpy() == group)
            assert len(set(batch.index[rows].tolist())) == 1
            assert sorted(batch.member[rows].tolist()) == [0, 1, 2]
        seen.update(batch.index.tolist())
        assert batch.prompt == tuple(f"prompt {n}" for n in batch.index.tolist())
        assert json.loads(batch.metadata[0])["tag"] == "counting"
    assert set(seen.values()) == {3} and len(seen) == 28


def test_the_rows_of_a_group_are_spread_over_the_ranks(tmp_path: Path) -> None:
    made = kinds.prompts(tmp_path)
    together = 0
    for batch in made.train_loader(0, rank=0, world=2):
        assert len(batch) == 6
        together += sum(count == 3 for count in Counter(batch.group.tolist()).values())
    assert together < 7  # of 14 half batches with two or more groups


def test_the_order_of_rows_is_keyed_by_step_and_pass(tmp_path: Path) -> None:
    made = kinds.prompts(tmp_path)
    members = [batch.member.tolist() for k in range(2) for batch in made.train_loader(k)]
    assert len({tuple(row) for row in members}) == len(members)


def test_evaluation_has_every_prompt_once(tmp_path: Path) -> None:
    made = kinds.prompts(tmp_path)
    rows = [
        (text, ok) for batch in made.evaluation_loader() for text, ok in zip(batch.prompt, batch.valid, strict=True)
    ]
    assert [text for text, ok in rows if ok] == [f"test {n}" for n in range(10)]


def test_shards_of_prompts(tmp_path: Path) -> None:
    samples = [(f"k{n}", {"txt": f"words {n}".encode(), "json": b'{"count": 3}'}) for n in range(8)]
    write_shards(samples, tmp_path)
    made = PromptDataModule(str(tmp_path), global_batch_size=4, repeats=2)
    batch = next(iter(made.train_loader()))
    assert batch.prompt == tuple(f"words {n}" for n in batch.index.tolist())
    assert batch.metadata[0] == '{"count": 3}'
    with pytest.raises(SampleError, match="no prompt"):
        PromptFields()({"json": b"{}"})


def test_flawed_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def file(text: str, name: str = "p.txt") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    with caplog.at_level(logging.WARNING):
        prompts = PromptFile(file("one\n\n  \ntwo\n"))
    assert [p.prompt for p in prompts.prompts] == ["one", "two"]
    assert prompts.name(1) == ("p.txt", "line 4")
    assert "2 empty lines are skipped" in caplog.text
    (tmp_path / "odd.txt").write_text("\ufeffone\u2028two\x0bthree\r\nfour\n", encoding="utf-8", newline="")
    assert [p.prompt for p in PromptFile(str(tmp_path / "odd.txt")).prompts] == ["one\u2028two\x0bthree", "four"]
    with pytest.raises(DataError, match="holds no prompt"):
        PromptFile(file("\n\n"))
    with pytest.raises(DataError, match=r"p\.jsonl line 2 is not JSON"):
        PromptFile(file('{"prompt": "a"}\nnonsense\n', "p.jsonl"))
    with pytest.raises(DataError, match='line 1 needs a text under "prompt", found: tag'):
        PromptFile(file('{"tag": "a"}\n', "p.jsonl"))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        PromptFile(str(tmp_path / "absent.txt"))
    (tmp_path / "latin.txt").write_bytes("käse".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        PromptFile(str(tmp_path / "latin.txt"))
    with pytest.raises(ValueError, match="whole number of groups"):
        PromptDataModule(file("a"), global_batch_size=4, repeats=3)


def test_an_edited_file_is_not_the_file_of_the_checkpoint(tmp_path: Path) -> None:
    made = kinds.prompts(tmp_path)
    state = made.train_loader(0).state_dict()
    (tmp_path / "train.jsonl").write_text((tmp_path / "train.jsonl").read_text() + '\n{"prompt": "new"}')
    again = PromptDataModule(str(tmp_path / "train.jsonl"), global_batch_size=12, repeats=3)
    with pytest.raises(DataError, match="the data set is not that of the checkpoint"):
        again.train_loader(0).load_state_dict(state)


def test_another_batch_size_goes_on_in_the_same_order(tmp_path: Path) -> None:
    kinds.prompts(tmp_path)

    def made(size: int) -> PromptDataModule:
        return PromptDataModule(str(tmp_path / "train.jsonl"), global_batch_size=size, repeats=6)

    order = [n for batch in made(12).train_loader(1) for n in dict.fromkeys(batch.index.sort().values.tolist())]
    loader = made(12).train_loader(1)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    again = made(24).train_loader(0)
    again.load_state_dict(loader.state_dict())
    rest = {n for batch in again for n in batch.index.tolist()}
    assert rest == set(order[8:28])
