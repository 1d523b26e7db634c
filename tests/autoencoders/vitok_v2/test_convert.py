"""Published weights in and out. The key list with shapes is typed here, not taken from the converter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_gen.autoencoders.vitok_v2.convert import from_published, infer_variant, to_published
from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.autoencoders.vitok_v2.network import ViTokV2Network
from lightning_gen.autoencoders.vitok_v2.variants import PUBLISHED, Variant
from lightning_gen.backbones.weights import MissingWeightsError

TINY = "w32_d2_h2-w48_d1_h3/1x4x8"


def block(prefix: str, width: int, head: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.norm1.weight": (width,),
        f"{prefix}.attn.qkv_proj.weight": (3 * width, width),
        f"{prefix}.attn.norm_q.weight": (head,),
        f"{prefix}.attn.norm_k.weight": (head,),
        f"{prefix}.attn.out_proj.weight": (width, width),
        f"{prefix}.ffn.fc1.weight": (2 * hidden, width),
        f"{prefix}.ffn.fc2.weight": (width, hidden),
        f"{prefix}.layer_scale.gamma": (width,),
    }


ENCODER = {
    "patch_embed.weight": (32, 48),
    "patch_embed.bias": (32,),
    **block("encoder_blocks.0", 32, 16, 80),
    **block("encoder_blocks.1", 32, 16, 80),
    "to_code.weight": (8, 32),
    "to_code.bias": (8,),
}
DECODER = {
    "decoder_embed.weight": (48, 8),
    "decoder_embed.bias": (48,),
    **block("decoder_blocks.0", 48, 16, 128),
    "to_pixels.weight": (48, 48),
    "to_pixels.bias": (48,),
}
LARGE = {
    "patch_embed.weight": (3072, 768),
    "encoder_blocks.3.attn.qkv_proj.weight": (9216, 3072),
    "encoder_blocks.3.attn.norm_k.weight": (128,),
    "encoder_blocks.0.ffn.fc1.weight": (16416, 3072),
    "to_code.weight": (64, 3072),
    "decoder_embed.weight": (3072, 64),
    "decoder_blocks.39.ffn.fc2.weight": (3072, 8208),
    "decoder_blocks.39.layer_scale.gamma": (3072,),
    "to_pixels.bias": (768,),
}


def published(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return {prefix + key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as it is published: two files, no config."""
    save_file(published(ENCODER), tmp_path / "encoder.safetensors")
    save_file(published(DECODER, "_orig_mod."), tmp_path / "decoder.safetensors")
    return tmp_path


def test_the_published_keys_are_exactly_those_of_the_network() -> None:
    network = ViTokV2Network(Variant.parse(TINY))
    halves = to_published(network.state_dict())
    assert {key: tuple(x.shape) for key, x in halves["encoder"].items()} == ENCODER
    assert {key: tuple(x.shape) for key, x in halves["decoder"].items()} == DECODER


def test_keys_and_shapes_of_the_large_model() -> None:
    with torch.device("meta"):
        network = ViTokV2Network(Variant.parse("5B-f16x64"))
    halves = to_published(network.state_dict())
    found = {key: tuple(x.shape) for half in halves.values() for key, x in half.items()}
    assert LARGE.items() <= found.items()
    assert len(found) == 44 * 8 + 8


def test_conversion_is_its_own_inverse() -> None:
    state = ViTokV2Network(Variant.parse(TINY)).state_dict()
    halves = to_published(state)
    back = from_published({**halves["encoder"], **halves["decoder"]})
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_published_folder_loads_without_a_config(folder: Path) -> None:
    model = ViTokV2.from_pretrained(str(folder))
    assert model.variant == Variant.parse(TINY)
    weight = load_file(folder / "decoder.safetensors")["_orig_mod.decoder_blocks.0.ffn.fc1.weight"]
    assert torch.equal(model.network.decoder.blocks[0].ffn.fc1.weight, weight)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_five_lines_of_python(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (37, 22), (200, 30, 60))
    model = ViTokV2.from_pretrained(str(folder))
    latents = model.encode(image)
    pictures = model.decode(latents)
    assert latents.values.shape == (1, 60, 8) and latents.sizes.tolist() == [[22, 37]]
    assert isinstance(pictures, torch.Tensor) and pictures.shape == (1, 3, 22, 37) and pictures.abs().max() <= 1
    several = model.decode(model.encode([image, torch.zeros(3, 9, 9), Image.new("LA", (8, 4))]))
    assert [tuple(x.shape) for x in several] == [(3, 22, 37), (3, 9, 9), (3, 4, 8)]
    torch.testing.assert_close(several[0], pictures[0], atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "mine")
    again = ViTokV2.from_pretrained(str(tmp_path / "mine"))
    assert torch.equal(again.decode(again.encode(image)), pictures)
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["variant"] == "w32_d2_h2-w48_d1_h3/1x4x8"


def test_row_bands_by_the_front_door(folder: Path) -> None:
    image = torch.rand(3, 90, 40) * 2 - 1
    whole = ViTokV2.from_pretrained(str(folder), window_radius=2).double()
    bands = ViTokV2.from_pretrained(str(folder), window_radius=2, band_rows=4).double()
    both = [image.double(), image[:, :30].double()]
    for a, b in zip(whole.decode(whole.encode(both)), bands.decode(bands.encode(both)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name", [*PUBLISHED, TINY, "w32_d2_h2_m4-w48_d1_h3_m4/1x8x6", "w32_d1_h2_m2.1-w64_d1_h2_m2.1/1x4x4"]
)
def test_the_variant_is_read_off_the_shapes(name: str) -> None:
    with torch.device("meta"):
        network = ViTokV2Network(Variant.parse(name))
    found = infer_variant(network.state_dict())
    with torch.device("meta"):
        again = ViTokV2Network(Variant.parse(found.name))
    shapes = {key: x.shape for key, x in network.state_dict().items()}
    assert {key: x.shape for key, x in again.state_dict().items()} == shapes
    if name in PUBLISHED:
        assert found.name == PUBLISHED[name]


def test_other_models_and_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    encoder = published(ENCODER)
    with pytest.raises(ValueError, match="'blocks.0.norm.weight' is not part of a ViTok-v2 model"):
        from_published({"blocks.0.norm.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"not a complete ViTok-v2 model: '(de|en)coder"):
        infer_variant(from_published(encoder))
    save_file({**encoder, "to_code.weight": torch.zeros(9, 32)}, folder / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"does not fit ViTokV2Network: .*encoder.head.bias has shape"):
        ViTokV2.from_pretrained(str(folder))
    (folder / "encoder.safetensors").write_bytes(b"0123")
    with pytest.raises(MissingWeightsError, match="encoder.safetensors is damaged or cut off"):
        ViTokV2.from_pretrained(str(folder))
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match="holds no encoder.safetensors"):
        ViTokV2.from_pretrained(str(folder))
    with pytest.raises(MissingWeightsError, match="neither as a folder nor in the hub cache"):
        ViTokV2.from_pretrained("5B-f16x64")
    with pytest.raises(MissingWeightsError, match="nowhere"):
        ViTokV2.from_pretrained(str(tmp_path / "nowhere"))
