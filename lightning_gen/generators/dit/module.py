"""Class-conditional flow matching: classes in, pictures out.

t = 0 is clean, t = 1 is noise. Shape letters: B images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_gen.data.batches import ImageBatch
from lightning_gen.generators.dit.flow_matching import FlowMatching
from lightning_gen.generators.dit.lightningdit.convert import (
    ConversionReport,
    converted,
    infer_sizes,
    infer_variant,
    is_published,
    read_published,
)
from lightning_gen.generators.dit.lightningdit.network import LightningDiT
from lightning_gen.generators.dit.lightningdit.variants import PREFIX, lightningdit_shape
from lightning_gen.generators.dit.network import DiT
from lightning_gen.generators.dit.objective import drop_labels
from lightning_gen.generators.dit.pretrained import write_folder
from lightning_gen.generators.dit.training import Building, Learning, Prediction, Sampling, TimeSampling
from lightning_gen.generators.dit.variants import dit_shape
from lightning_gen.generators.spaces import LatentSpace
from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.training.needs import ModelNeeds
from lightning_gen.training.optim import AdamW, WarmupCosine
from lightning_gen.training.weights import load_matching

__all__ = ["LatentDiffusion", "import_published"]

_OPTIMIZER = AdamW(learning_rate=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
_SCHEDULE = WarmupCosine(warmup_fraction=0.01, final_learning_rate=1e-5, start_learning_rate=0.0)


class LatentDiffusion(FlowMatching):
    """Class-conditional flow matching with the DiT of ViTok-v2 or with LightningDiT.

    Args:
        space: ``PixelSpace`` or ``AutoencoderSpace``.
        variant: network and size by name: ``L``, ``G``, ``w160_d6_h5`` is the DiT of ViTok-v2, see
            ``variants.dit_shape``; ``lightningdit_xl_1`` another network, see ``lightningdit/variants.py``.
        num_classes: number of classes.
        layer_scale: gamma of every block at the start; None = the paper's 1e-4. LightningDiT has none.
        rope_theta: base of the rotary frequencies.
        swa_radius: window radius in patches of every second block; None = all see the whole image, as in LightningDiT.
        prediction: what the network's output means; paper: velocity.
        times: at which times it is trained; paper: uniform.
        direction_weight: of the loss that compares directions of velocities; paper: 0, LightningDiT and PAE: 1.
        drop_rate: share of hidden labels; paper: 0.1.
        sampling: how pictures are made; paper: UniPC, 50 steps.
        optimizer: AdamW with its hyper-parameters.
        schedule: warm-up and cosine.
        activation_checkpointing: recompute blocks in the backward pass.
        compile_blocks: torch.compile every block.
        extractors: networks for gFID in validation, see ``FlowMatching``.
        init_from: start from these weights: a folder that ``save_pretrained``, `lightning export` or `lightning import`
            wrote, or a published file of LightningDiT or PAE (``.pt``, ``.safetensors``). They must mean and fit what
            is built here. Another thing than ``ckpt_path``, which resumes a run.
        seed: seed of the initial weights and of every keyed draw.

    Raises:
        ValueError: an unknown variant, or an option that its network does not have.

    Source: arXiv:2605.05331 (generator); arXiv:2605.07915 (LightningDiT).
    """

    def __init__(
        self,
        space: LatentSpace,
        variant: str = "L",
        num_classes: int = 1000,
        layer_scale: float | None = None,
        rope_theta: float = 10000.0,
        swa_radius: int | None = None,
        prediction: Prediction = "velocity",
        times: TimeSampling = TimeSampling("uniform"),  # noqa: B008 (frozen)
        direction_weight: float = 0.0,
        drop_rate: float = 0.1,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        optimizer: AdamW = _OPTIMIZER,
        schedule: WarmupCosine = _SCHEDULE,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        extractors: Sequence[FeatureExtractor] = (),
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        with torch.device("meta"):
            network = _network(variant, space.channels, num_classes, layer_scale, rope_theta, swa_radius)
        learning = Learning(prediction, times, drop_rate, optimizer, schedule, direction_weight)
        building = Building(activation_checkpointing, compile_blocks, seed)
        super().__init__(space, network, learning, building, sampling, extractors)
        self.num_classes, self.init_from = num_classes, init_from
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
        name, classes = init_args.get("variant", "L"), int(init_args.get("num_classes", 1000))
        if name.startswith(PREFIX):
            lightning = lightningdit_shape(name)
            frozen = lightning.frozen_parameters
            return ModelNeeds(lightning.parameters(32, classes) - frozen, frozen, lightning.block_parameters)
        shape = dit_shape(name)
        return ModelNeeds(trainable=shape.parameters(64, classes), largest_block=shape.block_parameters)

    def configure_model(self) -> None:
        """Shard, materialise and fill the network; does nothing the second time."""
        if not self.on_meta:
            return
        super().configure_model()
        if self.init_from is not None:
            load_matching(self.network, self.fitting_weights(self.init_from), self.init_from)

    def fitting_weights(self, folder: str | Path) -> dict[str, Tensor]:
        """Read weights that mean what this module takes them for.

        Args:
            folder: see :meth:`load_network`; also a published file.

        Returns:
            Tensors of the whole network, by name.

        Raises:
            MissingWeightsError: the files are absent or damaged.
            ValueError: they belong to another kind of module or other settings, or do not fit the network.
        """
        if not is_published(folder):
            return super().fitting_weights(folder)
        if not isinstance(self.network, LightningDiT):
            raise ValueError(
                f"{folder} is a file, which can only hold a published LightningDiT: set model.variant to "
                f"{PREFIX}..., or name the folder of an export"
            )
        state, report = converted(self.network, read_published(folder))
        rank_zero_info(f"{folder}: {report}")
        return state

    def condition(self, batch: ImageBatch, dropped: Tensor) -> Tensor:
        """Labels, or the null class.

        Args:
            batch: its labels.
            dropped: bool, (B,).

        Returns:
            int64, (B,).
        """
        return drop_labels(batch.label, torch.where(dropped, 0.0, 1.0), 0.5, self.num_classes)


def import_published(file: str | Path, folder: str | Path) -> ConversionReport:
    """Turn a published LightningDiT into a folder that ``LatentDiffusion`` takes as ``init_from``.

    Args:
        file: ``.safetensors``, or a checkpoint of the published trainer, whose averaged weights are taken.
        folder: where to.

    Returns:
        What was taken, what was computed instead, what is missing, what is dead.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds another network.
    """
    published = read_published(file)
    variant = infer_variant(published)
    channels, classes = infer_sizes(published)
    with torch.device("meta"):
        network = LightningDiT(variant, channels, classes)
    state, report = converted(network, published)
    meaning = {"variant": variant, "num_classes": classes, "prediction": "velocity", "channels": channels}
    write_folder(Path(folder), {"kind": LatentDiffusion.__name__, **meaning}, state)
    return report


def _network(
    variant: str,
    channels: int,
    num_classes: int,
    layer_scale: float | None,
    rope_theta: float,
    swa_radius: int | None,
) -> nn.Module:
    if not variant.startswith(PREFIX):
        gamma = 1e-4 if layer_scale is None else layer_scale
        return DiT(variant, channels, num_classes, layer_scale=gamma, rope_theta=rope_theta, swa_radius=swa_radius)
    for name, value in (("layer_scale", layer_scale), ("swa_radius", swa_radius)):
        if value is not None:
            raise ValueError(f"model.{name} is {value}, but {variant} has no such option: set it to null")
    return LightningDiT(variant, channels, num_classes, rope_theta=rope_theta)
