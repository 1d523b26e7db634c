"""Training on pairs in the embedded world, as ArenaPO's claims need it: arms, a tuned policy and its numbers.

Shape letters: P pairs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from alignment_measures import looks, of_task, overall, second_opinions
from alignment_training import BASE, GUIDANCE, LORA, STEPS, asked, verdicts
from claim import Budget
from copies import WORLDS, pairs_of, qualities
from report import write
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
from lightning_gen.shapes.rewards import RequestMatch
from lightning_gen.training.ema import EMA
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
    "numbers_of",
    "policy_folder",
    "tuned",
]

BETA: Final = 300.0
"""Temperature, the best of pilots with Diffusion-DPO; see the README. Published for latents: 5000."""
DECAY: Final = 0.95
"""Of the averaged adapter, which is what is measured: single steps are noisy."""
OPTIMIZER: Final = AdamW(1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
WARMUP: Final = WarmupConstant(10)
TIMES: Final = PairTimes("logit_normal", shift=2.0)
SAVE_EVERY: Final = 80
PASSES: Final = 2
"""How often every pair would be learned from if there were no ties, at another time and with other noise. Since there
are, what is left is seen up to once more."""
LOOKS: Final = 2
"""Pictures of a prompt of the benchmark."""
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
        pairs: what ``pairs_of`` returned.
        seed: of the order.
        budget: pairs of a step.

    Returns:
        The DataModule; pictures stay as they are.
    """
    return PreferenceDataModule(
        train=str(pairs / "train"),
        val=str(pairs / "held_out"),
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
    how = {"lora": str(LORA), "optimizer": str(OPTIMIZER), "beta": BETA, "decay": DECAY, "times": str(TIMES)}
    setting = {"is": str(ARMS[arm]), "world": str(WORLDS[world]), "steps": budget.steps, "batch": budget.batch, **how}
    return shared_folder(folder / f"{arm}-{world}-seed{seed}", setting)


class Tuned(NamedTuple):
    """A tuned policy.

    Attributes:
        model: with its adapter.
        pairs: what ``pairs_of`` returned: it learned from a part of them.
        average: of its adapter: ``average.averaged(model)`` puts it in.
        folder: its own.
    """

    model: DiffusionDPO
    pairs: Path
    average: EMA
    folder: Path


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
    model = model_of(ARMS[arm], seed, CacheSettings(str(folder / f"reference-{world}-seed{seed}"), draws=PASSES + 1))
    model.configure_model()
    count = max(budget.steps * budget.batch // PASSES, 4 * budget.batch)  # ties are left out
    pairs = pairs_of(model, WORLDS[world], seed, count, folder / "pairs")
    own = policy_folder(arm, world, seed, budget, folder)
    average = EMA([DECAY])
    train(model, data_of(pairs, seed, budget), budget.steps, own, save_every=SAVE_EVERY, watching=[average])
    return Tuned(model, pairs, average, own)


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


def numbers_of(policy: Tuned, requests: Sequence[Request], seed: int) -> dict[str, float]:
    """All numbers of a tuned policy, by its averaged adapter; kept in its folder, since several claims ask for them.

    Args:
        policy: the policy.
        requests: of the benchmark.
        seed: of the noise of second opinions.

    Returns:
        Those of :func:`measured` and of :func:`judged`.
    """
    kept = policy.folder / f"numbers_{len(requests)}.json"
    if not kept.exists():
        with policy.average.averaged(policy.model):
            found = {**measured(policy.model, requests, seed), **judged(policy.model, policy.pairs)}
        write(kept, json.dumps(found, indent=1))
    numbers: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return numbers


def measured(model: DiffusionDPO, requests: Sequence[Request], seed: int) -> dict[str, float]:
    """What a policy's pictures are worth.

    Args:
        model: the policy.
        requests: of the benchmark.
        seed: of the noise of second opinions.

    Returns:
        ``reward``: how much of what is asked for is there, with guidance, as such models are used and compared, and
        ``reward@plain`` without; ``score``, GenEval's; the tasks by their names; the numbers of ``second_opinions`` and
        ``looks``. All but the second are of pictures with guidance.
    """
    several = [request for request in requests for _ in range(LOOKS)]
    guided, plain = made(model, several, GUIDANCE), made(model, requests, 1.0)
    right, match = verdicts(guided.images, guided), RequestMatch("dense")
    numbers = {
        "reward": float(match(guided.images, guided.prompts, guided.metadata).nanmean()),
        "reward@plain": float(match(plain.images, plain.prompts, plain.metadata).nanmean()),
        "score": overall(right, several),
    }
    numbers |= of_task(right, several)
    numbers |= {f"score@{name}": overall(found, several) for name, found in second_opinions(guided, seed).items()}
    return numbers | looks(guided)


@torch.no_grad()
def judged(model: DiffusionDPO, pairs: Path) -> dict[str, float]:
    """What the policy says about pairs by the same copies that nobody learned from.

    Args:
        model: the policy.
        pairs: what ``pairs_of`` returned; ties are left out.

    Returns:
        ``accuracy``: share of pairs with z > 0 where the first picture shows more of what is asked for, z the mean over
        some times and noises; ``order``: Spearman's correlation of z with the difference of the copies' qualities;
        ``logit``: standard deviation of z; ``drift@first`` and ``drift@second``: mean of d_theta - d_ref of both
        pictures, d_ref the base's, also where a loss has no reference, and ``drift@<copy>`` of its pictures. An
        untrained policy has accuracy one half, and zeros.
    """
    data, quality = data_of(pairs, 0, Budget(0, 64, 0)), qualities(pairs)
    data.setup("validate")
    drifts, names = [], list[tuple[str, str]]()
    for batch in data.evaluation_loader("val"):
        decided = batch.winner.valid & (batch.preference == 1)
        drifts.append(torch.stack([_drifts(model, batch, draw)[:, decided] for draw in range(DRAWS)]).mean(0))
        names += [pair for pair, counts in zip(batch.models, decided.tolist(), strict=True) if counts]
    first, second = drift = torch.cat(drifts, 1)
    z = 0.5 * BETA * (second - first)
    apart = torch.tensor([quality[one] - quality[other] for one, other in names])
    known = bool(z.std() > 0) and bool(apart.std() > 0)
    by = np.array(names).T  # (2, P), as the drifts
    return {
        "accuracy": float(torch.where(z == 0, 0.5, (z > 0).double()).mean()),
        "order": float(spearman_rho(torch.stack([z, apart], -1).double()[None])) if known else 0.0,
        "logit": float(z.std()),
        "drift@first": float(first.mean()),
        "drift@second": float(second.mean()),
        **{f"drift@{name}": float(drift[torch.from_numpy(by == name)].mean()) for name in quality},
    }


def _drifts(model: DiffusionDPO, batch: PreferenceBatch, draw: int) -> Tensor:
    """d_theta - d_ref of both pictures, (2, B)."""
    assert model.bank is not None, "arms train an adapter, so that the base is there with it off"
    noisy = model.noised(ReadyPairs.of(batch, PairGaps.unknown(len(batch)), draw))
    ours = model.policy.velocity(noisy.x_t, noisy.t, noisy.text)
    with model.bank.disabled():
        theirs = model.policy.velocity(noisy.x_t, noisy.t, noisy.text)
    return (mean_square_error(ours, noisy.velocity) - mean_square_error(theirs, noisy.velocity)).view(2, -1)
