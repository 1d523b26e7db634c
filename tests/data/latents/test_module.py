"""Cached latents as training data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from lightning_gen.data.batches import ImageBatch
from lightning_gen.data.finding import find_manifest
from lightning_gen.data.joining import WeightedShards
from lightning_gen.data.latents.fields import read_array
from lightning_gen.data.latents.module import LatentDataModule
from lightning_gen.data.latents.record import LatentRecord
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.transforms import from_picture, resize_to_budget
from lightning_gen.data.writing import write_shards
from lightning_gen.nn.tokens import Tokens, unpatchify
from tests.data.kinds import captioned
from tests.data.patch_averages import PatchAverages, cached
from tests.data.samples import picture, shards
from tests.harness import Recorder, fit
from tests.harness.faulty_server import FaultyServer

COUNT = 26


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 latents with mirror images in ``l``, the pictures in ``p``."""
    folder = tmp_path_factory.mktemp("latents")
    shards(folder / "p", COUNT, 7)
    cached(folder / "p", folder / "l", mirror=True)
    return folder


def module(folder: Path, **options: Any) -> LatentDataModule:
    return LatentDataModule(str(folder / "l"), str(folder / "l"), **{"tokens": 16, "global_batch_size": 4, **options})


def rows(batches: Any) -> dict[int, torch.Tensor]:
    """Tokens of every sample that counts, by its index."""
    return {
        int(batch.index[row]): batch.images.values[row][batch.images.mask[row]]
        for batch in batches
        for row in range(len(batch))
        if bool(batch.valid[row])
    }


def stored(folder: Path, number: int, field: str = "npy") -> np.ndarray:
    shards = IndexedShards(find_manifest(folder / "l"))
    record = json.loads(shards[number]["json"])
    return read_array(shards[number][field], (record["rows"] * record["cols"], 4)).astype(np.float32)


def test_a_batch_is_made_of_unpacked_latents(latents: Path) -> None:
    made = module(latents, normalise=False, num_classes=5)
    batches = list(made.evaluation_loader("val"))
    model, seen = PatchAverages(), 0
    for batch in batches:
        assert isinstance(batch, ImageBatch) and isinstance(batch.images, Tokens)
        images = batch.images
        assert images.values.shape == (4, 16, 4) and images.values.dtype == torch.float32 and images.patch == 8
        assert (images.values[~images.mask] == 0).all() and (images.image[~images.mask] == -1).all()
        for row in range(int(batch.valid.sum())):
            number = int(batch.index[row])
            original = picture(number)
            size = resize_to_budget((original.height, original.width), 8, 16)
            assert images.sizes[row].tolist() == batch.target_size[row].tolist() == list(size)
            assert batch.original_size[row].tolist() == [original.height, original.width]
            assert batch.label[row] == number % 5 and batch.key[row] == f"s{number:05d}"
            expected = model.encode([from_picture(original.resize(size[::-1], Image.Resampling.BICUBIC))])  # type: ignore[arg-type]
            there = images.mask[row]
            torch.testing.assert_close(images.values[row][there], expected.values[0], atol=4e-3, rtol=1e-3)
            assert torch.equal(images.row[row][there], expected.row[0])
            assert torch.equal(images.col[row][there], expected.col[0])
            assert (images.image[row][there] == row).all()
            seen += 1
        assert [tuple(picture.shape[1:]) for picture in model.decode(images)] == [
            tuple(s) for s in images.sizes.tolist()
        ]
    assert seen == COUNT


def test_normalised_latents_have_mean_0_and_deviation_1_and_can_be_restored(latents: Path) -> None:
    made = module(latents)
    normal = rows(made.evaluation_loader("val"))
    plain = rows(module(latents, normalise=False).evaluation_loader("val"))
    record = LatentRecord.load(latents / "l")
    for number, values in normal.items():
        torch.testing.assert_close(made.record.restored(values), plain[number], atol=1e-5, rtol=1e-5)
        expected = (plain[number] - torch.tensor(record.mean)) / torch.tensor(record.std)
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    whole = torch.cat(list(normal.values()) + [torch.from_numpy(record.normalised(stored(latents, n, "mirror.npy")))
                                               for n in range(COUNT)])  # fmt: skip
    torch.testing.assert_close(whole.double().mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.double().std(0), torch.ones(4, dtype=torch.float64), atol=5e-3, rtol=0)


def test_mirrored_latents_are_drawn_by_sample_and_pass_in_training_only(latents: Path) -> None:
    made = module(latents, mirror_probability=0.5, normalise=False, seed=3)
    passes = [rows(made.train_loader(number)) for number in (0, 1, 0)]
    was_mirrored: list[dict[int, bool]] = []
    for found in passes:
        was_mirrored.append({})
        for number, values in found.items():
            plain, mirrored = (torch.from_numpy(stored(latents, number, field)) for field in ("npy", "mirror.npy"))
            was_mirrored[-1][number] = torch.equal(values, mirrored)
            assert torch.equal(values, mirrored if was_mirrored[-1][number] else plain)
    assert 4 < sum(was_mirrored[0].values()) < 20
    assert was_mirrored[0] == was_mirrored[2]
    assert any(
        was_mirrored[0][number] != mirrored for number, mirrored in was_mirrored[1].items() if number in passes[0]
    )
    for number, values in rows(made.evaluation_loader("val")).items():
        assert torch.equal(values, torch.from_numpy(stored(latents, number)))
    always = rows(module(latents, mirror_probability=1.0, normalise=False).train_loader(0))
    assert all(torch.equal(v, torch.from_numpy(stored(latents, n, "mirror.npy"))) for n, v in always.items())


def test_captions_come_along(tmp_path: Path) -> None:
    write_shards((captioned(number) for number in range(9)), tmp_path / "p")
    cached(tmp_path / "p", tmp_path / "l")
    for captions in ("optional", "required"):
        batch = next(iter(module(tmp_path, captions=captions).evaluation_loader("val")))
        assert batch.caption == tuple(f"caption {number}" for number in range(4))
    assert next(iter(module(tmp_path, captions="ignore").evaluation_loader("val"))).caption == ("",) * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autoencoder_sha256": "0" * 64}, r"made by PatchAverages toy \(weights [0-9a-f]{64}\), .* asks for 0000"),
        ({"tokens": 15}, "holds pictures of up to 16 tokens: set data.tokens to 16, not 15"),
    ],
)
def test_latents_that_do_not_fit_are_refused(latents: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        module(latents, **options).setup("fit")


def test_the_right_hash_is_accepted_and_it_decides_what_a_checkpoint_fits(latents: Path, tmp_path: Path) -> None:
    record = LatentRecord.load(latents / "l")
    right = module(latents, autoencoder_sha256=record.sha256)
    right.setup("fit")
    cached(latents / "p", tmp_path / "l", PatchAverages(seed=1), mirror=True)
    other = module(tmp_path)
    assert find_manifest(tmp_path / "l").fingerprint == find_manifest(latents / "l").fingerprint
    state = right.train_loader(0).state_dict()
    with pytest.raises(DataError):
        other.train_loader(0).load_state_dict(state)
    module(latents).train_loader(0).load_state_dict(state)


def test_splits_and_sets_of_different_auto_encoders_are_refused(latents: Path, tmp_path: Path) -> None:
    cached(latents / "p", tmp_path / "l", PatchAverages(seed=1), mirror=True)
    good, other = str(latents / "l"), str(tmp_path / "l")
    sets = [WeightedShards(good, 1.0, "a"), WeightedShards(other, 1.0, "b")]
    for places in ({"train": good, "val": other}, {"train": good, "predict": other}, {"train": sets}):
        with pytest.raises(DataError, match=r"made by .* by .*: cache all latents by one auto-encoder"):
            LatentDataModule(**places, tokens=16, global_batch_size=4, normalise=False).setup("fit")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cache all latents by one"):
        module(latents, statistics=other).setup("fit")


def test_mirror_images_that_were_not_cached_are_refused(latents: Path, tmp_path: Path) -> None:
    cached(latents / "p", tmp_path / "l")
    module(tmp_path).setup("fit")
    with pytest.raises(DataError, match="cache data.train again with --mirror"):
        module(tmp_path, mirror_probability=0.1).setup("fit")
    with pytest.raises(ValueError, match=r"lies in \[0, 1\], got 2"):
        module(tmp_path, mirror_probability=2)


def test_the_statistics_are_those_of_training_wherever_they_come_from(latents: Path, tmp_path: Path) -> None:
    shards(tmp_path / "p", 9)
    cached(tmp_path / "p", tmp_path / "l")
    train, val = str(latents / "l"), str(tmp_path / "l")
    both = LatentDataModule(train, val, tokens=16, global_batch_size=4)
    expected = rows(both.evaluation_loader("val"))
    assert both.record == LatentRecord.load(train) != LatentRecord.load(val)
    alone = LatentDataModule(val=val, tokens=16, global_batch_size=4, statistics=f"{train}/latents.json")
    found = rows(alone.evaluation_loader("val"))
    assert all(torch.equal(found[number], values) for number, values in expected.items())
    with pytest.raises(DataError, match="there is no data.train: name the latents.json to use in data.statistics"):
        LatentDataModule(val=val, tokens=16, global_batch_size=4).setup("validate")
    LatentDataModule(val=val, tokens=16, global_batch_size=4, normalise=False).setup("validate")
    sets = [WeightedShards(train, 1.0, "a"), WeightedShards(val, 1.0, "b")]
    with pytest.raises(DataError, match="different ones"):
        LatentDataModule(sets, tokens=16, global_batch_size=4).setup("fit")
    LatentDataModule(sets, tokens=16, global_batch_size=4, statistics=train).setup("fit")
    with pytest.raises(DataError, match="there are no latents"):
        _ = LatentDataModule(tokens=16, global_batch_size=4).record


def edited(folder: Path, target: Path, **changes: Any) -> LatentRecord:
    target.mkdir()
    record = dataclasses.replace(LatentRecord.load(folder / "l"), **changes)
    record.write(target)
    return record


def test_a_constant_channel_cannot_be_normalised(latents: Path, tmp_path: Path) -> None:
    edited(latents, tmp_path / "s", std=(1.0, 0.0, 1.0, 1.0))
    with pytest.raises(DataError, match="channel 1 of the latents is constant"):
        module(latents, statistics=str(tmp_path / "s")).setup("fit")


def test_a_damaged_record_is_refused(latents: Path, tmp_path: Path) -> None:
    text = (latents / "l" / "latents.json").read_text()
    edited(latents, tmp_path / "s")
    path = tmp_path / "s" / "latents.json"
    assert path.read_text() == text
    changed = json.loads(text)
    for data, message in (
        ({**changed, "mean": [0.0] * 4}, "changed by hand"),
        ({**changed, "channels": 5}, "changed by hand"),
        ({**changed, "version": 2}, "version 1"),
        ({name: value for name, value in changed.items() if name != "patch"}, "lacks something .'patch'"),
    ):
        path.write_text(json.dumps(data))
        with pytest.raises(DataError, match=message):
            LatentRecord.load(tmp_path / "s")
    path.write_text(text[:100])
    with pytest.raises(DataError, match="cannot be read"):
        LatentRecord.load(path)
    path.unlink()
    with pytest.raises(DataError, match="cache-latents` writes it"):
        LatentRecord.load(tmp_path / "s")


def test_pictures_instead_of_latents_are_named_before_the_run(latents: Path) -> None:
    arguments = {"train": str(latents / "p"), "val": str(latents / "l"), "tokens": 16, "global_batch_size": 4}
    (line,) = LatentDataModule.needs(arguments).missing
    assert line.startswith("data.train: there is no") and "cache-latents" in line
    arguments["train"] = "https://example.com/latents"
    assert not LatentDataModule.needs(arguments).missing  # what lies behind a network is not looked at
    arguments["train"] = str(latents / "l" / "train-000000.tar")
    (line,) = LatentDataModule.needs(arguments).missing
    assert line.endswith("is no folder of cached latents: `lightning data cache-latents` makes one")


def test_latents_behind_a_network_are_cached_or_streamed(latents: Path, tmp_path: Path) -> None:
    local = module(latents, mirror_probability=0.5)
    expected = rows(local.train_loader(0))
    with FaultyServer(latents / "l") as server:
        places = {"train": server.url("manifest.json"), "tokens": 16, "global_batch_size": 4, "mirror_probability": 0.5}
        cached_ones = LatentDataModule(**places, cache_folder=str(tmp_path / "cache"))  # type: ignore[arg-type]
        found = rows(cached_ones.train_loader(0))
        assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)
        streamed = LatentDataModule(**places, access="stream", stream_buffer=0)  # type: ignore[arg-type]
        batches = list(streamed.train_loader(0))
        keys = {key for batch in batches for key in batch.key}
        assert len(batches) == COUNT // 4 and keys < {f"s{number:05d}" for number in range(COUNT)}
        assert all(batch.images.values.shape == (4, 16, 4) for batch in batches)
        assert (streamed.record.mean, streamed.record.sha256) == (local.record.mean, local.record.sha256)
        (latents / "l" / "latents.json").rename(latents / "hidden")
        try:
            with pytest.raises(DataError, match=r"there is no http://127\.0\.0\.1:\d+/latents\.json"):
                LatentDataModule(**places, cache_folder=str(tmp_path / "cache")).setup("fit")  # type: ignore[arg-type]
        finally:
            (latents / "hidden").rename(latents / "l" / "latents.json")


def test_a_damaged_latent_is_replaced_in_training_and_counted(latents: Path, tmp_path: Path) -> None:
    source = IndexedShards(find_manifest(latents / "l"))
    samples = [(source.key(number), dict(source[number])) for number in range(COUNT)]
    samples[5][1]["npy"] = samples[2][1]["npy"]  # another shape
    write_shards(samples, tmp_path / "l", max_samples=7)
    (tmp_path / "l" / "latents.json").write_bytes((latents / "l" / "latents.json").read_bytes())
    made = module(tmp_path, max_bad_fraction=0.1)
    whole = [number for batch in made.train_loader(0) for number in batch.index.tolist()]
    assert 5 not in whole and len(whole) == COUNT // 4 * 4 and made.counters()["bad"] == 1
    assert sorted(rows(made.evaluation_loader("val"))) == [number for number in range(COUNT) if number != 5]


class LinearFlow(LightningModule):
    """Predicts the mean of a latent from its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        torch.nn.init.zeros_(self.layer.weight)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
        assert isinstance(batch.images, Tokens)
        error = (self.layer(batch.images.values) - batch.images.values).square().mean(-1)
        return error[batch.images.mask].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.1)


def test_a_model_learns_from_them(latents: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    data = LatentDataModule(str(latents / "l"), tokens=16, global_batch_size=4, mirror_probability=0.5)
    fit(LinearFlow(), data, tmp_path, max_steps=30, callbacks=(recorder,))
    assert np.mean(recorder.losses[-5:]) < 0.5 * np.mean(recorder.losses[:2])


def test_samples_of_a_generator_are_restored_and_decoded(latents: Path) -> None:
    made = module(latents)
    batch = next(iter(made.train_loader(0)))
    images = batch.images.with_values(made.record.restored(batch.images.values))
    grids = unpatchify(dataclasses.replace(images, patch=1, sizes=images.grid))
    assert [grid.shape[0] for grid in grids] == [4] * 4
    pictures = PatchAverages().decode(images)
    assert all(torch.isfinite(one).all() and one.abs().max() < 3 for one in pictures)
