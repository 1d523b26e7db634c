"""What every family of text-to-image pipelines answers, and the records that it answers with.

t = 0 is clean, t = 1 is noise. Shape letters: B prompts, T text tokens, E width of an embedding, C latent channels,
h and w height and width of a latent map.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_gen.flow.solvers import Solver, euler
from lightning_gen.interfaces import Conditioning

__all__ = ["Canvas", "Encoded", "Family", "Lengths", "Predicted", "option_of"]

Predicted = Literal["velocity", "epsilon", "v_prediction", "clean"]
"""What a network's numbers mean: eps - x_0, eps, sqrt(a) eps - sqrt(1 - a) x_0, or x_0."""


@dataclass(frozen=True)
class Canvas:
    """The size of a picture, in pixels and in latents.

    Attributes:
        height: pixels.
        width: pixels.
        channels: C of the latent map.
        pixels: edge of the square of pixels that one latent stands for.
    """

    height: int
    width: int
    channels: int
    pixels: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.channels, self.height // self.pixels, self.width // self.pixels


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt.

    Attributes:
        clip: of CLIP's tokenizers, or None where there is none.
        text: of T5 or of the language model, or None where there is neither.
    """

    clip: int | None
    text: int | None


@dataclass(frozen=True)
class Encoded:
    """What the text encoders made of prompts, before the canvas and the guidance join it.

    Attributes:
        sequence: float, (B, T, E).
        pooled: float, (B, E'), or None.
    """

    sequence: Tensor
    pooled: Tensor | None


class Family(abc.ABC):
    """What a family of pipelines does in its own way.

    Args:
        pipeline: settings of the pipeline, its ``model_index.json``.
        network: transformer or U-Net.
        scheduler: of diffusers.
        owner: the folder or hub id, for messages.

    Raises:
        ValueError: network or scheduler are of a kind that is not supported.
    """

    network_folder: ClassVar[str] = "transformer"
    encoders: ClassVar[Mapping[str, str]]
    """Folder of every text encoder -> folder of its tokenizer."""
    optional_encoders: ClassVar[frozenset[str]] = frozenset()
    left_out: ClassVar[Mapping[str, Any]] = {}
    """Parts of the pipeline that have nothing to do with prompts, pictures or the flow, and what stands in for them."""
    prompt_settings: ClassVar[tuple[str, ...]] = ()
    """Keys of ``model_index.json`` that decide what a prompt is encoded to."""
    clip_length: ClassVar[int | None] = 77
    text_length: ClassVar[int | None] = None
    default_guidance: ClassVar[float] = 3.5
    """What a network that takes the guidance as an input gets when nobody asks for another."""

    def __init__(self, pipeline: Mapping[str, Any], network: nn.Module, scheduler: Any, owner: str) -> None:
        self.pipeline, self.scheduler, self.owner = pipeline, scheduler, owner
        self.config: Any = option_of(network, "config")

    @property
    @abc.abstractmethod
    def channels(self) -> int:
        """Channels C of the latent map."""

    @property
    def folded(self) -> int:
        """Latents of the auto-encoder along a side of what the network sees as one place."""
        return 1

    @property
    def default_latents(self) -> int:
        """Latents of the auto-encoder along a side of the picture that the model was made for."""
        return int(self.config.sample_size)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the strength of guidance is an input of the network (guidance distillation)."""
        return bool(self.config.get("guidance_embeds", False))

    @property
    def is_distilled(self) -> bool:
        """Whether the files say that the model was distilled to few steps."""
        return bool(self.pipeline.get("is_distilled", False))

    @property
    def solver(self) -> Solver:
        """What does on the grid what the pipeline's scheduler does."""
        return euler

    @property
    def prediction(self) -> Predicted:
        """What the network itself predicts."""
        return "velocity"

    @property
    def training_times(self) -> Tensor:
        """Times at which the network was trained, rising, float64, (K,); evenly spaced for flow models."""
        return torch.arange(1, 1001, dtype=torch.float64) / 1000

    @abc.abstractmethod
    def entry(self, network: nn.Module) -> nn.Module:
        """The layer that latents enter by; its weights have the dtype that inputs must have."""

    @abc.abstractmethod
    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """The repeated blocks in the order of the forward pass."""

    @abc.abstractmethod
    def encode(self, pipeline: Any, prompt: str, lengths: Lengths, device: torch.device) -> Encoded:
        """One prompt through the text encoders of a pipeline of diffusers."""

    @abc.abstractmethod
    def velocity(self, network: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """v = eps - x_0 of latents (B, C, h, w), float32 or better; the conditioning has the network's dtype."""

    @abc.abstractmethod
    def times(self, steps: int, canvas: Canvas) -> Tensor:
        """The grid of the pipeline, float64, (steps + 1,), falling to 0."""

    def from_noise(self, noise: Tensor, steps: int) -> Tensor:
        """State at the first time of the grid that stands for unit noise (B, C, h, w)."""
        return noise

    def unconditional(self, encoded: Encoded) -> Encoded:
        """What stands for the empty prompt, given what the encoders make of it."""
        return encoded

    def extra(self, canvas: Canvas, guidance: float) -> dict[str, Tensor]:
        """What else the network wants to know, one row each, on the CPU."""
        return {"guidance": torch.tensor([guidance])} if self.embeds_guidance else {}


def option_of(network: nn.Module, name: str) -> Any:
    """An attribute that classes of diffusers have and that torch's types do not know.

    Args:
        network: any module.
        name: of the attribute, dotted.

    Returns:
        Its value.
    """
    found: Any = network
    for part in name.split("."):
        found = getattr(found, part)
    return found
