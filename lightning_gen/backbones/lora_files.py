"""Adapters on disk, in the two styles in which they are published: that of peft and that of diffusers.

| style | file | a key | scale |
| --- | --- | --- | --- |
| peft | ``adapter_model.safetensors`` | ``base_model.model.blocks.0.to_q.lora_A.weight`` | ``adapter_config.json`` |
| diffusers | ``pytorch_lora_weights.safetensors`` | ``transformer.blocks.0.to_q.lora_A.weight`` | header of the file |
| diffusers, older | the same | ``unet.blocks.0.to_q.lora.down.weight`` | ``...to_q.alpha``; without it 1 |
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from torch import Tensor

from .lora_weights import AdapterWeights
from .weights import MissingWeightsError, fetch_files

__all__ = ["AdapterStyle", "read_adapter", "write_adapter"]

AdapterStyle = Literal["peft", "diffusers"]

_PEFT_FILE: Final = "adapter_model.safetensors"
_PEFT_CONFIG: Final = "adapter_config.json"
_DIFFUSERS_FILE: Final = "pytorch_lora_weights.safetensors"
_METADATA: Final = "lora_adapter_metadata"
_PEFT_PREFIX: Final = "base_model.model."
_COMPONENTS: Final = ("transformer.", "unet.")
_FACTOR: Final = re.compile(r"(.+)\.(lora_A|lora_B|lora\.down|lora\.up)\.weight")
_ALPHA: Final = ".alpha"


def read_adapter(source: str | Path) -> AdapterWeights:
    """Read an adapter that somebody trained.

    Args:
        source: a safetensors file, a folder that holds one under either style's name, or a hub id.

    Returns:
        Its factors on the CPU, under the names of the base network's modules.

    Raises:
        MissingWeightsError: the files are absent or damaged, or are no safetensors.
        ValueError: the file holds something else than plain LoRA factors of one rank, or does not say its scale.
    """
    from safetensors import SafetensorError, safe_open

    file = _find(source)
    try:
        with safe_open(file, "pt") as opened:
            header: Mapping[str, str] = opened.metadata() or {}
            tensors: dict[str, Tensor] = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise MissingWeightsError(f"{file} is damaged or no safetensors file ({error}): copy it again") from None
    factors, alphas = _parse(tensors, file)
    rank = next(iter(factors.values()))[0].shape[0]
    if file.name == _PEFT_FILE or any(key.startswith(_PEFT_PREFIX) for key in tensors):
        return AdapterWeights(factors, _peft_alpha(file.parent / _PEFT_CONFIG, rank))
    if alphas:
        # Every layer may have a scale of its own here, and has one of the whole adapter in the house.
        factors = {name: (down, up * (alphas.get(name, rank) / rank)) for name, (down, up) in factors.items()}
        return AdapterWeights(factors, float(rank))
    return AdapterWeights(factors, _header_alpha(header, rank, file))


def write_adapter(
    weights: AdapterWeights,
    folder: str | Path,
    style: AdapterStyle = "peft",
    component: Literal["transformer", "unet"] = "transformer",
) -> Path:
    """Write an adapter so that peft (``PeftModel.from_pretrained``) or diffusers (``load_lora_weights``) reads it.

    Args:
        weights: whole tensors; of several ranks one writes.
        folder: made if it does not exist.
        style: whose names and files.
        component: of a diffusers pipeline that is adapted; not part of peft's style.

    Returns:
        The safetensors file.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    prefix = _PEFT_PREFIX if style == "peft" else f"{component}."
    tensors = {}
    for name, pair in weights.factors.items():
        for part, factor in zip(("lora_A", "lora_B"), pair, strict=True):
            tensors[f"{prefix}{name}.{part}.weight"] = factor.detach().cpu().contiguous()
    alpha = int(weights.alpha) if float(weights.alpha).is_integer() else weights.alpha
    modules = list(weights.factors)
    if style == "peft":
        config = LoraConfig(
            r=weights.rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # scales are real numbers, whatever the annotation says
            target_modules=modules,
            init_lora_weights="gaussian",
            inference_mode=True,
        )
        config.save_pretrained(str(folder))
        save_file(tensors, folder / _PEFT_FILE, metadata={"format": "pt"})
        return folder / _PEFT_FILE
    settings = {"r": weights.rank, "lora_alpha": alpha, "target_modules": modules}
    header = json.dumps({prefix + key: value for key, value in settings.items()}, sort_keys=True)
    save_file(tensors, folder / _DIFFUSERS_FILE, metadata={"format": "pt", _METADATA: header})
    return folder / _DIFFUSERS_FILE


def _find(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in (_PEFT_FILE, _DIFFUSERS_FILE):
            if (path / name).is_file():
                return path / name
        raise MissingWeightsError(
            f"{path} holds neither {_PEFT_FILE} nor {_DIFFUSERS_FILE}; give the folder or the file of an adapter in "
            "safetensors (pickled adapters are not opened)"
        )
    try:
        return fetch_files(str(source), [_PEFT_CONFIG, _PEFT_FILE]) / _PEFT_FILE
    except MissingWeightsError as error:
        try:
            return fetch_files(str(source), [_DIFFUSERS_FILE]) / _DIFFUSERS_FILE
        except MissingWeightsError:
            raise error from None


def _parse(tensors: Mapping[str, Tensor], file: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """Factors and, where layers have their own, alphas, by module."""
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        found = _FACTOR.fullmatch(key)
        if found:
            half = "A" if found[2] in ("lora_A", "lora.down") else "B"
            halves.setdefault(_module(found[1]), {})[half] = tensor
        elif key.endswith(_ALPHA) and tensor.numel() == 1:
            alphas[_module(key.removesuffix(_ALPHA))] = float(tensor)
        else:
            raise ValueError(
                f"{file}: {key} is no factor of LoRA. Plain factors are read, named lora_A and lora_B or lora.down and "
                "lora.up; not DoRA, biases, LoKr or the names of other programs"
            )
    for name, pair in halves.items():
        if len(pair) < 2:
            raise ValueError(f"{file}: {name} has only its factor {next(iter(pair))}")
    if not halves:
        raise ValueError(f"{file} holds no factor of LoRA")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}, alphas


def _module(name: str) -> str:
    for prefix in (_PEFT_PREFIX, *_COMPONENTS):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _peft_alpha(config_file: Path, rank: int) -> float:
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        alpha = float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{config_file} is missing or does not say lora_alpha: without it the scale of the adapter beside it is "
            "unknown. Copy it from where the adapter comes from"
        ) from None
    _require_plain(config, config_file)
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _header_alpha(header: Mapping[str, str], rank: int, file: Path) -> float:
    stored = json.loads(header.get(_METADATA, "{}"))
    config = {_module(key): value for key, value in stored.items()}
    _require_plain(config, file)
    alpha = float(config.get("lora_alpha", rank))
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _require_plain(config: Mapping[str, Any], file: Path) -> None:
    for key in ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias"):
        if config.get(key):
            raise ValueError(f"{file}: {key} is {config[key]!r}; adapters here have one rank, one scale and no more")
