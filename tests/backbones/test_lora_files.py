"""Adapters on disk: our own, peft's and those of diffusers, each read by the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_gen.backbones.lora import AdapterBank, LoRASettings
from lightning_gen.backbones.lora_files import read_adapter, write_adapter
from lightning_gen.backbones.lora_targets import LORA_TARGETS, preset_targets, target_modules
from lightning_gen.backbones.lora_weights import AdapterWeights
from lightning_gen.backbones.weights import MissingWeightsError
from tests.backbones.lora_networks import filled, sd3, sd3_velocity

SETTINGS = LoRASettings(4, 6.0)
PEFT_KEYS = {
    f"base_model.model.transformer_blocks.{block}.attn.{layer}.lora_{factor}.weight"
    for block in (0, 1)
    for layer in (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )
    for factor in "AB"
    if (block, layer) != (1, "to_add_out")
}
"""As the adapters of arXiv:2505.05470 are published, for two blocks."""


def bank() -> AdapterBank:
    return filled(AdapterBank(sd3(), SETTINGS))


def assert_equal(first: AdapterWeights, second: AdapterWeights) -> None:
    assert set(first.factors) == set(second.factors) and first.alpha == second.alpha
    for module, pair in first.factors.items():
        assert all(map(torch.equal, pair, second.factors[module])), module


@pytest.mark.parametrize("style", ["peft", "diffusers"])
def test_round_trip_is_exact(style: Any, tmp_path: Path) -> None:
    weights = bank().weights("default")
    file = write_adapter(weights, tmp_path / "new" / "folder", style)
    assert_equal(read_adapter(tmp_path / "new" / "folder"), weights)
    assert_equal(read_adapter(file), weights)
    odd = AdapterWeights(weights.factors, 2.5)
    write_adapter(odd, tmp_path / "odd", style)
    assert_equal(read_adapter(tmp_path / "odd"), odd)


def test_keys_are_the_published_ones(tmp_path: Path) -> None:
    weights = bank().weights("default")
    assert set(load_file(write_adapter(weights, tmp_path / "peft"))) == PEFT_KEYS
    diffusers = {key.replace("base_model.model.", "transformer.") for key in PEFT_KEYS}
    assert set(load_file(write_adapter(weights, tmp_path / "diffusers", "diffusers"))) == diffusers
    unet = load_file(write_adapter(weights, tmp_path / "unet", "diffusers", "unet"))
    assert all(key.startswith("unet.transformer_blocks.") for key in unet)
    assert_equal(read_adapter(tmp_path / "unet"), weights)


def test_peft_reads_ours(tmp_path: Path) -> None:
    from peft import PeftModel

    own = bank()
    write_adapter(own.weights("default"), tmp_path)
    model = PeftModel.from_pretrained(sd3(), str(tmp_path))
    assert torch.allclose(sd3_velocity(model), sd3_velocity(own.network), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_ours_reads_peft(rank_stabilised: bool, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        lora_alpha=8,
        init_lora_weights=False,
        use_rslora=rank_stabilised,
        target_modules=list(LORA_TARGETS["SD3Transformer2DModel"].suffixes),
    )
    torch.manual_seed(0)
    model = get_peft_model(sd3(), config)
    model.save_pretrained(str(tmp_path))
    own = AdapterBank(sd3(), SETTINGS)
    own.load("default", read_adapter(tmp_path))
    assert not torch.allclose(sd3_velocity(own.network), sd3_velocity(sd3()), atol=1e-3)
    assert torch.allclose(sd3_velocity(own.network), sd3_velocity(model), rtol=1e-4, atol=1e-5)


def test_diffusers_reads_ours(tmp_path: Path) -> None:
    own = bank()
    write_adapter(own.weights("default"), tmp_path, "diffusers")
    network: Any = sd3()
    network.load_lora_adapter(str(tmp_path), weight_name="pytorch_lora_weights.safetensors", prefix="transformer")
    assert torch.allclose(sd3_velocity(network), sd3_velocity(own.network), rtol=1e-4, atol=1e-5)


def test_ours_reads_diffusers(tmp_path: Path) -> None:
    """Written by the pipeline's own method, from an adapter of the model's own, with and without its header."""
    import diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    network: Any = sd3()
    suffixes = list(LORA_TARGETS["SD3Transformer2DModel"].suffixes)
    torch.manual_seed(0)
    network.add_adapter(LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, target_modules=suffixes))
    state = get_peft_model_state_dict(network)
    header = network.peft_config["default"].to_dict()
    save = diffusers.StableDiffusion3Pipeline.save_lora_weights
    save(tmp_path / "new", state, transformer_lora_adapter_metadata=header)
    save(tmp_path / "old", state)
    own = AdapterBank(sd3(), SETTINGS)
    own.load("default", read_adapter(tmp_path / "new"))
    assert torch.allclose(sd3_velocity(own.network), sd3_velocity(network), rtol=1e-4, atol=1e-5)
    assert read_adapter(tmp_path / "new").scaling == 3.0
    assert read_adapter(tmp_path / "old").scaling == 1.0  # as diffusers takes it


def unet_file(path: Path, **more: Tensor) -> Path:
    tensors = {}
    for number, layer in enumerate(("attn1.to_q", "attn2.to_out.0")):
        key = f"unet.mid_block.attentions.0.transformer_blocks.0.{layer}"
        tensors[f"{key}.lora.down.weight"] = torch.full((2, 3), 1.0 + number)
        tensors[f"{key}.lora.up.weight"] = torch.full((5, 2), 10.0)
    save_file({**tensors, **more}, path)
    return path


def test_older_names_and_their_scales(tmp_path: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    found = read_adapter(unet_file(tmp_path / "plain.safetensors"))
    assert set(found.factors) == {name, name.replace("attn1.to_q", "attn2.to_out.0")}
    assert (found.delta(name) == 20.0).all()
    found = read_adapter(unet_file(tmp_path / "scaled.safetensors", **{f"unet.{name}.alpha": torch.tensor(0.5)}))
    assert (found.delta(name) == 5.0).all() and (
        found.delta(name.replace("attn1.to_q", "attn2.to_out.0")) == 40.0
    ).all()


# ------------------------------------------------------------------ what cannot be read


def peft_folder(folder: Path, config: dict[str, Any] | None, **tensors: Tensor) -> Path:
    folder.mkdir()
    factors = {f"base_model.model.a.lora_{factor}.weight": torch.ones(2, 2) for factor in "AB"}
    save_file({**factors, **tensors}, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


GOOD = {"lora_alpha": 2, "r": 2}


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (None, {}, "adapter_config.json is missing or does not say lora_alpha"),
        ({"r": 2}, {}, "does not say lora_alpha"),
        ({**GOOD, "use_dora": True}, {}, "use_dora is True"),
        ({**GOOD, "rank_pattern": {"a": 4}}, {}, "rank_pattern is"),
        (GOOD, {"base_model.model.a.lora_magnitude_vector": torch.ones(2)}, "lora_magnitude_vector is no factor"),
        (GOOD, {"base_model.model.b.lora_A.weight": torch.ones(2, 2)}, "b has only its factor A"),
        (GOOD, {f"base_model.model.b.lora_{f}.weight": torch.ones(3, 3) for f in "AB"}, r"b: A of shape \(3, 3\)"),
    ],
)
def test_what_is_no_plain_adapter_is_refused(
    config: dict[str, Any] | None, tensors: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_adapter(peft_folder(tmp_path / "adapter", config, **tensors))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(MissingWeightsError, match="neither adapter_model.safetensors nor pytorch_lora_weights"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(MissingWeightsError, match="is damaged or no safetensors file"):
        read_adapter(tmp_path)
    with pytest.raises(MissingWeightsError):
        read_adapter("nobody/has-this-adapter")


# ------------------------------------------------------------------ targets of the families


def flux() -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    )


def flux2() -> torch.nn.Module:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )


def unet() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


@pytest.mark.parametrize(
    ("make", "count", "named"),
    [
        (sd3, 15, "transformer_blocks.1.attn.to_out.0"),
        (flux, 8 + 3, "single_transformer_blocks.0.attn.to_v"),
        (flux2, 8 + 1, "single_transformer_blocks.0.attn.to_qkv_mlp_proj"),
        (unet, 8 * 4, "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"),
    ],
)
def test_presets_of_published_families(make: Any, count: int, named: str) -> None:
    with torch.device("meta"):
        network = make()
    modules = target_modules(network, preset_targets(network))
    assert len(modules) == count and named in modules
    adapted = AdapterBank(network, LoRASettings(2, 2.0))
    assert list(adapted.modules("default")) == modules
