"""Text-to-image models of diffusers as models of the house: Stable Diffusion 1 to 3.5, XL, FLUX.1, FLUX.2.

t = 0 is clean, t = 1 is noise; x_t = (1 - t) x_0 + t eps; v = eps - x_0, whatever the network itself predicts.

Shape letters: B pictures or prompts, T text tokens, E width of an embedding, H and W height and width in pixels, C
latent channels, h and w height and width of a latent map.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_gen.flow.solvers import Solver
from lightning_gen.interfaces import Conditioning
from lightning_gen.nn.tokens import patchify, unpatchify

from .frozen import FrozenModule, ordinary_construction
from .pipelines.family import Canvas, Encoded, Family, Lengths, Predicted
from .pipelines.folder import PipelineFolder, TextEncoders, open_pipeline
from .pipelines.prompt_cache import PromptCache
from .vae import DiffusersVAE

__all__ = ["DiffusersTextToImage", "Precision"]

Precision = Literal["float32", "bfloat16", "float16"]
"""Number format of weights."""

_FEW_STEPS = re.compile(r"turbo|schnell|lightning|hyper|lcm|distill", re.IGNORECASE)


class DiffusersTextToImage(nn.Module):
    """A pipeline folder of diffusers as a ``TextToImage``.

    Latents are maps (B, C, h, w) in the scale that the network was trained on. ``solver`` on ``times(steps)``, started
    from ``from_noise(noise, steps)``, gives the pipeline's own final latents.

    deviates: a scheduler that stops at the noise of the first training step (``set_alpha_to_one: false`` of Stable
    Diffusion 1) leaves 3 % of noise in the pipeline's latents; here the last step goes to t = 0.

    Only ``network`` has parameters that a parent sees; text encoders and auto-encoder are constants of the run, see
    :class:`FrozenModule`. The text encoders are read from disk the first time that a prompt is asked for which the
    cache does not hold, so a run whose prompts are all cached never reads them. Every prompt is encoded by itself:
    what comes out depends on nothing but the prompt.

    Networks attend to every text token, padding included, as they were trained; the conditioning's mask is all true.

    Args:
        source: folder or hub id of a pipeline: StableDiffusion3Pipeline, FluxPipeline, Flux2Pipeline,
            Flux2KleinPipeline, StableDiffusionXLPipeline or StableDiffusionPipeline; safetensors only.
        canvas: height and width of pictures in pixels; None = the size the model was made for.
        text_length: tokens of a prompt for T5 or the language model; None = the pipeline's own (256 for Stable
            Diffusion 3, of which published reinforcement learning uses 128; 512 for FLUX).
        clip_length: tokens of a prompt for CLIP; None = 77, which is also the most.
        prompt_cache: folder of encoded prompts; None = none are kept.
        embedded_guidance: strength of guidance given to networks that take it as an input (FLUX.1 dev, FLUX.2 dev);
            None = the pipeline's own, 3.5 and 4.
        network_dtype: of the transformer's or U-Net's weights.
        text_dtype: of the text encoders' weights.
        text_offload: text encoders wait in host memory, and come to the network's device only while they encode.
        vae_dtype: of the auto-encoder's weights.
        vae_slicing: code picture by picture, for less memory.
        vae_tiling: code large pictures in overlapping tiles: bounded memory, slightly other numbers.
        is_distilled: whether the model was distilled to few steps; None = what its files and its name say.
        revision: branch, tag or commit of the hub repository.

    Raises:
        MissingWeightsError: the folder is of an unknown family, lacks a part, or holds pickled weights only.
        ModuleNotFoundError: diffusers is not installed.
        ValueError: an option that this family has no use for, a canvas that is not made of whole patches, a scheduler
            of another kind.
    """

    network: nn.Module
    """The transformer or U-Net: what is trained or adapted. It has ``blocks()`` too."""

    def __init__(
        self,
        source: str,
        canvas: tuple[int, int] | None = None,
        text_length: int | None = None,
        clip_length: int | None = None,
        prompt_cache: str | None = None,
        embedded_guidance: float | None = None,
        network_dtype: Precision = "float32",
        text_dtype: Precision = "float32",
        text_offload: bool = False,
        vae_dtype: Precision = "float32",
        vae_slicing: bool = False,
        vae_tiling: bool = False,
        is_distilled: bool | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self._folder: PipelineFolder = open_pipeline(source, revision)
        with ordinary_construction():
            self.network = self._folder.network(getattr(torch, network_dtype))
            vae = DiffusersVAE(str(self._folder.path / "vae"), slicing=vae_slicing, tiling=vae_tiling)
            if vae_dtype != "float32":
                vae.vae.to(getattr(torch, vae_dtype))
        self.vae = FrozenModule(vae, dtype=None)
        self.family: Family = self._folder.family(
            self._folder.index, self.network, self._folder.scheduler(), str(source)
        )
        # `training.strategies.prepare` asks the network itself.
        network: Any = self.network
        network.blocks = functools.partial(self.family.blocks, network)
        self.canvas = self._canvas(canvas, vae)
        self.lengths = _lengths(self.family, clip_length, text_length)
        if embedded_guidance is not None and not self.family.embeds_guidance:
            raise ValueError(
                f"the network of {source} does not take the guidance as an input: leave embedded_guidance out, and "
                "guide with the empty prompt"
            )
        self.embedded_guidance = self.family.default_guidance if embedded_guidance is None else float(embedded_guidance)
        self.is_distilled = self._distilled() if is_distilled is None else is_distilled
        """Whether the model was distilled to few steps, for which flow-matching losses are not made."""
        self.cache = self._cache(prompt_cache, text_dtype)
        self._text_dtype: torch.dtype = getattr(torch, text_dtype)
        self._text: TextEncoders | None = None
        self._text_offload = text_offload
        self._freed = False

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one picture's latents, (C, h, w)."""
        return self.canvas.latent_shape

    @property
    def embeds_guidance(self) -> bool:
        """Whether guidance is an input of the network, ``Conditioning.extra["guidance"]``, (B,)."""
        return self.family.embeds_guidance

    @property
    def solver(self) -> Solver:
        """The solver that does what the pipeline's scheduler does: Euler's, but for some schedulers of U-Nets."""
        return self.family.solver

    @property
    def prediction(self) -> Predicted:
        """What the network itself predicts; ``velocity`` makes one of the house of it."""
        return self.family.prediction

    @property
    def training_times(self) -> Tensor:
        """House times at which the network was trained, rising, float64, (K,); 1000 even ones for flow models."""
        return self.family.training_times

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def blocks(self) -> list[nn.Module]:
        """The network's repeated blocks in the order of the forward pass.

        Returns:
            Transformer blocks; of a U-Net the levels on the way down, the middle, the levels on the way up.
        """
        return self.family.blocks(self.network)

    # ------------------------------------------------------------------ prompts

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, or read them from the cache.

        Args:
            prompts: B texts; the empty text is the unconditional prompt.

        Returns:
            sequence (B, T, E), mask (B, T), pooled (B, E') or None; extra: ``guidance`` (B,) where the network takes
            it as an input, ``time_ids`` (B, 6) for Stable Diffusion XL.

        Raises:
            RuntimeError: the text encoders were freed and the cache does not hold a prompt.
        """
        known = {prompt: self._encoded(prompt) for prompt in dict.fromkeys(prompts)}
        self._put_encoders_away()
        rows = [known[prompt] for prompt in prompts]
        sequence = torch.cat([row.sequence for row in rows]).to(self.device)
        pooled = [row.pooled for row in rows if row.pooled is not None]
        extra = self.family.extra(self.canvas, self.embedded_guidance)
        return Conditioning(
            sequence,
            torch.ones(sequence.shape[:2], dtype=torch.bool, device=self.device),
            torch.cat(pooled).to(self.device) if pooled else None,
            {name: value.repeat(len(rows), *[1] * (value.ndim - 1)).to(self.device) for name, value in extra.items()},
        )

    def cache_prompts(self, prompts: Sequence[str]) -> int:
        """Encode the prompts that the cache does not hold.

        Args:
            prompts: all prompts of a run; do not forget the empty one where guidance is used.

        Returns:
            How many were new.

        Raises:
            ValueError: there is no cache.
            RuntimeError: the text encoders were freed and a prompt is new.
        """
        cache = self._require_cache("cache_prompts")
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in cache]
        for prompt in new:
            self._encoded(prompt)
        self._put_encoders_away()
        return len(new)

    def free_text_encoders(self) -> None:
        """Forget the text encoders; from now on only prompts in the cache can be encoded.

        Raises:
            ValueError: there is no cache, so that no prompt could be encoded any more.
        """
        self._require_cache("free_text_encoders")
        self._text, self._freed = None, True
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _put_encoders_away(self) -> None:
        if self._text is not None and self._text_offload:
            self._text.to("cpu")

    def _encoded(self, prompt: str) -> Encoded:
        found = None if self.cache is None else self.cache.read(prompt)
        if found is not None:
            return found
        if self._freed:
            assert self.cache is not None
            raise RuntimeError(
                f"the text encoders of {self.source} were freed, and the prompt {prompt[:80]!r} is not in their cache "
                f"{self.cache.folder}: call cache_prompts with every prompt of the run (and the empty one) before "
                "free_text_encoders"
            )
        if self._text is None:
            self._text = self._folder.text_encoders(self.network, self._text_dtype)
        text, device = self._text.to(self.device), self.device
        # A run's autocast would decide what is kept on disk.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            found = self.family.encode(text.pipeline, prompt, self.lengths, device)
        if prompt == "":
            found = self.family.unconditional(found)
        if self.cache is not None:
            self.cache.write(prompt, found)
        return found

    # ------------------------------------------------------------------ flow

    def velocity(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v = eps - x_0.

        Args:
            x_t: latents at time t, float, (B, C, h, w).
            t: time, float, (B,), 0 = clean, 1 = noise.
            conditioning: encoded prompts, B of them.

        Returns:
            Velocity, (B, C, h, w), in the dtype of ``x_t``.
        """
        weight: Any = self.family.entry(self.network).weight
        pooled = None if conditioning.pooled is None else conditioning.pooled.to(weight.dtype)
        ready = dataclasses.replace(conditioning, sequence=conditioning.sequence.to(weight.dtype), pooled=pooled)
        return self.family.velocity(self.network, x_t, t, ready).to(x_t.dtype)

    def times(self, steps: int) -> Tensor:
        """The sampling grid of the pipeline's scheduler for pictures of this canvas.

        Args:
            steps: number of solver steps, >= 1.

        Returns:
            float64, (steps + 1,), on the CPU, falling to 0; from 1 for flow models, from the noisiest time of the
            training (0.94) for U-Nets.
        """
        return self.family.times(steps, self.canvas)

    def from_noise(self, noise: Tensor, steps: int) -> Tensor:
        """State at the first time of ``times(steps)`` that stands for unit noise.

        Args:
            noise: float, (B, C, h, w), of variance 1.
            steps: number of solver steps.

        Returns:
            (B, C, h, w); the noise itself for flow models.
        """
        return self.family.from_noise(noise, steps)

    # ------------------------------------------------------------------ pictures

    def latents_to_images(self, latents: Tensor) -> Tensor:
        """Decode clean latents.

        Args:
            latents: float, (B, C, h, w), t = 0.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        vae = self._vae
        maps = patchify(latents, 1)
        images = vae.decode(dataclasses.replace(maps, patch=vae.patch, sizes=maps.sizes * vae.patch))
        assert isinstance(images, Tensor)
        return images

    def images_to_latents(self, images: Tensor) -> Tensor:
        """Encode images; of a posterior its mode.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].

        Returns:
            Clean latents, (B, C, h, w).

        Raises:
            ValueError: the sides are not made of whole patches of the network.
        """
        return self._latents(images, None, 0)

    def sample_latents(self, images: Tensor, index: Tensor, epoch: int = 0) -> Tensor:
        """Encode images, drawing from the posterior.

        Args:
            images: float, (B, 3, H, W) in [-1, 1].
            index: int64, (B,), numbers of the images, which with ``epoch`` decide the draw.
            epoch: number of the pass.

        Returns:
            Clean latents, (B, C, h, w).

        Raises:
            ValueError: the sides are not made of whole patches, or the auto-encoder has no posterior.
        """
        return self._latents(images, index, epoch)

    def _latents(self, images: Tensor, index: Tensor | None, epoch: int) -> Tensor:
        self._require_whole(int(images.shape[-2]), int(images.shape[-1]), "images")
        tokens = self._vae.encode(images, index, epoch)
        return torch.stack(unpatchify(dataclasses.replace(tokens, patch=1, sizes=tokens.grid)))

    @property
    def _vae(self) -> DiffusersVAE:
        vae = self.vae.network
        assert isinstance(vae, DiffusersVAE)
        return vae

    # ------------------------------------------------------------------ construction

    def _canvas(self, wanted: tuple[int, int] | None, vae: DiffusersVAE) -> Canvas:
        height, width = wanted or (self.family.default_latents * vae.patch,) * 2
        if len(vae.scale) != self.family.channels:
            raise ValueError(
                f"the auto-encoder of {self.source} has {len(vae.scale)} channels and its network "
                f"{self.family.channels}: copy both from one source"
            )
        self._require_whole(height, width, "canvas")
        return Canvas(height, width, self.family.channels, vae.patch)

    def _require_whole(self, height: int, width: int, what: str) -> None:
        unit = self._vae.patch * self.family.folded
        if height < unit or width < unit or height % unit or width % unit:
            near = tuple(max(unit, round(side / unit) * unit) for side in (height, width))
            raise ValueError(
                f"{what} of {height} x {width} pixels: both sides must be multiples of {unit} for {self.source}, such "
                f"as {near[0]} x {near[1]}"
            )

    def _distilled(self) -> bool:
        return self.family.is_distilled or _FEW_STEPS.search(_model_name(self.source)) is not None

    def _cache(self, folder: str | None, text_dtype: Precision) -> PromptCache | None:
        if folder is None:
            return None
        return PromptCache(folder, f"{self._folder.fingerprint()} {self.lengths} {text_dtype}")

    def _require_cache(self, what: str) -> PromptCache:
        if self.cache is None:
            raise ValueError(f"{what} needs a folder for encoded prompts: give prompt_cache")
        return self.cache


def _model_name(source: str) -> str:
    """The last part of a folder or hub id; of a snapshot, whose folder is called after its commit, the repository's."""
    path = Path(source)
    return path.parent.parent.name.rsplit("--", 1)[-1] if path.parent.name == "snapshots" else path.name


def _lengths(family: Family, clip: int | None, text: int | None) -> Lengths:
    for name, wanted, own in (("clip_length", clip, family.clip_length), ("text_length", text, family.text_length)):
        if wanted is not None and own is None:
            raise ValueError(f"{family.owner} has no encoder that {name} is for: leave it out")
        if wanted is not None and wanted < 1:
            raise ValueError(f"{name} must be at least 1, got {wanted}")
    if clip is not None and family.clip_length is not None and clip > family.clip_length:
        raise ValueError(f"clip_length is at most {family.clip_length}, the positions that CLIP has, got {clip}")
    return Lengths(family.clip_length if clip is None else clip, family.text_length if text is None else text)
