"""PAE on disk: our folder, and the published tokenizers to ours and back.

Our folder holds ``model.safetensors`` under our names, ``config.json``, and the frozen prior in ``prior``. A published
file is a checkpoint whose key ``model`` holds the auto-encoder's own tensors beside those of the prior (``encoder.``).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightning_gen.autoencoders.pae.network import PAENetwork
from lightning_gen.autoencoders.pae.prior import require_prior
from lightning_gen.autoencoders.pae.variants import DECODERS, PAEShape, Stack
from lightning_gen.backbones.patch_features import PatchEncoder
from lightning_gen.backbones.weights import MissingWeightsError, read_config
from lightning_gen.training.safe_reading import load_plain

__all__ = [
    "ImportReport",
    "Settings",
    "from_published",
    "import_published",
    "infer_shape",
    "read_folder",
    "to_published",
    "write_folder",
]

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_PRIOR: Final = "encoder."
_TRAINING_ONLY: Final = "alignment."
# Published beginnings on the left; {i} stands for the number of a layer.
_RENAMED: Final = (
    ("delta_encoder.pos_embed", "modulator.positions.table"),
    ("delta_encoder.patch_embed.proj.", "modulator.patch_embed."),
    ("delta_encoder.layers.{i}.self_attn.", "modulator.layers.{i}.self_attention."),
    ("delta_encoder.layers.{i}.cross_attn.", "modulator.layers.{i}.cross_attention."),
    ("delta_encoder.layers.{i}.mlp.", "modulator.layers.{i}."),
    ("delta_encoder.layers.{i}.", "modulator.layers.{i}."),
    ("delta_encoder.fusion_proj.", "modulator.fusion_proj."),
    ("delta_encoder.final_ln.", "modulator.final_norm."),
    ("latent_compressor.0.", "projector.attention."),
    ("latent_compressor.1.", "projector.convolution."),
    ("latent_decompressor.0.", "deprojector.convolution."),
    ("latent_decompressor.1.", "deprojector.attention."),
    ("decoder.decoder_pos_embed", "decoder.positions.table"),
    ("decoder.trainable_cls_token", "decoder.cls_token"),
    ("decoder.decoder_embed.", "decoder.embed."),
    ("decoder.decoder_layers.{i}.attention.attention.query.", "decoder.layers.{i}.attention.q."),
    ("decoder.decoder_layers.{i}.attention.attention.key.", "decoder.layers.{i}.attention.k."),
    ("decoder.decoder_layers.{i}.attention.attention.value.", "decoder.layers.{i}.attention.v."),
    ("decoder.decoder_layers.{i}.attention.output.dense.", "decoder.layers.{i}.attention.proj."),
    ("decoder.decoder_layers.{i}.intermediate.dense.", "decoder.layers.{i}.fc1."),
    ("decoder.decoder_layers.{i}.output.dense.", "decoder.layers.{i}.fc2."),
    ("decoder.decoder_layers.{i}.layernorm_before.", "decoder.layers.{i}.norm1."),
    ("decoder.decoder_layers.{i}.layernorm_after.", "decoder.layers.{i}.norm2."),
    ("decoder.decoder_norm.", "decoder.norm."),
    ("decoder.decoder_pred.", "decoder.head."),
)
_PARTS = ("q", "k", "v")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What must be known beside the weights.

    Attributes:
        shape: sizes and choices.
        encoder: name of the prior's class.
        encoder_arguments: of its constructor; paths are relative to the folder ``prior``.
    """

    shape: PAEShape
    encoder: str
    encoder_arguments: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What became of a published file.

    Attributes:
        loaded: our names that were filled.
        missing: our names that the file does not have.
        prior: its tensors of the frozen prior, which is read from its own source.
        dead: its tensors that belong to nothing of the model.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    prior: tuple[str, ...]
    dead: tuple[str, ...]

    def __str__(self) -> str:
        """One line for people."""

        def some(names: tuple[str, ...]) -> str:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            return f"{len(names)} ({', '.join(names[:5])}{more})" if names else "none"

        return (
            f"{len(self.loaded)} tensors loaded; missing: {some(self.missing)}; of the frozen prior, not read: "
            f"{len(self.prior)}; dead: {some(self.dead)}"
        )


# ---------------------------------------------------------------------- published names


def from_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """Rename published tensors to ours; pixel vectors change from row, column, channel to channel, row, column.

    Args:
        state: content of the key ``model``.

    Returns:
        Tensors of ``PAENetwork``, names of the prior's tensors, names that belong to nothing.

    Source: key names of the published tokenizer (arXiv:2605.07915).
    """
    ours: dict[str, Tensor] = {}
    prior, dead = [], []
    for key, tensor in state.items():
        name = _swap(key, dict(_RENAMED))
        if name is not None:
            ours[name] = _pixel_order(tensor, to_ours=True) if name.startswith("decoder.head.") else tensor
        elif key.startswith(_PRIOR):
            prior.append(key)
        else:
            dead.append(key)
    return _joined(ours), tuple(sorted(prior)), tuple(sorted(dead))


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors to the published ones, bit for bit the way back of ``from_published``.

    Args:
        state: state dict of ``PAENetwork``; the layer of the VF loss is left out.

    Returns:
        Content of the key ``model`` without the prior.

    Raises:
        ValueError: a tensor belongs to no part of the published model.
    """
    back = {new: old for old, new in _RENAMED if old != "delta_encoder.layers.{i}.mlp."}
    published: dict[str, Tensor] = {}
    for key, tensor in _split(state).items():
        if key.startswith(_TRAINING_ONLY):
            continue
        found = re.fullmatch(r"modulator\.layers\.(\d+)\.(fc[12]\..+)", key)
        name = f"delta_encoder.layers.{found[1]}.mlp.{found[2]}" if found else _swap(key, back)
        if name is None:
            raise ValueError(f"tensor {key!r} has no place in a published PAE")
        published[name] = _pixel_order(tensor, to_ours=False) if key.startswith("decoder.head.") else tensor
    return published


def _swap(key: str, pairs: Mapping[str, str]) -> str | None:
    for old, new in pairs.items():
        pattern = re.escape(old).replace(r"\{i\}", r"(\d+)")
        found = re.match(pattern, key)
        if found is not None:
            start = new.replace("{i}", found[1]) if found.groups() else new
            return start + key[found.end() :]
    return None


def _pixel_order(tensor: Tensor, to_ours: bool) -> Tensor:
    """Rows of the last layer between (row, column, channel), as published, and (channel, row, column)."""
    patch = math.isqrt(len(tensor) // 3)
    if to_ours:
        return tensor.reshape(patch, patch, 3, *tensor.shape[1:]).movedim(2, 0).flatten(0, 2).contiguous()
    return tensor.reshape(3, patch, patch, *tensor.shape[1:]).movedim(0, 2).flatten(0, 2).contiguous()


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of the decoder as one tensor."""
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        found = re.fullmatch(r"(decoder\.layers\.\d+\.attention\.)([qkv])\.(\w+)", key)
        if found is None:
            out[key] = tensor
            continue
        parts = [state.get(f"{found[1]}{part}.{found[3]}") for part in _PARTS]
        whole = [part for part in parts if part is not None]
        if len(whole) == 3:
            out[f"{found[1]}qkv.{found[3]}"] = torch.cat(whole)
    return out


def _split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        found = re.fullmatch(r"(decoder\.layers\.\d+\.attention\.)qkv\.(\w+)", key)
        if found is None:
            out[key] = tensor
            continue
        for part, piece in zip(_PARTS, tensor.chunk(3), strict=True):
            out[f"{found[1]}{part}.{found[2]}"] = piece.contiguous()
    return out


def infer_shape(state: Mapping[str, Tensor], prior_heads: int, decoder_heads: int | None = None) -> PAEShape:
    """Read sizes off the shapes of tensors; numbers of heads leave no trace in them.

    Args:
        state: tensors under our names.
        prior_heads: heads of the prior, for DINOv2-L 16.
        decoder_heads: heads of a decoder that is none of the published ones.

    Returns:
        The shape: on the sphere per token, ImageNet's mean and standard deviation.

    Raises:
        ValueError: the tensors do not describe a PAE.
    """
    try:
        width, channels = state["deprojector.convolution.weight"].shape[:2]
        prior_patch = state["modulator.patch_embed.weight"].shape[-1]
        grid = math.isqrt(state["modulator.positions.table"].shape[1])
        patch = math.isqrt(state["decoder.head.weight"].shape[0] // 3)
        rows, columns = state["modulator.fusion_proj.weight"].shape
        decoder_width, hidden = state["decoder.embed.weight"].shape[0], state["decoder.layers.0.fc1.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"not a complete PAE: {error.args[0]!r} is missing") from None
    depths = [
        1 + max((int(n) for n in re.findall(rf"{part}\.layers\.(\d+)\.", " ".join(state))), default=-1)
        for part in ("modulator", "decoder")
    ]
    sizes = (decoder_width, depths[1], hidden)
    names = [name for name, stack in DECODERS.items() if (stack.width, stack.depth, stack.hidden) == sizes]
    decoder = names[0] if names else f"w{decoder_width}_d{depths[1]}_h{decoder_heads or prior_heads}"
    if Stack.parse(decoder).hidden != hidden:
        raise ValueError(f"a decoder of width {decoder_width} with feed-forward layers of {hidden} is not known here")
    return PAEShape(
        channels=channels,
        prior_width=width,
        prior_heads=prior_heads,
        prior_patch=prior_patch,
        grid=grid,
        patch=patch,
        modulator_depth=depths[0],
        fusion="sft" if rows == 2 * columns else "concat" if columns == 2 * rows else "add",
        projection="attention" if "projector.attention.proj.weight" in state else "conv",
        decoder=decoder,
    )


def import_published(
    file: str | Path, folder: str | Path, encoder: PatchEncoder, prior_heads: int = 16, key: str = "model"
) -> ImportReport:
    """Turn a published checkpoint into a folder of ours.

    Args:
        file: the checkpoint; only tensors and plain values are read from it.
        folder: where to; the prior is copied beside the weights.
        encoder: the prior that the checkpoint was trained with.
        prior_heads: its attention heads.
        key: where in the checkpoint the weights are; the published evaluation takes ``model``, not an average.

    Returns:
        What was loaded, what is missing, what is dead.

    Raises:
        ValueError: the checkpoint holds something else, or was trained with another encoder.
    """
    content = load_plain(Path(file).expanduser())
    state = content.get(key) if isinstance(content, dict) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} has no weights under {key!r}: it is not a checkpoint of PAE's tokenizer")
    ours, prior, dead = from_published(state)
    shape = infer_shape(ours, prior_heads)
    with torch.device("meta"):
        wanted = PAENetwork(shape).state_dict()
    wrong = [name for name, tensor in wanted.items() if name in ours and ours[name].shape != tensor.shape]
    missing = tuple(name for name in wanted if name not in ours)
    unknown = tuple(to_published({name: ours[name]}).popitem()[0] for name in ours if name not in wanted)
    loaded = {name: tensor for name, tensor in ours.items() if name in wanted}
    report = ImportReport(tuple(loaded), missing, prior, (*dead, *unknown))
    if missing or wrong:
        raise ValueError(f"{file} does not fit: {report}; of another shape: {', '.join(wrong[:5]) or 'none'}")
    require_prior(encoder, shape)
    write_folder(Path(folder), shape, encoder, loaded)
    return report


# ---------------------------------------------------------------------- our folder


def write_folder(folder: Path, shape: PAEShape, encoder: PatchEncoder, state: Mapping[str, Tensor]) -> None:
    """Write a model to disk.

    Args:
        folder: made if it does not exist.
        shape: goes to ``config.json``.
        encoder: the frozen prior, copied to ``prior``.
        state: state dict of ``PAENetwork``; what only training needs is left out.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        key: tensor.detach().cpu().contiguous() for key, tensor in state.items() if not key.startswith(_TRAINING_ONLY)
    }
    partial = folder / f".{_WEIGHTS}.partial"
    save_file(whole, partial, metadata={"format": "pt"})
    partial.replace(folder / _WEIGHTS)
    config = {
        "model": "PAE",
        "shape": dataclasses.asdict(shape),
        "encoder": type(encoder).__name__,
        "encoder_arguments": encoder.save(folder / "prior"),
    }
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_folder(folder: Path) -> tuple[Settings, dict[str, Tensor]]:
    """Read a model from disk.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.

    Returns:
        Settings and tensors under our names.

    Raises:
        MissingWeightsError: a file is missing or damaged.
        ValueError: the folder holds another kind of model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise MissingWeightsError(f"{folder} is not a PAE: it holds no {name}. Give a folder of `lightning export`")
    config = read_config(folder)
    if config.get("model") != "PAE":
        raise ValueError(f"{folder} holds {config.get('model')!r}, not a PAE")
    try:
        given: dict[str, Any] = dict(config["shape"])
        given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
        settings = Settings(PAEShape(**given), str(config["encoder"]), dict(config["encoder_arguments"]))
        return settings, load_file(folder / _WEIGHTS)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / _CONFIG} does not describe a PAE ({error}): export the model again") from None
    except SafetensorError as error:
        raise MissingWeightsError(f"{folder / _WEIGHTS} is damaged ({error}): copy it again from its source") from None
