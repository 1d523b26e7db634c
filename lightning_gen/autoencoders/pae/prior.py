"""The frozen prior of a picture: its tokens, and the refined target that stage 0 made.

Shape letters: B images, N = rows x cols tokens, D width of the prior, d latent channels.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from lightning_gen.autoencoders.pae.network import Grid, Projector
from lightning_gen.autoencoders.pae.variants import PAEShape
from lightning_gen.backbones.frozen import FrozenModule, ordinary_construction
from lightning_gen.backbones.patch_features import PatchEncoder
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.training.initialisation import initialise
from lightning_gen.training.weights import read_training_state, require_fit

__all__ = ["UNTRAINED", "Prior", "grid_of", "load_refined", "look", "require_prior", "write_refined"]

UNTRAINED: Final = "untrained"
"""In the place of stage 0's weights: a projector that nobody has trained, said in so many words."""
_COMMON: Final = ("channels", "prior_width", "prior_heads", "grid", "projection", "latent", "norm_axis", "zero_mean")


class Prior(NamedTuple):
    """What is frozen about a batch of pictures.

    Attributes:
        pixels: input of the encoder, (B, 3, rows p', cols p').
        features: H, (B, N, D).
        grid: rows and columns.
    """

    pixels: Tensor
    features: Tensor
    grid: Grid


def grid_of(images: Tensor, patch: int) -> Grid:
    """Tokens of pictures.

    Args:
        images: (B, 3, H, W).
        patch: p of the decoder.

    Returns:
        Rows and columns, the last ones may be filled up.
    """
    return -(-images.shape[-2] // patch), -(-images.shape[-1] // patch)


@torch.no_grad()
def look(encoder: PatchEncoder, images: Tensor, grid: Grid) -> Prior:
    """Let the encoder see pictures.

    Args:
        encoder: the prior.
        images: (B, 3, H, W) in [-1, 1].
        grid: rows and columns.

    Returns:
        Its input and its tokens, without gradient.
    """
    pixels = encoder.prepare(images, grid)
    return Prior(pixels, encoder.features(pixels), grid)


def require_prior(encoder: PatchEncoder, shape: PAEShape) -> None:
    """Refuse an encoder that does not fit the networks, before the first batch.

    Args:
        encoder: the prior; it is loaded.
        shape: what the networks were built for.

    Raises:
        ValueError: its patch, its width or its grid is another one.
    """
    name = type(encoder).__name__
    if encoder.patch != shape.prior_patch:
        raise ValueError(
            f"{name} sees {encoder.patch} pixels per token, the modulator was built for {shape.prior_patch}: set "
            f"shape.prior_patch to {encoder.patch}"
        )
    side = shape.grid * encoder.patch
    found = encoder.features(torch.zeros(1, 3, side, side)).shape
    if found[1] != shape.grid**2:
        raise ValueError(
            f"{name} gives {found[1]} tokens for {side} x {side} pixels, the grid of the latents is {shape.grid} x "
            f"{shape.grid}: a prior has one token for each latent"
        )
    if found[2] != shape.prior_width:
        raise ValueError(
            f"{name} gives {found[2]} numbers per token, the networks were built for {shape.prior_width}: set "
            f"shape.prior_width to {found[2]}"
        )


def write_refined(folder: Path, shape: PAEShape, encoder: PatchEncoder, state: dict[str, Tensor]) -> None:
    """Write what stage 0 learned.

    Args:
        folder: made if it does not exist.
        shape: sizes of the projector.
        encoder: whose features it projects; only named.
        state: state dict of ``RefineNetwork``.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / "model.safetensors")
    config = {"model": "PAERefine", "encoder": type(encoder).__name__, "shape": dataclasses.asdict(shape)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_refined(source: str | None, shape: PAEShape, encoder: PatchEncoder, seed: int) -> FrozenModule:
    """The frozen projector P^t of stage 0.

    Args:
        source: folder that ``PAERefine.save_pretrained`` wrote, checkpoint file or folder of shards of a stage-0 run,
            or ``untrained`` for a random projector.
        shape: of the auto-encoder; channels, width, heads, grid, projection and sphere must be the same.
        encoder: of the auto-encoder.
        seed: of an untrained projector.

    Returns:
        ``Projector``, frozen.

    Raises:
        ValueError: no source, or one that was made for other sizes or another encoder.
        MissingWeightsError: there are no weights at ``source``.
    """
    if source is None:
        raise ValueError(
            "stage 1 of PAE needs the refined prior of stage 0: train it (lightning fit --config pae_refine), export "
            "it and name the folder in model.init_args.refined; `untrained` there means a random projector, and "
            "losses.ssr: 0 with losses.scr: 0 go without a target"
        )
    with ordinary_construction():
        projector = Projector(shape)
        if source == UNTRAINED:
            initialise(projector, seed)
            return FrozenModule(projector)
    state = _refined_state(source, shape, encoder)
    require_fit(projector, state, source)
    projector.load_state_dict(state)
    return FrozenModule(projector)


def _refined_state(source: str, shape: PAEShape, encoder: PatchEncoder) -> dict[str, Tensor]:
    folder = Path(source).expanduser()
    if not folder.exists():
        raise MissingWeightsError(
            f"stage 0's weights are not at {source}: train them (lightning fit --config pae_refine) and export them "
            "there"
        )
    state = read_training_state(str(folder))
    prefix = "network.projector."
    if state is None:
        state, prefix = _read_folder(folder, shape, encoder), "projector."
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        raise ValueError(f"{source} holds no projector of PAE's stage 0: name the export or checkpoint of pae_refine")
    return found


def _read_folder(folder: Path, shape: PAEShape, encoder: PatchEncoder) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = folder / "config.json"
    if not path.is_file() or not (folder / "model.safetensors").is_file():
        raise MissingWeightsError(f"{folder} holds no config.json with model.safetensors: export stage 0 there")
    config: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("model") != "PAERefine":
        raise ValueError(f"{folder} is not what PAE's stage 0 writes: name the export of pae_refine")
    stored, mine = config.get("shape", {}), dataclasses.asdict(shape)
    other = [f"{name} {stored.get(name)} for {mine[name]}" for name in _COMMON if stored.get(name) != mine[name]]
    if config.get("encoder") != type(encoder).__name__:
        other.append(f"encoder {config.get('encoder')} for {type(encoder).__name__}")
    if other:
        raise ValueError(
            f"{folder} was refined for another auto-encoder: {', '.join(other)}. Run stage 0 with the same encoder and "
            "shape"
        )
    return load_file(folder / "model.safetensors")
