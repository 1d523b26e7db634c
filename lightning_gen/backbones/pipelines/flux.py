"""FLUX.1 and FLUX.2: transformers on 2 x 2 neighbours of a latent map that predict the house's own velocity.

t = 0 is clean, t = 1 is noise. Shape letters: B prompts, T text tokens, E width, L places, C latent channels, h and w
height and width of a latent map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.interfaces import Conditioning

from .family import Canvas, Encoded, Family, Lengths, option_of
from .grids import flux2_exponent, linear_exponent, require_flow_scheduler, sampled_grid

__all__ = ["Flux", "Flux2", "Flux2Klein"]


class Flux(Family):
    """FLUX.1: the latent map of the auto-encoder, folded for the network.

    Guidance of the dev model is an input of the network: ``Conditioning.extra["guidance"]``, (B,).

    Source: ``FluxPipeline`` of diffusers.
    """

    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    text_length: ClassVar[int | None] = 512

    def __init__(self, pipeline: Mapping[str, Any], network: nn.Module, scheduler: Any, owner: str) -> None:
        super().__init__(pipeline, network, scheduler, owner)
        require_flow_scheduler(scheduler, owner)

    @property
    def channels(self) -> int:
        """Channels of the latent map."""
        return int(self.config.in_channels) // self.folded**2

    @property
    def folded(self) -> int:
        """Edge of the square of latents that is one place of the network."""
        return 2

    @property
    def default_latents(self) -> int:
        """1024 pixels."""
        return 128

    @property
    def is_distilled(self) -> bool:
        """Schnell is the one without guidance and without a shift."""
        return super().is_distilled or not (self.embeds_guidance or self.scheduler.config.use_dynamic_shifting)

    def entry(self, network: nn.Module) -> nn.Module:
        """The linear layer that places enter by."""
        return network.get_submodule("x_embedder")

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """The blocks with two streams, then those with one."""
        return [*option_of(network, "transformer_blocks"), *option_of(network, "single_transformer_blocks")]

    def encode(self, pipeline: Any, prompt: str, lengths: Lengths, device: torch.device) -> Encoded:
        """T5's tokens and CLIP's pooled vector."""
        pipeline.tokenizer_max_length = lengths.clip
        found = pipeline.encode_prompt([prompt], device=device, max_sequence_length=lengths.text)
        return Encoded(found[0], found[1])

    def velocity(self, network: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's own output, unfolded."""
        folded = F.pixel_unshuffle(x_t, self.folded)
        return F.pixel_shuffle(self._predicted(network, folded, t, conditioning), self.folded)

    def times(self, steps: int, canvas: Canvas) -> Tensor:
        """Shifted once, by more for larger pictures."""
        exponent = linear_exponent(self.scheduler.config, _places(canvas, self.folded))
        return sampled_grid(self.scheduler, exponent, steps)

    def _predicted(self, network: nn.Module, folded: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        words = conditioning.sequence.shape[1]
        pooled = {} if conditioning.pooled is None else {"pooled_projections": conditioning.pooled}
        out: Tensor = network(
            hidden_states=folded.flatten(2).mT.to(conditioning.sequence.dtype),
            timestep=t.float(),
            guidance=self._guidance(conditioning),
            encoder_hidden_states=conditioning.sequence,
            txt_ids=self._word_positions(words, folded.device),
            img_ids=self._place_positions(folded),
            return_dict=False,
            **pooled,
        )[0]
        return out.mT.reshape(folded.shape)

    def _guidance(self, conditioning: Conditioning) -> Tensor | None:
        if not self.embeds_guidance:
            return None
        if "guidance" not in conditioning.extra:
            raise ValueError(
                f"the network of {self.owner} takes the guidance as an input: Conditioning.extra needs 'guidance', "
                "(B,); encode_prompts puts it there"
            )
        return conditioning.extra["guidance"].float()

    def _word_positions(self, words: int, device: torch.device) -> Tensor:
        return torch.zeros(words, 3, device=device)

    def _place_positions(self, folded: Tensor) -> Tensor:
        """0, row, column of every place."""
        rows, columns = _rows_and_columns(folded)
        return torch.stack([torch.zeros_like(rows), rows, columns], 1)


class Flux2(Flux):
    """FLUX.2: the auto-encoder's latents are folded already; Mistral's hidden states are the text.

    Source: ``Flux2Pipeline`` of diffusers.
    """

    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer"}
    clip_length: ClassVar[int | None] = None
    default_guidance: ClassVar[float] = 4.0

    @property
    def channels(self) -> int:
        """Channels of the latent map."""
        return int(self.config.in_channels)

    @property
    def folded(self) -> int:
        """Nothing is left to fold."""
        return 1

    @property
    def default_latents(self) -> int:
        """1024 pixels."""
        return 64

    @property
    def is_distilled(self) -> bool:
        """What the pipeline says of itself."""
        return bool(self.pipeline.get("is_distilled", False))

    def encode(self, pipeline: Any, prompt: str, lengths: Lengths, device: torch.device) -> Encoded:
        """Hidden states of three layers, side by side."""
        return Encoded(pipeline.encode_prompt([prompt], device=device, max_sequence_length=lengths.text)[0], None)

    def velocity(self, network: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's own output."""
        return self._predicted(network, x_t, t, conditioning)

    def times(self, steps: int, canvas: Canvas) -> Tensor:
        """Shifted once, by what FLUX.2's authors fitted."""
        return sampled_grid(self.scheduler, flux2_exponent(_places(canvas, self.folded), steps), steps)

    def _word_positions(self, words: int, device: torch.device) -> Tensor:
        numbers = torch.arange(words, device=device)
        return torch.stack([torch.zeros_like(numbers)] * 3 + [numbers], 1)

    def _place_positions(self, folded: Tensor) -> Tensor:
        rows, columns = _rows_and_columns(folded)
        return torch.stack([torch.zeros_like(rows), rows, columns, torch.zeros_like(rows)], 1)


class Flux2Klein(Flux2):
    """FLUX.2 klein: Qwen's hidden states are the text, and the base models want ordinary guidance.

    Source: ``Flux2KleinPipeline`` of diffusers.
    """

    @property
    def embeds_guidance(self) -> bool:
        """Its pipeline never gives the network a guidance."""
        return False


def _places(canvas: Canvas, folded: int) -> int:
    _, height, width = canvas.latent_shape
    return (height // folded) * (width // folded)


def _rows_and_columns(folded: Tensor) -> tuple[Tensor, Tensor]:
    height, width = folded.shape[2:]
    rows = torch.arange(height, device=folded.device)
    columns = torch.arange(width, device=folded.device)
    return rows.repeat_interleave(width), columns.repeat(height)
