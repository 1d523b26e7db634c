"""Published ViTok-v2 weights to ours and back.

A model on disk is a folder with ``encoder.safetensors`` and ``decoder.safetensors`` under the published key names, and
our ``config.json`` beside them; a published folder has no such file and is recognised by the shapes of its tensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_gen.autoencoders.vitok_v2.bottleneck import BottleneckName
from lightning_gen.autoencoders.vitok_v2.variants import PUBLISHED, Stack, Variant
from lightning_gen.backbones.weights import fetch_files, read_config

__all__ = ["Settings", "from_published", "infer_variant", "locate", "read_folder", "to_published", "write_folder"]

_CONFIG = "config.json"
_HALVES = ("encoder", "decoder")
_PREFIXES = {
    "patch_embed.": "encoder.embed.",
    "encoder_blocks.": "encoder.blocks.",
    "to_code.": "encoder.head.",
    "decoder_embed.": "decoder.embed.",
    "decoder_blocks.": "decoder.blocks.",
    "to_pixels.": "decoder.head.",
}
_COMPILED = "_orig_mod."


@dataclasses.dataclass(frozen=True)
class Settings:
    """What must be known beside the weights to run a model.

    Attributes:
        variant: architecture string.
        bottleneck: how the latent is normalised.
        rope_theta: base of the rotary frequencies.
        mask_padding: False for models trained on unmasked padding.
    """

    variant: str
    bottleneck: BottleneckName = "layernorm"
    rope_theta: float = 10000.0
    mask_padding: bool = True


def locate(source: str) -> Path:
    """The folder of a model, fetched from the hub if it is not on this machine.

    Args:
        source: published name (``5B-f16x64``), hub id, or local folder.

    Returns:
        A folder with the files of both halves.

    Raises:
        MissingWeightsError: the folder is incomplete, or the hub does not give the files; says what to do.
    """
    place = f"philippehansen/ViTok-v2-{source}" if source in PUBLISHED else source
    return fetch_files(place, [f"{half}.safetensors" for half in _HALVES], optional=[_CONFIG])


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published keys to ours.

    Args:
        state: tensors of the encoder, the decoder or both; a leading ``_orig_mod.`` (torch.compile) is dropped.

    Returns:
        The same tensors under the names of ``ViTokV2Network``.

    Raises:
        ValueError: a key belongs to no part of the model.

    Source: key names of the published checkpoints (arXiv:2605.05331).
    """
    return {_renamed(key.removeprefix(_COMPILED), _PREFIXES): tensor for key, tensor in state.items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Rename our keys to the published ones.

    Args:
        state: state dict of ``ViTokV2Network``.

    Returns:
        The tensors of each half, under ``encoder`` and ``decoder``.

    Raises:
        ValueError: a key belongs to no part of the model.
    """
    back = {ours: published for published, ours in _PREFIXES.items()}
    return {
        half: {_renamed(key, back): tensor for key, tensor in state.items() if key.startswith(half)} for half in _HALVES
    }


def _renamed(key: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise ValueError(f"key {key!r} is not part of a ViTok-v2 model; its keys start with {', '.join(prefixes)}")


def infer_variant(state: Mapping[str, Tensor]) -> Variant:
    """Read the architecture off the shapes of the tensors.

    Args:
        state: tensors of both halves under our names.

    Returns:
        The variant (its bottleneck is the LayerNorm latent that all published models have).

    Raises:
        ValueError: the tensors do not describe a ViTok-v2 model.
    """
    try:
        halves = [_infer_stack(state, half) for half in _HALVES]
        pixels, channels = state["encoder.embed.weight"].shape[1], state["encoder.head.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"not a complete ViTok-v2 model: {error.args[0]!r} is missing") from None
    patch = math.isqrt(pixels // 3)
    if 3 * patch**2 != pixels:
        raise ValueError(f"the first layer takes {pixels} numbers, which are not the pixels of a square RGB patch")
    # Hidden widths were rounded to multiples of 16: any factor that gives both of them will do.
    low, high = max((m - 8) / s.width for s, m in halves), min((m + 7) / s.width for s, m in halves)
    default = Stack(0, 0, 0).mlp_factor
    factor = default if low <= default <= high else (low + high) / 2
    encoder, decoder = (dataclasses.replace(stack, mlp_factor=factor) for stack, _ in halves)
    if [encoder.hidden, decoder.hidden] != [hidden for _, hidden in halves]:
        raise ValueError("the feed-forward widths of encoder and decoder follow from no common factor")
    return Variant(encoder, decoder, patch, channels)


def _infer_stack(state: Mapping[str, Tensor], half: str) -> tuple[Stack, int]:
    """Shape of a half, and the hidden width of its feed-forward parts."""
    depth = 1 + max((int(n) for n in re.findall(rf"{half}\.blocks\.(\d+)\.norm1", " ".join(state))), default=-1)
    width = state[f"{half}.embed.weight"].shape[0]
    first = f"{half}.blocks.0"
    heads = width // state[f"{first}.attn.norm_q.weight"].shape[0]
    return Stack(width, depth, heads), state[f"{first}.ffn.fc2.weight"].shape[1]


def read_folder(folder: Path) -> tuple[Settings, dict[str, Tensor]]:
    """Read a model from disk.

    Args:
        folder: holds ``encoder.safetensors`` and ``decoder.safetensors``.

    Returns:
        Settings and tensors under our names.

    Raises:
        ValueError: a file is missing or damaged, or the weights are not those that ``config.json`` describes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for half in _HALVES:
        path = folder / f"{half}.safetensors"
        try:
            state |= from_published(load_file(path))
        except FileNotFoundError:
            raise ValueError(f"{folder} is not a ViTok-v2 model: {path.name} is missing") from None
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    settings = _read_settings(folder / _CONFIG)
    if settings is None:
        settings = Settings(infer_variant(state).name)
    return settings, state


def _read_settings(path: Path) -> Settings | None:
    if not path.exists():
        return None
    stored = read_config(path.parent)
    known = {field.name for field in dataclasses.fields(Settings)}
    settings = {key: value for key, value in stored.items() if key in known}
    if "variant" not in settings:  # a config.json of somebody else's making
        return None
    if not isinstance(settings["variant"], str):
        raise ValueError(f"{path}: variant must be a name, got {settings['variant']!r}")
    return Settings(**settings)


def write_folder(folder: Path, settings: Settings, state: Mapping[str, Tensor]) -> None:
    """Write a model to disk under the published key names.

    Args:
        folder: made if it does not exist.
        settings: goes to ``config.json``.
        state: state dict of ``ViTokV2Network``.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for half, tensors in to_published(state).items():
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        partial = folder / f".{half}.safetensors.partial"
        save_file(whole, partial, metadata={"format": "pt"})
        partial.replace(folder / f"{half}.safetensors")
    text = json.dumps({"model": "ViTokV2", **dataclasses.asdict(settings)}, indent=2)
    (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")
