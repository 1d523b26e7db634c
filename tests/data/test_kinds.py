"""What every kind of DataModule must do: the same global batches for everybody, exact resume, every sample once."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_gen import COMPONENTS
from lightning_gen.data.batches import Batch
from lightning_gen.data.planned import PlannedDataModule
from lightning_gen.nn.tokens import Tokens
from tests.data.kinds import KINDS, main_part


def flat(batch: Any) -> list[np.ndarray]:
    """Every number of a batch."""
    if isinstance(batch, torch.Tensor):
        return [batch.numpy()]
    if isinstance(batch, Tokens):
        # Every rank numbers its images from 0.
        first = torch.arange(len(batch.mask))[:, None]
        batch = dataclasses.replace(batch, image=torch.where(batch.mask, batch.image - first, -1))
    if isinstance(batch, Batch | Tokens):
        return [x for field in dataclasses.fields(batch) for x in flat(getattr(batch, field.name))]
    return [np.array(batch)]


def joined(parts: list[Any]) -> list[np.ndarray]:
    """The numbers of one global batch from those of its ranks."""
    rows = [flat(part) for part in parts]
    return [np.concatenate([np.atleast_1d(row[k]) for row in rows]) for k in range(len(rows[0]))]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Equal, where the number of the pass (a scalar) may stand once per rank."""
    pairs = zip(a, b, strict=True)
    return all(np.array_equal(x if y.ndim else x.flat[0], y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_global_batches_are_the_same_for_any_number_of_ranks(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path)
    whole = [flat(batch) for batch in made.train_loader(1)]
    loaders = [made.train_loader(1, rank, 2) for rank in range(2)]
    assert len(loaders[0]) == len(loaders[1]) == len(whole) > 2
    for expected, *parts in zip(whole, *loaders, strict=True):
        assert same(joined(parts), expected)


def test_workers_change_nothing_and_the_loader_goes_on_where_it_was(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path / "a")
    whole = [flat(batch) for batch in made.train_loader(0)]
    other = KINDS[kind](tmp_path / "b", num_workers=2, start_method="spawn" if kind == "edits" else "fork")
    try:
        loader = made.train_loader(0)
        iterator = iter(loader)
        next(iterator)
        next(iterator)
        resumed = other.train_loader(0)
        resumed.load_state_dict(loader.state_dict())
        rest = [flat(batch) for batch in resumed]
    finally:
        other.teardown()
    assert len(rest) == len(whole) - 2
    assert all(same(a, b) for a, b in zip(rest, whole[2:], strict=True))


def test_passes_differ_and_hold_no_sample_twice(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path)
    index = [np.concatenate([main_part(batch).index.numpy() for batch in made.train_loader(k)]) for k in range(2)]
    assert not np.array_equal(index[0], index[1])
    repeats = getattr(made, "repeats", 1)
    if kind == "mixture":
        assert len(set(index[0].tolist())) > 0.6 * len(index[0])
    else:
        assert set(Counter(index[0].tolist()).values()) == {repeats}
    assert all(0 <= number < len(made._set("train").source) for number in index[0])


def test_an_evaluation_counts_every_sample_once(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path, val_batch_size=6)
    source = made._set("val").source
    wanted = sorted(set(range(len(source))) - set(made._left_out(source, "val").tolist()))
    for world in (1, 2, 3):
        seen = [
            number
            for rank in range(world)
            for batch in made.evaluation_loader("val", rank, world)
            for number in main_part(batch).index[main_part(batch).valid].tolist()
        ]
        assert sorted(seen) == wanted


def test_batches_can_be_moved_and_pickled(kind: str, tmp_path: Path) -> None:
    batch = next(iter(KINDS[kind](tmp_path).train_loader(0)))
    moved = batch.to("meta")
    assert main_part(moved).index.device.type == "meta"
    assert same(flat(batch.to("cpu")), flat(batch))
    assert len(batch) == len(main_part(batch).index)
    assert same(flat(pickle.loads(pickle.dumps(batch))), flat(batch))  # what workers do


def test_the_command_line_knows_every_kind(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path)
    name = type(made).__name__
    assert COMPONENTS[name] == type(made).__module__
    parser = ArgumentParser()
    parser.add_subclass_arguments(PlannedDataModule, "data")
    shapes = {"PromptDataModule": [], "LatentDataModule": ["--data.tokens=16"], "ShapesDataModule": []}
    shape = shapes.get(name, ["--data.resolution=16"])
    train = f"--data.train=[{{shards: {tmp_path / 'a'}, weight: 2, name: x}}]" if kind == "mixture" else ""
    args = [f"--data={type(made).__module__}.{name}", "--data.global_batch_size=6", *shape]
    config = parser.parse_args([*args, train or f"--data.train={tmp_path}", "--data.block_shards=3"])
    again = parser.instantiate(config).data
    assert (again.block_shards, again.global_batch_size) == (3, 6)
    needs = type(made).needs(dict(config.data.init_args))
    assert needs.global_batch_size == 6


def test_a_lost_place_is_named_before_the_run(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path / "there")
    arguments = {"train": str(tmp_path / "gone.jsonl"), "global_batch_size": 3, "resolution": 16}
    (line,) = type(made).needs(arguments).missing
    assert "data.train" in line and "gone" in line
