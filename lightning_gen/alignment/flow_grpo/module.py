"""Flow-GRPO in training."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from lightning_gen.alignment.flow_grpo.objective import is_clipped, policy_losses, probability_ratio
from lightning_gen.alignment.online import DEFAULT, Evaluation, OnlineTraining, Share, Updates
from lightning_gen.alignment.policies import PipelinePolicy
from lightning_gen.alignment.rollout import (
    Rollout,
    Trajectory,
    initial_noise,
    micro_batches,
    roll_out,
    row_keys,
    step_noise,
    stochastic_steps,
)
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.batches import PromptBatch
from lightning_gen.flow.solvers import Velocity
from lightning_gen.flow.transitions import DivergenceForm, Kind, Stochasticity, Transition, gaussian_divergence
from lightning_gen.rewards.advantages import AdvantageSettings
from lightning_gen.rewards.rewards import RewardSuite
from lightning_gen.training.optim import AdamW

__all__ = ["FlowGRPO", "StochasticRollout"]


@dataclasses.dataclass(frozen=True)
class StochasticRollout:
    """How pictures are made to learn from.

    Attributes:
        steps: of the grid; all but the last are trained, or a window of them.
        guidance: scale of classifier-free guidance in rollouts and in training; 1 = none.
        kind: how noise enters, ``sde`` or ``cps``.
        noise_level: a; or one number for every step of the grid.
        window_size: stochastic and trained steps of a rollout ("Fast"); 0 = all but the last.
        window: first step and the step after the last one where the window may lie; None = anywhere, but with ``cps``
            not at the last step, which is deterministic.
        same_noise: whether all members of a group begin with the same noise.

    Raises:
        ValueError: noise or a window that makes no sense.

    Source: arXiv:2505.05470 and its published configurations (10 steps, 4.5, 0.7; Fast: a window of 2).
    """

    steps: int = 10
    guidance: float = 4.5
    kind: Kind = "sde"
    noise_level: float | tuple[float, ...] = 0.7
    window_size: int = 0
    window: tuple[int, int] | None = None
    same_noise: bool = False

    def __post_init__(self) -> None:
        stochastic_steps(self.steps, self.window_size, self.where)
        trained = set(stochastic_steps(self.steps)) if self.window_size == 0 else set(range(*self.where))
        silent = [step for step in sorted(trained) if self.stochasticity().level(step, self.steps) == 0]
        if silent:
            raise ValueError(
                f"noise_level is 0 at step {silent[0]}: a deterministic step has no likelihood to learn from"
            )
        if self.kind == "cps" and self.window_size and self.where[1] == self.steps:
            raise ValueError(
                f"window {self.window} reaches the last of {self.steps} steps, which is deterministic with cps: end it "
                f"at {self.steps - 1}"
            )

    @property
    def where(self) -> tuple[int, int]:
        """First step, and the step after the last one, where the window may lie."""
        return self.window or (0, self.steps - 1 if self.kind == "cps" else self.steps)

    def stochasticity(self) -> Stochasticity:
        """How noise enters."""
        return Stochasticity(self.kind, self.noise_level)


class FlowGRPO(OnlineTraining):
    """Policy gradients on the steps of a stochastic sampler, against the mean of a prompt's pictures.

    loss = mean max(-A ratio, -A clip(ratio, 1 - c, 1 + c)) + beta KL(policy, reference),  ratio of one denoising step

    The reference is the base without adapters. Inner updates are exactly on the policy only in the first of them.

    Args:
        policy: name of shipped weights, a folder, a pipeline of diffusers, or a text-to-image model.
        rewards: what is paid for.
        rollout: how pictures are made to learn from.
        clip: c, range of the ratio; 1e-4 published, 1e-5 without guidance. Idle in the first update of a rollout, where
            every ratio is 1.
        advantage_clip: largest advantage.
        kl: beta; 0 = the divergence is only watched, at one step of every rollout.
        kl_form: ``published``, which its weights are tuned to, or ``exact``.
        advantages: how rewards become advantages.
        updates: how a rollout is learned from; published: two optimiser steps.
        lora: shape of the adapter.
        evaluation: how pictures are made in validation.
        optimizer: of the adapter.
        init_adapter: folder of an adapter to start from; None = the base.
        seed: of the adapter and of every keyed draw.

    Source: arXiv:2505.05470.
    """

    def __init__(
        self,
        policy: str | PipelinePolicy | nn.Module,
        rewards: RewardSuite,
        rollout: StochasticRollout = StochasticRollout(),  # noqa: B008 (frozen)
        clip: float = 1e-4,
        advantage_clip: float = 5.0,
        kl: float = 0.04,
        kl_form: DivergenceForm = "published",
        advantages: AdvantageSettings = AdvantageSettings(),  # noqa: B008 (frozen)
        updates: Updates = Updates(per_rollout=2),  # noqa: B008 (frozen)
        lora: LoRASettings = LoRASettings(),  # noqa: B008 (frozen)
        evaluation: Evaluation = Evaluation(),  # noqa: B008 (frozen)
        optimizer: AdamW = AdamW(3e-4, betas=(0.9, 0.999), weight_decay=1e-4),  # noqa: B008 (frozen)
        init_adapter: str | None = None,
        seed: int = 0,
    ) -> None:
        if not clip > 0 or not advantage_clip > 0 or kl < 0:
            raise ValueError(
                f"clip and advantage_clip are positive, kl is not negative: {clip}, {advantage_clip}, {kl}"
            )
        super().__init__(
            policy, rewards, (DEFAULT,), lora, advantages, updates, evaluation, optimizer, init_adapter, seed
        )
        self.how, self.clip, self.advantage_clip = rollout, clip, advantage_clip
        self.kl, self.kl_form, self.rollout_guidance = kl, kl_form, rollout.guidance

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Sample, score, compare within groups, and take the optimiser steps of this rollout.

        Args:
            batch: prompts in groups.
            batch_idx: not used: every draw is keyed by the rows.

        Source: arXiv:2505.05470 algorithm 1.
        """
        rollout, scores = self.sample_and_score(batch)
        advantages = self.advantages(scores, rollout)
        with self.timed("training"):
            for share in self.updates_of(advantages, rollout):
                self.learn(rollout, advantages, share)
                self.update()
        self.log_watched(len(batch))

    @torch.no_grad()
    def sample(self, batch: PromptBatch) -> Rollout:
        """Make pictures by stochastic steps of the current policy.

        Args:
            batch: prompts.

        Returns:
            Pictures and the trained steps.
        """
        how, shape, times = self.how, self.policy.latent_shape, self.policy.times(self.how.steps)
        steps = stochastic_steps(how.steps, how.window_size, how.where, self.seed, self.trainer.global_step)
        keys = row_keys(batch)
        parts = []
        for part in micro_batches(len(batch), self.updates.micro_batch_size):
            shared = batch.index[part] if how.same_noise else None
            noise = initial_noise(shape, self.seed, batch.epoch, keys[part], shared)
            drawn = step_noise(shape, self.seed, batch.epoch, keys[part])
            field = self.field(batch.prompt[part], how.guidance)
            state = self.policy.from_noise(noise, how.steps)
            parts.append(roll_out(field, state, times, how.stochasticity(), steps, drawn))
        walk = Trajectory(*(torch.cat(several) for several in zip(*parts, strict=True)))
        return self.record(batch, walk.latents, times, trajectory=walk, steps=steps)

    def learn(self, rollout: Rollout, advantages: Tensor, share: Share) -> None:
        """Accumulate the gradient of some rows over all their trained steps.

        Args:
            rollout: what was done.
            advantages: of all rows of this rank, (B,).
            share: which of them, and how much they weigh.
        """
        for part in micro_batches(len(share.rows), self.updates.micro_batch_size):
            rows, weights = share.rows[part], share.weights[part]
            field = self.field([rollout.prompts[row] for row in rows.tolist()], self.how.guidance)
            for place in range(len(rollout.steps)):
                losses = self.step_losses(rollout, advantages, rows, weights, place, field)
                self.watch("train/loss", losses, weights)
                self.manual_backward((weights * losses).sum() / len(rollout.steps))

    def step_losses(
        self, rollout: Rollout, advantages: Tensor, rows: Tensor, weights: Tensor, place: int, field: Velocity
    ) -> Tensor:
        """Losses of one denoising step of a micro-batch.

        Args:
            rollout: what was done.
            advantages: of all rows of this rank, (B,).
            rows: of the micro-batch, int64.
            weights: of the rows, for what is logged.
            place: of the step among the trained ones.
            field: the policy with the prompts of the micro-batch, which are encoded once for all steps.

        Returns:
            (rows,).
        """
        walk = rollout.trajectory
        assert walk is not None
        state, t = walk.states[rows, place], float(rollout.times[rollout.steps[place]])
        v = field(state, t)
        transition = self._transition(rollout, rows, place, v)
        log_prob = self.how.stochasticity().log_prob(walk.actions[rows, place], transition)
        ratio = probability_ratio(log_prob, walk.log_probs[rows, place])
        losses = policy_losses(ratio, advantages[rows], self.clip, self.advantage_clip)
        self.watch("train/clipped", is_clipped(ratio, self.clip), weights)
        # Down to the velocity only, which costs nothing beside the network.
        [pull] = torch.autograd.grad(losses.sum(), v, retain_graph=True)
        self.watch("train/reward_gradient", pull.flatten(1).norm(dim=1), weights)
        if self.kl == 0 and place + 1 < len(rollout.steps):
            return losses
        # Without a weight the divergence is only watched, at the last trained step, where it is largest.
        with torch.no_grad(), self.bank.disabled():
            v_reference = field(state, t)
        self.watch("train/drift", (v.detach() - v_reference).square().flatten(1).mean(1), weights)
        reference = self._transition(rollout, rows, place, v_reference)
        divergence = gaussian_divergence(transition, reference, self.kl_form)
        self.watch("train/kl", divergence, weights)
        return losses if self.kl == 0 else losses + self.kl * divergence

    def _transition(self, rollout: Rollout, rows: Tensor, place: int, v: Tensor) -> Transition:
        assert rollout.trajectory is not None
        state = rollout.trajectory.states[rows, place]
        return self.how.stochasticity().transition(state, v, rollout.times, rollout.steps[place])
