"""Published LightningDiT weights (LightningDiT, PAE) to ours and back.

The published modules store two tables that follow from the size of the network: positions, which ours keep, and the
cosines and sines of the rotary embedding, which ours compute. Those are compared when weights come in and made anew
when they go out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_gen.generators.dit.lightningdit.network import LightningDiT
from lightning_gen.generators.dit.lightningdit.variants import PREFIX, PRESETS
from lightning_gen.nn.rope import rotary_2d
from lightning_gen.training.safe_reading import load_plain

__all__ = [
    "ConversionReport",
    "compare",
    "converted",
    "from_published",
    "infer_sizes",
    "infer_variant",
    "is_published",
    "load_published",
    "published_state",
    "read_published",
    "rotary_tables",
    "to_published",
    "write_published",
]

_NAMES = {
    "pos_embed": "positions.table",
    "x_embedder.proj.": "in_proj.",
    "t_embedder.mlp.0.": "time_embedding.fc1.",
    "t_embedder.mlp.2.": "time_embedding.fc2.",
    "y_embedder.embedding_table.": "class_embedding.",
    "final_layer.norm_final.": "head.norm.",
    "final_layer.linear.": "head.out_proj.",
    "final_layer.adaLN_modulation.1.": "head.modulation.",
}
_BLOCK = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attn.qkv.": "attn.qkv.",
    "attn.q_norm.": "attn.norm_q.",
    "attn.k_norm.": "attn.norm_k.",
    "attn.proj.": "attn.out_proj.",
    "mlp.w12.": "ffn.w12.",
    "mlp.w3.": "ffn.w3.",
    "adaLN_modulation.1.": "modulation.",
}
_ROTARY = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
_WRAPPERS = ("module.", "_orig_mod.")
_FILES = (".pt", ".pth", ".bin", ".safetensors")


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What a published state dict and a network have in common, by published names.

    Attributes:
        taken: tensors that both have.
        missing: tensors that the network needs and the state dict lacks.
        dead: tensors of the state dict that the network has no place for.
        derived: tables that the network computes instead of reading them.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    dead: tuple[str, ...]
    derived: tuple[str, ...]

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{len(self.taken)} tensors taken; missing: {_some(self.missing)}; dead: {_some(self.dead)}; computed "
            f"instead of read: {_some(self.derived)}"
        )


def rotary_tables(grid: int, head_width: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """The rotary tables as the published modules store them: one number per number of a head, pairs repeated.

    Args:
        grid: edge of the grid.
        head_width: d.
        theta: base of the frequencies.

    Returns:
        Cosines and sines, float32, (grid^2, d), row by row.
    """
    place = torch.arange(grid * grid)[None]
    rotary = rotary_2d(place // grid, place % grid, head_width, theta)
    cos, sin = (part[0, :, 0].repeat_interleave(2, dim=-1) for part in rotary)
    return cos, sin


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published tensors to ours and lay them out as ours.

    Args:
        state: published state dict; prefixes of wrappers (``module.``, ``_orig_mod.``) are dropped.

    Returns:
        Tensors under the names of :class:`LightningDiT`, without the rotary tables.

    Raises:
        ValueError: a key belongs to no part of the model, or the embedding has a patch of more than one token.

    Source: key names of the published checkpoint (arXiv:2605.07915).
    """
    ours = {}
    for key, tensor in _unwrapped(state).items():
        if key in _ROTARY:
            continue
        name = _renamed(key)
        if name is None:
            raise ValueError(
                f"key {key!r} is not part of a LightningDiT; its keys begin as {', '.join(_NAMES)}, blocks."
            )
        ours[name] = _laid_out(key, tensor)
    return ours


def to_published(state: Mapping[str, Tensor], head_width: int, theta: float = 10000.0) -> dict[str, Tensor]:
    """Rename our tensors to the published ones, and add the rotary tables.

    Args:
        state: state dict of :class:`LightningDiT`.
        head_width: d.
        theta: base of the rotary frequencies.

    Returns:
        Published state dict.

    Raises:
        ValueError: a key belongs to no part of the model.
    """
    published = {}
    for name, tensor in state.items():
        key = _named_back(name)
        if key is None:
            raise ValueError(f"key {name!r} is not part of a LightningDiT")
        if key == "x_embedder.proj.weight":
            tensor = tensor[..., None, None]
        published[key] = tensor[None] if key == "pos_embed" else tensor
    grid = math.isqrt(state["positions.table"].shape[0])
    return published | dict(zip(_ROTARY, rotary_tables(grid, head_width, theta), strict=True))


def infer_variant(state: Mapping[str, Tensor]) -> str:
    """Read the size off the shapes of published tensors.

    Args:
        state: published state dict.

    Returns:
        Name for ``variants.lightningdit_shape``.

    Raises:
        ValueError: the tensors do not describe a LightningDiT.
    """
    state = _unwrapped(state)
    try:
        tokens, width = state["pos_embed"].shape[-2:]
        norm = state.get("blocks.0.attn.q_norm.weight")
        head = (state[_ROTARY[0]] if norm is None else norm).shape[-1]
    except KeyError as error:
        raise ValueError(f"not a complete LightningDiT: {error.args[0]!r} is missing") from None
    depth = 1 + max((int(n) for n in re.findall(r"\bblocks\.(\d+)\.norm1", " ".join(state))), default=-1)
    size = (width, depth, width // head)
    name = next((f"{preset}_1" for preset, known in PRESETS.items() if known == size), "w{}_d{}_h{}".format(*size))
    grid = math.isqrt(tokens)
    return PREFIX + name + ("" if grid == 16 else f"_g{grid}") + ("" if norm is None else "_qknorm")


def infer_sizes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Read what else a network needs off published tensors.

    Args:
        state: published state dict.

    Returns:
        Channels of a latent token, and number of classes without the null class.

    Raises:
        ValueError: the tensors do not describe a LightningDiT.
    """
    found = _unwrapped(state)
    try:
        return len(found["final_layer.linear.bias"]), len(found["y_embedder.embedding_table.weight"]) - 1
    except KeyError as error:
        raise ValueError(f"not a complete LightningDiT: {error.args[0]!r} is missing") from None


def is_published(source: str | Path) -> bool:
    """Whether a name is that of a published file, and not of a folder that this package wrote.

    Args:
        source: path.

    Returns:
        True for a file of tensors, or where one would have to be.
    """
    path = Path(source)
    return path.suffix in _FILES and not path.is_dir()


def compare(network: LightningDiT, state: Mapping[str, Tensor]) -> ConversionReport:
    """Say what of a published state dict a network would take, without changing anything.

    Args:
        network: any, on the meta device too.
        state: published state dict.

    Returns:
        The report, in the order of the network's and of the state dict's tensors.
    """
    found = _unwrapped(state)
    needed = [_named_back(name) or name for name in network.state_dict()]
    return ConversionReport(
        taken=tuple(key for key in needed if key in found),
        missing=tuple(key for key in needed if key not in found),
        dead=tuple(key for key in found if key not in needed and key not in _ROTARY),
        derived=tuple(key for key in found if key in _ROTARY),
    )


def converted(network: LightningDiT, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ConversionReport]:
    """Published weights as a network takes them, after a look at whether they are its own.

    Args:
        network: of the same size, on the meta device too; stays as it is.
        state: published state dict.

    Returns:
        Tensors of the whole network under its names, and what was taken and what was not needed.

    Raises:
        ValueError: tensors are missing, dead or of another shape, or the rotary tables are not those of the network.
    """
    report = compare(network, state)
    if report.missing or report.dead:
        raise ValueError(
            f"these weights do not fit the network: they lack {_some(report.missing)}, and it has no place for "
            f"{_some(report.dead)}"
        )
    shape, found = network.shape, _unwrapped(state)
    for key, table in zip(_ROTARY, rotary_tables(shape.grid, shape.head_width, network.rope_theta), strict=True):
        stored = found.get(key)
        if stored is not None and (stored.shape != table.shape or not torch.allclose(stored.float(), table, atol=1e-5)):
            raise ValueError(
                f"{key} is not the table of {shape.grid} x {shape.grid} tokens at theta {network.rope_theta}"
            )
    own, given = network.state_dict(), from_published(state)
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{_named_back(name)} has the shape {tuple(tensor.shape)}, the network needs {tuple(own[name].shape)}"
            )
    return given, report


def load_published(network: LightningDiT, state: Mapping[str, Tensor]) -> ConversionReport:
    """Fill a network with published weights.

    Args:
        network: of the same size, materialised; changed in place.
        state: published state dict.

    Returns:
        What was taken and what was not needed.

    Raises:
        ValueError: see :func:`converted`.
    """
    given, report = converted(network, state)
    network.load_state_dict(given)
    return report


def published_state(network: LightningDiT) -> dict[str, Tensor]:
    """A network's weights under the published names and in their layout.

    Args:
        network: any.

    Returns:
        Published state dict.
    """
    return to_published(network.state_dict(), network.shape.head_width, network.rope_theta)


def write_published(network: LightningDiT, path: str | Path) -> None:
    """Write a network's weights as a published file, for code that reads such files.

    Args:
        network: any.
        path: ``.safetensors``.
    """
    from safetensors.torch import save_file

    state = {key: tensor.detach().cpu().contiguous() for key, tensor in published_state(network).items()}
    save_file(state, Path(path), metadata={"format": "pt"})


def read_published(path: str | Path) -> dict[str, Tensor]:
    """Read a published file; of a training checkpoint the averaged weights.

    Args:
        path: ``.safetensors``, or a checkpoint of the published trainer; nothing in it is run.

    Returns:
        Published state dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds more than tensors and plain values, or no weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path)
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}") from None
    content = load_plain(file)
    state = next((content[key] for key in ("ema", "model") if isinstance(content.get(key), dict)), content)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file} holds no weights: expected them at its top, or under 'ema' or 'model'")
    return tensors


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {}
    for key, tensor in state.items():
        for wrapper in _WRAPPERS:
            key = key.removeprefix(wrapper)
        plain[key] = tensor
    return plain


def _renamed(key: str) -> str | None:
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if match:
        inside = _exchanged(match[2], _BLOCK)
        return None if inside is None else f"dit_blocks.{match[1]}.{inside}"
    return _exchanged(key, _NAMES)


def _named_back(name: str) -> str | None:
    match = re.fullmatch(r"dit_blocks\.(\d+)\.(.+)", name)
    if match:
        inside = _exchanged(match[2], {ours: published for published, ours in _BLOCK.items()})
        return None if inside is None else f"blocks.{match[1]}.{inside}"
    return _exchanged(name, {ours: published for published, ours in _NAMES.items()})


def _exchanged(key: str, prefixes: Mapping[str, str]) -> str | None:
    for old, new in prefixes.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return None


def _laid_out(key: str, tensor: Tensor) -> Tensor:
    if key == "pos_embed":
        return tensor[0]
    if key != "x_embedder.proj.weight":
        return tensor
    if tensor.shape[-2:] != (1, 1):
        raise ValueError(f"{key} has a patch of {tensor.shape[-2]} latent tokens; only a patch of 1 is known here")
    return tensor[..., 0, 0]


def _some(keys: tuple[str, ...]) -> str:
    return f"{len(keys)} tensors ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else "nothing"
