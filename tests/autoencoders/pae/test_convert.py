"""Published names to ours and back, by the rules of the published list, and files that are something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_gen.autoencoders.pae.convert import (
    from_published,
    import_published,
    infer_shape,
    read_folder,
    to_published,
)
from lightning_gen.autoencoders.pae.module import PAE
from lightning_gen.autoencoders.pae.network import PAENetwork
from lightning_gen.autoencoders.pae.variants import PAEShape
from lightning_gen.backbones.patch_features import UntrainedPatches

# Typed from the list of names and shapes of the published DINOv2-L, d = 32: part, width rule, how often.
# W prior width, C channels, E decoder width, M feed-forward width of the decoder, p and q patches, N tokens.
DELTA = {
    "pos_embed": (1, "N", "W"),
    "patch_embed.proj.weight": ("W", 3, "p", "p"),
    "patch_embed.proj.bias": ("W",),
    **{
        f"layers.{{i}}.{name}.{kind}": ("W",)
        for name in ("norm1", "norm2_q", "norm2_kv", "norm3")
        for kind in ("weight", "bias")
    },
    "layers.{i}.self_attn.qkv.weight": ("3W", "W"),
    "layers.{i}.self_attn.qkv.bias": ("3W",),
    "layers.{i}.self_attn.proj.weight": ("W", "W"),
    "layers.{i}.self_attn.proj.bias": ("W",),
    **{f"layers.{{i}}.cross_attn.{name}.weight": ("W", "W") for name in ("q_proj", "k_proj", "v_proj", "proj")},
    **{f"layers.{{i}}.cross_attn.{name}.bias": ("W",) for name in ("q_proj", "k_proj", "v_proj", "proj")},
    "layers.{i}.mlp.fc1.weight": ("4W", "W"),
    "layers.{i}.mlp.fc1.bias": ("4W",),
    "layers.{i}.mlp.fc2.weight": ("W", "4W"),
    "layers.{i}.mlp.fc2.bias": ("W",),
    "fusion_proj.weight": ("2W", "W"),
    "fusion_proj.bias": ("2W",),
    "final_ln.weight": ("W",),
    "final_ln.bias": ("W",),
}
LATENT = {
    "latent_compressor.0.qkv.weight": ("3W", "W"),
    "latent_compressor.0.proj.weight": ("W", "W"),
    "latent_compressor.0.proj.bias": ("W",),
    "latent_compressor.1.weight": ("C", "W", 3, 3),
    "latent_compressor.1.bias": ("C",),
    "latent_decompressor.0.weight": ("W", "C", 3, 3),
    "latent_decompressor.0.bias": ("W",),
    "latent_decompressor.1.qkv.weight": ("3W", "W"),
    "latent_decompressor.1.proj.weight": ("W", "W"),
    "latent_decompressor.1.proj.bias": ("W",),
}
DECODER = {
    "decoder_pos_embed": (1, "N+1", "E"),
    "trainable_cls_token": (1, 1, "E"),
    "decoder_embed.weight": ("E", "W"),
    "decoder_embed.bias": ("E",),
    **{
        f"decoder_layers.{{i}}.attention.{name}.{kind}": ("E", "E") if kind == "weight" else ("E",)
        for name in ("attention.query", "attention.key", "attention.value", "output.dense")
        for kind in ("weight", "bias")
    },
    "decoder_layers.{i}.intermediate.dense.weight": ("M", "E"),
    "decoder_layers.{i}.intermediate.dense.bias": ("M",),
    "decoder_layers.{i}.output.dense.weight": ("E", "M"),
    "decoder_layers.{i}.output.dense.bias": ("E",),
    **{
        f"decoder_layers.{{i}}.layernorm_{name}.{kind}": ("E",)
        for name in ("before", "after")
        for kind in ("weight", "bias")
    },
    "decoder_norm.weight": ("E",),
    "decoder_norm.bias": ("E",),
    "decoder_pred.weight": ("3qq", "E"),
    "decoder_pred.bias": ("3qq",),
}
FULL = {"W": 1024, "C": 32, "E": 1024, "M": 4096, "p": 14, "q": 16, "N": 256}
TINY = {"W": 16, "C": 6, "E": 16, "M": 64, "p": 4, "q": 8, "N": 16}


def names(sizes: dict[str, int], modulator_depth: int, depth: int) -> dict[str, tuple[int, ...]]:
    sizes = {**sizes, "3W": 3 * sizes["W"], "2W": 2 * sizes["W"], "4W": 4 * sizes["W"], "N+1": sizes["N"] + 1}
    sizes["3qq"] = 3 * sizes["q"] ** 2
    found = {}
    for prefix, rules, layers in (
        ("delta_encoder.", DELTA, modulator_depth),
        ("", LATENT, 0),
        ("decoder.", DECODER, depth),
    ):
        for name, rule in rules.items():
            shape = tuple(size if isinstance(size, int) else sizes[size] for size in rule)
            for number in range(layers) if "{i}" in name else (0,):
                found[prefix + name.replace("{i}", str(number))] = shape
    return found


def published(sizes: dict[str, int] = TINY, modulator_depth: int = 2, depth: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = names(sizes, modulator_depth, depth)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def checkpoint(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state, "step": 3}, folder / "pae.pt")
    return folder / "pae.pt"


def test_the_rules_give_the_published_number_of_tensors() -> None:
    assert len(names(FULL, 6, 24)) == 2 + 1 + 24 * 6 + 4 + 10 + 4 + 16 * 24 + 4


def test_the_published_size_fits_the_network_name_by_name() -> None:
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in names(FULL, 6, 24).items()}
        wanted = PAENetwork(PAEShape()).state_dict()
    ours, prior, dead = from_published({**state, "encoder.model.norm.x": torch.empty(1, device="meta")})
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in wanted.items()}
    assert (len(prior), dead) == (1, ())
    assert infer_shape(ours, 16) == PAEShape()


def test_a_round_trip_keeps_every_bit() -> None:
    state = published()
    back = to_published(from_published(state)[0])
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_pixels_change_their_order_and_nothing_else_does() -> None:
    state = published()
    ours = from_published(state)[0]
    row, col, channel = 5, 2, 1
    theirs = state["decoder.decoder_pred.weight"][(row * 8 + col) * 3 + channel]
    assert torch.equal(ours["decoder.head.weight"][channel * 64 + row * 8 + col], theirs)
    parts = [state[f"decoder.decoder_layers.1.attention.attention.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(ours["decoder.layers.1.attention.qkv.weight"], torch.cat(parts))
    assert torch.equal(ours["modulator.layers.1.fc1.weight"], state["delta_encoder.layers.1.mlp.fc1.weight"])


def test_a_published_file_becomes_a_model(tmp_path: Path) -> None:
    state = {**published(), "encoder.embeddings.cls_token": torch.zeros(1), "logit_scale": torch.zeros(1)}
    state["delta_encoder.layers.0.gate.weight"] = torch.zeros(1)
    encoder = UntrainedPatches(patch=4, width=16)
    report = import_published(checkpoint(tmp_path, state), tmp_path / "ours", encoder, prior_heads=2)
    assert report.prior == ("encoder.embeddings.cls_token",) and report.missing == ()
    assert report.dead == ("logit_scale", "delta_encoder.layers.0.gate.weight")
    assert "missing: none" in str(report) and "dead: 2 (logit_scale" in str(report)
    model = PAE.from_pretrained(str(tmp_path / "ours"))
    assert model.shape.decoder == "w16_d3_h2" and model.shape.modulator_depth == 2
    back = to_published(model.network.state_dict())
    assert all(torch.equal(back[name], state[name]) for name in back) and len(back) == len(published())
    assert model.decode(model.encode(torch.zeros(1, 3, 32, 32))).shape == (1, 3, 32, 32)  # type: ignore[union-attr]


def test_incomplete_and_foreign_files_are_refused(tmp_path: Path) -> None:
    encoder = UntrainedPatches(patch=4, width=16)
    state = published()
    del state["decoder.decoder_norm.bias"]
    with pytest.raises(ValueError, match=re.escape("missing: 1 (decoder.norm.bias)")):
        import_published(checkpoint(tmp_path, state), tmp_path / "ours", encoder, prior_heads=2)
    del state["latent_decompressor.0.weight"]
    with pytest.raises(ValueError, match="not a complete PAE: 'deprojector.convolution.weight' is missing"):
        import_published(checkpoint(tmp_path, state), tmp_path / "ours", encoder, prior_heads=2)
    torch.save({"ema": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no weights under 'model'"):
        import_published(tmp_path / "other.pt", tmp_path / "ours", encoder)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"model": "ViTokV2"}')
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 'ViTokV2', not a PAE"):
        read_folder(tmp_path / "folder")
    with pytest.raises(ValueError, match="'alpha' has no place in a published PAE"):
        to_published({"alpha": torch.zeros(1)})
