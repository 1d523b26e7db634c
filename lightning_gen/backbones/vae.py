"""Auto-encoders of diffusers as auto-encoders of the house.

Shape letters: B images, H and W height and width in pixels, f pixels per token along a side, c channels of a token,
h = H / f and w = W / f.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.nn.latent_maps import fill_up, latents_of_pictures, pictures_of_latents, require_latents
from lightning_gen.nn.tokens import Tokens, unpatchify
from lightning_gen.training.randomness import normal

from .diffusers_models import installed_diffusers, load_diffusers_model
from .weights import MissingWeightsError, fetch_files, read_config

__all__ = ["DiffusersVAE"]

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PROBE = 64


class DiffusersVAE(nn.Module):
    """A frozen image auto-encoder of diffusers: AutoencoderKL, AutoencoderKLFlux2, AutoencoderDC, AutoencoderTiny, ...

    Latents come in the scale that generators are trained on, as diffusers' own pipelines make it:

    * ``latents_mean`` and ``latents_std`` in the configuration: z = (z' - mean) scaling_factor / std;
    * else z = (z' - shift_factor) scaling_factor;
    * AutoencoderKLFlux2: 2 x 2 neighbours become the channels of one token, then z = (z' - mean) / sqrt(var + eps) of
      its batch normalisation.

    These numbers are buffers, so that they are part of ``state_dict``.

    Args:
        source: folder with ``config.json`` and ``diffusion_pytorch_model.safetensors`` (the ``vae`` folder of a
            pipeline), or a hub id.
        slicing: encode and decode image by image, for less memory.
        tiling: encode and decode large images in overlapping tiles: bounded memory, slightly other numbers.
        seed: seed of the keyed draws of ``encode``.

    Raises:
        MissingWeightsError: the files are absent, damaged, or not those of an image auto-encoder.
        ModuleNotFoundError: diffusers is not installed.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, source: str, slicing: bool = False, tiling: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.source, self.seed = source, seed
        folder = fetch_files(source, ["config.json", _WEIGHTS])
        self.vae: Any = _load(folder).requires_grad_(False).eval()
        self._switch("slicing", slicing)
        self._switch("tiling", tiling)
        self.fold = _fold(self.vae)
        channels, self.patch = self._probe()
        shift, scale = _normalisation(self.vae, channels)
        self.register_buffer("shift", shift.view(-1, 1, 1))
        self.register_buffer("scale", scale.view(-1, 1, 1))

    @classmethod
    def from_pretrained(cls, source: str) -> Self:
        """The same as the constructor, under the name that models of the house have.

        Args:
            source: folder or hub id.

        Returns:
            The auto-encoder.
        """
        return cls(source)

    def encode(self, images: Tensor | Tokens, index: Tensor | None = None, epoch: int = 0) -> Tokens:
        """Latents of images. Sides that are no multiple of f are filled up with mid grey at the bottom and the right.

        Args:
            images: float, (B, 3, H, W) in [-1, 1], or pixels as tokens, of any sizes.
            index: int64, (B,), global sample indices: draw from the posterior, each image with its own key; None = take
                its mode.
            epoch: number of the pass, another part of the key.

        Returns:
            Unpacked latents, row i is image i, values (B, L, c), float32, patch f.

        Raises:
            ValueError: ``index`` is given, but this auto-encoder has no posterior.
        """
        pictures = unpatchify(images) if isinstance(images, Tokens) else list(images)

        def maps(batch: Tensor, places: Tensor) -> Tensor:
            return self._encoded(
                fill_up(batch, self.patch), None if index is None else index.to(places.device)[places], epoch
            )

        return latents_of_pictures(pictures, self.patch, maps)

    def decode(self, latents: Tokens) -> Tensor | list[Tensor]:
        """Images of latents.

        Args:
            latents: what ``encode`` gave, or samples of a generator with the same layout.

        Returns:
            (B, 3, H, W) in [-1, 1], or a list of (3, H, W) when sizes differ.

        Raises:
            ValueError: the latents have another patch or another number of channels.
        """
        require_latents(latents, self.patch, len(self.scale), str(self.source))
        return pictures_of_latents(latents, self._decoded)

    def _encoded(self, images: Tensor, index: Tensor | None, epoch: int) -> Tensor:
        found = self.vae.encode(images.to(self.vae.dtype), return_dict=False)[0]
        if isinstance(found, Tensor):
            if index is not None:
                raise ValueError(
                    f"{type(self.vae).__name__} of {self.source} has no posterior to draw from: index=None"
                )
            latent = found.float()
        else:
            latent = found.mean.float()
            if index is not None:
                latent = latent + found.std.float() * normal(self.seed, "posterior", epoch, index, latent.shape[1:])
        return (F.pixel_unshuffle(latent, self.fold) - self.shift) * self.scale

    def _decoded(self, latents: Tensor) -> Tensor:
        raw = F.pixel_shuffle(latents / self.scale + self.shift, self.fold)
        images: Tensor = self.vae.decode(raw.to(self.vae.dtype), return_dict=False)[0]
        return images.float().clamp(-1, 1)

    def _switch(self, what: str, wanted: bool) -> None:
        if not wanted:
            return
        try:
            getattr(self.vae, f"enable_{what}")()
        except (AttributeError, NotImplementedError):
            raise ValueError(f"{type(self.vae).__name__} of {self.source} has no {what}: leave it out") from None

    def _probe(self) -> tuple[int, int]:
        """Channels and pixels of a token, from the latent of a grey square."""
        with torch.no_grad():
            try:
                found = self.vae.encode(torch.zeros(1, 3, _PROBE, _PROBE), return_dict=False)[0]
                latent: Tensor = found if isinstance(found, Tensor) else found.mean
                _, channels, height, _ = latent.shape
            except (RuntimeError, ValueError, AttributeError) as error:
                raise MissingWeightsError(
                    f"{type(self.vae).__name__} of {self.source} does not encode pictures (B, 3, H, W): is it one of "
                    f"video or audio? ({str(error).splitlines()[0][:200]})"
                ) from None
        return channels * self.fold**2, _PROBE // height * self.fold


def _load(folder: Path) -> nn.Module:
    diffusers = installed_diffusers("auto-encoders of diffusers")
    name = read_config(folder).get("_class_name")
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    is_model = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    if not is_model or not hasattr(kind, "encode") or not hasattr(kind, "decode"):
        raise MissingWeightsError(
            f"{folder / 'config.json'} describes {name!r}, which is no auto-encoder of the installed diffusers "
            f"({diffusers.__version__}): give the folder of an AutoencoderKL or the like"
        )
    return load_diffusers_model(folder, kind)


def _fold(vae: Any) -> int:
    """Edge of the square of neighbours that make one token: that of the batch normalisation, if there is one."""
    return int(vae.config.patch_size[0]) if hasattr(vae, "bn") else 1


def _normalisation(vae: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Shift and scale of every channel, z = (z' - shift) scale."""
    config = vae.config
    if hasattr(vae, "bn"):
        return vae.bn.running_mean.clone(), torch.rsqrt(vae.bn.running_var + config.batch_norm_eps)
    factor = getattr(config, "scaling_factor", None)
    scale = torch.full((channels,), 1.0 if factor is None else float(factor))
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return torch.tensor(mean, dtype=torch.float32), scale / torch.tensor(std, dtype=torch.float32)
    return torch.full((channels,), float(getattr(config, "shift_factor", None) or 0.0)), scale
