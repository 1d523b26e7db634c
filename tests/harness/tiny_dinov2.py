"""Tiny random DINOv2 networks on disk, in transformers' layout and in that of torch.hub, with the same weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["DEPTH", "WIDTH", "random_dinov2", "save_torch_hub", "save_transformers"]

# The number of heads is not in the weights; all published DINOv2 have heads of 64.
WIDTH, DEPTH, HEADS = 128, 2, 2


def random_dinov2(seed: int = 0) -> Any:
    """A DINOv2 of transformers with 37 x 37 positions, all weights far from their initial values."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=518, patch_size=14
    )
    generator = torch.Generator().manual_seed(seed)
    model = Dinov2Model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if "lambda" in name or ("norm" in name and name.endswith("weight")) else 0.0
            scale = 0.03 if "projection.weight" in name else 0.2
            parameter.copy_(centre + scale * noise)
    return model.eval()


def save_transformers(folder: Path, seed: int = 0) -> Path:
    """Write the network as transformers' ``save_pretrained`` does."""
    random_dinov2(seed).save_pretrained(folder)
    return folder


def save_torch_hub(path: Path, seed: int = 0) -> Path:
    """Write the same network under the names of the published file."""
    from safetensors.torch import load_file

    # In files transformers keeps names that its modules have outgrown.
    with tempfile.TemporaryDirectory() as folder:
        torch.save(_hub_names(load_file(save_transformers(Path(folder), seed) / "model.safetensors")), path)
    return path


def _hub_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "mask_token": state["embeddings.mask_token"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for i in range(DEPTH):
        old, new = f"encoder.layer.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            parts = [state[f"{old}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            out[f"{new}attn.qkv.{kind}"] = torch.cat(parts)
            out[f"{new}attn.proj.{kind}"] = state[f"{old}attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{new}{name}.{kind}"] = state[f"{old}{name}.{kind}"]
        out[f"{new}ls1.gamma"] = state[f"{old}layer_scale1.lambda1"]
        out[f"{new}ls2.gamma"] = state[f"{old}layer_scale2.lambda1"]
    return out
