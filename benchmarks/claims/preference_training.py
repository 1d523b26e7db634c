"""Training on pairs in the embedded world, as ArenaPO's claims need it: arms, a tuned policy and its numbers.

Shape letters: P pairs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from alignment_measures import looks, of_task, overall, second_opinions
from alignment_training import BASE, GUIDANCE, LORA, STEPS, asked, verdicts
from claim import Budget
from copies import WORLDS, pairs_of
from torch import Tensor
from training import shared_folder, train

from lightning_gen.alignment.arena_po.arena_gaps import GapOptions
from lightning_gen.alignment.arena_po.cache import CacheSettings
from lightning_gen.alignment.arena_po.gap import GapVariance
from lightning_gen.alignment.arena_po.module import ArenaPO, DiffusionDPO
from lightning_gen.alignment.arena_po.objectives import LossMode, PairLoss, mean_square_error
from lightning_gen.alignment.arena_po.pairs import PairGaps, ReadyPairs
from lightning_gen.alignment.arena_po.settings import PairTimes, SampleSettings, WarmupConstant
from lightning_gen.alignment.arena_po.sources import FittedGaps
from lightning_gen.data.batches import PreferenceBatch
from lightning_gen.data.preferences import PreferenceDataModule
from lightning_gen.metrics.manifold.correlation import spearman_rho
from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.preferences import ShapesPreferenceDataModule
from lightning_gen.shapes.rewards import RequestMatch
from lightning_gen.training.optim import AdamW

__all__ = [
    "ARMS",
    "Arm",
    "Made",
    "Tuned",
    "data_of",
    "judged",
    "made",
    "measured",
    "model_of",
    "policy_folder",
    "tuned",
]

BETA: Final = 100.0
"""Temperature, the best of pilots with Diffusion-DPO; see the README. Published for latents: 5000."""
OPTIMIZER: Final = AdamW(2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
WARMUP: Final = WarmupConstant(10)
TIMES: Final = PairTimes("logit_normal", shift=2.0)
SAVE_EVERY: Final = 80
PASSES: Final = 2
"""How often every pair is learned from, at another time and with other noise."""
JUDGED: Final = 256
"""Held-out pairs."""
DRAWS: Final = 4
"""Times and noises of a held-out pair."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """How is learned from pairs.

    Attributes:
        mode: of the loss.
        variance: reading of the gap's variance, where the loss has a gap.
    """

    mode: LossMode
    variance: GapVariance = "performance"

    def __str__(self) -> str:
        """As it is printed."""
        loss = PairLoss(self.mode)
        return f"loss {self.mode}" + (f", variance of a {self.variance}" if loss.needs_gap else "")


_WITH_GAP: Final[tuple[LossMode, ...]] = ("expected_margin", "scale", "weight", "soft", "regress", "smpo")
_WITHOUT: Final[tuple[LossMode, ...]] = ("ipo", "kto", "sft", "mapo", "dspo")
ARMS: Final[Mapping[str, Arm]] = {
    "diffusion_dpo": Arm("none"),
    "fixed_margin": Arm("margin_const"),
    "arena_po": Arm("margin"),
    "arena_po_capability": Arm("margin", "capability"),
    **{mode: Arm(mode) for mode in _WITH_GAP},
    **{f"{mode}_capability": Arm(mode, "capability") for mode in _WITH_GAP},
    **{mode: Arm(mode) for mode in _WITHOUT},
}


# ------------------------------------------------------------------ training


def data_of(pairs: Path, seed: int, budget: Budget) -> PreferenceDataModule:
    """Pairs of a world; arms that get one seed see the same ones in the same order.

    Args:
        pairs: folder of the shards.
        seed: of the order.
        budget: pairs of a step.

    Returns:
        The DataModule; pictures stay as they are.
    """
    return PreferenceDataModule(
        train=str(pairs),
        val=None,
        global_batch_size=budget.batch,
        resolution=32,
        random_crop=False,
        flip_probability=0.0,
        num_workers=0,
        seed=seed,
    )


def model_of(arm: Arm, seed: int, cache: CacheSettings | None = None) -> DiffusionDPO:
    """The module of an arm.

    Args:
        arm: how is learned.
        seed: of the adapter and of every draw.
        cache: of the reference's errors, which arms of one seed share; not for every loss.

    Returns:
        The module, without weights yet. A pair of the mean gap has a margin of 1 nat, as every pair of a fixed margin.
    """
    loss = PairLoss(arm.mode, BETA, strength=1.0)
    how: dict[str, Any] = {
        "policy": BASE,
        "loss": loss,
        "error": "velocity",
        "times": TIMES,
        "lora": LORA,
        "posterior": "mode",
        "cache": None if loss.needs_distance or not loss.needs_reference else cache,
        "samples": SampleSettings(STEPS, "euler", 1.0),
        "optimizer": OPTIMIZER,
        "warmup": WARMUP,
        "seed": seed,
    }
    if loss.needs_gap:
        return ArenaPO(gaps=FittedGaps(gaps=GapOptions(variance=arm.variance)), **how)
    return DiffusionDPO(**how)


def policy_folder(arm: str, world: str, seed: int, budget: Budget, folder: Path) -> Path:
    """Where an arm is trained: several claims look at the same policies.

    Args:
        arm: its name.
        world: name of its world.
        seed: its seed.
        budget: its budget.
        folder: of all policies.

    Returns:
        The folder.

    Raises:
        ValueError: it holds a policy of another setting.
    """
    how = {"lora": str(LORA), "optimizer": str(OPTIMIZER), "beta": BETA, "times": str(TIMES)}
    setting = {"is": str(ARMS[arm]), "world": str(WORLDS[world]), "steps": budget.steps, "batch": budget.batch, **how}
    return shared_folder(folder / f"{arm}-{world}-seed{seed}", setting)


class Tuned(NamedTuple):
    """A tuned policy.

    Attributes:
        model: with its adapter.
        pairs: folder of the shards that it learned from.
    """

    model: DiffusionDPO
    pairs: Path


def tuned(arm: str, world: str, seed: int, budget: Budget, folder: Path) -> Tuned:
    """Train an arm, or read what has been trained already.

    Args:
        arm: its name.
        world: name of its world.
        seed: of pairs, noise and adapter.
        budget: optimiser steps and pairs of each.
        folder: of all policies, their pairs, and what the reference says about these.

    Returns:
        The policy.
    """
    model = model_of(ARMS[arm], seed, CacheSettings(str(folder / f"reference-{world}-seed{seed}"), draws=PASSES))
    model.configure_model()
    pairs = pairs_of(model, WORLDS[world], seed, budget.steps * budget.batch // PASSES, folder / "pairs")
    own = policy_folder(arm, world, seed, budget, folder)
    train(model, data_of(pairs, seed, budget), budget.steps, own, save_every=SAVE_EVERY)
    return Tuned(model, pairs)


# ------------------------------------------------------------------ measures


@dataclasses.dataclass(frozen=True)
class Made:
    """Pictures that a policy made for requests.

    Attributes:
        images: float, (B, 3, H, W) in [0, 1].
        prompts: B of them.
        metadata: what was asked for, B of them.
        keys: int64, (B,), that name the pictures.
    """

    images: Tensor
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    keys: Tensor


def made(model: DiffusionDPO, requests: Sequence[Request], guidance: float) -> Made:
    """Make a picture for every request; of one seed, every arm has the same noise.

    Args:
        model: the policy.
        requests: B of them.
        guidance: 1 = none.

    Returns:
        The pictures.
    """
    batch = asked(requests)
    images = model.make(batch.prompt, batch.index, SampleSettings(STEPS, "euler", guidance))
    return Made(images.add(1).div(2), batch.prompt, [json.loads(text) for text in batch.metadata], batch.index)


def measured(model: DiffusionDPO, requests: Sequence[Request], seed: int, judge: int = JUDGED) -> dict[str, float]:
    """All numbers of a policy.

    Args:
        model: the policy.
        requests: of the benchmark.
        seed: of the noise of second opinions.
        judge: held-out pairs.

    Returns:
        ``reward``: how much of what is asked for is there, without guidance, and ``reward@guided``; ``score@plain`` and
        ``score@guided``, GenEval's; the tasks as ``counting@plain``; the numbers of ``second_opinions``, ``looks`` and
        :func:`judged`.
    """
    plain, guided = made(model, requests, 1.0), made(model, requests, GUIDANCE)
    match = RequestMatch("dense")
    numbers = {
        "reward": float(match(plain.images, plain.prompts, plain.metadata).nanmean()),
        "reward@guided": float(match(guided.images, guided.prompts, guided.metadata).nanmean()),
        "score@guided": overall(verdicts(guided.images, guided), requests),
    }
    right = verdicts(plain.images, plain)
    numbers |= {"score@plain": overall(right, requests)}
    numbers |= {f"{tag}@plain": share for tag, share in of_task(right, requests).items()}
    numbers |= {f"score@{name}": overall(found, requests) for name, found in second_opinions(plain, seed).items()}
    return numbers | looks(plain) | judged(model, judge)


@torch.no_grad()
def judged(model: DiffusionDPO, count: int) -> dict[str, float]:
    """What the policy says about pairs that nobody learned from: drawn ones, by painters of known strength.

    Args:
        model: the policy.
        count: P, the stronger painter's picture first; the same for every arm.

    Returns:
        ``accuracy``: share of pairs with z > 0, z the mean over some times and noises; ``order``: Spearman's
        correlation of z with the difference of the strengths; ``drift@first`` and ``drift@second``: mean of
        d_theta - d_ref of both pictures, d_ref the base's, also where a loss has no reference. An untrained policy has
        accuracy one half, and zeros.
    """
    data = ShapesPreferenceDataModule(
        train=None, val="even", val_samples=count, global_batch_size=64, noise=0.0, seed=0, benchmark_prompts=True
    )
    data.setup("validate")
    logits, apart, drift = [], [], []
    for batch in data.evaluation_loader("val"):
        seen = [_drifts(model, batch, draw)[:, batch.winner.valid] for draw in range(DRAWS)]
        winner, loser = torch.stack(seen).mean(0)
        logits.append(0.5 * BETA * (loser - winner))
        drift.append(torch.stack([winner, loser]))
        strengths = [[data.painters[name] for name in names] for names in batch.models]
        apart.append(torch.tensor(strengths)[batch.winner.valid].diff(dim=1).neg().flatten())
    z, gap, (first, second) = torch.cat(logits), torch.cat(apart), torch.cat(drift, 1)
    sure = torch.where(z == 0, 0.5, (z > 0).double())
    order = float(spearman_rho(torch.stack([z, gap], -1).double()[None])) if bool(z.std() > 0) else 0.0
    return {
        "accuracy": float(sure.mean()),
        "order": order,
        "drift@first": float(first.mean()),
        "drift@second": float(second.mean()),
    }


def _drifts(model: DiffusionDPO, batch: PreferenceBatch, draw: int) -> Tensor:
    """d_theta - d_ref of both pictures, (2, B)."""
    assert model.bank is not None, "arms train an adapter, so that the base is there with it off"
    noisy = model.noised(ReadyPairs.of(batch, PairGaps.unknown(len(batch)), draw))
    ours = model.policy.velocity(noisy.x_t, noisy.t, noisy.text)
    with model.bank.disabled():
        theirs = model.policy.velocity(noisy.x_t, noisy.t, noisy.text)
    return (mean_square_error(ours, noisy.velocity) - mean_square_error(theirs, noisy.velocity)).view(2, -1)
