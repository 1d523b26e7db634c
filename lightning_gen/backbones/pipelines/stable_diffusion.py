"""Stable Diffusion 1 and 2 and Stable Diffusion XL: U-Nets that predict noise, v or data of a discrete diffusion.

t = 0 is clean, t = 1 is noise. The network sees variance-preserving states x_vp = sqrt(a) x_0 + sqrt(1 - a) eps; in
the house the same state is x_t = x_vp / (sqrt(a) + sqrt(1 - a)) at t = sqrt(1 - a) / (sqrt(a) + sqrt(1 - a)), see
``flow/paths.py``. An Euler step of the straight path is then a DDIM step.

Shape letters: B prompts, T text tokens, E width, C latent channels, h and w height and width of a latent map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from lightning_gen.flow import paths
from lightning_gen.flow.solvers import Solver
from lightning_gen.interfaces import Conditioning

from .family import Canvas, Encoded, Family, Lengths, Predicted, option_of
from .grids import ddpm_grid, ddpm_solver, require_ddpm_scheduler

__all__ = ["StableDiffusion", "StableDiffusionXL"]

_PREDICTED: Final[Mapping[str, Predicted]] = {
    "epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "clean"
}  # fmt: skip


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x.

    Source: arXiv:2112.10752; ``StableDiffusionPipeline`` of diffusers.
    """

    network_folder: ClassVar[str] = "unet"
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer"}
    left_out: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }

    def __init__(self, pipeline: Mapping[str, Any], network: nn.Module, scheduler: Any, owner: str) -> None:
        super().__init__(pipeline, network, scheduler, owner)
        require_ddpm_scheduler(scheduler, owner)
        if self.config.get("time_cond_proj_dim"):
            raise ValueError(
                f"the U-Net of {owner} is a latent consistency model (time_cond_proj_dim), which jumps instead of "
                "following a flow: give the model that it was distilled from"
            )
        self.alpha_bars: Tensor = scheduler.alphas_cumprod.double().cpu()
        self._tables: dict[torch.device, Tensor] = {}

    @property
    def channels(self) -> int:
        """Channels of the latent map."""
        return int(self.config.in_channels)

    @property
    def solver(self) -> Solver:
        """That of the scheduler."""
        return ddpm_solver(self.scheduler)

    @property
    def prediction(self) -> Predicted:
        """As the scheduler says."""
        return _PREDICTED[self.scheduler.config.prediction_type]

    @property
    def training_times(self) -> Tensor:
        """Times of the discrete training steps."""
        return paths.time_from_alpha_bar(self.alpha_bars)

    def entry(self, network: nn.Module) -> nn.Module:
        """The first convolution."""
        return network.get_submodule("conv_in")

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """The levels on the way down, the middle, the levels on the way up."""
        middle = option_of(network, "mid_block")
        down, up = option_of(network, "down_blocks"), option_of(network, "up_blocks")
        return [*down, *([] if middle is None else [middle]), *up]

    def encode(self, pipeline: Any, prompt: str, lengths: Lengths, device: torch.device) -> Encoded:
        """CLIP's last hidden states."""
        pipeline.tokenizer.model_max_length = lengths.clip
        return Encoded(pipeline.encode_prompt([prompt], device, 1, False)[0], None)

    def velocity(self, network: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The prediction of the network, whatever it predicts, on the straight path."""
        alpha_bar, state = paths.alpha_bar_from_time(t), paths.vp_from_flow(x_t, t)
        predicted: Tensor = network(
            state.to(conditioning.sequence.dtype),
            paths.discrete_step(t, self._table(t.device)).float(),
            encoder_hidden_states=conditioning.sequence,
            added_cond_kwargs=self._added(conditioning),
            return_dict=False,
        )[0]
        predicted = predicted.to(state.dtype)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return paths.velocity_from_vp_noise(state, predicted, alpha_bar)
        if kind == "v_prediction":
            return paths.velocity_from_vp_velocity(state, predicted, alpha_bar)
        return paths.velocity_from_clean(x_t, predicted, t)

    def times(self, steps: int, canvas: Canvas) -> Tensor:
        """The times of the scheduler's discrete steps."""
        return ddpm_grid(self.scheduler, steps)

    def from_noise(self, noise: Tensor, steps: int) -> Tensor:
        """What the network is given at the first step, as a state of the straight path."""
        start = ddpm_grid(self.scheduler, steps)[0]
        scale = self.scheduler.init_noise_sigma
        state = self.scheduler.scale_model_input(noise * float(scale), self.scheduler.timesteps[0])
        return paths.flow_from_vp(state, paths.alpha_bar_from_time(start)).to(noise.dtype)

    def _added(self, conditioning: Conditioning) -> dict[str, Tensor] | None:
        return None

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self.alpha_bars.to(device)
        return self._tables[device]


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: two CLIPs, and the size of the picture as a condition, ``extra["time_ids"]``, (B, 6).

    Source: arXiv:2307.01952; ``StableDiffusionXLPipeline`` of diffusers.
    """

    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    left_out: ClassVar[Mapping[str, Any]] = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    prompt_settings: ClassVar[tuple[str, ...]] = ("force_zeros_for_empty_prompt",)

    def encode(self, pipeline: Any, prompt: str, lengths: Lengths, device: torch.device) -> Encoded:
        """Hidden states of both CLIPs side by side, the second one's pooled vector."""
        pipeline.tokenizer.model_max_length = pipeline.tokenizer_2.model_max_length = lengths.clip
        found = pipeline.encode_prompt([prompt], device=device, do_classifier_free_guidance=False)
        return Encoded(found[0], found[2])

    def unconditional(self, encoded: Encoded) -> Encoded:
        """Zeros, where the pipeline says so: the base model was trained to drop its prompts like that."""
        if not self.pipeline.get("force_zeros_for_empty_prompt", True) or encoded.pooled is None:
            return encoded
        return Encoded(torch.zeros_like(encoded.sequence), torch.zeros_like(encoded.pooled))

    def extra(self, canvas: Canvas, guidance: float) -> dict[str, Tensor]:
        """An original picture of the canvas's size, not cropped."""
        size = (canvas.height, canvas.width)
        return {"time_ids": torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)}

    def _added(self, conditioning: Conditioning) -> dict[str, Tensor] | None:
        if conditioning.pooled is None or "time_ids" not in conditioning.extra:
            raise ValueError(
                f"the U-Net of {self.owner} needs a pooled vector and Conditioning.extra['time_ids'], (B, 6): "
                "encode_prompts gives both"
            )
        return {"text_embeds": conditioning.pooled, "time_ids": conditioning.extra["time_ids"]}
