"""Tiny random CLIP networks on disk, in the layouts of transformers and of open_clip and with the same weights.

The vocabulary is the real one of CLIP (it ships with open_clip), so that token numbers are those of published models.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["CONTEXT", "OPENAI_MEAN", "OPENAI_STD", "Layout", "open_clip_config", "random_clip", "write_tiny_clip"]

Layout = Literal["transformers", "open_clip"]

CONTEXT = 77
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_VOCABULARY = 49408
_WIDTH, _HEADS, _DEPTH, _PATCH = 32, 2, 2, 8


def write_tiny_clip(
    folder: Path, layout: Layout = "transformers", seed: int = 0, embed_dim: int = 16, image_size: int = 32
) -> Path:
    """Write a tiny random CLIP (1.6 million weights, nearly all of them the token table) as published ones are written.

    Args:
        folder: where to; made if needed.
        layout: ``transformers`` (config.json, model.safetensors, tokenizer.json, preprocessor_config.json) or
            ``open_clip`` (open_clip_config.json, open_clip_model.safetensors).
        seed: of the weights; equal seeds give equal networks in both layouts.
        embed_dim: width of the common embedding.
        image_size: edge of the square that the image tower sees, a multiple of 8.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = random_clip(seed, embed_dim, image_size)
    if layout == "transformers":
        from transformers import CLIPImageProcessor

        model.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        CLIPImageProcessor(
            size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
        ).save_pretrained(folder)
    else:
        from safetensors.torch import save_file

        save_file(_open_clip_names(model.state_dict()), folder / "open_clip_model.safetensors")
        config = {
            "model_cfg": open_clip_config(embed_dim, image_size),
            "preprocess_cfg": {"mean": list(OPENAI_MEAN), "std": list(OPENAI_STD)},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@functools.lru_cache(maxsize=4)
def random_clip(seed: int = 0, embed_dim: int = 16, image_size: int = 32) -> Any:
    """A CLIPModel of transformers; its weights are far from their initial values."""
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "num_hidden_layers": _DEPTH,
        "num_attention_heads": _HEADS,
        "hidden_act": "quick_gelu",
    }
    config = CLIPConfig(
        text_config={**tower, "vocab_size": _VOCABULARY, "max_position_embeddings": CONTEXT},
        vision_config={**tower, "image_size": image_size, "patch_size": _PATCH},
        projection_dim=embed_dim,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        model = CLIPModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                parameter.fill_(4.0)
                continue
            scale = 1.0 if "embedding" in name and "patch" not in name else 0.2
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def open_clip_config(embed_dim: int = 16, image_size: int = 32) -> dict[str, Any]:
    """The architecture as open_clip describes it."""
    return {
        "embed_dim": embed_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": image_size,
            "layers": _DEPTH,
            "width": _WIDTH,
            "head_width": _WIDTH // _HEADS,
            "patch_size": _PATCH,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": _VOCABULARY,
            "width": _WIDTH,
            "heads": _HEADS,
            "layers": _DEPTH,
        },
    }


@functools.lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    source = SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): number for token, number in source.encoder.items()}
    merges = [pair for pair in source.bpe_ranks if len(pair) == 2]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def _open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
    }
    pairs = [
        ("ln_final", "text_model.final_layer_norm"),
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
    ]
    for ours, theirs in (("", "text_model"), ("visual.", "vision_model")):
        for i in range(_DEPTH):
            new, old = f"{ours}transformer.resblocks.{i}", f"{theirs}.encoder.layers.{i}"
            pairs += [(f"{new}.ln_{k}", f"{old}.layer_norm{k}") for k in (1, 2)]
            pairs += [(f"{new}.mlp.c_fc", f"{old}.mlp.fc1"), (f"{new}.mlp.c_proj", f"{old}.mlp.fc2")]
            pairs += [(f"{new}.attn.out_proj", f"{old}.self_attn.out_proj")]
            for kind in ("weight", "bias"):
                parts = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                out[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
    for new, old in pairs:
        out |= {f"{new}.{kind}": state[f"{old}.{kind}"] for kind in ("weight", "bias")}
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}
