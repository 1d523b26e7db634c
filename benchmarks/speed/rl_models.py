"""Random text-to-image models in the shape of Stable Diffusion 3.5, from tiny to Medium's own, and a reward to match.

Nothing is downloaded. Pipelines are written to disk as diffusers lays them out, so that they are read by the code that
reads published ones. Every byte is a word of the reward's vocabulary, every letter one of the pipeline's.

Shape letters: B rows, C latent channels, h and w sides of a latent map.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.backbones.text_to_image import DiffusersTextToImage, Precision
from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.metrics.extraction.clip import CLIPModel
from lightning_gen.metrics.extraction.clip_pixels import CLIPPixels
from lightning_gen.metrics.preference import CLIPScore

__all__ = [
    "LARGE",
    "MEDIUM",
    "SD35M",
    "TEXT_LENGTH",
    "TINY",
    "PolicyShape",
    "RandomReward",
    "RewardShape",
    "TextShape",
    "Tower",
    "be_quiet",
    "bytes_of",
    "number_of_parameters",
    "open_policy",
    "passes",
    "random_network",
    "write_pipeline",
]

TEXT_LENGTH = 128
"""Tokens of a prompt for T5 in published reinforcement learning; CLIP has 77."""
CHANNELS, CONTEXT = 16, 77


@dataclasses.dataclass(frozen=True)
class Tower:
    """A transformer.

    Attributes:
        width: of its states.
        depth: number of blocks.
        heads: of attention.
        hidden: width inside the feed-forward layers.
    """

    width: int
    depth: int
    heads: int
    hidden: int


@dataclasses.dataclass(frozen=True)
class TextShape:
    """The three text encoders.

    Attributes:
        t5: gated, as T5 1.1.
        clips: both CLIPs; their widths add up to at most that of T5.
    """

    t5: Tower
    clips: tuple[Tower, Tower]


@dataclasses.dataclass(frozen=True)
class RewardShape:
    """A CLIP that scores pictures.

    Attributes:
        vision: the image tower.
        text: the text tower.
        patch: pixels of a token along a side.
        edge: of the square that is seen.
    """

    vision: Tower
    text: Tower
    patch: int = 14
    edge: int = 224


@dataclasses.dataclass(frozen=True)
class PolicyShape:
    """A pipeline and the reward that it is trained by.

    Attributes:
        heads: of the network's attention.
        head_dim: width of a head.
        layers: joint blocks.
        dual: blocks, the first ones, with a second attention over the picture alone.
        canvas: edge of a picture in pixels.
        vae: channels of the auto-encoder's levels; each but the last halves the picture.
        text: encoders.
        reward: CLIP.
        positions: patches along a side that the network has positions for.
    """

    heads: int
    head_dim: int
    layers: int
    dual: int
    canvas: int
    vae: tuple[int, ...]
    text: TextShape
    reward: RewardShape
    positions: int = 64

    @property
    def latents(self) -> tuple[int, int, int]:
        """Shape of one picture's latents, (C, h, w)."""
        side = self.canvas >> (len(self.vae) - 1)
        return CHANNELS, side, side


TINY = PolicyShape(
    heads=2,
    head_dim=8,
    layers=2,
    dual=1,
    canvas=16,
    vae=(8, 8),
    text=TextShape(Tower(40, 2, 2, 64), (Tower(16, 2, 2, 32), Tower(16, 2, 2, 32))),
    reward=RewardShape(Tower(16, 1, 2, 32), Tower(16, 1, 2, 32), patch=16, edge=32),
)
# What stands beside the network keeps Medium's proportions in parameters: text encoders 2.3 times those of the network
# (Medium: 5.58 and 2.24 billion, 2.5 times), the image tower of the reward 0.3 times (PickScore's).
MEDIUM = PolicyShape(
    heads=6,
    head_dim=64,
    layers=6,
    dual=3,
    canvas=384,
    vae=(16, 32, 64, 64),
    text=TextShape(Tower(768, 10, 12, 1920), (Tower(256, 3, 4, 1024), Tower(512, 3, 8, 2048))),
    reward=RewardShape(Tower(384, 6, 6, 1536), Tower(256, 4, 4, 1024)),
)
LARGE = dataclasses.replace(MEDIUM, heads=12, layers=12, dual=6)
"""A network large enough that its weights, not its activations, fill the memory, as those of Medium do."""
SD35M = PolicyShape(
    heads=24,
    head_dim=64,
    layers=24,
    dual=13,
    canvas=512,
    vae=(128, 256, 512, 512),
    # Of the encoders only the widths are real: prompts come from the cache.
    text=TextShape(Tower(4096, 1, 8, 64), (Tower(768, 1, 12, 64), Tower(1280, 1, 20, 64))),
    reward=RewardShape(Tower(1280, 32, 16, 5120), Tower(1024, 24, 16, 4096)),
    positions=384,
)


def random_network(
    shape: PolicyShape, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The transformer, built on the meta device and filled with random numbers where it is to be.

    Args:
        shape: its sizes.
        device: where to; ``meta`` = it stays there.
        dtype: of its weights.

    Returns:
        SD3Transformer2DModel, frozen.
    """
    import diffusers

    kind: Any = diffusers.SD3Transformer2DModel
    width = shape.heads * shape.head_dim
    return _filled(
        lambda: kind(
            sample_size=shape.latents[1],
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=shape.layers,
            num_attention_heads=shape.heads,
            attention_head_dim=shape.head_dim,
            caption_projection_dim=width,
            joint_attention_dim=shape.text.t5.width,
            pooled_projection_dim=sum(clip.width for clip in shape.text.clips),
            pos_embed_max_size=shape.positions,
            dual_attention_layers=tuple(range(shape.dual)),
            qk_norm="rms_norm",
        ),
        device,
        dtype,
    )


def passes(shape: PolicyShape) -> Callable[[nn.Module], Tensor]:
    """One pass of a network over one picture at t = 1/2.

    Args:
        shape: of the network.

    Returns:
        Network -> its prediction, (1, C, h, w).
    """
    generator = torch.Generator().manual_seed(0)
    clips = shape.text.clips
    inputs = {
        "hidden_states": torch.randn(1, *shape.latents, generator=generator),
        "encoder_hidden_states": torch.randn(1, CONTEXT + TEXT_LENGTH, shape.text.t5.width, generator=generator),
        "pooled_projections": torch.randn(1, sum(clip.width for clip in clips), generator=generator),
        "timestep": torch.tensor([500.0]),
    }

    def predicted(network: nn.Module) -> Tensor:
        found: Tensor = network(**inputs, return_dict=False)[0]
        return found

    return predicted


def write_pipeline(
    folder: Path, shape: PolicyShape, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Path:
    """Write a random pipeline.

    Args:
        folder: where to.
        shape: its sizes.
        device: where its numbers are drawn.
        dtype: of all weights.

    Returns:
        The folder.
    """
    import diffusers

    library: Any = diffusers
    coder = {
        "block_out_channels": shape.vae,
        "down_block_types": ("DownEncoderBlock2D",) * len(shape.vae),
        "up_block_types": ("UpDecoderBlock2D",) * len(shape.vae),
        "layers_per_block": 2,
        "norm_num_groups": min(32, shape.vae[0] // 4),
        "latent_channels": CHANNELS,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    first, second = (_clip_text(tower).to(dtype) for tower in shape.text.clips)
    library.StableDiffusion3Pipeline(
        transformer=random_network(shape, device, dtype),
        scheduler=library.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_filled(lambda: library.AutoencoderKL(**coder), device, dtype),
        text_encoder=first,
        tokenizer=_clip_tokenizer(),
        text_encoder_2=second,
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(shape.text.t5).to(dtype),
        tokenizer_3=_t5_tokenizer(),
    ).save_pretrained(folder)
    return folder


def open_policy(
    folder: Path, shape: PolicyShape, cache: Path | None = None, dtype: Precision = "float32"
) -> DiffusersTextToImage:
    """Read a pipeline as a run does.

    Args:
        folder: that :func:`write_pipeline` wrote.
        shape: its sizes.
        cache: of encoded prompts.
        dtype: of all weights.

    Returns:
        The model, on the CPU.
    """
    canvas, prompts = (shape.canvas, shape.canvas), None if cache is None else str(cache)
    return DiffusersTextToImage(
        str(folder), canvas, TEXT_LENGTH, None, prompts, network_dtype=dtype, text_dtype=dtype, vae_dtype=dtype
    )


class RandomReward:
    """CLIPScore under a random CLIP.

    Args:
        shape: its towers.
        device: where to.
    """

    fingerprint = None

    def __init__(self, shape: RewardShape, device: torch.device | str = "cpu") -> None:
        self.scorer = CLIPScore(_clip(shape, device))

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: not used.

        Returns:
            float32, (B,).
        """
        with torch.no_grad():
            scores: Tensor = self.scorer(unit_to_uint8(images), prompts)
        return scores


def be_quiet() -> None:
    """Models of random numbers have nothing to say."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")


def bytes_of(*modules: nn.Module) -> int:
    """Memory of parameters.

    Args:
        modules: networks, on any device, the meta device too.

    Returns:
        Bytes.
    """
    return sum(weight.numel() * weight.element_size() for module in modules for weight in module.parameters())


def number_of_parameters(module: nn.Module) -> int:
    """Parameters of a network.

    Args:
        module: on any device.

    Returns:
        How many.
    """
    return sum(weight.numel() for weight in module.parameters())


def _filled(build: Callable[[], Any], device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        # Not by diffusers' own method, which warns of networks that keep some layers in float32; this one keeps none.
        network = nn.Module.to(build(), dtype).requires_grad_(False).eval()
    if torch.device(device).type == "meta":
        return network
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        tensor.normal_(0.0, 0.02, generator=generator)
        if tensor.ndim == 1 and name.endswith(".weight"):  # a norm
            tensor.add_(1.0)
    return network


def _tower(tower: Tower) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.hidden,
        "projection_dim": tower.width,
    }


def _clip_text(tower: Tower) -> Any:
    import transformers

    tokenizer = _clip_tokenizer()
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = transformers.CLIPTextConfig(**_tower(tower), vocab_size=len(tokenizer), **special)
    return transformers.CLIPTextModelWithProjection(config).eval()


def _t5(tower: Tower) -> Any:
    import transformers

    config = transformers.T5Config(
        vocab_size=len(_t5_tokenizer()),
        d_model=tower.width,
        d_kv=tower.width // tower.heads,
        d_ff=tower.hidden,
        num_layers=tower.depth,
        num_heads=tower.heads,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config).eval()


def _clip_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[], model_max_length=CONTEXT)


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    words = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
    return T5Tokenizer(vocab=[(word, 0.0 if place < 3 else -1.0) for place, word in enumerate(words)], extra_ids=0)


def _byte_numbers(texts: list[str]) -> Tensor:
    rows = [[256, *text.encode()[: CONTEXT - 2]] for text in texts]
    return torch.tensor([row + [257] * (CONTEXT - len(row)) for row in rows])


def _clip(shape: RewardShape, device: torch.device | str) -> CLIPModel:
    import transformers

    config = transformers.CLIPConfig(
        text_config={**_tower(shape.text), "vocab_size": 258, "bos_token_id": 256, "eos_token_id": 257},
        vision_config={**_tower(shape.vision), "image_size": shape.edge, "patch_size": shape.patch},
        projection_dim=shape.text.width,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        network = transformers.CLIPModel(config)
    return CLIPModel(network, "transformers", _byte_numbers, CLIPPixels(shape.edge), "random", "random")
