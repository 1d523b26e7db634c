"""Which linear layers of a network get low-rank adapters: presets by family, and the search for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from torch import nn

__all__ = ["LORA_TARGETS", "LoRATargets", "preset_targets", "target_modules"]


@dataclasses.dataclass(frozen=True)
class LoRATargets:
    """Linear layers by the ends of their names.

    Attributes:
        suffixes: ends of dotted module names in whole parts: ``attn.to_q`` means ``blocks.0.attn.to_q`` and not
            ``blocks.0.attn2.to_q`` or ``blocks.0.cross_attn.to_q``.
        exclude: names of submodules inside which nothing is adapted, at any depth.
    """

    suffixes: tuple[str, ...]
    exclude: tuple[str, ...] = ()


_JOINT: Final = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
"""Attention over image and text at once; a second attention over the image alone (``attn2``) is left as it is."""

_UNET: Final = tuple(f"{kind}.{layer}" for kind in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0"))
# The encoder of prompts is frozen in post-training, also where it lives inside the network; its layers share names with
# those of the transformer.
_HOUSE: Final = LoRATargets(("attn.qkv_proj", "attn.out_proj", "text_proj"), exclude=("text_encoder",))

LORA_TARGETS: Final[Mapping[str, LoRATargets]] = {
    "SD3Transformer2DModel": LoRATargets(_JOINT),
    "FluxTransformer2DModel": LoRATargets(_JOINT),
    "Flux2Transformer2DModel": LoRATargets((*_JOINT, "attn.to_qkv_mlp_proj")),
    "UNet2DConditionModel": LoRATargets(_UNET),
    "TextDiT": _HOUSE,
    "PixelTextDiT": _HOUSE,
}
"""Class of a network -> what is adapted: all projections of its attention.

Source: arXiv:2505.05470, published configuration (SD3); the other families by analogy.
"""


def preset_targets(network: nn.Module) -> LoRATargets:
    """What is adapted in a network of a known family.

    Args:
        network: of one of the classes in ``LORA_TARGETS``, or of a subclass.

    Returns:
        Its targets.

    Raises:
        ValueError: another class.
    """
    for kind in type(network).__mro__:
        if kind.__name__ in LORA_TARGETS:
            return LORA_TARGETS[kind.__name__]
    raise ValueError(
        f"there is no list of LoRA targets for {type(network).__name__} (there is for {', '.join(LORA_TARGETS)}): give "
        "the ends of the names of its linear layers in LoRASettings.targets"
    )


def target_modules(network: nn.Module, targets: LoRATargets) -> list[str]:
    """Names of the layers that targets mean, in the order of the network.

    Args:
        network: plain, or adapted already.
        targets: what to look for.

    Returns:
        Dotted names, at least one for every suffix.

    Raises:
        ValueError: a suffix that fits no layer, or one that fits a module which is not linear.
    """
    found: list[str] = []
    unused = dict.fromkeys(targets.suffixes)
    for name, module in network.named_modules():
        fitting = [suffix for suffix in targets.suffixes if f".{name}".endswith(f".{suffix}")]
        if not fitting or _inside(name, targets.exclude):
            continue
        layer = getattr(module, "base_layer", module)
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"{name} of {type(network).__name__} is a {type(layer).__name__}: only linear layers take adapters, so "
                f"make the target {fitting[0]!r} longer or leave it out"
            )
        found.append(name)
        for suffix in fitting:
            unused.pop(suffix, None)
    if unused:
        raise ValueError(
            f"no layer of {type(network).__name__} is named {' or '.join(map(repr, unused))}; targets are the ends of "
            "the names of its linear layers"
        )
    return found


def _inside(name: str, parts: Sequence[str]) -> bool:
    return any(f".{part}." in f".{name}." for part in parts)
