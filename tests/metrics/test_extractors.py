"""Extractors are exact, frozen, invisible to whoever holds them, and named after what they do."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.vision import DINOv3Encoder
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics import extractors
from lightning_gen.metrics.extraction.clip import CLIPModel, load_clip
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor, ModuleExtractor, state_fingerprint
from lightning_gen.metrics.extraction.inception_weights import InceptionWeights
from lightning_gen.metrics.extraction.resizing import inception_input
from lightning_gen.metrics.extractors import CLIPImageExtractor, DINOv3Extractor, FIDInceptionV3
from lightning_gen.metrics.reference import ReferenceStatistics
from tests.harness.tiny_clip import write_tiny_clip
from tests.harness.tiny_dinov3 import WIDTH, save_timm, save_transformers
from tests.harness.tiny_inception import write_random_inception


def pictures(count: int = 3, size: tuple[int, int] = (40, 56), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


class Statistics(nn.Module):
    """Six features of a picture of any size, through one matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.mix(torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)))


@pytest.fixture
def tiny() -> ModuleExtractor:
    torch.manual_seed(0)
    return ModuleExtractor(Statistics(), "statistics")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_inception(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def inception(weights: Path) -> FIDInceptionV3:
    return FIDInceptionV3(weights, expected_sha256="any")


# ------------------------------------------------------------------ what all have in common


def test_a_module_sees_pixels_from_minus_one_to_one(tiny: ModuleExtractor) -> None:
    images = pictures()
    found = tiny(images)
    assert set(found) == set(tiny.sizes) == {"pool"}
    x = images.double() / 127.5 - 1
    raw = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
    wanted = raw @ tiny.network.mix.weight.double().T + tiny.network.mix.bias.double()
    assert torch.allclose(found["pool"].double(), wanted, atol=1e-5)
    assert tiny.sizes == {"pool": 6} and tiny.name == "statistics"
    assert not found["pool"].requires_grad


def test_pictures_of_any_sizes(tiny: ModuleExtractor) -> None:
    images = [*pictures(2), *pictures(1, (20, 9), 1), *pictures(1, (64, 64), 2)]
    together = tiny(images)["pool"]
    for image, feature in zip(images, together, strict=True):
        assert torch.allclose(tiny(image[None])["pool"][0], feature, rtol=1e-6)
    resized = ModuleExtractor(nn.Flatten(), "pixels", size=8)
    assert resized.sizes == {"pool": 192}
    small = F.interpolate(images[2][None] / 127.5 - 1, size=(8, 8), mode="bicubic", antialias=True)
    assert torch.allclose(resized(images)["pool"][2], small.flatten(), atol=1e-6)


def test_no_pictures_give_no_features(tiny: ModuleExtractor) -> None:
    for nothing in ([], pictures(0)):
        assert tiny(nothing)["pool"].shape == (0, 6)


def test_the_network_is_a_copy_that_stays_frozen() -> None:
    network = Statistics().train()
    extractor = ModuleExtractor(network, "copy")
    before = extractor(pictures())["pool"]
    assert network.training and network.mix.weight.requires_grad
    with torch.no_grad():
        network.mix.weight.zero_()
    extractor.train()
    extractor.requires_grad_(True)
    assert not extractor.training and not extractor.network.training
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())
    assert torch.equal(extractor(pictures())["pool"], before)


class Parent(nn.Module):
    """What a metric or a LightningModule is to an extractor."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.extractor = extractor


def test_a_parent_has_no_more_parameters_and_only_moves_it(tiny: ModuleExtractor) -> None:
    parent = Parent(tiny)
    assert set(parent.state_dict()) == {"layer.weight", "layer.bias"}
    assert len(list(parent.parameters())) == 2
    before = tiny(pictures())["pool"]
    parent.to(torch.bfloat16).to_empty(device="cpu")
    assert {parameter.dtype for parameter in tiny.network.parameters()} == {torch.float32}
    assert torch.equal(parent.extractor(pictures())["pool"], before)
    twin = copy.deepcopy(parent)
    assert torch.equal(twin.extractor(pictures())["pool"], before)
    assert twin.extractor.network is not tiny.network
    moves: list[str] = []
    tiny.network._apply = lambda fn, recurse=True: moves.append("moved") or tiny.network  # type: ignore[assignment]
    parent.to("cpu")
    assert moves == ["moved"]


def test_autocast_and_precision_flags_do_not_reach_it(tiny: ModuleExtractor) -> None:
    before = tiny(pictures())["pool"]
    flag = torch.get_float32_matmul_precision()
    seen: list[tuple[bool, torch.dtype]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((torch.is_autocast_enabled("cpu"), output.dtype))

    tiny.network.mix.register_forward_hook(look)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = tiny(pictures())["pool"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(flag)
    assert seen == [(False, torch.float32)]
    assert torch.equal(found, before)


def test_float64_is_computed_from_the_pixels_on() -> None:
    torch.manual_seed(0)
    network = Statistics()
    coarse, fine = ModuleExtractor(network, "a"), ModuleExtractor(network, "a", dtype=torch.float64)
    found = fine(pictures())["pool"]
    assert found.dtype == torch.float64
    assert fine.fingerprint == coarse.fingerprint
    x = pictures().double() / 127.5 - 1
    raw = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
    wanted = raw @ network.mix.weight.double().T + network.mix.bias.double()
    assert torch.allclose(found, wanted.detach(), atol=1e-12)
    with pytest.raises(ValueError, match=r"not in torch\.bfloat16"):
        ModuleExtractor(network, "a", dtype=torch.bfloat16)


def test_a_feature_that_is_not_finite_stops_the_run(tiny: ModuleExtractor) -> None:
    with torch.no_grad():
        tiny.network.mix.weight[:, 0] = float("inf")
    grey = pictures()
    grey[:, 0] = 200
    grey[1, 0] = 0
    with pytest.raises(ValueError, match=r"extractor statistics: 'pool' is NaN or infinite for 3 of 3 pictures"):
        tiny(grey)


def test_which_picture_broke_it() -> None:
    class Divides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :, 0, 0] + 1) / (x[:, :, 0, 0] + 1)

    images = torch.full((4, 3, 2, 2), 9, dtype=torch.uint8)
    images[2] = 0
    with pytest.raises(ValueError, match=r"for 1 of 4 pictures \(index 2 of the batch\)"):
        ModuleExtractor(Divides(), "divides", num_features=3)(images)


def test_floats_are_refused(tiny: ModuleExtractor) -> None:
    with pytest.raises(ValueError, match="signed_to_uint8"):
        tiny(pictures().float())


def test_a_network_that_gives_no_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"extractor map: the network returned \(1, 3, 64, 64\)"):
        ModuleExtractor(nn.Identity(), "map")
    with pytest.raises(ValueError, match=r"'pool' has shape \(3, 6720\), expected \(3, 12288\)"):
        ModuleExtractor(nn.Flatten(), "pixels")(pictures())
    with pytest.raises(ValueError, match="a name without a slash"):
        ModuleExtractor(nn.Flatten(), "a/b")


def test_the_fingerprint_is_that_of_names_shapes_and_bytes() -> None:
    network = nn.Linear(2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0]]))
        network.bias.zero_()
    digest = hashlib.sha256()
    digest.update(b"bias (1,) torch.float32\n" + bytes(4))
    digest.update(b"weight (1, 2) torch.float32\n" + bytes.fromhex("0000803f00000040"))
    assert state_fingerprint(network) == digest.hexdigest()
    for change in (lambda n: n.bias.add_(1e-6), lambda n: n.weight.mul_(-1), lambda n: n.double()):
        other = copy.deepcopy(network)
        with torch.no_grad():
            change(other)
        assert state_fingerprint(other) != state_fingerprint(network)
    assert len(state_fingerprint(nn.Linear(2, 2).to(torch.bfloat16))) == 64
    assert len(state_fingerprint(nn.BatchNorm2d(2))) == 64


class Scaled(nn.Module):
    """No weights, but a setting."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, pixels: Tensor) -> Tensor:
        return self.factor * pixels.mean((2, 3))


class Otherwise(Scaled):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.amax((2, 3))


def test_networks_without_weights_are_told_by_their_code_and_settings() -> None:
    networks = [
        Scaled(), Scaled(2.0), Otherwise(), nn.Sequential(Scaled(), nn.Flatten()), nn.Sequential(Scaled(3.0)),
        nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2),
    ]  # fmt: skip
    prints = [state_fingerprint(network) for network in networks]
    assert len(set(prints)) == len(prints) and hashlib.sha256().hexdigest() not in prints
    assert prints[0] == state_fingerprint(Scaled().eval()), "not by address, device or mode"
    hidden = Scaled()
    hidden.register_buffer("table", torch.arange(3), persistent=False)
    assert state_fingerprint(hidden) not in prints
    assert ModuleExtractor(Scaled(2.0), "scaled").fingerprint == prints[1]


# ------------------------------------------------------------------ Inception


@pytest.mark.parametrize(
    ("published", "name", "word"),
    [(True, "adm-tf1", ""), (False, "adm-tf1-unpublished", "no published number"), (None, "adm-tf1-unverified", "sha")],
)
def test_only_the_published_weights_have_the_published_name(
    published: bool | None, name: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"pool": 2048, "logits": 1008}
    loaded = InceptionWeights(nn.Linear(1, 1), sizes, "state dict", "a" * 64, "b" * 64, published)
    monkeypatch.setattr(extractors, "load_inception", lambda *_: loaded)
    found = FIDInceptionV3("weights.pth")
    assert found.name == name and (word in found.note) and bool(found.note) == bool(word)
    ReferenceStatistics({}, "adm", None, "").check(found)  # files of the ADM evaluator compare with every one of them


def test_inception_gives_three_features_under_the_name_of_its_resize(inception: FIDInceptionV3) -> None:
    found = inception(pictures(2))
    assert {name: feature.shape[1] for name, feature in found.items()} == inception.sizes
    assert inception.sizes == {"pool": 2048, "spatial": 2023, "logits": 1008}
    assert inception.name == "adm-tf1-unpublished" and len(inception.fingerprint) == 64
    assert "not the published ones" in inception.note
    with torch.no_grad():
        wanted = inception.network(inception_input(pictures(2)))
    assert torch.equal(found["pool"], wanted["pool"])


def test_features_move_with_the_resize(inception: FIDInceptionV3) -> None:
    names = ["adm-tf1", "clean", "pytorch-fid", "torchmetrics-antialias", "vitok-release"]
    seen: list[Tensor] = []
    original = inception.resize
    try:
        for mode in ("tf1", "clean", "torch", "antialias", "vitok_release"):
            inception.resize = mode  # type: ignore[assignment]
            seen.append(inception(pictures(1, (500, 610)))["pool"])
    finally:
        inception.resize = original
    for i, first in enumerate(seen):
        for second in seen[i + 1 :]:
            assert float((first - second).norm() / first.norm()) > 0.005
    assert list(extractors._INCEPTION_NAMES.values()) == names


def test_a_picture_does_not_depend_on_its_batch(inception: FIDInceptionV3) -> None:
    images = [*pictures(2), *pictures(1, (301, 120), 1)]
    together = inception(images)
    for index, image in enumerate(images):
        for name, feature in inception(image[None]).items():
            scale = 1e-6 * float(feature.abs().max())
            assert torch.allclose(feature[0], together[name][index], rtol=1e-6, atol=scale), name


def test_inception_in_float64(inception: FIDInceptionV3, weights: Path) -> None:
    exact = FIDInceptionV3(weights, dtype=torch.float64, expected_sha256="any")
    found, coarse = exact(pictures(1)), inception(pictures(1))
    assert exact.fingerprint == inception.fingerprint
    for name, feature in found.items():
        assert feature.dtype == torch.float64
        assert 0 < float((feature - coarse[name]).norm() / feature.norm()) < 1e-5


def test_inception_is_refused_without_its_weights(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(MissingWeightsError, match="not fetched by themselves"):
        FIDInceptionV3(tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    with pytest.raises(MissingWeightsError, match="expected 6726825d"):
        FIDInceptionV3(weights)
    with pytest.raises(ValueError, match="unknown resize 'bicubic'"):
        FIDInceptionV3(weights, "bicubic")  # type: ignore[arg-type]


# ------------------------------------------------------------------ vision transformers


@pytest.fixture(params=["transformers", "timm"])
def dinov3(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[DINOv3Extractor, DINOv3Encoder]]:
    save = save_timm if request.param == "timm" else save_transformers
    source = str(save(tmp_path / "dinov3"))
    yield DINOv3Extractor(source), DINOv3Encoder(source)


def test_dinov3_sees_512_pixels_and_gives_its_class_token(dinov3: tuple[DINOv3Extractor, DINOv3Encoder]) -> None:
    extractor, encoder = dinov3
    image = pictures(1)
    pixels = F.interpolate(image / 127.5 - 1, size=(512, 512), mode="bicubic", align_corners=False, antialias=True)
    with torch.no_grad():
        wanted = encoder(pixels)
    found = extractor([*image, *pictures(1, (600, 520), 1)])["pool"]
    assert found.shape == (2, WIDTH)
    assert torch.allclose(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert extractor.name == f"dinov3-{WIDTH}d"
    assert extractor.fingerprint == state_fingerprint(encoder.network)
    assert not extractor.state_dict()
    assert extractor.encoder.network is extractor.network
    twin = copy.deepcopy(extractor)
    assert twin.encoder.network is twin.network is not extractor.network


def test_dinov3_in_float64(tmp_path: Path) -> None:
    source = str(save_timm(tmp_path / "dinov3"))
    exact, coarse = DINOv3Extractor(source, torch.float64), DINOv3Extractor(source)
    found = exact(pictures(1))["pool"]
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), coarse(pictures(1))["pool"], rtol=1e-3, atol=1e-3)


def test_clip_gives_unit_vectors_of_the_one_loader(tmp_path: Path) -> None:
    source = str(write_tiny_clip(tmp_path / "clip"))
    extractor, clip = CLIPImageExtractor(source), load_clip(source)
    images = [*pictures(1), *pictures(1, (50, 33), 1)]
    found = extractor(images)["pool"]
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-6)
    assert torch.allclose(found, clip.embed_images(images), atol=1e-6)
    assert extractor.sizes == {"pool": found.shape[1]}
    assert extractor.fingerprint == clip.fingerprint
    assert extractor.name == clip.architecture.replace("vit-", "clip-")


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("vit-l14-336", "clip-l14-336"), ("vit-b16-224", "clip-b16-224"), ("clip-224", "clip-224")],
)
def test_clip_is_named_by_its_tower_not_by_a_width(
    architecture: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projection of 768 values is no ViT-L/14 by itself."""
    source = str(write_tiny_clip(tmp_path / "clip"))
    monkeypatch.setattr(CLIPModel, "architecture", architecture)
    assert CLIPImageExtractor(source).name == name
