"""The same random weights and pictures through the reference libraries. Where they stop agreeing is said per test."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.extraction.inception import InceptionV3
from lightning_gen.metrics.extraction.resizing import Resize, inception_input, resize_tf1
from lightning_gen.metrics.extractors import FIDInceptionV3
from tests.harness.tiny_inception import random_inception_state, write_random_inception, write_random_script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inception")


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    return write_random_inception(folder)


@pytest.fixture(scope="module")
def extractor(weights: Path) -> FIDInceptionV3:
    return FIDInceptionV3(weights, expected_sha256="any")


@pytest.fixture(scope="module")
def fidelity(weights: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased"]
    return FeatureExtractorInceptionV3("inception", names, feature_extractor_weights_path=str(weights))


def pictures(*size: int, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def features(extractor: FIDInceptionV3, images: Tensor, resize: str) -> dict[str, Tensor]:
    """One network serves all protocols here: building it takes longer than running it."""
    original, extractor.resize = extractor.resize, cast(Resize, resize)
    try:
        return extractor(images)
    finally:
        extractor.resize = original


def distance(first: Tensor, second: Tensor) -> float:
    return float((first.double() - second.double()).norm() / second.double().norm())


@pytest.mark.parametrize("size", [(40, 56), (333, 310)])
def test_torch_fidelity_to_six_digits(size: tuple[int, int], extractor: FIDInceptionV3, fidelity: Any) -> None:
    """Pooled features and logits of the TF1 protocol: relative distance below 1e-6 (measured: 1e-7 or exactly 0)."""
    with torch.no_grad():
        pool, logits = fidelity(pictures(*size))
    found = features(extractor, pictures(*size), "tf1")
    assert distance(found["pool"], pool) < 1e-6
    assert distance(found["logits"], logits) < 1e-6
    assert distance(features(extractor, pictures(*size), "antialias")["pool"], pool) > 1e-3


def test_the_resize_of_torch_fidelity_bit_by_bit() -> None:
    """TF1 interpolation in float32: no bit differs."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    for size in [(40, 56), (333, 310), (1, 5), (299, 17)]:
        images = pictures(*size).float()
        wanted = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
        assert torch.equal(resize_tf1(images, (299, 299)), wanted)


def test_names_and_shapes_of_torch_fidelity(fidelity: Any) -> None:
    with torch.device("meta"):
        own = InceptionV3().state_dict()
    assert {name: tensor.shape for name, tensor in fidelity.state_dict().items()} == {
        name: tensor.shape for name, tensor in own.items()
    }


def test_torchmetrics_to_six_digits(extractor: FIDInceptionV3, weights: Path) -> None:
    """torchmetrics' default antialiases and is another protocol; ``antialias=False`` is TF1. Relative: below 1e-6."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception", ["2048"], str(weights))
    assert network.use_antialias
    found = {resize: features(extractor, pictures(333, 310), resize)["pool"] for resize in ("antialias", "tf1")}
    for antialias, same, other in ((True, "antialias", "tf1"), (False, "tf1", "antialias")):
        network.use_antialias = antialias
        with torch.no_grad():
            wanted = network(pictures(333, 310))
        assert distance(found[same], wanted) < 1e-6
        assert distance(found[other], wanted) > 1e-3


def test_pytorch_fid_to_six_digits(extractor: FIDInceptionV3, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch-fid fetches its weights while it is built, so they are handed to it. Relative: below 1e-6."""
    from pytorch_fid import inception as reference

    monkeypatch.setattr(reference, "load_state_dict_from_url", lambda url, progress=True: random_inception_state())
    network = reference.InceptionV3([reference.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    with torch.no_grad():
        wanted = network(pictures(40, 56) / 255)[0].flatten(1)
    assert distance(features(extractor, pictures(40, 56), "torch")["pool"], wanted) < 1e-6
    assert distance(features(extractor, pictures(40, 56), "tf1")["pool"], wanted) > 1e-3


def test_pixels_of_clean_fid_bit_by_bit() -> None:
    """The ``clean`` resizer on arrays: no bit differs after clipping."""
    from cleanfid.resize import build_resizer

    resizer = build_resizer("clean")
    for size in [(40, 56), (333, 310), (299, 299)]:
        images = pictures(*size)
        wanted = np.stack([resizer(image.permute(1, 2, 0).numpy()) for image in images])
        found = inception_input(images, "clean") * 128 + 128
        assert torch.allclose(found, torch.from_numpy(wanted).permute(0, 3, 1, 2), atol=1e-5)
        assert torch.equal(inception_input(images, "clean"), (torch.from_numpy(wanted).permute(0, 3, 1, 2) - 128) / 128)


def test_features_of_clean_fid_to_five_digits(extractor: FIDInceptionV3, folder: Path) -> None:
    """clean-fid's network around the TorchScript file, in both of its modes that use it. Relative: below 1e-5."""
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    warnings.simplefilter("ignore", FutureWarning)
    write_random_script(folder).rename(folder / "inception-2015-12-05.pt")
    scripted = FIDInceptionV3(folder / "inception-2015-12-05.pt")
    images = pictures(40, 56)
    clean = np.stack([build_resizer("clean")(image.permute(1, 2, 0).numpy()) for image in images])
    with torch.no_grad():
        network = InceptionV3W(str(folder), download=False)
        outside = network(torch.from_numpy(clean).permute(0, 3, 1, 2))
        network.resize_inside = True
        inside = network(images.float())
    for own in (extractor, scripted):
        assert distance(features(own, images, "clean")["pool"], outside) < 1e-5
        assert distance(features(own, images, "tf1")["pool"], inside) < 1e-5
    assert distance(outside, inside) > 1e-3
