"""MUSE's claim (arXiv:2605.05646) in the embedded world.

    python benchmarks/claims/muse.py                        # all arms and seeds
    python benchmarks/claims/muse.py --seed 0 --arm strict  # one run, and what is known so far
    python benchmarks/claims/muse.py --quick                # does everything run?

muse_routing: reconstruction, structure and semantics train one tokenizer through the paper's three stages. ``joint``
stops no gradient, ``strict`` gives each loss parameters of its own as the paper describes it, ``official`` does what
the published code does, its transposed teacher included, and is reported. The paper says that the losses of ``joint``
pull against each other, that those of ``strict`` cannot meet, and that ``strict`` then reconstructs and classifies
better.

Structure follows the affinities of the embedded world's own frozen encoder (``shapes_encoder``). The paper's InternViT
has seen photographs before; ours first learns to give the frozen encoder's features, in the same way in every arm.
Captions are random vectors of their words. There is no perceptual and no adversarial loss.

Figures: ``conflict@a-b`` is minus the cosine of the gradients of two losses over the parameters that both reach (the
published hook), the mean over the last quarter of the steps, 0 where they share none; ``negative@a-b`` the share of
these steps with a cosine below 0; ``shared@a-b`` how many numbers of the parameters both reach. The conflicts that
decide are those with semantics; structure against reconstruction is reported. PSNR is in decibel, on scenes that no arm
has seen; probes and zero-shot look at pictures of a single object. All are measured with averaged weights.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from harness import Budget, Claim, Comparison, main
from lightning.pytorch import LightningModule, Trainer
from pictures import quality, scenes
from pretrained_encoder import pretrained_encoder
from torch import Tensor
from training import train

from lightning_gen.autoencoders.muse.decoder import DCAEShape
from lightning_gen.autoencoders.muse.module import Muse
from lightning_gen.autoencoders.muse.network import MuseShape, Routing
from lightning_gen.autoencoders.muse.stages import Stage
from lightning_gen.autoencoders.muse.teacher import AffinityTeacher
from lightning_gen.autoencoders.muse.text import WordVectors
from lightning_gen.backbones.intern_vit import InternViTShape
from lightning_gen.metrics.labelled_features import FeatureTable
from lightning_gen.metrics.probes.linear import LinearProbe
from lightning_gen.metrics.probes.zero_shot import ZeroShot, class_embeddings
from lightning_gen.nn.routing import RoutingMatrix
from lightning_gen.shapes.encoder import ShapesEncoder
from lightning_gen.shapes.module import ShapesDataModule
from lightning_gen.shapes.vocabulary import COLORS, KINDS, OPENINGS
from lightning_gen.training.callbacks.gradient_routing import GradientRouting
from lightning_gen.training.ema import EMA
from lightning_gen.training.initialisation import initialise

SIZE: Final = 32
"""Edge of the pictures: 4 x 4 latent tokens, as many as the places of the frozen encoder's last map."""
WIDTH: Final = 64
SHAPE: Final = MuseShape(
    InternViTShape(width=WIDTH, depth=2, heads=2, hidden=128, patch=4, image_size=SIZE, layer_scale=1.0),
    DCAEShape(16, widths=(16, 32, 64, 64), layers=(1, 1, 1, 1), attention_from=3, head_dim=16),
    width=WIDTH,
    depth=3,
    heads=2,
    latent_channels=16,
    text_width=WIDTH,
)
"""That of configs/muse_tiny.yaml."""
FULL: Final = Budget(steps=1500, batch=32, measured_on=2048)
QUICK: Final = Budget(steps=8, batch=4, measured_on=16)
MEASUREMENTS: Final = 24
"""Of the gradients, in the last quarter of a run."""
PROBE_TRAINING: Final = 4
"""Pictures that train a probe, for every one that it is measured on."""
DECAY: Final = 0.99
PAIRS: Final = ("rec-topo", "rec-itc", "topo-itc")
CONFLICT, DECIBEL, ACCURACY = 0.05, 0.1, 0.02
"""Smallest differences that count: of a cosine, of PSNR, of a share of pictures."""


def stages(steps: int) -> tuple[Stage, Stage, Stage]:
    """The curriculum of configs/muse_tiny.yaml, without its discriminator.

    Args:
        steps: of all stages together, at least 4.

    Returns:
        Structure and semantics with a quarter of the steps each, then all together.
    """
    first, rate = steps // 4, 2e-3
    warmup, last = first // 15, steps - 2 * first
    return (
        Stage(1, first, rate, warmup, 2e-4, 2.0, 0.0, perceptual_weight=0.0, gradient_scale=0.5),
        Stage(2, first, rate, warmup, 2e-4, 5.0, 0.2, perceptual_weight=0.0, gradient_scale=0.5),
        Stage(3, last, rate, warmup, 1e-5, 0.2, 0.1, perceptual_weight=0.0, gradient_scale=1.0),
    )


def model_of(arm: str, steps: int, encoder: str, weights: str, seed: int) -> Muse:
    """MUSE with the routing of an arm.

    Args:
        arm: ``strict``, ``joint`` or ``official``.
        steps: of the run.
        encoder: folder of the pretrained InternViT.
        weights: of the frozen encoder that structure follows.
        seed: of the other weights.

    Returns:
        The model, without weights yet.
    """
    is_official = arm == "official"
    return Muse(
        shape=SHAPE,
        routing=cast(Routing, arm),
        topo_layers="last" if is_official else "all",
        topo_heads="mean" if is_official else "per_head",
        psi="official_transposed" if is_official else "correct",
        gather_negatives=not is_official,
        clamp_logit_scale=not is_official,
        stages=stages(steps),
        encoder_source=encoder,
        teacher=AffinityTeacher("lightning_gen.shapes.encoder.ShapesEncoder", weights),
        text=WordVectors(WIDTH),
        seed=seed,
    )


def teacher_weights(budget: Budget, folder: Path) -> str:
    """Where the frozen encoder's weights are.

    Args:
        budget: the quick one tells nothing, so random weights will do for it; they are written to disk and read like
            the others.
        folder: of the run.

    Returns:
        The name of the shipped weights, or a folder.
    """
    if budget != QUICK:
        return "shapes_encoder"
    encoder = ShapesEncoder(8)
    initialise(encoder, 0)
    encoder.save_pretrained(folder / "teacher")
    return str(folder / "teacher")


class Conflicts(GradientRouting):
    """Compares the gradients of the losses from a step on, and keeps what it found through interruptions.

    Args:
        since: first step that counts.
        every_n_steps: optimiser steps between two measurements.
    """

    def __init__(self, since: int, every_n_steps: int) -> None:
        super().__init__(every_n_steps, picture=False)
        self.since = since
        self.found: dict[int, dict[str, float]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure and remember."""
        if trainer.global_step < self.since:
            return
        before = self.last
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.last is not None and self.last is not before:
            self.found[trainer.global_step] = conflicts(self.last)

    def state_dict(self) -> dict[str, Any]:
        """What was found, by step."""
        return {"found": self.found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.found = dict(state_dict["found"])

    def numbers(self) -> dict[str, float]:
        """Over all measurements.

        Returns:
            ``conflict@``, ``cos_full@`` and ``negative@`` as means, ``shared@`` as the largest, for every pair.

        Raises:
            RuntimeError: nothing was measured.
        """
        if not self.found:
            raise RuntimeError(f"no gradients were compared from step {self.since} on: is it beyond the run's end?")
        out: dict[str, float] = {}
        for name in next(iter(self.found.values())):
            values = [found[name] for found in self.found.values()]
            out[name] = max(values) if name.startswith("shared@") else statistics.fmean(values)
        return out


def conflicts(matrix: RoutingMatrix) -> dict[str, float]:
    """The numbers of one measurement.

    Args:
        matrix: of the losses ``rec``, ``topo`` and ``itc``.

    Returns:
        ``conflict@``, ``cos_full@``, ``negative@`` and ``shared@``, for every pair.
    """
    out: dict[str, float] = {}
    for i, j in itertools.combinations(range(len(matrix.losses)), 2):
        pair, cosine = f"{matrix.losses[i]}-{matrix.losses[j]}", float(matrix.cos_shared[i, j])
        out[f"conflict@{pair}"] = 0.0 if math.isnan(cosine) else -cosine
        out[f"negative@{pair}"] = float(cosine < 0)
        out[f"cos_full@{pair}"] = float(matrix.cos_full[i, j])
        out[f"shared@{pair}"] = float(matrix.shared[i, j])
    return out


def routing(arm: str, seed: int, budget: Budget, folder: Path) -> dict[str, float]:
    """Train one arm and measure it.

    Args:
        arm: ``strict``, ``joint`` or ``official``.
        seed: of weights and scenes.
        budget: steps, batch, pictures.
        folder: of the checkpoints.

    Returns:
        See the head of this file.
    """
    weights = teacher_weights(budget, folder)
    start = pretrained_encoder(SHAPE.encoder, weights, SIZE, budget.steps // 4, budget, seed, folder / "pretraining")
    model = model_of(arm, budget.steps, start, weights, seed)
    quarter = budget.steps // 4
    watch = Conflicts(budget.steps - quarter, max(1, quarter // MEASUREMENTS))
    average = EMA([DECAY])
    data = scenes([(SIZE, SIZE)], budget, seed)
    seconds = train(model, data, budget.steps, folder, watching=(average, watch))
    model.eval()
    with average.averaged(model):
        numbers = {**watch.numbers(), **understanding(model, budget, seed)}
        psnr, ssim = quality(lambda images: _decoded(model, images), (SIZE, SIZE), budget, seed)
    parameters = float(sum(p.numel() for p in model.network.parameters()))
    return {"psnr": psnr, "ssim": ssim, **numbers, "parameters": parameters, "train_seconds": seconds}


def _decoded(model: Muse, images: Tensor) -> Tensor:
    made = model.decode(model.encode(images))
    assert isinstance(made, Tensor), "pictures of one size"
    return made


def understanding(model: Muse, budget: Budget, seed: int) -> dict[str, float]:
    """What can be read from the features that MUSE gives to a probe, and how near pictures lie to their names.

    Args:
        model: trained.
        budget: number of pictures to measure on.
        seed: of the scenes.

    Returns:
        ``probe@kind``, ``probe@color`` (after the last epoch), ``probe_best@...`` (chosen on the pictures that it is
        quoted for, as published numbers are) and ``zero_shot``.
    """
    # Validation scenes of another seed: no run of this claim has it.
    features, labels, _ = look(model, PROBE_TRAINING * budget.measured_on, seed + 1000)
    unseen, truth, embeddings = look(model, budget.measured_on, seed)
    numbers: dict[str, float] = {}
    for name, classes in (("kind", len(KINDS)), ("color", len(COLORS))):
        tables = [
            FeatureTable(rows, _part(pairs, name), torch.arange(len(rows)))
            for rows, pairs in ((features, labels), (unseen, truth))
        ]
        found = LinearProbe(classes, batch_size=256, seed=seed).fit(*tables)
        numbers |= {f"probe@{name}": found.last, f"probe_best@{name}": found.best}
    tower = WordVectors(WIDTH)
    templates = [f"{opening} a {{}}" for opening in OPENINGS]
    names = class_embeddings(lambda texts: tower.embed(texts, torch.device("cpu")), KINDS, templates)
    zero_shot = ZeroShot(names)
    zero_shot.update(embeddings, _part(truth, "kind"), torch.arange(len(truth)))
    return {**numbers, "zero_shot": float(zero_shot.compute())}


def look(model: Muse, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of pictures with a single object.

    Args:
        model: trained.
        count: N, pictures.
        seed: of the scenes.

    Returns:
        Features (N, D), pairs of colour and kind (N,), embeddings (N, E).
    """
    data = ShapesDataModule(
        val="even", labels="pair", tags=["single_object"], size=SIZE, val_samples=count, val_batch_size=64, seed=seed
    )
    data.setup("validate")
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.inference_mode():
        for batch in data.evaluation_loader("val"):
            assert isinstance(batch.images, Tensor)
            found = (model.probe_features(batch.images), batch.label, model.image_embedding(batch.images))
            rows.append(tuple(part[batch.valid] for part in found))  # type: ignore[arg-type]
    features, labels, embeddings = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return features, labels, embeddings


def _part(pairs: Tensor, name: str) -> Tensor:
    return pairs % len(KINDS) if name == "kind" else pairs // len(KINDS)


ARMS: Final[Mapping[str, str]] = {
    "joint": "MUSE, no stop-gradient",
    "strict": "MUSE, structure trains queries and keys of all blocks, semantics the exported values and their head",
    "official": "MUSE as its published code: last block, mean of the heads, transposed teacher, free temperature",
}

CLAIMS: Final = (
    Claim(
        name="muse_routing",
        sentence="Trained jointly, the losses of a unified tokenizer pull against each other; routed strictly, "
        "structure and semantics share no parameter, and reconstruction and linear probe are better together",
        source="arXiv:2605.05646, gradient conflict and ablation of the stop-gradients",
        arms=ARMS,
        baseline="joint",
        seeds=(0, 1, 2),
        budget=FULL,
        equal="equal steps of the same three stages, scenes, losses and their weights, sizes and initial weights, an "
        f"encoder pretrained for {FULL.steps // 4} steps to give the features of shapes_encoder; official supervises "
        "the last block alone",
        quick=QUICK,
        comparisons=(
            Comparison("conflict@rec-itc", "joint", None, "higher", CONFLICT),
            Comparison("conflict@topo-itc", "joint", None, "higher", CONFLICT),
            Comparison("conflict@rec-topo", "joint", None),
            *(Comparison(f"conflict@{pair}", "official", None) for pair in PAIRS),
            *(Comparison(f"negative@{pair}", "joint", None) for pair in PAIRS),
            Comparison("shared@topo-itc", "strict", None, "not higher", 0.5),
            Comparison("psnr", "strict", "joint", "higher", DECIBEL),
            Comparison("psnr", "official", "joint"),
            Comparison("ssim", "strict", "joint"),
            Comparison("probe@kind", "strict", "joint", "higher", ACCURACY),
            Comparison("probe@color", "strict", "joint"),
            Comparison("probe@kind", "official", "joint"),
            Comparison("zero_shot", "strict", "joint"),
        ),
        run=routing,
    ),
)


if __name__ == "__main__":
    sys.exit(main(CLAIMS))
