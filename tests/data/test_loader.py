"""The loader: the same batches for any ranks and workers, exact positions, bad samples, and no hanging."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.loader import PlanLoader
from lightning_gen.data.modules import ShardDataModule
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.transforms import token_count
from lightning_gen.data.writing import write_shards
from lightning_gen.nn.tokens import Tokens, unpatchify
from lightning_gen.training.curriculum import BudgetStage
from tests.data.samples import encoded, picture, sample, shards


def tokens_of(batch: ImageBatch) -> Tokens:
    assert isinstance(batch.images, Tokens)
    return batch.images


def digest(batch: ImageBatch) -> tuple[object, ...]:
    """Everything a training step could see."""
    parts = [tokens_of(batch).values, tokens_of(batch).mask, tokens_of(batch).sizes, batch.label, batch.original_size]
    pixels = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    return batch.key, tuple(batch.index.tolist()), batch.epoch, pixels


def rows(batches: list[ImageBatch]) -> list[tuple[str, str]]:
    """Key and pixels of every image, whatever batch it stands in."""
    out = []
    for batch in batches:
        images = unpatchify(tokens_of(batch))
        out += [(k, hashlib.sha256(i.numpy().tobytes()).hexdigest()) for k, i in zip(batch.key, images, strict=True)]
    return out


def module(folder: Path, **options: object) -> ShardDataModule:
    settings: dict[str, object] = {"patch_size": 8, "tokens": 9, "global_batch_size": 8, "seed": 3}
    return ShardDataModule(str(folder), str(folder), **{**settings, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    shards(folder, 42, 9)
    return folder


def test_batches_hold_what_they_say(data: Path) -> None:
    for batch in module(data, crop_probability=0.0, flip_probability=0.0).train_loader():
        tokens = tokens_of(batch)
        assert tokens.values.shape == (8, 9, 3 * 64)
        assert len(batch) == 8
        assert bool(batch.valid.all())
        for row, image in enumerate(unpatchify(tokens)):
            number = int(batch.index[row])
            stored = picture(number)
            assert batch.key[row] == sample(number)[0]
            assert batch.label[row] == number % 5
            assert batch.original_size[row].tolist() == [stored.height, stored.width]
            assert token_count(tuple(image.shape[1:]), 8) == int(tokens.mask[row].sum()) <= 9
            if token_count((stored.height, stored.width), 8) <= 9:
                expected = np.asarray(stored, np.float32).transpose(2, 0, 1) / 127.5 - 1
                assert np.allclose(image.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_ranks_or_workers(data: Path, workers: int) -> None:
    alone = rows(list(module(data).train_loader(1)))
    for world in (1, 2, 4):
        parts = []
        for rank in range(world):
            made = module(data, num_workers=workers)
            loader = made.train_loader(1, rank, world)
            parts.append(list(loader))
            assert len(parts[-1]) == len(loader) == 5
            made.teardown()
        dealt = [image for step in zip(*parts, strict=True) for image in rows(list(step))]
        assert dealt == alone


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
def test_one_and_three_workers_agree_and_persist_over_plans(data: Path) -> None:
    expected = [[digest(b) for b in module(data).train_loader(k)] for k in range(3)]
    for workers in (1, 3):
        made = module(data, num_workers=workers)
        factory = made._factory("train", 0, 1)
        processes = set[int]()
        for k in range(3):
            loader = PlanLoader(made.planner().plan(k), factory)
            assert [digest(b) for b in loader] == expected[k]
            processes |= {w.pid for w in factory._loader._iterator._workers}  # type: ignore[union-attr]
        assert len(processes) == workers
        made.teardown()


def test_an_abandoned_plan_does_not_leak_into_the_next(data: Path) -> None:
    made = module(data, num_workers=2)
    iterator = iter(made.train_loader(0))
    next(iterator)
    assert [digest(b) for b in made.train_loader(1)] == [digest(b) for b in module(data).train_loader(1)]
    made.teardown()


@pytest.mark.slow
def test_spawned_workers_give_the_same(data: Path) -> None:
    made = module(data, num_workers=1, start_method="spawn")
    assert [digest(b) for b in made.train_loader()] == [digest(b) for b in module(data).train_loader()]
    made.teardown()


def test_augmentation_follows_the_pass_not_the_global_generators(data: Path) -> None:
    torch.manual_seed(0)
    first = rows(list(module(data, crop_probability=1.0).train_loader(0)))
    torch.manual_seed(1)
    np.random.seed(2)
    assert rows(list(module(data, crop_probability=1.0).train_loader(0))) == first
    later = dict(rows(list(module(data, crop_probability=1.0).train_loader(1))))
    common = [(key, image) for key, image in first if key in later]
    assert sum(later[key] != image for key, image in common) > len(common) / 2


@pytest.mark.parametrize("crop", [0.0, 1.0])
@pytest.mark.parametrize("rule", ["isotropic", "vitok_release"])
def test_longest_padding_gives_all_ranks_one_shape_and_the_same_pixels(data: Path, crop: float, rule: str) -> None:
    options = {"pad_to": "longest", "crop_probability": crop, "tokens": 30, "budget_rule": rule}
    alone = module(data, **options)
    lengths = set()
    loaders = [module(data, **options).train_loader(0, rank, 4) for rank in range(4)]
    for whole, *parts in zip(alone.train_loader(), *loaders, strict=True):
        longest = int(tokens_of(whole).mask.sum(1).max())
        assert {tokens_of(batch).mask.shape[1] for batch in (whole, *parts)} == {longest}
        assert longest <= 30
        assert rows([whole]) == rows(parts)
        lengths.add(longest)
    if crop == 0:
        assert len(lengths) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_resumes_at_every_step_and_ignores_prefetching(data: Path, workers: int) -> None:
    expected = [digest(b) for b in module(data).train_loader(2)]
    running = module(data, num_workers=workers)
    loader = running.train_loader(2)
    states = [loader.state_dict()]
    for batch in loader:
        assert digest(batch) == expected[len(states) - 1]
        states.append(loader.state_dict())
    running.teardown()
    assert [state["step_in_epoch"] for state in states] == [0, 1, 2, 3, 4, 5]
    assert json.loads(json.dumps(states)) == states
    made = module(data, num_workers=workers)
    for step, state in enumerate(states):
        again = made.train_loader(0)
        again.load_state_dict(state)
        assert (again.plan.number, len(again)) == (2, 5)
        assert again.state_dict() == state
        assert [digest(b) for b in again] == expected[step:]
        assert [digest(b) for b in again] == expected, "the next iteration begins at the start"
    made.teardown()


def test_a_position_of_two_ranks_resumes_in_one(data: Path) -> None:
    left, right = (module(data).train_loader(1, rank, 2) for rank in range(2))
    for _, _ in zip(range(3), zip(left, right, strict=True), strict=False):
        pass
    assert left.state_dict() == right.state_dict()
    one = module(data).train_loader()
    one.load_state_dict(left.state_dict())
    assert rows(list(one)) == rows(list(module(data).train_loader(1)))[24:]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 4}, "seed is not that"), ({"block_shards": 2}, "block_shards"), ({"passes": 2}, "passes")],
)
def test_a_position_of_another_order_is_refused(data: Path, change: dict[str, object], message: str) -> None:
    state = module(data).train_loader().state_dict()
    with pytest.raises(DataError, match=message):
        module(data, **change).train_loader().load_state_dict(state)


def test_a_position_of_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    shards(tmp_path, 42, 8)
    with pytest.raises(DataError, match="the data set is not that of the checkpoint"):
        module(tmp_path).train_loader().load_state_dict(module(data).train_loader().state_dict())


def test_another_batch_goes_on_behind_the_samples_seen(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """40 of 42 samples per pass in steps of 8; after 3 steps go on in steps of 4: nothing twice, nothing lost."""
    loader = module(data, canonical_streams=4).train_loader()
    seen = [key for _, batch in zip(range(3), loader, strict=False) for key in batch.key]
    state = loader.state_dict()
    assert state["samples_seen_global"] == 24
    smaller = module(data, canonical_streams=4, global_batch_size=4).train_loader()
    smaller.load_state_dict(state)
    rest = [key for batch in smaller for key in batch.key]
    assert (len(rest), len(set(rest) & set(seen))) == (16, 0)
    assert "changed from 1 x 8 to 1 x 4 images" in caplog.text
    larger = module(data, canonical_streams=4, global_batch_size=20).train_loader()
    larger.load_state_dict(state)
    assert larger.state_dict()["step_in_epoch"] == 1
    rest = [key for batch in larger for key in batch.key]
    assert (len(rest), len(set(rest) & set(seen))) == (20, 4)
    assert "which repeats 4 samples" in caplog.text


def test_another_batch_keeps_the_order_that_the_checkpoint_was_made_in(data: Path) -> None:
    """gcd(64, G) would be 8 streams before and 16 after: the 8 of the checkpoint stay."""
    loader = module(data).train_loader()
    seen = {key for _, batch in zip(range(2), loader, strict=False) for key in batch.key}
    larger = module(data, global_batch_size=16).train_loader()
    larger.load_state_dict(loader.state_dict())
    assert larger.state_dict()["canonical_streams"] == 8
    rest = [key for batch in larger for key in batch.key]
    assert (len(rest), len(set(rest) & seen)) == (16, 0)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_counts_every_sample_once(data: Path, world: int) -> None:
    found = list[tuple[str, str]]()
    total, loaders = torch.zeros(()), []
    for rank in range(world):
        loaders.append(module(data, val_batch_size=8).evaluation_loader("val", rank, world))
        for batch in loaders[-1]:
            found += [row for row, valid in zip(rows([batch]), batch.valid.tolist(), strict=True) if valid]
            means = torch.stack([image.mean() for image in unpatchify(tokens_of(batch))])
            total += means[batch.valid].double().sum()
    assert len({len(loader) for loader in loaders}) == 1
    assert sorted(key for key, _ in found) == [sample(n)[0] for n in range(42)]
    alone = [row for batch in module(data, val_batch_size=1).evaluation_loader() for row in rows([batch])]
    assert sorted(found) == sorted(alone)


def spoiled(folder: Path, bad: dict[int, dict[str, bytes]], count: int = 42, **options: object) -> ShardDataModule:
    """The test set with some samples replaced by bad ones."""
    pairs = [(sample(n)[0], bad.get(n, sample(n)[1])) for n in range(count)]
    write_shards(pairs, folder, max_samples=9)
    return module(folder, **options)


BAD = {
    5: {"png": b"", "cls": b"0"},
    11: {"cls": b"1", "json": b"{}"},
    30: {"png": b"<html>404</html>", "cls": b"0"},
    35: {"png": encoded(picture(35))[:500], "cls": b"0"},
}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_replaced_the_same_way_everywhere(tmp_path: Path, workers: int) -> None:
    made = spoiled(tmp_path / "set", BAD, max_bad_fraction=0.1, num_workers=workers, crop_probability=0.0)
    loader = made.train_loader()
    wanted = [index for t in range(5) for index in loader.plan.step(t).index.tolist()]
    assert set(BAD) <= set(wanted)
    batches = list(loader)
    got = [index for batch in batches for index in batch.index.tolist()]
    assert all(bool(batch.valid.all()) and len(batch) == 8 for batch in batches)
    for asked, given in zip(wanted, got, strict=True):
        assert (asked == given) == (asked not in BAD)
        assert given not in BAD
    again = module(tmp_path / "set", max_bad_fraction=0.1, crop_probability=0.0)
    dealt = [list(again.train_loader(0, rank, 4)) for rank in range(4)]
    assert [image for step in zip(*dealt, strict=True) for image in rows(list(step))] == rows(batches)
    assert made.counters()["bad"] == 4
    made.teardown()


def test_a_bad_sample_is_not_counted_in_an_evaluation(tmp_path: Path) -> None:
    made = spoiled(tmp_path / "set", BAD, max_bad_fraction=0.1, val_batch_size=8)
    valid = [k for b in made.evaluation_loader() for k, ok in zip(b.key, b.valid.tolist(), strict=True) if ok]
    assert sorted(valid) == [sample(n)[0] for n in range(42) if n not in BAD]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_stop_the_run_and_name_the_shards(tmp_path: Path, workers: int) -> None:
    made = spoiled(tmp_path / "set", BAD, max_bad_fraction=0.05, num_workers=workers)
    with pytest.raises(DataError, match=r"3 of 42 samples are bad, max_bad_fraction=0.05 allows 2.*train-00000\d.tar"):
        list(made.train_loader())
    made.teardown()
    crowded = {n: {"png": b"no", "cls": b"0"} for n in (0, 1, 2)}
    made = spoiled(tmp_path / "two", crowded, max_bad_fraction=0.5, max_bad_per_shard=2, num_workers=workers)
    with pytest.raises(DataError, match=r"shard train-000000.tar has 3 bad samples, max_bad_per_shard=2"):
        list(made.train_loader())
    made.teardown()


@pytest.mark.parametrize("how", ["truncated", "html", "missing"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_replaced_and_counts_with_all_its_samples(tmp_path: Path, how: str, workers: int) -> None:
    manifest = shards(tmp_path, 42, 9)
    path = manifest.tar_path(1)
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000] if how == "truncated" else b"<html>" * 100)
    made = module(tmp_path, max_bad_fraction=0.25, num_workers=workers)
    batches = list(made.train_loader())
    assert len(batches) == 5
    assert not {index for batch in batches for index in batch.index.tolist()} & set(range(9, 18))
    assert made.counters()["bad"] == 9
    made.teardown()
    strict = module(tmp_path, max_bad_fraction=0.2, num_workers=workers)
    with pytest.raises(DataError, match=r"9 of 42 samples are bad.*train-000001.tar"):
        list(strict.train_loader())
    strict.teardown()


def test_labels_must_be_there_and_in_range_when_classes_are_given(tmp_path: Path) -> None:
    bad = {2: {"png": encoded(picture(2)), "cls": b"7"}, 3: {"png": encoded(picture(3))}}
    bad |= {4: {"png": encoded(picture(4)), "cls": b"cat"}}
    made = spoiled(tmp_path / "set", bad, num_classes=5, max_bad_fraction=0.1)
    assert not {n for b in made.train_loader() for n in b.index.tolist()} & set(bad)
    reasons = {line.key: line.reason for line in _report(made)}
    assert reasons["s00002"] == "label 7 is not one of 5 classes"
    assert "no label" in reasons["s00003"]
    assert "'cat', not a class number" in reasons["s00004"]
    free = module(tmp_path / "set", max_bad_fraction=0.1)
    labels = {
        n: label for b in free.train_loader() for n, label in zip(b.index.tolist(), b.label.tolist(), strict=True)
    }
    assert labels.get(3, -1) == -1


def _report(made: ShardDataModule) -> list[object]:
    dataset = made._factory("train", 0, 1)._schedule.dataset
    from lightning_gen.data.dataset import Request

    return [bad for n in (2, 3, 4) for bad in dataset[Request(n, 0, 9, 9, True)].bad]


def test_an_index_that_lies_about_sizes_leads_to_a_replacement_not_to_a_longer_row(tmp_path: Path) -> None:
    from lightning_gen.data.index import ShardIndex, replace_file
    from lightning_gen.data.manifest import Manifest, Shard

    manifest = shards(tmp_path, 18, 18)
    index = ShardIndex.from_bytes(manifest.idx_path(0).read_bytes())
    lie = ShardIndex(
        **{**vars(index), "heights": np.full_like(index.heights, 8), "widths": np.full_like(index.widths, 8)}
    )
    digest = replace_file(manifest.idx_path(0), lie.to_bytes())
    shard = Shard(**{**vars(manifest.shards[0]), "idx_sha256": digest})
    Manifest("train", tmp_path, (shard,)).write()
    made = module(tmp_path, pad_to="longest", crop_probability=0.0, max_bad_fraction=1.0, max_bad_per_shard=99)
    with pytest.raises(DataError, match="the index says otherwise"):
        list(made.train_loader())


def test_a_quarantine_list_is_left_out_of_the_next_plan(tmp_path: Path) -> None:
    shards(tmp_path / "set", 42, 9)
    lines = [("train-000000.tar", "s00003"), ("train-000002.tar", "")]
    records = [{"shard": s, "key": k, "index": 0, "kind": "sample", "reason": "", "samples": 1} for s, k in lines]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = module(tmp_path / "set", exclude=str(tmp_path / "bad.jsonl"))
    for k in range(3):
        loader = made.train_loader(k)
        assert len(loader) == (42 - 10) // 8
        assert not {n for batch in loader for n in batch.index.tolist()} & ({3} | set(range(18, 27)))
    state = made.train_loader().state_dict()
    with pytest.raises(DataError, match="the quarantine list of samples left out is not that of the checkpoint"):
        module(tmp_path / "set").train_loader().load_state_dict(state)


class _Slow:
    """A source whose reads take long in one place."""

    def __init__(self, inner: object, seconds: float) -> None:
        self.inner, self.seconds = inner, seconds

    def __getattr__(self, name: str) -> object:
        if name == "inner":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def read(self, index: int) -> object:
        time.sleep(self.seconds)
        return self.inner.read(index)  # type: ignore[attr-defined]


def test_workers_that_hang_are_given_up_with_a_name(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch grants every worker five seconds to end by itself.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    made = module(data, num_workers=1, worker_timeout=1.0)
    dataset = made._factory("train", 0, 1)._schedule.dataset
    dataset.source = _Slow(dataset.source, 20)  # type: ignore[assignment]
    began = time.monotonic()
    with pytest.raises(DataError, match=r"rank 0 of 1: the workers did not answer in 1.0 s at step 0 .* train-0000"):
        list(made.train_loader())
    made.teardown()
    assert time.monotonic() - began < 15


def test_a_killed_worker_is_an_error(data: Path) -> None:
    made = module(data, num_workers=1, prefetch_factor=1, worker_timeout=20.0)
    dataset = made._factory("train", 0, 1)._schedule.dataset
    dataset.source = _Slow(dataset.source, 0.05)  # type: ignore[assignment]
    iterator = iter(made.train_loader())
    next(iterator)
    worker = made._factory("train", 0, 1)._loader._iterator._workers[0]  # type: ignore[union-attr]
    # torch raises from a signal handler, so the error may come before the loader is asked again.
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*(killed|exited unexpectedly)"):
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(5):
            next(iterator)
    made.teardown()


def test_descriptors_and_processes_stay_level_over_twenty_epochs(data: Path) -> None:
    made = module(data)
    list(made.train_loader(0))
    gc.collect()  # what other tests have forgotten
    before = len(os.listdir("/proc/self/fd"))
    for k in range(1, 21):
        list(made.train_loader(k))
    assert len(os.listdir("/proc/self/fd")) == before
    made.teardown()


def test_batch_moves_and_knows_its_length(data: Path) -> None:
    batch = next(iter(module(data).train_loader()))
    moved = batch.to("cpu")
    assert digest(moved) == digest(batch)
    with pytest.raises(AttributeError):
        batch.label = batch.index  # type: ignore[misc]


@pytest.mark.parametrize("length", [None, 40])
def test_pixels_become_the_same_tokens_as_through_patchify(length: int | None) -> None:
    from lightning_gen.data.batches import patchify_pixels, signed_images
    from lightning_gen.data.transforms import from_picture
    from lightning_gen.nn.tokens import patchify

    pictures = [picture(n, size) for n, size in enumerate([(24, 40), (9, 50), (1, 1), (33, 31)])]
    pixels = [torch.from_numpy(np.array(one)) for one in pictures]
    raw, other = patchify_pixels(pixels, 8, length), patchify([from_picture(one) for one in pictures], 8, length)
    assert raw.values.dtype == torch.uint8
    ours = signed_images(raw)
    assert isinstance(ours, Tokens) and not ours.values.signbit()[ours.values == 0].any()
    for name in ("values", "mask", "row", "col", "image", "sizes"):
        assert torch.equal(getattr(ours, name), getattr(other, name)), name
        assert getattr(ours, name).dtype == getattr(other, name).dtype, name
    with pytest.raises(ValueError, match="needs 20 tokens, its rows hold 19"):
        patchify_pixels(pixels, 8, 19)


def test_stages_change_rows_and_batches(data: Path) -> None:
    stages = [BudgetStage(4, 8, 3), BudgetStage(16, 2)]
    made = ShardDataModule(str(data), patch_size=8, stages=stages)
    shapes = [{tokens_of(b).values.shape[:2] for b in made.train_loader(k)} for k in range(2)]
    assert shapes == [{(8, 4)}, {(2, 16)}]


def test_the_message_of_a_worker_keeps_the_names_of_shards() -> None:
    from lightning_gen.data.loader import _last_line

    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
        "lightning_gen.data.quarantine.DataError: 3 of 3 shards cannot be read. a-000.tar: ReadError: unexpected end\n"
    )
    assert _last_line(DataError(text)) == "3 of 3 shards cannot be read. a-000.tar: ReadError: unexpected end"


def test_memory_stays_level_over_twenty_epochs(data: Path) -> None:
    made = module(data, tokens=64)  # about 2 MB of batches per epoch

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for k in range(4):
        list(made.train_loader(k))
    before = resident()
    for k in range(4, 24):
        list(made.train_loader(k))
    assert resident() - before < 10 << 20


@pytest.mark.parametrize("world", [2, 3])
def test_a_metric_over_ranks_is_that_of_one_process(data: Path, world: int) -> None:
    made = module(data, val_batch_size=6)

    def brightness(rank: int, ranks: int) -> tuple[float, int]:
        total, count = 0.0, 0
        for batch in made.evaluation_loader("val", rank, ranks):
            rows = batch.images.values.double().mean((1, 2))
            total, count = total + float(rows[batch.valid].sum()), count + int(batch.valid.sum())
        return total, count

    whole = brightness(0, 1)
    parts = [brightness(rank, world) for rank in range(world)]
    assert sum(count for _, count in parts) == whole[1]
    assert sum(total for total, _ in parts) == pytest.approx(whole[0], rel=1e-12)
