"""Reference statistics: what they are read from, and whom they may be compared with."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gen.data.imagenet import ImageNetDataModule
from lightning_gen.data.quarantine import DataError
from lightning_gen.metrics.extraction.feature_extractor import ModuleExtractor
from lightning_gen.metrics.npz_arrays import read_npz
from lightning_gen.metrics.protocol import file_sha256
from lightning_gen.metrics.reference import ReferenceStatistics
from lightning_gen.nn.tokens import unpatchify
from tests.data.samples import shards
from tests.harness.metric_jobs_distribution import ToyExtractor, pictures

REAL = pictures(60, 1)


def adm_file(path: Path, **more: Any) -> Path:
    """An npz as the ADM evaluator's: moments of many pictures, and some pictures."""
    rows = ToyExtractor()(pictures(500, 7))
    arrays = {"mu": rows["pool"].numpy().mean(0), "sigma": np.cov(rows["pool"].numpy(), rowvar=False)}
    arrays |= {"mu_s": rows["spatial"].numpy().mean(0), "sigma_s": np.cov(rows["spatial"].numpy(), rowvar=False)}
    np.savez(path, **{**arrays, "arr_0": REAL.permute(0, 2, 3, 1).numpy(), **more})
    return path


def test_pictures_in_batches_give_the_moments_of_all_features() -> None:
    whole = ReferenceStatistics.from_features(ToyExtractor()(REAL), "toy", ToyExtractor().fingerprint)
    batches = [list(REAL[:7]), REAL[7:7], REAL[7:30], REAL[30:]]
    found = ReferenceStatistics.from_images(batches, ToyExtractor(), keep=("logits",), source="abc")
    assert set(found.gaussians) == {"pool", "spatial", "logits"} and found.source == "abc"
    assert set(found.features) == {"logits"} and torch.equal(found.features["logits"], whole.features["logits"])
    for name, one in found.gaussians.items():
        assert one.count == 60
        assert torch.allclose(one.covariance, torch.cov(ToyExtractor()(REAL)[name].double().T), rtol=1e-10)
        assert torch.allclose(one.mean, whole.gaussians[name].mean, rtol=1e-12)
    found.check(ToyExtractor())
    assert len(whole.source) == 64
    with pytest.raises(ValueError, match="no reference pictures"):
        ReferenceStatistics.from_images([], ToyExtractor())
    with pytest.raises(ValueError, match="not 'deep'"):
        ReferenceStatistics.from_images([REAL], ToyExtractor(), keep=("deep",))


def test_a_file_of_the_adm_evaluator_is_for_its_extractor_only(tmp_path: Path) -> None:
    path = adm_file(tmp_path / "VIRTUAL.npz")
    found = ReferenceStatistics.from_npz(path)
    assert found.source == file_sha256(path) and found.gaussians["pool"].count is None and not found.features
    assert found.gaussians["pool"].mean.dtype == torch.float64 and found.gaussians["spatial"].mean.shape == (6,)
    found.check(ToyExtractor("adm-tf1"))
    with pytest.raises(ValueError, match=r"extractor adm, .*through clean \(weights.*assume_extractor='clean'"):
        found.check(ToyExtractor("clean"))
    ReferenceStatistics.from_npz(path, assume_extractor="clean").check(ToyExtractor("clean"))
    with pytest.raises(ValueError, match="through adm-tf1"):
        ReferenceStatistics.from_npz(path, assume_extractor="clean").check(ToyExtractor("adm-tf1"))


def test_its_pictures_give_features_but_no_moments(tmp_path: Path) -> None:
    """10,000 pictures are for precision and recall; FID and sFID use moments of the whole training set."""
    path, extractor = adm_file(tmp_path / "VIRTUAL.npz"), ToyExtractor("adm-tf1")
    found = ReferenceStatistics.from_npz(path, extractor)
    assert torch.equal(found.features["pool"], extractor(REAL)["pool"])
    assert torch.equal(found.gaussians["pool"].mean, ReferenceStatistics.from_npz(path).gaussians["pool"].mean)
    with pytest.raises(ValueError, match="do not compare"):
        ReferenceStatistics.from_npz(path, ToyExtractor("clean"))


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_what_is_saved_is_loaded(ending: str, tmp_path: Path) -> None:
    first = ReferenceStatistics.from_images([REAL], ToyExtractor(), keep=("pool",))
    path = tmp_path / "new folder" / f"reference.{ending}"
    first.save(path)
    second = ReferenceStatistics.load(path)
    for name in ("pool", "spatial"):
        one, other = first.gaussians[name], second.gaussians[name]
        assert torch.equal(one.mean, other.mean) and torch.equal(one.covariance, other.covariance)
        assert one.count == other.count
    assert torch.equal(first.features["pool"], second.features["pool"])
    assert (first.extractor, first.fingerprint, first.source) == (second.extractor, second.fingerprint, second.source)
    second.check(ToyExtractor())
    with pytest.raises(ValueError, match="do not compare"):
        second.check(ToyExtractor(seed=1))
    if ending == "npz":
        plain = np.load(path, allow_pickle=False)
        assert plain["mu"].dtype == plain["sigma"].dtype == np.float64 and plain["sigma"].shape == (8, 8)


def test_other_sizes_and_endings_are_refused(tmp_path: Path) -> None:
    statistics = ReferenceStatistics.from_features({"pool": torch.randn(9, 4)}, "toy", None)
    with pytest.raises(ValueError, match="the reference has 4 values of 'pool', toy 8"):
        statistics.check(ToyExtractor())
    with pytest.raises(ValueError, match="moments of pool, not of 'spatial'"):
        statistics.frechet("spatial")
    with pytest.raises(ValueError, match="end in .safetensors or .npz"):
        statistics.save(tmp_path / "reference.pt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ReferenceStatistics.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"bad\.safetensors: no reference statistics"):
        ReferenceStatistics.load(tmp_path / "bad.safetensors")


def test_a_file_that_lacks_something_says_what(tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, arr_0=np.zeros(3), mu=np.zeros(3))
    with pytest.raises(DataError, match="there is no sigma in it, only arr_0, mu"):
        ReferenceStatistics.from_npz(path)
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"wrong\.npz: a mean of shape"):
        ReferenceStatistics.from_npz(path)
    np.savez(path, mu=np.zeros(3), sigma=np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match=r"wrong\.npz: .*not finite"):
        ReferenceStatistics.from_npz(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ReferenceStatistics.from_npz(tmp_path / "none.npz")
    path.write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match="not a readable npz"):
        ReferenceStatistics.from_npz(path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = adm_file(tmp_path / "pickled.npz", mu=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="mu is pickled"):
        ReferenceStatistics.from_npz(path)


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, mu=np.zeros(4), sigma=np.zeros((2000, 2000)))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="more than max_bytes = 1,000,000"):
        ReferenceStatistics.from_npz(path, max_bytes=1_000_000)
    # The same promise made by the array's own header alone.
    header = io.BytesIO()
    head = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, head)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
        archive.writestr("sigma.npy", header.getvalue())
    with pytest.raises(DataError, match=r"mu is said to be \(1000000, 1000000\) of float64, but has 0 bytes"):
        ReferenceStatistics.from_npz(path)


def test_arrays_come_back_in_any_memory_order(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(path, columns=columns, text=np.array(json.dumps({"a": 1})), empty=np.zeros((0, 3)))
    arrays, names = read_npz(path, skip=("empty",))
    assert np.array_equal(arrays["columns"], columns) and json.loads(str(arrays["text"])) == {"a": 1}
    assert names == ["columns", "empty", "text"] and "empty" not in arrays


def test_moments_that_are_none_name_their_file_and_arrays(tmp_path: Path) -> None:
    good = {"mu": np.zeros(8), "sigma": np.eye(8)}
    skew = np.eye(8)
    skew[0, 3] = 0.1
    wrong = {
        r"sigma is <U4, expected real numbers": {"sigma": np.full((8, 8), "text")},
        r"mu is complex128": {"mu": np.zeros(8, complex)},
        r"mu is bool": {"mu": np.zeros(8, bool)},
        r"variance of feature 0 is -1 \(arrays mu and sigma\)": {"sigma": -np.eye(8)},
        r"not symmetric.*\(arrays mu and sigma\)": {"sigma": skew},
        r"features_pool is <U1": {"features_pool": np.full((4, 8), "a")},
        r"features_pool has shape \(8,\), expected 2 dimensions": {"features_pool": np.zeros(8)},
        r"array card is no card": {"card": np.arange(3)},
        r"the array card is no": {"card": np.array("[1]")},
    }
    for message, change in wrong.items():
        np.savez(tmp_path / "wrong.npz", **{**good, **change})
        with pytest.raises((DataError, ValueError), match=rf"wrong\.npz: .*{message}|wrong\.npz: {message}"):
            ReferenceStatistics.from_npz(tmp_path / "wrong.npz")
    kinds = {"mu": np.zeros(8, ">f8"), "sigma": np.eye(8, dtype=np.int64)}
    np.savez(tmp_path / "kinds.npz", **kinds)
    assert ReferenceStatistics.from_npz(tmp_path / "kinds.npz").gaussians["pool"].covariance.dtype == torch.float64


class Colours(torch.nn.Module):
    """Mean colours of pictures of any size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def test_a_data_module_gives_a_reference_of_its_valid_pictures(tmp_path: Path) -> None:
    shards(tmp_path / "d", 21, 9)
    folder = str(tmp_path / "d")
    data = ImageNetDataModule(folder, folder, tokens=16, global_batch_size=4, patch_size=8, num_classes=5)
    data.setup("validate")
    extractor = ModuleExtractor(Colours(), "colours")
    batches = list(data.val_dataloader())
    found = ReferenceStatistics.from_batches(batches, extractor, keep=("pool",), source="abc")
    rows = {}
    for batch in batches:
        for number, is_valid, image in zip(batch.index.tolist(), batch.valid, unpatchify(batch.images), strict=True):
            if is_valid:
                rows[number] = image.mean((1, 2))
    assert len(rows) == 21 and found.gaussians["pool"].count == 21 and found.source == "abc"
    assert torch.allclose(found.features["pool"], torch.stack(list(rows.values())), atol=2e-3)
    twice = ReferenceStatistics.from_batches([*batches, batches[0]], extractor)
    assert twice.gaussians["pool"].count == 21, "a repeated index counts once"
    masked = [dataclasses.replace(batches[0], valid=torch.arange(len(batches[0])) < 2)]
    assert ReferenceStatistics.from_batches(masked, extractor).gaussians["pool"].count == 2
    plain = dataclasses.replace(batches[0], raw=torch.full((len(batches[0]), 4, 8, 8), 0.5))
    with pytest.raises(ValueError, match="latents have no features"):
        ReferenceStatistics.from_batches([plain], extractor)
    loud = dataclasses.replace(batches[0], raw=torch.full((len(batches[0]), 3, 8, 8), 200.0))
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]"):
        ReferenceStatistics.from_batches([loud], extractor)
