"""InternViT through transformers, trainable or frozen: built from sizes alone, or with the weights of a folder.

Shape letters: B images, H and W height and width, p patch edge, L = (H / p)(W / p) patches, D width.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from .adopted import adopt
from .frozen import ordinary_construction
from .weights import MissingWeightsError, fetch_weights, find_weights, read_config

__all__ = ["InternViT", "InternViTShape", "intern_vit_from_original", "intern_vit_to_original", "read_intern_vit"]

_KINDS = ("internvl_vision", "internvl", "intern_vit_6b", "internvl_chat")
_TOWERS = ("vision_tower.", "model.vision_tower.", "vision_model.")
# Names of the first releases on the left, of transformers on the right.
_RENAMED = (
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.position_embedding", "embeddings.position_embeddings"),
    ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
)
_RENAMED_IN_LAYER = (
    ("ls1", "lambda_1"),
    ("ls2", "lambda_2"),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("attn.proj.", "attention.projection_layer."),
    ("attn.q_norm.", "attention.q_norm."),
    ("attn.k_norm.", "attention.k_norm."),
    ("mlp.", "mlp."),
)


@dataclasses.dataclass(frozen=True)
class InternViTShape:
    """Sizes of an InternViT; the defaults are InternViT-300M as in InternVL3-1B and -2B (304,012,288 parameters).

    Attributes:
        width: D.
        depth: number of blocks.
        heads: attention heads.
        hidden: width of the feed-forward layers.
        patch: p in pixels.
        image_size: edge in pixels for which the positions were learned.
        attention_bias: whether queries, keys and values have biases.
        layer_scale: gain of the residual branches at the start.
        eps: of the LayerNorms.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 4096
    patch: int = 14
    image_size: int = 448
    attention_bias: bool = True
    layer_scale: float = 0.1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.hidden, self.patch, self.image_size) < 1:
            raise ValueError(f"sizes of an InternViT must be positive, got {self}")
        if self.width % self.heads or self.image_size % self.patch:
            raise ValueError(
                f"InternViT: width {self.width} must be a multiple of heads {self.heads}, image_size "
                f"{self.image_size} one of patch {self.patch}"
            )


class InternViT(nn.Module):
    """Tokens of pictures from InternViT, the vision tower of InternVL; no norm after the last block.

    It may be built on the meta device. Every module fills its own tensors, so that ``training.strategies.prepare``
    initialises it; positions, which transformers starts at 0, start as normal numbers of deviation 0.02.

    Args:
        shape: sizes.

    Raises:
        ImportError: transformers is missing or has no InternVL.

    Source: arXiv:2504.10479 (InternVL3), arXiv:2412.05271.
    """

    def __init__(self, shape: InternViTShape = InternViTShape()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.shape = shape
        self.model: Any = _build(shape)
        adopt(self.model, _filler(shape.layer_scale))

    @classmethod
    def from_pretrained(cls, source: str, revision: str | None = None) -> Self:
        """The network with published weights, trainable, on the CPU in float32.

        Args:
            source: folder or hub id with ``config.json`` and safetensors of an InternViT, or of a whole InternVL model
                whose vision tower is taken; in transformers' layout or in that of the first releases.
            revision: branch, tag or commit of the hub repository.

        Returns:
            The network. ``FrozenModule(network)`` freezes it.

        Raises:
            MissingWeightsError: the weights are absent, damaged or not an InternViT.
        """
        shape, state = read_intern_vit(source, revision)
        with torch.device("meta"):
            network = cls(shape)
        network.model.load_state_dict(state, assign=True)
        return network

    @property
    def patch(self) -> int:
        """Patch edge p in pixels."""
        return self.shape.patch

    @property
    def width(self) -> int:
        """Width D of a token."""
        return self.shape.width

    def blocks(self) -> Iterator[nn.Module]:
        """The transformer blocks: units of checkpointing, compilation and sharding."""
        yield from self.model.encoder.layer

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens after the last block, positions interpolated bicubically to the grid.

        Args:
            pixels: float, (B, 3, H, W), ImageNet mean 0 and deviation 1; both sides multiples of p, any ratio.

        Returns:
            (B, 1 + L, D): class token, then the patches row by row.

        Raises:
            ValueError: wrong shape, or sides that are no multiples of the patch.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % self.patch or pixels.shape[3] % self.patch:
            raise ValueError(
                f"InternViT takes (B, 3, H, W) with sides that are multiples of {self.patch}, got {tuple(pixels.shape)}"
            )
        x = self.model.embeddings(pixels)
        for block in self.model.encoder.layer:
            x = block(x)
        return x if isinstance(x, Tensor) else x[0]


def read_intern_vit(source: str, revision: str | None = None) -> tuple[InternViTShape, dict[str, Tensor]]:
    """Sizes and tensors of an InternViT; of a whole InternVL model only the vision tower is read.

    Args:
        source: as in ``InternViT.from_pretrained``.
        revision: branch, tag or commit of the hub repository.

    Returns:
        Sizes, and tensors under transformers' names.

    Raises:
        MissingWeightsError: the weights are absent, damaged or not an InternViT.
    """
    folder = _folder(source, revision)
    config = read_config(folder)
    kind = str(config.get("model_type"))
    if kind not in _KINDS:
        raise MissingWeightsError(
            f"{folder / 'config.json'} describes {kind!r}, neither an InternViT nor an InternVL model (model_type one "
            f"of {', '.join(_KINDS)}): give another source"
        )
    shape = _shape(config.get("vision_config", config), folder)
    state = _read_tower(folder, whole="vision_config" in config)
    if any(name.startswith("encoder.layers.") for name in state):
        state = intern_vit_from_original(state)
    # Masked image modelling had a token that nothing reads any more.
    state.pop("embeddings.mask_token", None)
    _require_all(folder, shape, state)
    return shape, {name: tensor.float() for name, tensor in state.items()}


def intern_vit_from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the first releases (``encoder.layers.0.attn.qkv.weight``) to transformers' names.

    Args:
        state: tensors of an ``InternVisionModel``; queries, keys and values of a layer are one tensor.

    Returns:
        Tensors of an ``InternVLVisionModel``.

    Raises:
        ValueError: a name belongs to no part of the network.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if found is None:
            out[_swap(name, _RENAMED)] = tensor
            continue
        layer, rest = f"encoder.layer.{found[1]}.", found[2]
        if rest.startswith("attn.qkv."):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{layer}attention.{part}_proj.{rest.removeprefix('attn.qkv.')}"] = piece
        else:
            out[layer + _swap(rest, _RENAMED_IN_LAYER)] = tensor
    return out


def intern_vit_to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back of ``intern_vit_from_original``, bit for bit.

    Args:
        state: tensors of an ``InternVLVisionModel``.

    Returns:
        Tensors of an ``InternVisionModel``.

    Raises:
        ValueError: a name belongs to no part of the network.
    """
    out: dict[str, Tensor] = {}
    back, back_in_layer = ([(new, old) for old, new in pairs] for pairs in (_RENAMED, _RENAMED_IN_LAYER))
    for name, tensor in state.items():
        found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        if found is None:
            out[_swap(name, back)] = tensor
            continue
        layer, rest = f"encoder.layers.{found[1]}.", found[2]
        projection = re.fullmatch(r"attention\.([qkv])_proj\.(.+)", rest)
        if projection is None:
            out[layer + _swap(rest, back_in_layer)] = tensor
        elif projection[1] == "q":
            parts = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            out[f"{layer}attn.qkv.{projection[2]}"] = torch.cat(parts)
    return out


def _swap(name: str, pairs: Any) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return str(new + name.removeprefix(old))
    raise ValueError(f"tensor {name!r} is not part of an InternViT")


def _folder(source: str, revision: str | None) -> Path:
    """The folder of the weights, with a message that fits a folder of another kind."""
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise MissingWeightsError(
            f"{source} holds no config.json, so it is no folder of an InternViT or InternVL model: give the folder "
            "that `save_pretrained` or a download wrote, with config.json and model.safetensors"
        )
    folder, _ = find_weights(source, revision)
    return folder or fetch_weights(source, revision)


def _shape(vision: Any, folder: Path) -> InternViTShape:
    def side(name: str) -> int:
        value = vision[name]
        return int(value if isinstance(value, int) else value[0])

    try:
        if vision.get("use_qk_norm", vision.get("qk_normalization")) or vision.get("norm_type") == "rms_norm":
            raise MissingWeightsError(
                f"{folder / 'config.json'} describes an InternViT-6B (RMSNorm, normalised queries); here are the "
                "sizes with LayerNorm, such as InternViT-300M"
            )
        return InternViTShape(
            width=side("hidden_size"),
            depth=side("num_hidden_layers"),
            heads=side("num_attention_heads"),
            hidden=side("intermediate_size"),
            patch=side("patch_size"),
            image_size=side("image_size"),
            attention_bias=bool(vision.get("attention_bias", vision.get("qkv_bias", False))),
            layer_scale=float(vision.get("layer_scale_init_value", vision.get("initializer_factor", 0.1))),
            eps=float(vision.get("layer_norm_eps", 1e-6)),
        )
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise MissingWeightsError(
            f"{folder / 'config.json'} does not say the sizes of an InternViT ({type(error).__name__}: {error}): copy "
            "it again from its source"
        ) from None


def _read_tower(folder: Path, whole: bool) -> dict[str, Tensor]:
    """Tensors of the vision tower without its prefix; the language model of a whole one is never read."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    state: dict[str, Tensor] = {}
    for name in names:
        with safe_open(str(folder / name), framework="pt") as file:
            keys: list[str] = list(file.keys())
            for key in keys:
                prefix = next((start for start in _TOWERS if key.startswith(start)), None)
                if prefix is not None or not whole:
                    state[key.removeprefix(prefix or "")] = file.get_tensor(key)
    return state


def _require_all(folder: Path, shape: InternViTShape, state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        wanted = InternViT(shape).model.state_dict()
    wrong = sorted(set(wanted) ^ set(state))
    wrong += [name for name, x in wanted.items() if name in state and state[name].shape != x.shape]
    if wrong:
        raise MissingWeightsError(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing, unknown or of "
            f"another shape, such as {', '.join(wrong[:3])}. Copy both files from one source"
        )


def _build(shape: InternViTShape) -> nn.Module:
    try:
        from transformers import InternVLVisionConfig, InternVLVisionModel
    except ImportError:
        raise ImportError("InternViT needs transformers with InternVL: pip install -U transformers") from None
    config = InternVLVisionConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.hidden,
        patch_size=(shape.patch, shape.patch),
        image_size=(shape.image_size, shape.image_size),
        attention_bias=shape.attention_bias,
        layer_scale_init_value=shape.layer_scale,
        layer_norm_eps=shape.eps,
    )
    is_meta = torch.get_default_device().type == "meta"
    if is_meta:
        network: nn.Module = InternVLVisionModel(config)
    else:
        with ordinary_construction():
            network = InternVLVisionModel(config)
    return network


def _filler(layer_scale: float) -> Callable[[nn.Module], None]:
    """Initial values of the tensors that one module owns, after transformers' rule."""

    def fill(module: nn.Module) -> None:
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("lambda"):
                    nn.init.constant_(parameter, layer_scale)
                else:
                    nn.init.normal_(parameter, std=0.02)

    return fill
