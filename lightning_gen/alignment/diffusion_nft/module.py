"""DiffusionNFT in training."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from lightning_gen.alignment.diffusion_nft.objective import (
    OldPolicySchedule,
    Weighting,
    nft_losses,
    old_policy_decay,
    reference_losses,
    reward_gradients,
)
from lightning_gen.alignment.online import DEFAULT, Evaluation, OnlineTraining, Share, Updates
from lightning_gen.alignment.policies import PipelinePolicy
from lightning_gen.alignment.rollout import Rollout, initial_noise, micro_batches, row_keys
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.batches import PromptBatch
from lightning_gen.flow import paths
from lightning_gen.flow.solvers import SOLVERS
from lightning_gen.interfaces import Conditioning
from lightning_gen.rewards.advantages import AdvantageMode, AdvantageSettings, optimality
from lightning_gen.rewards.rewards import RewardSuite
from lightning_gen.training.optim import AdamW
from lightning_gen.training.randomness import normal, uniform

__all__ = ["CleanRollout", "DiffusionNFT", "NFTLoss"]

OLD = "old"
"""Name of the adapter that makes the pictures."""


@dataclasses.dataclass(frozen=True)
class CleanRollout:
    """How pictures are made to learn from; only the last state is kept.

    Attributes:
        steps: of the solver.
        solver: see ``flow.solvers.SOLVERS``; published: the second-order multistep one.
        guidance: 1; the implicit policies are those of the velocity itself.
        trained_times: how many of the grid's times a picture is trained at; None = all but one, int(0.99 steps).

    Raises:
        ValueError: guidance, an unknown solver, or more times than the grid has.

    Source: arXiv:2509.16117 and its published configurations.
    """

    steps: int = 10
    solver: str = "dpm_solver"
    guidance: float = 1.0
    trained_times: int | None = None

    def __post_init__(self) -> None:
        if self.guidance != 1.0:
            raise ValueError(
                f"guidance is {self.guidance}: DiffusionNFT learns the velocity that made the pictures, and a guided "
                "one is not the network's; set it to 1 (the paper starts from pictures without guidance, too)"
            )
        if self.solver not in SOLVERS or self.steps < 2:
            raise ValueError(
                f"a rollout takes at least 2 steps of {', '.join(SOLVERS)}, got {self.steps} of {self.solver}"
            )
        if not 1 <= self.times_per_picture <= self.steps:
            raise ValueError(f"trained_times lies between 1 and {self.steps}, got {self.trained_times}")

    @property
    def times_per_picture(self) -> int:
        """Trained times of a picture."""
        return int(0.99 * self.steps) if self.trained_times is None else self.trained_times


@dataclasses.dataclass(frozen=True)
class NFTLoss:
    """What is learned from a picture.

    Attributes:
        strength: b; published: 1, and 0.1 for OCR and several rewards.
        weighting: of a picture's error.
        mode: which advantages count, see ``rewards.advantages.optimality``.
        advantage_clip: largest advantage; also the factor of the loss.
        kl: weight of the distance to the reference; 0 = it is only watched, at one time of every picture.

    Raises:
        ValueError: a number that makes no sense.
    """

    strength: float = 1.0
    weighting: Weighting = "adaptive"
    mode: AdvantageMode = "all"
    advantage_clip: float = 5.0
    kl: float = 1e-4

    def __post_init__(self) -> None:
        if not self.strength > 0 or not self.advantage_clip > 0 or self.kl < 0:
            raise ValueError(f"strength and advantage_clip are positive, kl is not negative: {self}")


class DiffusionNFT(OnlineTraining):
    """Learning from good and bad pictures on the forward process; no trajectory, no likelihood.

    r = 1/2 + 1/2 clip(A / c, -1, 1);  loss = c mean [r / b |x_plus - x_0|^2 / w + (1 - r) / b |x_minus - x_0|^2 / w]
    + beta mean (v - v_ref)^2

    Pictures are made by a second adapter, the old policy, which follows the trained one after every rollout.

    Args:
        policy: name of shipped weights, a folder, a pipeline of diffusers, or a text-to-image model.
        rewards: what is paid for.
        rollout: how pictures are made to learn from.
        loss: what is learned from a picture.
        old_policy: how the old policy follows the trained one.
        old_policy_ceiling: largest share that stays; None = that of the schedule.
        old_policy_slope: growth of the share per optimiser step; None = that of the schedule, with which a run of 100
            steps has an old policy that is nearly a copy.
        advantages: how rewards become advantages.
        updates: how a rollout is learned from.
        lora: shape of the adapters.
        evaluation: how pictures are made in validation.
        optimizer: of the trained adapter.
        init_adapter: folder of an adapter to start from; None = the base.
        seed: of the adapters and of every keyed draw.

    Source: arXiv:2509.16117.
    """

    def __init__(
        self,
        policy: str | PipelinePolicy | nn.Module,
        rewards: RewardSuite,
        rollout: CleanRollout = CleanRollout(),  # noqa: B008 (frozen)
        loss: NFTLoss = NFTLoss(),  # noqa: B008 (frozen)
        old_policy: OldPolicySchedule = "ramp",
        old_policy_ceiling: float | None = None,
        old_policy_slope: float | None = None,
        advantages: AdvantageSettings = AdvantageSettings(),  # noqa: B008 (frozen)
        updates: Updates = Updates(skip_worthless=False),  # noqa: B008 (frozen)
        lora: LoRASettings = LoRASettings(),  # noqa: B008 (frozen)
        evaluation: Evaluation = Evaluation(guidance=1.0),  # noqa: B008 (frozen)
        optimizer: AdamW = AdamW(3e-4, betas=(0.9, 0.999), weight_decay=1e-4),  # noqa: B008 (frozen)
        init_adapter: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            policy, rewards, (DEFAULT, OLD), lora, advantages, updates, evaluation, optimizer, init_adapter, seed
        )
        self.how, self.loss = rollout, loss
        self.old_policy, self.old_policy_ceiling, self.old_policy_slope = (
            old_policy, old_policy_ceiling, old_policy_slope,
        )  # fmt: skip
        self.old_policy_decay(0)  # now: not after the first rollout

    def on_fit_start(self) -> None:
        """The old policy begins as the trained one; a resumed run has its own."""
        super().on_fit_start()
        if self.trainer.ckpt_path is None:
            self.bank.copy(DEFAULT, OLD)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Sample by the old policy, score, compare within groups, learn, and let the old policy follow.

        Args:
            batch: prompts in groups.
            batch_idx: not used: every draw is keyed by the rows.

        Source: arXiv:2509.16117 algorithm 1.
        """
        rollout, scores = self.sample_and_score(batch)
        advantages = self.advantages(scores, rollout)
        with self.timed("training"):
            for share in self.updates_of(advantages, rollout):
                self.learn(rollout, advantages, share)
                self.update()
        decay = self.old_policy_decay(self.trainer.global_step)
        self.bank.blend(OLD, DEFAULT, decay)
        self.log_watched(len(batch))
        self.log("train/old_policy_decay", decay, batch_size=len(batch))

    def old_policy_decay(self, step: int) -> float:
        """How much of the old policy stays after a rollout, see ``objective.old_policy_decay``.

        Args:
            step: optimiser steps so far.

        Returns:
            d in [0, 1).
        """
        return old_policy_decay(step, self.old_policy, self.old_policy_ceiling, self.old_policy_slope)

    @torch.no_grad()
    def sample(self, batch: PromptBatch) -> Rollout:
        """Make pictures by the old policy.

        Args:
            batch: prompts.

        Returns:
            Clean pictures.
        """
        with self.bank.using(OLD):
            return self.explore(batch)

    @torch.no_grad()
    def explore(self, batch: PromptBatch) -> Rollout:
        """Make pictures by the rollout's solver and the adapter that is on.

        Args:
            batch: prompts.

        Returns:
            Clean pictures.
        """
        times, keys = self.policy.times(self.how.steps), row_keys(batch)
        parts = []
        for part in micro_batches(len(batch), self.updates.micro_batch_size):
            noise = initial_noise(self.policy.latent_shape, self.seed, batch.epoch, keys[part])
            state = self.policy.from_noise(noise, self.how.steps)
            parts.append(SOLVERS[self.how.solver](self.field(batch.prompt[part], 1.0), state, times))
        return self.record(batch, torch.cat(parts), times)

    def learn(self, rollout: Rollout, advantages: Tensor, share: Share) -> None:
        """Accumulate the gradient of some rows at all their trained times.

        Args:
            rollout: pictures.
            advantages: of all rows of this rank, (B,).
            share: which of them, and how much they weigh.
        """
        count = self.how.times_per_picture
        worth = optimality(advantages, self.loss.mode, self.loss.advantage_clip)
        for part in micro_batches(len(share.rows), self.updates.micro_batch_size):
            rows, weights = share.rows[part], share.weights[part]
            times = self.trained_times(rollout, rows)
            with torch.no_grad():
                text = self.policy.encode_prompts([rollout.prompts[row] for row in rows.tolist()])
            for number in range(count):
                losses = self.time_losses(rollout, worth, rows, weights, times[:, number], number, text)
                self.watch("train/loss", losses, weights)
                self.manual_backward((weights * losses).sum() / count)

    def trained_times(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """Times at which pictures are noised: those of the rollout's own grid, in an order of every picture's own.

        Args:
            rollout: pictures.
            rows: of the micro-batch, int64.

        Returns:
            float32, (rows, n); the first ``times_per_picture`` are used.

        Source: arXiv:2509.16117, published trainer (not uniform times).
        """
        grid = rollout.times[:-1].to(rows.device)
        draws = uniform(self.seed, "trained times", self.trainer.global_step, rollout.keys[rows], (len(grid),))
        return grid[draws.argsort(1)].float()

    def time_losses(
        self,
        rollout: Rollout,
        worth: Tensor,
        rows: Tensor,
        weights: Tensor,
        t: Tensor,
        number: int,
        text: Conditioning,
    ) -> Tensor:
        """Losses of a micro-batch, every picture at one time.

        Args:
            rollout: pictures.
            worth: optimality of all rows of this rank, (B,).
            rows: of the micro-batch, int64.
            weights: of the rows, for what is logged.
            t: time of each, (rows,).
            number: of the time; every one has noise of its own.
            text: prompts of the micro-batch, encoded once for all times.

        Returns:
            (rows,).
        """
        how, x_0 = self.loss, rollout.latents[rows]
        shape, step = tuple(x_0.shape[1:]), self.trainer.global_step
        x_t = paths.noised(x_0, normal(self.seed, f"forward noise {number}", step, rollout.keys[rows], shape), t)
        with torch.no_grad(), self.bank.using(OLD):
            v_old = self.policy.velocity(x_t, t, text)
        v = self.policy.velocity(x_t, t, text)
        losses = how.advantage_clip * nft_losses(v, v_old, x_t, x_0, t, worth[rows], how.strength, how.weighting)
        self.watch("train/old_distance", reference_losses(v, v_old), weights)
        pull = reward_gradients(v, v_old, x_t, x_0, t, worth[rows], how.strength, how.weighting)
        self.watch("train/reward_gradient", how.advantage_clip * pull, weights)
        if how.kl == 0 and number > 0:
            return losses
        # Without a weight the distance is only watched, at one time of every picture.
        with torch.no_grad(), self.bank.disabled():
            v_reference = self.policy.velocity(x_t, t, text)
        distance = reference_losses(v, v_reference)
        self.watch("train/kl", distance, weights)
        self.watch("train/drift", distance, weights)  # the same here; the name that every method has
        return losses if how.kl == 0 else losses + how.kl * distance
