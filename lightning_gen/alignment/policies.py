"""Text-to-image models as policies: by name, from a folder, from a pipeline, or as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, cast

from torch import nn

from lightning_gen.interfaces import TextToImage

__all__ = ["PipelinePolicy", "open_policy"]

_METHODS = ("network", "latent_shape", "encode_prompts", "velocity", "latents_to_images", "times", "from_noise")


@dataclasses.dataclass(frozen=True)
class PipelinePolicy:
    """A pipeline of diffusers, named with how it is to be used; nothing is read before training begins.

    Attributes:
        pipeline: folder or hub id.
        canvas: height and width of pictures in pixels; None = the size the model was made for.
        text_length: tokens of a prompt for T5; None = the pipeline's own. Published reinforcement learning: 128.
        prompt_cache: folder of encoded prompts; None = none are kept.
        dtype: of the frozen weights, network, text encoders and auto-encoder alike.
        vae_slicing: decode picture by picture, for less memory.
    """

    pipeline: str
    canvas: tuple[int, int] | None = None
    text_length: int | None = None
    prompt_cache: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    vae_slicing: bool = False

    def load(self) -> nn.Module:
        """Read the pipeline.

        Returns:
            A ``DiffusersTextToImage``.

        Raises:
            MissingWeightsError: it is not there, or lacks a part.
        """
        from lightning_gen.backbones.text_to_image import DiffusersTextToImage

        return DiffusersTextToImage(
            self.pipeline,
            self.canvas,
            self.text_length,
            prompt_cache=self.prompt_cache,
            network_dtype=self.dtype,
            text_dtype=self.dtype,
            vae_dtype=self.dtype,
            vae_slicing=self.vae_slicing,
        )


def open_policy(source: str | PipelinePolicy | nn.Module) -> TextToImage:
    """Load the model that is to be trained.

    Args:
        source: name of shipped weights of this package or a folder that ``save_pretrained`` wrote, a folder of a
            diffusers pipeline (it has a ``model_index.json``), a pipeline with how it is used, or a model.

    Returns:
        The model, frozen and in eval mode; it is a module.

    Raises:
        MissingWeightsError: there is nothing of that name.
        TypeError: a module that is no text-to-image model.
    """
    if isinstance(source, str) and (Path(source) / "model_index.json").is_file():
        source = PipelinePolicy(source, dtype="float32")
    model = source.load() if isinstance(source, PipelinePolicy) else _own(source)
    if missing := [name for name in _METHODS if not hasattr(model, name)]:
        raise TypeError(f"{type(model).__name__} is no text-to-image model: it has no {', '.join(missing)}")
    return cast(TextToImage, model.requires_grad_(False).eval())


def _own(source: str | nn.Module) -> nn.Module:
    if isinstance(source, nn.Module):
        return source
    from lightning_gen.generators.dit.text_module import TextLatentDiffusion

    return TextLatentDiffusion.from_pretrained(source)
