"""Bad samples: one account for all ranks that see each other's lists, with bounds that hold over it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.quarantine import BadSample, DataError, Quarantine, read_quarantine
from lightning_gen.data.trainer_link import quarantine_lists
from lightning_gen.data.writing import write_shards
from tests.data.kind_jobs import count_bad
from tests.data.samples import sample
from tests.harness import two_processes

BAD = (5, 11, 30, 35)


def spoiled(folder: Path, bad: Sequence[int] = (), **options: Any) -> ShardDataModule:
    """42 samples in shards of 9, some of which are no pictures."""
    pairs = [(sample(n)[0], {"png": b"nothing"} if n in bad else sample(n)[1]) for n in range(42)]
    write_shards(pairs, folder, max_samples=9)
    return ShardDataModule(str(folder), patch_size=8, tokens=9, global_batch_size=8, seed=3, **options)


def test_quarantine_writes_once_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    for _ in range(2):  # the second time as a resumed run
        quarantine = Quarantine(10_000, path=path)
        for key in ("a", "b", "a"):
            quarantine.report(BadSample("x.tar", key, 1, "sample", "undecodable"))
        quarantine.report(BadSample("y.tar", "", 2, "shard", "truncated", samples=5))
        quarantine.report(BadSample("y.tar", "c", 2, "sample", "known already"))
        assert quarantine.bad == 7
    assert len(path.read_text().splitlines()) == 3
    assert read_quarantine(path) == {("x.tar", "a"), ("x.tar", "b"), ("y.tar", "")}
    path.write_text("{}\n")
    with pytest.raises(DataError, match="line 1 is not a quarantine record"):
        read_quarantine(path)
    with pytest.raises(ValueError, match="fraction in"):
        Quarantine(10, 2.0)
    with pytest.raises(DataError, match="allows 0"):
        Quarantine(10, 0.0).report(BadSample("x.tar", "a", 1, "sample", "bad"))


def bad_one(key: str, shard: str = "x.tar", **options: Any) -> BadSample:
    return BadSample(shard, key, 1, "sample", "undecodable", **options)


def test_ranks_keep_one_account(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    first, second, idle = (Quarantine(100, 0.03, path=path) for _ in range(3))
    first.report(bad_one("a"))
    second.report(bad_one("a"))
    second.report(bad_one("b"))
    first.report(bad_one("c"))
    idle.look()
    assert [one.bad for one in (first, second, idle)] == [3, 3, 3]
    assert len(path.read_text().splitlines()) == 3, "a sample stands there once"
    with pytest.raises(DataError, match=r"4 of 100 samples are bad.* allows 3"):
        second.report(bad_one("d"))
    assert idle.bad == 4  # asking is not judging
    with pytest.raises(DataError, match=r"4 of 100 samples are bad"):
        idle.look()
    # A run that goes on begins with the list, and is not stopped by it before something new is bad.
    again = Quarantine(100, 0.03, path=path)
    again.look()
    again.report(bad_one("b"))
    with pytest.raises(DataError, match=r"5 of 100"):
        again.report(bad_one("e"))


def test_ranks_share_the_limit_of_a_shard_too(tmp_path: Path) -> None:
    first, second = (Quarantine(100, 1.0, 3, tmp_path / "quarantine.jsonl") for _ in range(2))
    for number in range(3):
        (first, second)[number % 2].report(bad_one(f"k{number}"))
    with pytest.raises(DataError, match=r"x\.tar has 4 bad samples, max_bad_per_shard=3"):
        second.report(bad_one("k3"))
    with pytest.raises(DataError, match=r"x\.tar has 4 bad samples, max_bad_per_shard=3"):
        first.look()


def test_of_two_who_report_at_once_the_second_sees_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "quarantine.jsonl"
    first, second = (Quarantine(100, 0.01, path=path) for _ in range(2))
    real = os.write

    def between(handle: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", real)
        first.report(bad_one("a"))  # while the second has looked already and has not written yet
        return real(handle, data)

    monkeypatch.setattr(os, "write", between)
    with pytest.raises(DataError, match="2 of 100 samples are bad"):
        second.report(bad_one("b"))


def test_a_damaged_shard_counts_towards_the_fraction_only() -> None:
    quarantine = Quarantine(1000, 0.5, max_bad_per_shard=16)
    quarantine.report(BadSample("x.tar", "", 1, "shard", "truncated", samples=200))
    quarantine.report(bad_one("a", "y.tar"))
    assert quarantine.bad == 201
    assert quarantine._per_shard == {"y.tar": 1}


def machines(folder: Path, split: str, shared: bool) -> list[tuple[Path | None, tuple[Path, ...]]]:
    """What two machines of two ranks each are told, where only rank 0's machine has the folder unless it is shared."""
    found = []
    for rank in range(4):
        strategy = SimpleNamespace(
            broadcast=lambda name: "same",
            barrier=lambda name: None,
            reduce_boolean_decision=lambda seen, all: seen and shared,
        )
        trainer = SimpleNamespace(
            default_root_dir=folder, num_nodes=2, node_rank=rank // 2, is_global_zero=rank == 0, strategy=strategy
        )
        found.append(quarantine_lists(trainer, split))  # type: ignore[arg-type]
    return found


def test_machines_write_lists_of_their_own_and_read_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = machines(tmp_path, "train", shared=False)
    assert caplog.text.count("is not shared by the 2 machines: bad samples are listed and bounded on each") == 4
    assert not list(tmp_path.iterdir()), "the mark is removed"
    caplog.clear()
    mine, other = tmp_path / "quarantine.jsonl", tmp_path / "quarantine.node1.jsonl"
    assert lists == [(mine, (other,))] * 2 + [(other, (mine,))] * 2
    assert machines(tmp_path, "val", shared=True)[2][0] == tmp_path / "quarantine.val.node1.jsonl"
    assert quarantine_lists(None, "train") == (None, ())
    ranks = [Quarantine(100, 0.02, path=path, others=others) for path, others in lists]
    ranks[0].report(bad_one("a"))
    ranks[3].report(bad_one("a"))
    ranks[2].report(bad_one("b"))
    assert [rank.bad for rank in ranks] == [2] * 4
    with pytest.raises(DataError, match="3 of 100 samples are bad"):
        ranks[1].report(bad_one("c"))
    assert [len(path.read_text().splitlines()) for path in (mine, other)] == [2, 1]
    assert read_quarantine(mine) == {("x.tar", key) for key in "abc"}, "exclude takes what is there"


def test_two_processes_count_and_log_a_bad_sample_once(tmp_path: Path) -> None:
    spoiled(tmp_path / "set", BAD)
    alone = count_bad(tmp_path / "set", tmp_path / "alone", 1)
    pair = two_processes(count_bad, tmp_path / "set", tmp_path / "pair", 2)
    assert alone == (4.0, 4.0, 4.0) and pair == [alone, alone]
    assert [path.name for path in (tmp_path / "pair").glob("quarantine*")] == ["quarantine.jsonl"]
    assert len((tmp_path / "pair" / "quarantine.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_rank_stops_for_what_another_one_found(tmp_path: Path, workers: int) -> None:
    made = spoiled(tmp_path / "set", {}, max_bad_fraction=0.05, num_workers=workers)
    loader = made.train_loader()
    loader.factory.quarantine = Quarantine(42, 0.05, path=tmp_path / "quarantine.jsonl")  # type: ignore[attr-defined]
    batches = iter(loader)
    next(batches)
    elsewhere = Quarantine(42, 1.0, path=tmp_path / "quarantine.jsonl")
    for key in "abc":
        elsewhere.report(bad_one(key))
    with pytest.raises(DataError, match="3 of 42 samples are bad"):
        list(batches)
    made.teardown()
