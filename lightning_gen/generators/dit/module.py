"""Class-conditional flow matching: classes in, pictures out.

t = 0 is clean, t = 1 is noise. Shape letters: B images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gen.data.batches import ImageBatch
from lightning_gen.generators.dit.flow_matching import FlowMatching
from lightning_gen.generators.dit.network import DiT
from lightning_gen.generators.dit.objective import drop_labels
from lightning_gen.generators.dit.training import Building, Learning, Prediction, Sampling, TimeSampling
from lightning_gen.generators.dit.variants import dit_shape
from lightning_gen.generators.spaces import LatentSpace
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.training.needs import ModelNeeds
from lightning_gen.training.optim import AdamW, WarmupCosine

__all__ = ["LatentDiffusion"]

_OPTIMIZER = AdamW(learning_rate=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
_SCHEDULE = WarmupCosine(warmup_fraction=0.01, final_learning_rate=1e-5, start_learning_rate=0.0)


class LatentDiffusion(FlowMatching):
    """Class-conditional flow matching with the DiT of ViTok-v2.

    Args:
        space: ``PixelSpace`` or ``AutoencoderSpace``.
        variant: size by name, ``L``, ``G``, ``w160_d6_h5``, see ``variants.dit_shape``.
        num_classes: number of classes.
        layer_scale: gamma of every block at the start; paper: 1e-4.
        rope_theta: base of the rotary frequencies.
        swa_radius: window radius in patches of every second block; None = all see the whole image.
        prediction: what the network's output means; paper: velocity.
        times: at which times it is trained; paper: uniform.
        drop_rate: share of hidden labels; paper: 0.1.
        sampling: how pictures are made; paper: UniPC, 50 steps.
        optimizer: AdamW with its hyper-parameters.
        schedule: warm-up and cosine.
        activation_checkpointing: recompute blocks in the backward pass.
        compile_blocks: torch.compile every block.
        extractors: networks for gFID in validation, see ``FlowMatching``.
        seed: seed of the initial weights and of every keyed draw.

    Source: arXiv:2605.05331 (generator).
    """

    def __init__(
        self,
        space: LatentSpace,
        variant: str = "L",
        num_classes: int = 1000,
        layer_scale: float = 1e-4,
        rope_theta: float = 10000.0,
        swa_radius: int | None = None,
        prediction: Prediction = "velocity",
        times: TimeSampling = TimeSampling("uniform"),  # noqa: B008 (frozen)
        drop_rate: float = 0.1,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        optimizer: AdamW = _OPTIMIZER,
        schedule: WarmupCosine = _SCHEDULE,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        extractors: Sequence[FeatureExtractor] = (),
        seed: int = 0,
    ) -> None:
        with torch.device("meta"):
            network = DiT(
                variant,
                space.channels,
                num_classes,
                layer_scale=layer_scale,
                rope_theta=rope_theta,
                swa_radius=swa_radius,
            )
        learning = Learning(prediction, times, drop_rate, optimizer, schedule)
        building = Building(activation_checkpointing, compile_blocks, seed)
        super().__init__(space, network, learning, building, sampling, extractors)
        self.num_classes = num_classes
        self.save_hyperparameters(
            {"variant": variant, "num_classes": num_classes, "prediction": prediction, "channels": space.channels},
            logger=False,
        )

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """What a run with these arguments needs; nothing is built.

        Args:
            init_args: constructor arguments, as parsed from a config.

        Returns:
            Parameters.
        """
        shape = dit_shape(init_args.get("variant", "L"))
        return ModelNeeds(
            trainable=shape.parameters(64, int(init_args.get("num_classes", 1000))),
            largest_block=shape.block_parameters,
        )

    def condition(self, batch: ImageBatch, dropped: Tensor) -> Tensor:
        """Labels, or the null class.

        Args:
            batch: its labels.
            dropped: bool, (B,).

        Returns:
            int64, (B,).
        """
        return drop_labels(batch.label, torch.where(dropped, 0.0, 1.0), 0.5, self.num_classes)
