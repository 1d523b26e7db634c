"""Stable Diffusion 3.5 Medium as its config files describe it, without a weight: for counting at full size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["PARAMETERS", "write_sd35_medium_configs"]

PARAMETERS = {
    "transformer": 2_243_171_520,
    "vae": 83_819_683,
    "text_encoder": 123_650_304,
    "text_encoder_2": 694_659_840,
    "text_encoder_3": 4_762_310_656,
}
"""Parameters of the published networks."""

_CLIP: dict[str, Any] = {"vocab_size": 49408, "max_position_embeddings": 77}
_CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "transformer": ("diffusers", "SD3Transformer2DModel", {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
        "num_attention_heads": 24, "attention_head_dim": 64, "joint_attention_dim": 4096,
        "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
        "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm",
    }),
    "vae": ("diffusers", "AutoencoderKL", {
        "latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609,
    }),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection", {
        **_CLIP, "model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768,
    }),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", {
        **_CLIP, "model_type": "clip_text_model", "hidden_size": 1280, "intermediate_size": 5120,
        "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280,
    }),
    "text_encoder_3": ("transformers", "T5EncoderModel", {
        "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
        "num_heads": 64, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False,
    }),
}  # fmt: skip


def write_sd35_medium_configs(folder: Path) -> Path:
    """Write ``model_index.json`` and the ``config.json`` of every network.

    Args:
        folder: where to; made if needed.

    Returns:
        The folder.
    """
    index: dict[str, Any] = {"_class_name": "StableDiffusion3Pipeline"}
    for part, (library, name, config) in _CONFIGS.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps({"_class_name": name, **config}))
        index[part] = [library, name]
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
