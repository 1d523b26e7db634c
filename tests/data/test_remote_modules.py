"""DataModules over a network: cached shards give what local ones give, streamed ones come in equal numbers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightning_gen.data.images import TextImageDataModule
from lightning_gen.data.joining import WeightedShards
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.preferences import PickAPicDataModule
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.remote.retrying import RemoteOptions
from lightning_gen.data.writing import write_shards
from lightning_gen.training.curriculum import BudgetStage
from tests.data.kinds import captioned
from tests.data.samples import sample, shards
from tests.harness.faulty_server import FaultyServer

QUICK = RemoteOptions(connect_timeout=2.0, read_timeout=1.0, retries=2, backoff=0.01, max_backoff=0.05)


def module(train: Any, **options: Any) -> ShardDataModule:
    settings = {"patch_size": 8, "tokens": 9, "global_batch_size": 4, "seed": 3, "remote": QUICK, **options}
    return ShardDataModule(train, **settings)


def seen(loader: Any) -> list[tuple[Any, ...]]:
    return [(b.key, hashlib.sha256(b.images.values.numpy().tobytes()).hexdigest()) for b in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_set_is_the_local_set(tmp_path: Path, workers: int) -> None:
    shards(tmp_path / "served", 42, 9)
    local = seen(module(str(tmp_path / "served")).train_loader(1))
    with FaultyServer(tmp_path / "served") as server:
        made = module(
            f"{server.url('manifest.json')}",
            cache_folder=str(tmp_path / "cache"),
            cache_bytes=1 << 20,
            num_workers=workers,
        )
        try:
            made.prepare_data()
            assert seen(made.train_loader(1)) == local
        finally:
            made.teardown()


def test_a_mixture_of_a_local_and_a_remote_set(tmp_path: Path) -> None:
    shards(tmp_path / "near", 18, 9)
    shards(tmp_path / "served", 18, 9)
    with FaultyServer(tmp_path / "served") as server:
        train = [WeightedShards(str(tmp_path / "near")), WeightedShards(f"{server.url('manifest.json')}")]
        made = module(train, cache_folder=str(tmp_path / "cache"))
        index = [n for batch in made.train_loader(0) for n in batch.index.tolist()]
    assert Counter(n >= 18 for n in index) == {True: 18, False: 18}


def test_remote_shards_need_a_cache(tmp_path: Path) -> None:
    shards(tmp_path, 9, 9)
    with FaultyServer(tmp_path) as server, pytest.raises(ValueError, match="give a cache folder"):
        module(f"{server.url('manifest.json')}").train_loader()


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_epochs_have_their_length_on_every_rank(tmp_path: Path, workers: int) -> None:
    shards(tmp_path, 42, 9)
    with FaultyServer(tmp_path) as server:
        url = server.url("train-{000000..000004}.tar") + "|42"
        found = list[str]()
        for rank in range(2):
            made = module(url, access="stream", num_workers=workers)
            loader = made.train_loader(0, rank, 2)
            batches = list(loader)
            assert [len(batch) for batch in batches] == [2] * len(loader) == [2] * 10
            found += [key for batch in batches for key in batch.key]
            made.teardown()
    assert len(found) == 40 and len(set(found)) > 25


def test_a_stream_is_a_function_of_its_seed_and_pass(tmp_path: Path) -> None:
    shards(tmp_path, 42, 9)
    where = f"{tmp_path}/train-{{000000..000004}}.tar|42"
    runs = [seen(module(where, access="stream").train_loader(k)) for k in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert seen(module(where, access="stream", seed=4).train_loader(0)) != runs[0]


def test_a_stream_resumes_exactly_where_it_is_not_mixed(tmp_path: Path) -> None:
    shards(tmp_path, 45, 9)
    where = f"{tmp_path}/train-{{000000..000004}}.tar|45"
    whole = seen(module(where, access="stream", stream_buffer=0).train_loader(1))
    assert len({key for keys, _ in whole for key in keys}) == 44
    for done in (1, 5, 10):
        loader = module(where, access="stream", stream_buffer=0).train_loader(1)
        iterator = iter(loader)
        for _ in range(done):
            next(iterator)
        again = module(where, access="stream", stream_buffer=0).train_loader(0)
        again.load_state_dict(loader.state_dict())
        assert seen(again) == whole[done:]
    other = module(f"{tmp_path}/train-{{000000..000003}}.tar|36", access="stream").train_loader(0)
    with pytest.raises(DataError, match="the data set is not that of the checkpoint"):
        other.load_state_dict(loader.state_dict())


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_samples_of_a_stream_are_passed_over_and_counted(tmp_path: Path, workers: int) -> None:
    samples = [sample(number) for number in range(20)]
    samples[7][1]["png"] = b"not a picture"
    write_shards(samples, tmp_path, max_samples=10)
    where = f"{tmp_path}/train-{{000000..000001}}.tar|20"
    made = module(where, access="stream", max_bad_fraction=0.2, num_workers=workers)
    keys = [key for batch in made.train_loader() for key in batch.key]
    assert len(keys) == 20 and "s00007" not in keys
    assert made.counters()["bad"] == 1
    made.teardown()
    assert made.counters()["bad"] == 1 and made.counters()["bytes"] > 0, "also when all is over"
    strict = module(where, access="stream", max_bad_fraction=0.0, num_workers=workers)
    with pytest.raises(DataError, match="s00007"):
        list(strict.train_loader())


def test_workers_of_a_stream_share_the_limit_without_a_list(tmp_path: Path) -> None:
    """Each of the two finds one bad sample, which is allowed; both together are too many."""
    samples = [sample(number) for number in range(40)]
    for number in (3, 23):
        samples[number][1]["png"] = b"not a picture"
    write_shards(samples, tmp_path, max_samples=20)
    where = f"{tmp_path}/train-{{000000..000001}}.tar|40"
    made = module(where, access="stream", max_bad_fraction=0.03, num_workers=2)
    with pytest.raises(DataError, match=r"2 of 40 samples are bad.*train-000000\.tar, train-000001\.tar"):
        list(made.train_loader())


def test_captions_from_a_pipe(tmp_path: Path) -> None:
    write_shards([captioned(number) for number in range(12)], tmp_path)
    made = TextImageDataModule(
        f"pipe:cat {tmp_path}/train-000000.tar|12", resolution=16, global_batch_size=4, access="stream"
    )
    batches = list(made.train_loader())
    assert len(batches) == 3 and batches[0].images.shape == (4, 3, 16, 16)
    assert all(caption.startswith("caption ") for caption in batches[0].caption)


def test_what_must_be_planned_cannot_be_streamed(tmp_path: Path) -> None:
    where = "pipe:cat x.tar|12"
    with pytest.raises(ValueError, match="PickAPicDataModule, which chooses samples"):
        PickAPicDataModule(where, resolution=16, global_batch_size=4, access="stream").train_loader()
    with pytest.raises(ValueError, match="bucket_step"):
        TextImageDataModule(where, resolution=16, global_batch_size=4, bucket_step=4, access="stream").train_loader()
    with pytest.raises(ValueError, match="min_size or ladder"):
        ShardDataModule(where, stages=[BudgetStage(9, 4, min_size=3)], access="stream").train_loader()
    with pytest.raises(ValueError, match="nobody says how many samples"):
        module("pipe:cat x.tar", access="stream").train_loader()


def test_a_manifest_may_not_run_a_command(tmp_path: Path) -> None:
    manifest = shards(tmp_path, 9, 9)
    path = manifest.folder / "manifest.json"
    data = json.loads(path.read_text())
    data["shards"][0]["url"] = "pipe:touch owned"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="run a command"):
        module(str(tmp_path)).train_loader()
