"""Stable Diffusion 3 and 3.5: two CLIPs, T5, a transformer that predicts the house's own velocity.

t = 0 is clean, t = 1 is noise. Shape letters: B prompts, T text tokens, E width, C latent channels, h and w height and
width of a latent map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_gen.flow import paths
from lightning_gen.interfaces import Conditioning

from .family import Canvas, Encoded, Family, Lengths, option_of
from .grids import require_flow_scheduler, stable_diffusion_3_grid

__all__ = ["StableDiffusion3"]


class StableDiffusion3(Family):
    """SD3 and SD3.5.

    Source: arXiv:2403.03206; ``StableDiffusion3Pipeline`` of diffusers.
    """

    encoders: ClassVar[Mapping[str, str]] = {
        "text_encoder": "tokenizer",
        "text_encoder_2": "tokenizer_2",
        "text_encoder_3": "tokenizer_3",
    }
    optional_encoders: ClassVar[frozenset[str]] = frozenset({"text_encoder_3"})
    text_length: ClassVar[int | None] = 256

    def __init__(self, pipeline: Mapping[str, Any], network: nn.Module, scheduler: Any, owner: str) -> None:
        super().__init__(pipeline, network, scheduler, owner)
        require_flow_scheduler(scheduler, owner)

    @property
    def channels(self) -> int:
        """Channels of the latent map."""
        return int(self.config.in_channels)

    @property
    def folded(self) -> int:
        """Edge of a patch."""
        return int(self.config.patch_size)

    def entry(self, network: nn.Module) -> nn.Module:
        """The convolution that makes patches."""
        return network.get_submodule("pos_embed.proj")

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """The joint blocks."""
        return list(option_of(network, "transformer_blocks"))

    def encode(self, pipeline: Any, prompt: str, lengths: Lengths, device: torch.device) -> Encoded:
        """CLIP's tokens, then T5's."""
        pipeline.tokenizer_max_length = lengths.clip
        found = pipeline.encode_prompt(
            [prompt], None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=lengths.text
        )
        return Encoded(found[0], found[2])

    def velocity(self, network: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's own output."""
        predicted: Tensor = network(
            hidden_states=x_t.to(conditioning.sequence.dtype),
            timestep=paths.timestep(t).float(),
            encoder_hidden_states=conditioning.sequence,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0]
        return predicted

    def times(self, steps: int, canvas: Canvas) -> Tensor:
        """Shifted twice."""
        _, height, width = canvas.latent_shape
        return stable_diffusion_3_grid(self.scheduler, height * width // self.folded**2, steps)
