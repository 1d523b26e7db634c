"""Tiny random DINOv3 networks on disk, in the layouts of both libraries and with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["DEPTH", "REGISTERS", "WIDTH", "random_dinov3", "save_timm", "save_transformers"]

WIDTH, DEPTH, HEADS, REGISTERS, HIDDEN = 32, 3, 2, 4, 64


def random_dinov3(seed: int = 0, query_bias: bool = True) -> Any:
    """A DINOv3 of transformers, 50 thousand weights, all of them far from their initial values."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_register_tokens=REGISTERS,
        image_size=64,
        query_bias=query_bias,
        value_bias=query_bias,
        pos_embed_rescale=2.0,
        pos_embed_jitter=1.5,
        pos_embed_shift=0.3,
    )
    generator = torch.Generator().manual_seed(seed)
    model = DINOv3ViTModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if "lambda" in name or ("norm" in name and name.endswith("weight")) else 0.0
            scale = 0.02 if "patch_embeddings.weight" in name else 0.2
            parameter.copy_(centre + scale * noise)
    return model.eval()


def save_transformers(folder: Path, seed: int = 0, query_bias: bool = True) -> Path:
    """Write the network as transformers' ``save_pretrained`` does."""
    random_dinov3(seed, query_bias).save_pretrained(folder)
    return folder


def save_timm(folder: Path, seed: int = 0, query_bias: bool = True) -> Path:
    """Write the same network as timm's ``save_for_hf`` does."""
    import timm
    from timm.models import save_for_hf

    name = "vit_small_patch16_dinov3_qkvb" if query_bias else "vit_small_patch16_dinov3"
    arguments = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": HIDDEN / WIDTH}
    network = timm.create_model(name, num_classes=0, **arguments)
    network.load_state_dict(_timm_names(random_dinov3(seed, query_bias).state_dict()))
    folder.mkdir(parents=True, exist_ok=True)
    save_for_hf(network, str(folder), safe_serialization=True)
    return folder


def _timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {
        "cls_token": state["embeddings.cls_token"],
        "reg_token": state["embeddings.register_tokens"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.bias"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    for i in range(DEPTH):
        old, new = f"model.layer.{i}.", f"blocks.{i}."
        attention = old + "attention."
        out[new + "attn.qkv.weight"] = torch.cat([state[f"{attention}{part}_proj.weight"] for part in "qkv"])
        if f"{attention}q_proj.bias" in state:
            out[new + "attn.q_bias"] = state[f"{attention}q_proj.bias"]
            out[new + "attn.v_bias"] = state[f"{attention}v_proj.bias"]
        for kind in ("weight", "bias"):
            out[f"{new}attn.proj.{kind}"] = state[f"{attention}o_proj.{kind}"]
            out[f"{new}norm1.{kind}"] = state[f"{old}norm1.{kind}"]
            out[f"{new}norm2.{kind}"] = state[f"{old}norm2.{kind}"]
            out[f"{new}mlp.fc1.{kind}"] = state[f"{old}mlp.up_proj.{kind}"]
            out[f"{new}mlp.fc2.{kind}"] = state[f"{old}mlp.down_proj.{kind}"]
        out[new + "gamma_1"] = state[f"{old}layer_scale1.lambda1"]
        out[new + "gamma_2"] = state[f"{old}layer_scale2.lambda1"]
    return out
