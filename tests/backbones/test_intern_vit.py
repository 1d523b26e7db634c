"""InternViT: from sizes and from folders of three layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.backbones.frozen import FrozenModule
from lightning_gen.backbones.intern_vit import (
    InternViT,
    InternViTShape,
    intern_vit_from_original,
    intern_vit_to_original,
    read_intern_vit,
)
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.training.initialisation import initialise
from tests.harness.network import NetworkChecks, stir

SHAPE = InternViTShape(width=16, depth=2, heads=2, hidden=24, patch=4, image_size=16)


def network() -> InternViT:
    made = InternViT(SHAPE)
    initialise(made, 0)
    stir(made)
    return made


def save(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> str:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def original_config(**settings: Any) -> dict[str, Any]:
    return {
        "model_type": "intern_vit_6b",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "patch_size": 4,
        "image_size": 16,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        "initializer_factor": 0.1,
        **settings,
    }


class TestHarness(NetworkChecks):
    def network(self) -> InternViT:
        return InternViT(SHAPE)

    def batch(self) -> Tensor:
        return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_published_size_on_the_meta_device() -> None:
    with torch.device("meta"):
        made = InternViT()
    assert sum(p.numel() for p in made.parameters()) == 304_012_288
    assert (made.patch, made.width, len(list(made.blocks()))) == (14, 1024, 24)


def test_it_is_the_network_of_transformers() -> None:
    made = network().eval()
    pixels = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        assert torch.allclose(made(pixels), made.model(pixels).last_hidden_state, atol=1e-6)
    assert made(pixels).shape == (2, 1 + 4 * 6, 16)


def test_positions_are_interpolated_bicubically() -> None:
    made = network().eval()
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "lambda" in name or "projection" in name and "patch" in name or "cls" in name:
                parameter.zero_()
        positions = made.model.embeddings.position_embeddings[:, 1:].view(1, 4, 4, 16).permute(0, 3, 1, 2)
        wanted = torch.nn.functional.interpolate(positions, (2, 6), mode="bicubic", align_corners=False)
        found = made(torch.zeros(1, 3, 8, 24))[:, 1:].transpose(1, 2).view(1, 16, 2, 6)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_weights_of_all_layouts_give_the_same_tokens(tmp_path: Path) -> None:
    made = network()
    pixels = torch.randn(1, 3, 16, 16)
    state = dict(made.model.state_dict())
    made.model.save_pretrained(tmp_path / "transformers")
    original = save(tmp_path / "original", intern_vit_to_original(state), original_config())
    tower = {f"vision_model.{name}": tensor for name, tensor in intern_vit_to_original(state).items()}
    tower["language_model.embed.weight"] = torch.zeros(3, 3)
    vision = original_config()
    whole = save(tmp_path / "whole", tower, {"model_type": "internvl_chat", "vision_config": vision})
    for source in (str(tmp_path / "transformers"), original, whole):
        again = InternViT.from_pretrained(source)
        assert torch.equal(again(pixels), made(pixels)), source
        assert all(p.requires_grad and p.dtype == torch.float32 for p in again.parameters())
    assert FrozenModule(InternViT.from_pretrained(original)).num_parameters == sum(p.numel() for p in made.parameters())


def test_names_of_the_first_releases_come_back_bit_for_bit() -> None:
    state = dict(network().model.state_dict())
    original = intern_vit_to_original(state)
    assert original["encoder.layers.1.attn.qkv.weight"].shape == (48, 16)
    assert {"embeddings.class_embedding", "encoder.layers.0.ls1", "embeddings.patch_embedding.weight"} <= set(original)
    back = intern_vit_from_original(original)
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)
    with pytest.raises(ValueError, match="'head.weight' is not part of an InternViT"):
        intern_vit_from_original({"head.weight": torch.zeros(1)})


def test_folders_that_hold_something_else_are_named(tmp_path: Path) -> None:
    state = intern_vit_to_original(dict(network().model.state_dict()))
    folder = Path(save(tmp_path / "bare", state, original_config()))
    (folder / "config.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"bare holds no config.json, so it is no folder of an InternViT"):
        InternViT.from_pretrained(str(folder))
    with pytest.raises(MissingWeightsError, match="describes 'bert', neither an InternViT nor an InternVL"):
        read_intern_vit(save(tmp_path / "bert", state, {"model_type": "bert"}))
    with pytest.raises(MissingWeightsError, match=r"does not say the sizes .*hidden_size"):
        read_intern_vit(save(tmp_path / "sizes", state, {"model_type": "intern_vit_6b"}))
    with pytest.raises(MissingWeightsError, match="do not fit its config.json"):
        read_intern_vit(save(tmp_path / "deep", state, original_config(num_hidden_layers=3)))
    with pytest.raises(MissingWeightsError, match="InternViT-6B"):
        read_intern_vit(save(tmp_path / "six", state, original_config(qk_normalization=True)))
    with pytest.raises(ValueError, match="sides that are multiples of 4"):
        network()(torch.zeros(1, 3, 16, 18))
