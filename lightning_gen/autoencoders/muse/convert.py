"""Published MUSE weights to ours and back, and what is dead or missing in them.

A model on disk is a folder with ``model.safetensors`` under the published key names and our ``config.json``. A
published checkpoint is one file of pickled tensors (``ema_model/pytorch_model.bin``), read without running its code.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lightning_gen.autoencoders.muse.decoder import DCAEShape
from lightning_gen.autoencoders.muse.network import (
    Layers,
    MuseNetwork,
    MuseShape,
    Routing,
    dead_parameters,
)
from lightning_gen.backbones.intern_vit import InternViTShape, intern_vit_from_original, intern_vit_to_original
from lightning_gen.backbones.weights import MissingWeightsError, fetch_files, read_config
from lightning_gen.training.safe_reading import load_plain
from lightning_gen.training.weights import require_fit

__all__ = [
    "ImportReport",
    "Settings",
    "from_published",
    "import_published",
    "infer_shape",
    "read_model",
    "report_on",
    "revive_shape",
    "to_published",
    "write_folder",
]

_WEIGHTS = "model.safetensors"
_PICKLED = ("ema_model/pytorch_model.bin", "pytorch_model.bin")
_PREFIXES = {
    "adapter_mlp.": "adapter.",
    "to_latent.": "to_latent.",
    "semantic_projector.": "head.",
    "decoder_adapter.": "decoder_adapter.",
    "decoder.": "decoder.model.",
}
_IN_BLOCK = {
    "q_topo": "query",
    "k_topo": "key",
    "q_norm": "query_norm",
    "k_norm": "key_norm",
    "v_sem": "value",
    "v_itc": "semantic",
    "proj": "out",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.w1": "gate",
    "mlp.w2": "up",
    "mlp.w3": "down",
}
_CONSTANTS: dict[str, tuple[float, float, float]] = {
    "dino_mean": (0.485, 0.456, 0.406),
    "dino_std": (0.229, 0.224, 0.225),
}
_TEACHER = "dino_teacher."


@dataclasses.dataclass(frozen=True)
class Settings:
    """What must be known beside the weights to run and to continue a model.

    Attributes:
        shape: sizes.
        routing: where gradients stopped in training.
        topo_layers: blocks whose maps were supervised.
        itc_layers: blocks whose semantics were supervised.
        stage: kind of the last stage that trained the weights; None = not known.
    """

    shape: MuseShape = MuseShape()
    routing: Routing = "strict"
    topo_layers: Layers = "all"
    itc_layers: Layers = "last"
    stage: int | None = None


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What became of published weights.

    Attributes:
        dead: parameters that no loss reached in training; they are still at their initial values.
        missing: parameters of the network that the weights lack.
        ignored: tensors of the weights that the network does not want.
    """

    dead: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        """One line per kind."""
        kinds = {"dead (never trained)": self.dead, "missing": self.missing, "ignored": self.ignored}
        return "\n".join(f"{len(names)} {kind}: {', '.join(names) or 'none'}" for kind, names in kinds.items())


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published keys to ours.

    Args:
        state: tensors of a published checkpoint; the teacher's and the constants of its normalisation are dropped.

    Returns:
        Tensors under the names of ``MuseNetwork``. Queries, keys and values of the encoder become three tensors.

    Raises:
        ValueError: a key belongs to no part of the model.

    Source: key names of the published MUSE-1B (arXiv:2605.05646).
    """
    out: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith("encoder."):
            encoder[key.removeprefix("encoder.")] = tensor
        elif key == "logit_scale":
            out["temperature.log"] = tensor.reshape(1)
        elif key not in _CONSTANTS and not key.startswith(_TEACHER):
            out[_our_name(key)] = tensor
    is_original = any(name.startswith("encoder.layers.") for name in encoder)
    renamed = intern_vit_from_original(encoder) if is_original else encoder
    return out | {f"encoder.model.{name}": tensor for name, tensor in renamed.items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our keys to the published ones, bit for bit.

    Args:
        state: state dict of ``MuseNetwork``.

    Returns:
        Tensors under the published names, with the constants of the teacher's normalisation.

    Raises:
        ValueError: a key belongs to no part of the model.
    """
    out: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith("encoder.model."):
            encoder[key.removeprefix("encoder.model.")] = tensor
        elif key == "temperature.log":
            out["logit_scale"] = tensor.reshape(())
        else:
            out[_published_name(key)] = tensor
    out |= {f"encoder.{name}": tensor for name, tensor in intern_vit_to_original(encoder).items()}
    return out | {name: torch.tensor(value).view(1, 3, 1, 1) for name, value in _CONSTANTS.items()}


def _our_name(key: str) -> str:
    found = re.fullmatch(r"muse_blocks\.(\d+)\.(.+)\.weight", key)
    if found is not None and found[2] in _IN_BLOCK:
        return f"synergy.{found[1]}.{_IN_BLOCK[found[2]]}.weight"
    for old, new in _PREFIXES.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise ValueError(f"key {key!r} is not part of a published MUSE model")


def _published_name(key: str) -> str:
    found = re.fullmatch(r"synergy\.(\d+)\.(.+)\.weight", key)
    if found is not None:
        back = {ours: published for published, ours in _IN_BLOCK.items()}
        if found[2] in back:
            return f"muse_blocks.{found[1]}.{back[found[2]]}.weight"
    for published, ours in _PREFIXES.items():
        if key.startswith(ours):
            return published + key.removeprefix(ours)
    raise ValueError(f"key {key!r} is not part of MuseNetwork")


def report_on(published: Mapping[str, Tensor], settings: Settings) -> ImportReport:
    """Say which parameters of published weights are dead, missing or not wanted.

    Args:
        published: tensors under the published names.
        settings: how the weights were trained; the published ones: ``official``, ``last``, ``last``.

    Returns:
        The report, in our names except for what is ignored.
    """
    found = from_published(published)
    with torch.device("meta"):
        wanted = MuseNetwork(settings.shape).state_dict()
    dead = dead_parameters(settings.shape.depth, settings.routing, settings.topo_layers, settings.itc_layers)
    ignored = [key for key in published if key in _CONSTANTS or key.startswith(_TEACHER)]
    ignored += [name for name in found if name not in wanted]
    missing = [name for name in wanted if name not in found]
    return ImportReport(tuple(name for name in dead if name in found), tuple(missing), tuple(sorted(ignored)))


def infer_shape(state: Mapping[str, Tensor]) -> MuseShape:
    """Read sizes off the tensors; what leaves no trace (heads of the encoder, positions) is MUSE-1B's.

    Args:
        state: tensors under our names.

    Returns:
        The sizes.

    Raises:
        ValueError: the tensors do not describe a MUSE.
    """
    try:
        merged, width = state["adapter.1.weight"].shape[1], state["adapter.1.weight"].shape[0]
        head = state["synergy.0.query_norm.weight"].shape[0]
        depth = 1 + max(int(n) for n in re.findall(r"synergy\.(\d+)\.norm1", " ".join(state)))
        encoder_depth = 1 + max(int(n) for n in re.findall(r"encoder\.layer\.(\d+)\.lambda_1", " ".join(state)))
        hidden = state["encoder.model.encoder.layer.0.mlp.fc1.weight"].shape[0]
        patch = state["encoder.model.embeddings.patch_embeddings.projection.weight"].shape[-1]
        positions = state["encoder.model.embeddings.position_embeddings"].shape[1] - 1
        channels, text = state["to_latent.weight"].shape[0], state["head.2.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"not a complete MUSE model: {error} is missing") from None
    edge = patch * round(positions**0.5)
    encoder = InternViTShape(merged // 4, encoder_depth, max(1, merged // 4 // 64), hidden, patch, edge)
    return MuseShape(encoder, DCAEShape(), width, depth, width // head, channels, text)


def read_model(source: str) -> tuple[Settings, dict[str, Tensor], ImportReport | None]:
    """Read a model: a folder that ``write_folder`` wrote, a published checkpoint, or a hub id of either.

    Args:
        source: folder, ``.bin`` file, or hub id such as ``yangpanqi/MUSE-1B``.

    Returns:
        Settings, tensors under our names, and for published weights the report on them.

    Raises:
        MissingWeightsError: nothing of the kind is there.
        ValueError: the files are damaged or belong to another kind of model.
    """
    path = Path(source).expanduser()
    pickled = path if path.is_file() else next((path / name for name in _PICKLED if (path / name).is_file()), None)
    if pickled is None and not path.exists():
        pickled = _published_on_hub(source)
    if pickled is not None and not (path / _WEIGHTS).is_file():
        published = load_plain(pickled, mmap=False)
        state = from_published(cast(Mapping[str, Tensor], published))
        settings = Settings(infer_shape(state), "official", "last", "last", 3)
        return settings, state, report_on(published, settings)
    return (*_read_folder(source), None)


def import_published(source: str, folder: str | Path) -> ImportReport:
    """Turn published weights into a folder of ours.

    Args:
        source: ``.bin`` file, its folder, or hub id.
        folder: where to.

    Returns:
        What is dead, missing or not wanted.

    Raises:
        MissingWeightsError: nothing of the kind is there.
        ValueError: it is damaged, incomplete, or a folder of ours already.
    """
    settings, state, report = read_model(source)
    if report is None:
        raise ValueError(f"{source} is no published MUSE but a folder that this package wrote: use it as it is")
    with torch.device("meta"):
        network = MuseNetwork(settings.shape)
    wanted = network.state_dict()
    kept = {name: tensor for name, tensor in state.items() if name in wanted}
    require_fit(network, kept, source)
    write_folder(Path(folder), settings, kept)
    return report


def _published_on_hub(source: str) -> Path | None:
    try:
        fetch_files(source, ["config.json", _WEIGHTS])
    except MissingWeightsError as error:
        try:
            return fetch_files(source, [_PICKLED[0]]) / _PICKLED[0]
        except MissingWeightsError:
            raise error from None
    return None


def _read_folder(source: str) -> tuple[Settings, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = fetch_files(source, ["config.json", _WEIGHTS])
    stored = read_config(folder)
    if stored.get("model") != "Muse":
        raise ValueError(
            f"{folder / 'config.json'} describes {stored.get('model')!r}, not a Muse: give a folder that "
            "save_pretrained or `lightning export` wrote"
        )
    try:
        state = from_published(load_file(folder / _WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"{folder / _WEIGHTS} is damaged: {error}") from None
    plain = {field.name: stored[field.name] for field in dataclasses.fields(Settings) if field.name in stored}
    return Settings(**{**plain, "shape": revive_shape(plain["shape"])}), state


def revive_shape(plain: Mapping[str, Any] | MuseShape) -> MuseShape:
    """Sizes from the nested mapping that JSON and checkpoints hold.

    Args:
        plain: what ``dataclasses.asdict`` gave, or sizes, which are given back.

    Returns:
        The sizes.

    Raises:
        ValueError: a name that no size has.
    """
    if isinstance(plain, MuseShape):
        return plain
    try:
        encoder = InternViTShape(**_known(plain.get("encoder")))
        decoder = _known(plain.get("decoder"))
        decoder |= {name: tuple(decoder[name]) for name in ("widths", "layers") if name in decoder}
        rest = {name: value for name, value in plain.items() if name not in ("encoder", "decoder")}
        return MuseShape(encoder=encoder, decoder=DCAEShape(**decoder), **rest)
    except TypeError as error:
        raise ValueError(f"these are not the sizes of a MUSE: {error}") from None


def _known(part: Any) -> dict[str, Any]:
    return {} if part is None else dataclasses.asdict(part) if dataclasses.is_dataclass(part) else dict(part)  # type: ignore[arg-type]


def write_folder(folder: Path, settings: Settings, state: Mapping[str, Tensor]) -> None:
    """Write a model to disk under the published key names.

    Args:
        folder: made if it does not exist.
        settings: goes to ``config.json``.
        state: state dict of ``MuseNetwork``.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in to_published(state).items()}
    partial = folder / f".{_WEIGHTS}.partial"
    save_file(whole, partial, metadata={"format": "pt"})
    partial.replace(folder / _WEIGHTS)
    text = json.dumps({"model": "Muse", **dataclasses.asdict(settings)}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
