"""Frozen patch encoders on tiny random networks, each through the code path of the published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.backbones.intern_vit import InternViT
from lightning_gen.backbones.patch_encoders import (
    DINOPatches,
    DINOv2Patches,
    DINOv3Patches,
    InternViTPatches,
    MAEPatches,
    SigLIP2Patches,
    patch_encoder_named,
)
from lightning_gen.backbones.patch_features import MapPatches, PatchEncoder, UntrainedPatches
from lightning_gen.backbones.weights import MissingWeightsError

WIDTH, HEADS = 32, 2
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "image_size": 32,
}


def networks() -> dict[str, Any]:
    import transformers as t

    vision = {**SIZES, "patch_size": 8}
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 8,
    }
    return {
        "dinov2": lambda: t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**SIZES, patch_size=8, num_register_tokens=3)
        ),
        "dinov2_plain": lambda: t.Dinov2Model(t.Dinov2Config(**SIZES, patch_size=8)),
        "dinov3": lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**SIZES, patch_size=8, num_register_tokens=4)),
        "mae": lambda: t.ViTMAEModel(t.ViTMAEConfig(**SIZES, patch_size=8)),
        "siglip": lambda: t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision)),
        "dino": lambda: t.ViTModel(t.ViTConfig(**SIZES, patch_size=8), add_pooling_layer=False),
    }


KINDS: dict[str, tuple[type[PatchEncoder], str]] = {
    "dinov2": (DINOv2Patches, "layernorm"),
    "dinov2_plain": (DINOv2Patches, "layernorm"),
    "dinov3": (DINOv3Patches, "norm"),
    "mae": (MAEPatches, "layernorm"),
    "siglip": (SigLIP2Patches, "post_layernorm"),
    "dino": (DINOPatches, "layernorm"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, build in networks().items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = build()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        found[name] = tmp_path_factory.mktemp(name)
        network.save_pretrained(found[name])
    return found


def made(name: str, folders: dict[str, Path]) -> PatchEncoder:
    kind: Any = KINDS[name][0]
    encoder: PatchEncoder = kind(source=str(folders[name]), patch=8)
    return encoder


def pictures(size: int = 40) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", KINDS)
def test_tokens_are_patches_under_a_norm_without_affine_part(name: str, folders: dict[str, Path]) -> None:
    encoder = made(name, folders)
    pixels = encoder.prepare(pictures(), (4, 4))
    found = encoder.features(pixels)
    assert found.shape == (2, 16, WIDTH) and not found.requires_grad
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, 16), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.var(-1, unbiased=False), torch.ones(2, 16), rtol=0, atol=1e-2)
    norm: Any = getattr(encoder.network, KINDS[name][1])
    assert norm.weight is None and norm.bias is None
    last = encoder.layers(pixels)[-1]
    torch.testing.assert_close(F.layer_norm(last, (WIDTH,), eps=norm.eps), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_tokens_stand_where_their_patches_are(name: str, folders: dict[str, Path]) -> None:
    encoder = made(name, folders)
    images = pictures(32)
    changed = images.clone()
    changed[:, :, 16:24, 8:16] = -changed[:, :, 16:24, 8:16]  # patch row 2, column 1
    first, second = (encoder.layers(encoder.prepare(x, (4, 4)))[0] for x in (images, changed))
    assert int((first - second).norm(dim=-1)[0].argmax()) == 2 * 4 + 1


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "mae", "siglip", "dino"])
def test_other_grids_than_the_trained_one(name: str, folders: dict[str, Path]) -> None:
    encoder = made(name, folders)
    assert encoder.features(encoder.prepare(pictures(), (3, 5))).shape == (2, 15, WIDTH)


def test_nothing_is_masked_by_the_masked_auto_encoder(folders: dict[str, Path]) -> None:
    encoder = made("mae", folders)
    pixels = encoder.prepare(pictures(), (4, 4))
    torch.manual_seed(0)
    first = encoder.features(pixels)
    torch.manual_seed(1)
    assert torch.equal(encoder.features(pixels), first)


@pytest.mark.parametrize("name", KINDS)
def test_the_network_is_a_constant(name: str, folders: dict[str, Path]) -> None:
    encoder = made(name, folders)
    assert not isinstance(encoder, nn.Module) and encoder.num_parameters == 0
    encoder.load()
    assert encoder.num_parameters > 0 and not encoder.network.training
    assert not any(p.requires_grad for p in encoder.network.parameters())
    leaf = pictures().requires_grad_()
    encoder.layers(encoder.prepare(leaf, (4, 4)))[-1].square().mean().backward()
    assert leaf.grad is not None and leaf.grad.any()


def test_pixels_are_resized_and_normalised_for_the_encoder(folders: dict[str, Path]) -> None:
    images = torch.full((1, 3, 50, 60), 0.5)
    dino, siglip = made("dinov2", folders).prepare(images, (2, 3)), made("siglip", folders).prepare(images, (2, 3))
    assert dino.shape == siglip.shape == (1, 3, 16, 24)
    wanted = (0.75 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(dino[0, :, 8, 8], wanted)
    torch.testing.assert_close(siglip[0, :, 8, 8], torch.full((3,), 0.5))
    picture = pictures(16)
    torch.testing.assert_close(made("siglip", folders).prepare(picture, (2, 2)), picture)


def test_an_encoder_goes_into_a_folder_and_comes_back(folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = made("dinov2", folders)
    arguments = encoder.save(tmp_path / "prior")
    again = patch_encoder_named("DINOv2Patches", arguments, tmp_path / "prior")
    pixels = encoder.prepare(pictures(), (4, 4))
    assert torch.equal(again.features(pixels), encoder.features(pixels))
    assert again.need().found and again.arguments()["patch"] == 8  # type: ignore[union-attr]


def test_a_folder_of_weights_does_not_choose_what_is_imported(tmp_path: Path) -> None:
    for name, arguments in (("os.system", {}), ("MapPatches", {"encoder": "subprocess.Popen", "source": "."})):
        with pytest.raises(ValueError, match="hand it to from_pretrained"):
            patch_encoder_named(name, arguments, tmp_path / "prior")


def test_folders_of_something_else_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="describes 'vit_mae', DINOv3Patches takes dinov3_vit"):
        DINOv3Patches(str(folders["mae"])).load()
    with pytest.raises(MissingWeightsError, match="has patches of 8 pixels, DINOv2Patches was told 14"):
        DINOv2Patches(str(folders["dinov2"])).load()
    with pytest.raises(MissingWeightsError, match=f"there is no folder {tmp_path / 'nowhere'}"):
        MAEPatches(str(tmp_path / "nowhere")).load()
    (tmp_path / "bare").mkdir()
    with pytest.raises(MissingWeightsError, match=r"holds no config.json"):
        SigLIP2Patches(str(tmp_path / "bare")).load()
    need = DINOv2Patches("somebody/dinov2").need()
    assert need is not None and not need.found and "local folder" in need.hint
    weights = {"embeddings.cls_token": torch.zeros(1, 1, WIDTH)}
    (tmp_path / "bare" / "config.json").write_text((folders["dino"] / "config.json").read_text())
    save_file(weights, tmp_path / "bare" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingWeightsError, match=r"lack \d+ tensors"):
        DINOPatches(str(tmp_path / "bare")).load()


# ------------------------------------------------------------------ InternViT


@pytest.fixture(scope="module")
def intern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import InternVLVisionConfig, InternVLVisionModel

    folder = tmp_path_factory.mktemp("intern")
    sizes = {**SIZES, "image_size": (16, 16), "patch_size": (4, 4)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        InternVLVisionModel(InternVLVisionConfig(**sizes, attention_bias=True)).save_pretrained(folder)
    return folder


def test_neighbours_of_intern_vit_become_one_token(intern: Path) -> None:
    encoder = InternViTPatches(str(intern), patch=8)
    pixels = encoder.prepare(pictures(), (2, 3))
    assert pixels.shape == (2, 3, 16, 24)
    tokens = InternViT.from_pretrained(str(intern)).eval()(pixels)[:, 1:].detach()
    places = [(0, 2), (0, 3), (1, 2), (1, 3)]  # of merged token (0, 1), in a grid of 4 x 6
    wanted = torch.cat([tokens[:, row * 6 + col] for row, col in places], dim=-1)
    found = encoder.features(pixels)
    assert found.shape == (2, 6, 4 * WIDTH)
    torch.testing.assert_close(found[:, 1], F.layer_norm(wanted, wanted.shape[-1:], eps=1e-6))
    with pytest.raises(ValueError, match="shows its last layer only"):
        encoder.layers(pixels)


def test_the_merge_of_intern_vit_comes_from_a_file(intern: Path, tmp_path: Path) -> None:
    merge = nn.Sequential(nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, 12), nn.GELU(), nn.Linear(12, 10))
    save_file(merge.state_dict(), tmp_path / "merger.safetensors")
    plain = InternViTPatches(str(intern), patch=8)
    encoder = InternViTPatches(str(intern), str(tmp_path / "merger.safetensors"), 8)
    pixels = encoder.prepare(pictures(), (2, 2))
    inner: Any = plain.network
    inner.merge = merge
    wanted = plain.features(pixels)
    torch.testing.assert_close(encoder.features(pixels), wanted)
    arguments = encoder.save(tmp_path / "prior")
    again = patch_encoder_named("InternViTPatches", arguments, tmp_path / "prior")
    torch.testing.assert_close(again.features(pixels), wanted)
    save_file({"1.weight": torch.zeros(2, 3), "3.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(MissingWeightsError, match="is no merger of tokens of 128 numbers"):
        InternViTPatches(str(intern), str(tmp_path / "other.safetensors"), 8).load()


# ------------------------------------------------------------------ networks of the house


def test_maps_of_the_embedded_worlds_encoder(tmp_path: Path) -> None:
    from lightning_gen.shapes.encoder import ShapesEncoder

    network = ShapesEncoder(8)
    network.save_pretrained(tmp_path / "shapes")
    encoder = MapPatches("lightning_gen.shapes.encoder.ShapesEncoder", str(tmp_path / "shapes"), patch=4, stage=2)
    images = pictures(32)
    pixels = encoder.prepare(images, (8, 8))
    torch.testing.assert_close(pixels, images)  # it sees the pictures as they are
    found = encoder.features(pixels)
    maps = network.features(images)[2]
    wanted = F.layer_norm(maps.flatten(2).transpose(1, 2), (32,), eps=1e-6)
    torch.testing.assert_close(found, wanted.detach())
    again = patch_encoder_named("MapPatches", encoder.save(tmp_path / "prior"), tmp_path / "prior")
    torch.testing.assert_close(again.features(pixels), found)
    missing = MapPatches("lightning_gen.shapes.encoder.ShapesEncoder", str(tmp_path / "nowhere"), 4)
    with pytest.raises(MissingWeightsError, match="train lightning_gen.shapes.encoder.ShapesEncoder and export it"):
        missing.load()
    need = missing.need()
    assert need is not None and not need.found and "export it there" in need.hint


def test_maps_of_weights_that_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gen.backbones import shipped
    from lightning_gen.shapes.encoder import ShapesEncoder

    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "package")
    encoder = MapPatches("lightning_gen.shapes.encoder.ShapesEncoder", "shapes_encoder", patch=4, stage=2)
    need = encoder.need()
    assert need is not None and not need.found and "data/shapes_encoder/README.md" in need.hint
    with pytest.raises(MissingWeightsError, match="shapes_encoder are not in this installation"):
        encoder.load()
    ShapesEncoder(8).save_pretrained(tmp_path / "data" / "shapes_encoder")
    need = encoder.need()
    assert need is not None and need.found and need.source == "shapes_encoder"
    pixels = encoder.prepare(pictures(32), (8, 8))
    found = encoder.features(pixels)
    # A model that is saved keeps its prior beside it and needs the shipped weights no more.
    again = patch_encoder_named("MapPatches", encoder.save(tmp_path / "prior"), tmp_path / "prior")
    (tmp_path / "data" / "shapes_encoder" / "model.safetensors").unlink()
    torch.testing.assert_close(again.features(pixels), found)


def test_untrained_features_depend_on_the_seed_alone() -> None:
    pixels = UntrainedPatches(8, 24).prepare(pictures(32), (4, 4))
    torch.manual_seed(0)
    first = UntrainedPatches(8, 24).features(pixels)
    torch.manual_seed(1)
    assert first.shape == (2, 16, 24)
    assert torch.equal(UntrainedPatches(8, 24).features(pixels), first)
    assert not torch.equal(UntrainedPatches(8, 24, seed=1).features(pixels), first)
    assert [x.shape[1] for x in UntrainedPatches(8, 24).layers(pixels)] == [256, 64, 16, 16]
    assert UntrainedPatches().need() is None
    with pytest.raises(ValueError, match="a power of 2"):
        UntrainedPatches(patch=6)
