"""Training by rewards in the embedded world, as its claims need it: prompts, one module per arm, a curve of the score.

Shape letters: B pictures.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from claim import Budget
from lightning.pytorch import Callback, LightningModule, Trainer
from report import write
from torch import Tensor
from training import train

from lightning_gen.alignment.diffusion_nft.module import CleanRollout, DiffusionNFT, NFTLoss
from lightning_gen.alignment.flow_grpo.module import FlowGRPO, StochasticRollout
from lightning_gen.alignment.online import Evaluation, OnlineTraining, Updates
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.batches import PromptBatch
from lightning_gen.data.prompts import PromptDataModule
from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules
from lightning_gen.rewards.geneval import GenEvalReward
from lightning_gen.rewards.rewards import RewardEntry, RewardSuite
from lightning_gen.shapes.benchmark import COUNTS, benchmark_requests
from lightning_gen.shapes.detector import ShapesDetector
from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.mixture import draw_request, draw_tag
from lightning_gen.shapes.rewards import RequestMatch
from lightning_gen.training.ema import EMA
from lightning_gen.training.optim import AdamW
from lightning_gen.training.randomness import numpy_generator

__all__ = [
    "BASE",
    "GROUP",
    "GUIDANCE",
    "LORA",
    "OPTIMIZER",
    "STEPS",
    "UPDATES",
    "LearningCurve",
    "Policy",
    "Shown",
    "asked",
    "fresh_requests",
    "held_out_requests",
    "model_of",
    "samples_to_reach",
    "setting",
    "trained",
    "training_requests",
    "verdicts",
    "write_requests",
]

BASE: Final = "shapes_base"
STEPS: Final = 10
"""Of the sampler, while learning and when measured."""
GUIDANCE: Final = 3.0
"""Where there is any; that of the base's card."""
GROUP: Final = 8
"""Pictures of a prompt in a rollout."""
UPDATES: Final = 1
"""Optimiser steps of a rollout; a step has the budget's batch. In pilots a second step took DiffusionNFT's first
one back: whatever a picture is worth, the loss pulls the trained velocity to that of the old policy."""
MICRO_BATCH: Final = 48
POINTS: Final = 8
"""Of the learning curve, beside the one of the base."""
LOOKS: Final = 3
"""Pictures of a held-out prompt at a point: with one, a point had an error of four points of the score."""
DECAY: Final = 0.9
"""Of the averaged adapter, which is what is measured, as in the papers."""
SAVE_EVERY: Final = 16
"""Optimiser steps between two checkpoints; a multiple of ``UPDATES``."""

LORA: Final = LoRASettings(
    16, 128.0, ("attn.qkv_proj", "attn.out_proj", "text_proj", "ffn.fc1", "ffn.fc2"), exclude=("text_encoder",)
)
"""Of all linear layers of the blocks, whose own scale is small: with alpha twice the rank, attention alone and a
learning rate of 2e-3, the held-out score had not moved at all after 576 pictures.
"""
OPTIMIZER: Final = AdamW(6e-4, betas=(0.9, 0.99), weight_decay=1e-4)
"""A step of 2e-3 changes the weights by 2 to 3 per cent, and 128 of them in random directions by a third."""
TRAINED_TIMES: Final = 6
"""Of DiffusionNFT: about as much work per picture as nine steps of Flow-GRPO."""
PLAIN: Final = StochasticRollout(STEPS, guidance=1.0)
GUIDED: Final = StochasticRollout(STEPS, GUIDANCE, window_size=4, window=(0, STEPS - 1))
"""Guidance asks the network twice, so four of the steps are stochastic and trained ("Fast")."""
CLIP: Final = 2e-3
"""Of Flow-GRPO, wider than the paper's 1e-4 for pictures of so few numbers; idle with one update per rollout."""


# ------------------------------------------------------------------ prompts


def fresh_requests(
    seed: int, purpose: str, count: int, taken: Collection[str], tags: Sequence[str] = tuple(COUNTS)
) -> list[Request]:
    """Draw requests of the even mixture; no prompt comes twice.

    Args:
        seed: decides them.
        purpose: what they are for; other purposes get others.
        count: how many.
        taken: prompts that must not come.
        tags: tasks that come, in the mixture's shares.

    Returns:
        The requests.
    """
    found: dict[str, Request] = {}
    number = 0
    while len(found) < count:
        generator = numpy_generator(seed, purpose, number)
        request = draw_request(generator, skewed=False, tag=draw_tag(generator, tags))
        if request.prompt() not in taken:
            found.setdefault(request.prompt(), request)
        number += 1
    return list(found.values())


def held_out_requests(count: int) -> list[Request]:
    """Prompts that the learning curve looks at: none of the benchmark, the same for all arms and seeds.

    Args:
        count: how many, a sixth of them for each task.

    Returns:
        The requests.
    """
    taken = {one.prompt() for one in benchmark_requests()}
    each = count // len(COUNTS)
    return [one for tag in COUNTS for one in fresh_requests(0, f"held out {tag}", each, taken, (tag,))]


def training_requests(seed: int, count: int, held_out: Sequence[Request]) -> list[Request]:
    """Prompts that are trained on: none of the benchmark, none that is held out, each used once.

    Args:
        seed: of the run; arms that get one seed see the same prompts in the same order.
        count: how many.
        held_out: see :func:`held_out_requests`.

    Returns:
        The requests.
    """
    taken = {one.prompt() for one in (*benchmark_requests(), *held_out)}
    return fresh_requests(seed, "training prompts", count, taken)


def write_requests(requests: Sequence[Request], path: Path) -> None:
    """Write a file of prompts that ``PromptDataModule`` reads.

    Args:
        requests: what is asked for.
        path: ends with ``.jsonl``.
    """
    write(path, "".join(json.dumps(one.metadata()) + "\n" for one in requests))


def asked(requests: Sequence[Request], pictures: int = 1) -> PromptBatch:
    """A batch of prompts to be looked at; their places decide the noise.

    Args:
        requests: what is asked for.
        pictures: of each, one after the other.

    Returns:
        The batch.
    """
    index = torch.arange(len(requests)).repeat_interleave(pictures)
    chosen = [requests[number] for number in index.tolist()]
    return PromptBatch(
        prompt=tuple(one.prompt() for one in chosen),
        metadata=tuple(json.dumps(one.metadata()) for one in chosen),
        index=index,
        group=index,
        member=torch.arange(len(index)) % pictures,
        valid=torch.ones(len(index), dtype=torch.bool),
        epoch=0,
    )


class Shown(Protocol):
    """Pictures with what was asked for, as a ``Rollout`` is."""

    @property
    def images(self) -> Tensor:
        """Float, (B, 3, H, W) in [0, 1]."""
        ...

    @property
    def prompts(self) -> Sequence[str]:
        """B texts."""
        ...

    @property
    def metadata(self) -> Sequence[Mapping[str, Any]]:
        """B of them."""
        ...

    @property
    def keys(self) -> Tensor:
        """int64, (B,), that name the pictures."""
        ...


def verdicts(images: Tensor, rollout: Shown, rules: GenEvalRules | None = None) -> Tensor:
    """GenEval's verdict on every picture, with the exact detector.

    Args:
        images: of the rollout, perhaps changed, float, (B, 3, H, W) in [0, 1].
        rollout: says what was asked for.
        rules: None = those of the benchmark.

    Returns:
        1.0 or 0.0, (B,).
    """
    return GenEvalReward(ShapesDetector(), "benchmark", rules=rules)(images, rollout.prompts, rollout.metadata)


# ------------------------------------------------------------------ arms


def model_of(arm: str, seed: int) -> OnlineTraining:
    """The module of an arm.

    Args:
        arm: ``diffusion_nft``, ``flow_grpo``, ``flow_grpo_guided``, or ``base``, which nobody trains.
        seed: of the adapters and of every draw.

    Returns:
        The module, without weights yet. What is not named here is the paper's.
    """
    rewards = RewardSuite([RewardEntry("dense", RequestMatch("dense"))])
    looking = Evaluation(STEPS, "euler", 1.0)
    if arm == "diffusion_nft":
        return DiffusionNFT(
            BASE,
            rewards,
            rollout=CleanRollout(STEPS, trained_times=TRAINED_TIMES),
            loss=NFTLoss(kl=0.0),
            updates=Updates(UPDATES, MICRO_BATCH, skip_worthless=False),
            lora=LORA,
            evaluation=looking,
            optimizer=OPTIMIZER,
            seed=seed,
        )
    return FlowGRPO(
        BASE,
        rewards,
        rollout=GUIDED if arm == "flow_grpo_guided" else PLAIN,
        clip=CLIP,
        kl=0.0,
        updates=Updates(UPDATES, MICRO_BATCH, skip_worthless=True),
        lora=LORA,
        evaluation=looking,
        optimizer=OPTIMIZER,
        seed=seed,
    )


def setting() -> dict[str, Any]:
    """All that a policy depends on beside its arm, its seed and its budget.

    Returns:
        Plain JSON values.
    """
    fixed = (STEPS, GROUP, UPDATES, MICRO_BATCH, DECAY, LORA, OPTIMIZER, TRAINED_TIMES, PLAIN, GUIDED, CLIP)
    return {"fixed": [str(one) for one in fixed]}


# ------------------------------------------------------------------ learning curve


class LearningCurve(Callback):
    """Scores pictures of held-out prompts, ``LOOKS`` of each, made without guidance by the averaged adapter.

    Noise is the same at every point and, of one seed, in every arm.

    Args:
        held_out: the prompts.
        average: keeps the averaged adapter; it must come before this callback.
        every: rollouts between two points.
    """

    def __init__(self, held_out: Sequence[Request], average: EMA, every: int) -> None:
        self.batch, self.average, self.every = asked(held_out, LOOKS), average, every
        self.rollouts = 0
        self.sampled = 0
        self.points: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """What an interruption must not lose."""
        return {"rollouts": self.rollouts, "sampled": self.sampled, "points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after an interruption.

        Args:
            state_dict: of :meth:`state_dict`.
        """
        self.rollouts, self.sampled = int(state_dict["rollouts"]), int(state_dict["sampled"])
        self.points = list(state_dict["points"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first point is the base."""
        if not self.points:
            self._look(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the pictures of a rollout."""
        self.rollouts += 1
        self.sampled += int(batch.valid.sum())
        if self.rollouts % self.every == 0:
            self._look(pl_module)

    def _look(self, module: LightningModule) -> None:
        assert isinstance(module, OnlineTraining)
        with self.average.averaged(module):
            made = module.make(self.batch)
        score, dense = verdicts(made.images, made).mean(), module.score(made).raw["dense"].nanmean()
        self.points.append({"sampled": float(self.sampled), "score": float(score), "dense": float(dense)})


def samples_to_reach(points: Sequence[Mapping[str, float]], gain: float) -> tuple[float, bool]:
    """How many pictures had been sampled when a score lay so far above the base's.

    The curve is the rising one that is nearest to the points (isotonic regression, the base's point kept as it is),
    with straight lines between them; one bad point therefore neither makes nor undoes a crossing.

    Args:
        points: of a ``LearningCurve``, at least two, the base's first.
        gain: above the base, > 0.

    Returns:
        The number, and whether the score was reached; if not, all pictures of the run, which is too few.
    """
    from scipy.optimize import isotonic_regression

    places = [point["sampled"] for point in points]
    start = points[0]["score"]
    rising = isotonic_regression([point["score"] - start for point in points[1:]]).x
    curve = [0.0, *(max(0.0, float(value)) for value in rising)]
    after = bisect.bisect_left(curve, gain)
    if after == len(curve):
        return places[-1], False
    share = (gain - curve[after - 1]) / (curve[after] - curve[after - 1])
    return places[after - 1] + share * (places[after] - places[after - 1]), True


# ------------------------------------------------------------------ a run


@dataclasses.dataclass(frozen=True)
class Policy:
    """A trained policy.

    Attributes:
        model: with its adapters.
        average: of the trained adapter: ``average.averaged(model)`` puts it in.
        points: of its learning curve, the base's first.
        seconds: of training and of the curve, by the wall clock.
    """

    model: OnlineTraining
    average: EMA
    points: Sequence[Mapping[str, float]]
    seconds: float


def trained(arm: str, seed: int, budget: Budget, folder: Path) -> Policy:
    """Train an arm, or read what has been trained already.

    Args:
        arm: see :func:`model_of`, not ``base``.
        seed: of prompts, noise and adapters.
        budget: optimiser steps and pictures of each; ``UPDATES`` steps share a rollout.
        folder: of prompts and checkpoints.

    Returns:
        The policy.

    Raises:
        RuntimeError: training sampled another number of pictures than was planned, so that arms cannot be compared.
    """
    held_out = held_out_requests(max(len(COUNTS), budget.measured_on // 4))
    rollouts, rows = budget.steps // UPDATES, budget.batch * UPDATES
    prompts = folder / "prompts.jsonl"
    write_requests(training_requests(seed, rollouts * rows // GROUP, held_out), prompts)
    data = PromptDataModule(train=str(prompts), val=None, global_batch_size=rows, repeats=GROUP, seed=seed)
    model = model_of(arm, seed)
    average = EMA([DECAY], ramp=True)
    curve = LearningCurve(held_out, average, max(1, rollouts // POINTS))
    seconds = train(model, data, budget.steps, folder, save_every=SAVE_EVERY, watching=(average, curve))
    if curve.sampled != rollouts * rows:
        raise RuntimeError(f"{folder}: {curve.sampled} pictures were sampled, {rollouts * rows} were planned")
    return Policy(model, average, curve.points, seconds)
