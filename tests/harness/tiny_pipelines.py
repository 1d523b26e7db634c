"""Tiny random text-to-image pipelines on disk, laid out as diffusers lays out published ones; nothing is downloaded.

Letters and bytes are the vocabulary of every tokenizer, so that any prompt can be encoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch

__all__ = ["FAMILIES", "TinyFamily", "scheduler_of", "write_tiny_pipeline"]

TinyFamily = Literal["sd3", "flux_dev", "flux_schnell", "flux2_dev", "flux2_klein", "sdxl", "sd15"]
FAMILIES: tuple[TinyFamily, ...] = get_args(TinyFamily)

_LATENTS = 4
_CLIP_WIDTH, _PROJECTION, _T5_WIDTH, _LLM_WIDTH = 16, 16, 40, 16
_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|im_start|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{{ message['content'][0]['text'] }}"
    "{% endif %}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def write_tiny_pipeline(folder: Path, family: TinyFamily, scheduler: Any = None, seed: int = 0) -> Path:
    """Write a tiny random pipeline.

    Args:
        folder: where to; made if needed.
        family: which.
        scheduler: of diffusers; None = that of :func:`scheduler_of`.
        seed: of all weights.

    Returns:
        The folder.
    """
    build = {
        "sd3": _stable_diffusion_3,
        "flux_dev": lambda its: _flux(its, guidance=True),
        "flux_schnell": lambda its: _flux(its, guidance=False),
        "flux2_dev": _flux2_dev,
        "flux2_klein": _flux2_klein,
        "sdxl": _stable_diffusion_xl,
        "sd15": _stable_diffusion,
    }[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build(scheduler_of(family) if scheduler is None else scheduler).save_pretrained(folder)
    return folder


def scheduler_of(family: TinyFamily) -> Any:
    """The scheduler with the settings of the published pipeline, but for Stable Diffusion 1.5.

    That one is published with PNDM and ``set_alpha_to_one: false``; here it gets DDIM that goes to t = 0, as the house
    does.

    Args:
        family: which.

    Returns:
        A scheduler of diffusers.
    """
    import diffusers

    flow = diffusers.FlowMatchEulerDiscreteScheduler
    ddpm = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if family == "sd3":
        return flow(shift=3.0)
    if family == "flux_schnell":
        return flow(shift=1.0)
    if family in ("flux_dev", "flux2_dev", "flux2_klein"):
        return flow(shift=3.0, use_dynamic_shifting=True)
    if family == "sdxl":
        return diffusers.EulerDiscreteScheduler(**ddpm, timestep_spacing="leading")
    return diffusers.DDIMScheduler(**ddpm, clip_sample=False, set_alpha_to_one=True)


# ---------------------------------------------------------------------- families


def _stable_diffusion_3(scheduler: Any) -> Any:
    import diffusers

    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=_LATENTS,
        out_channels=_LATENTS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=2 * _PROJECTION,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=network,
        scheduler=scheduler,
        vae=_vae(shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(projected=True),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(projected=True),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    )


def _flux(scheduler: Any, guidance: bool) -> Any:
    import diffusers

    network = diffusers.FluxTransformer2DModel(
        in_channels=4 * _LATENTS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=_CLIP_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        scheduler=scheduler,
        vae=_vae(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(projected=False),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
        transformer=network,
    )


def _flux2_dev(scheduler: Any) -> Any:
    import diffusers
    import transformers

    tokenizer = _byte_tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.Mistral3Config(
        text_config={
            "model_type": "mistral",
            **tower,
            "num_hidden_layers": 31,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": len(tokenizer),
        },
        vision_config={
            "model_type": "pixtral", **tower, "num_hidden_layers": 1, "head_dim": 8, "image_size": 28, "patch_size": 14
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        multimodal_projector_bias=False,
        spatial_merge_size=1,
    )  # fmt: skip
    processor = transformers.PixtralProcessor(transformers.PixtralImageProcessor(), tokenizer, chat_template=_CHAT)
    return diffusers.Flux2Pipeline(
        scheduler=scheduler,
        vae=_flux2_vae(),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config).eval(),
        tokenizer=processor,
        transformer=_flux2_network(guidance=True),
    )


def _flux2_klein(scheduler: Any) -> Any:
    import diffusers
    import transformers

    tokenizer = _byte_tokenizer([])
    tokenizer.chat_template = _CHAT
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=_LLM_WIDTH,
        intermediate_size=16,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return diffusers.Flux2KleinPipeline(
        scheduler=scheduler,
        vae=_flux2_vae(),
        text_encoder=transformers.Qwen3ForCausalLM(config).eval(),
        tokenizer=tokenizer,
        transformer=_flux2_network(guidance=False),
        is_distilled=False,
    )


def _stable_diffusion_xl(scheduler: Any) -> Any:
    import diffusers

    network = _unet(
        cross_attention_dim=2 * _CLIP_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _PROJECTION,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_clip(projected=False),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(projected=True),
        tokenizer_2=_clip_tokenizer(),
        unet=network,
        scheduler=scheduler,
        add_watermarker=False,
    )


def _stable_diffusion(scheduler: Any) -> Any:
    import diffusers

    return diffusers.StableDiffusionPipeline(
        vae=_vae(scaling_factor=0.18215),
        text_encoder=_clip(projected=False),
        tokenizer=_clip_tokenizer(),
        unet=_unet(cross_attention_dim=_CLIP_WIDTH),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


# ---------------------------------------------------------------------- networks


def _unet(**more: Any) -> Any:
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=_LATENTS,
        out_channels=_LATENTS,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    )


def _flux2_network(guidance: bool) -> Any:
    import diffusers

    return diffusers.Flux2Transformer2DModel(
        in_channels=4 * _LATENTS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * _LLM_WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


_CODER = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": _LATENTS,
    "layers_per_block": 1,
    "sample_size": 16,
}


def _vae(**more: Any) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(**_CODER, **more)


def _flux2_vae() -> Any:
    import diffusers

    vae = diffusers.AutoencoderKLFlux2(**_CODER)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


# ---------------------------------------------------------------------- text


def _clip(projected: bool) -> Any:
    import transformers

    tokenizer = _clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_CLIP_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=_PROJECTION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="quick_gelu",
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return _spread(kind(config))


def _t5() -> Any:
    import transformers

    sizes = {"d_model": _T5_WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return _spread(transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(_t5_tokenizer()), **sizes)))


def _spread(model: Any) -> Any:
    """Embeddings of size 1, so that prompts differ by more than rounding."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token_embedding" in name or name == "shared.weight":
                parameter.normal_()
    return model.eval()


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    words = ["<pad>", "</s>", "<unk>", "\u2581", *(chr(code) for code in range(33, 127))]
    return T5Tokenizer(vocab=[(word, -1.0 if number > 2 else 0.0) for number, word in enumerate(words)], extra_ids=0)


def _byte_tokenizer(special: list[str]) -> Any:
    from transformers import Qwen2Tokenizer

    words = [*_letters(), "<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    tokenizer = Qwen2Tokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special]})
    return tokenizer


def _letters() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())
