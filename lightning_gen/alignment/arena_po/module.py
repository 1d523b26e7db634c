"""Diffusion-DPO and ArenaPO in training. t = 0 is clean, t = 1 is noise.

Shape letters: B pairs; stacked states have 2 B rows, the winners first.
"""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_gen.alignment.arena_po.cache import CacheSettings
from lightning_gen.alignment.arena_po.diagnostics import Displacement, pair_rows
from lightning_gen.alignment.arena_po.learning import ErrorOf, PairTraining
from lightning_gen.alignment.arena_po.objectives import (
    PairErrors,
    PairLoss,
    dpo_logits,
    error_weight,
    implicit_rewards,
    mean_square_error,
    pair_losses,
)
from lightning_gen.alignment.arena_po.pairs import NoisyPairs, PairGaps, PairGapSource, ReadyPairs, pictures_of, twice
from lightning_gen.alignment.arena_po.reference import require_start
from lightning_gen.alignment.arena_po.settings import Adafactor, PairTimes, SampleSettings, WarmupConstant
from lightning_gen.alignment.policies import PipelinePolicy
from lightning_gen.backbones.lora import LoRASettings
from lightning_gen.data.batches import PreferenceBatch
from lightning_gen.flow import paths
from lightning_gen.nn.ranks import every_rank, mean_over_ranks
from lightning_gen.training.optim import AdamW
from lightning_gen.training.randomness import normal

__all__ = ["ArenaPO", "DiffusionDPO"]

_ADAMW = AdamW(2.048e-5, betas=(0.9, 0.999), weight_decay=1e-2)
# Largest relative difference of two networks that are the same: computed alike, and computed in other batches.
_EXACT, _ROUGH = 1e-3, 0.05


class DiffusionDPO(PairTraining):
    """Learning from pairs of pictures of which one is preferred; no reward model, no sampling.

    z = -beta / 2 ((d(w) - d(l)) - (d_ref(w) - d_ref(l))),  d = mean (prediction - truth)^2;  L = mean -log sigmoid(z)

    Both pictures of a pair have the same time and the same noise. The reference is the model as it was: its adapter
    switched off, or a frozen copy. The pairs of an optimiser step are ``data.global_batch_size`` times
    ``trainer.accumulate_grad_batches``.

    Args:
        policy: name of shipped weights, a folder, a pipeline of diffusers, or a text-to-image model.
        loss: what is learned from a pair; modes without a gap.
        error: in which numbers errors are counted. Epsilon networks are wrapped as velocities here, and their own error
            is (1 - t)^2 times the velocity's.
        times: at which times.
        lora: shape of the trained adapter; None = the whole network is trained, and a copy of it kept.
        drop_rate: share of the prompts that are replaced by the empty one.
        posterior: ``sample`` = latents are drawn anew in every pass where the auto-encoder has a posterior.
        cache: of the reference's errors; None = they are computed in every step.
        samples: how pictures are made, for the sample grid and by ``predict``.
        optimizer: of what is trained.
        warmup: of its learning rate.
        displacement: when both pictures of the pairs have become unlikely.
        activation_checkpointing: compute the inside of the network's blocks again in the backward pass.
        init_adapter: folder of an adapter to start from, which then is the reference too.
        seed: of the adapter and of every keyed draw.

    Raises:
        ValueError: a loss that needs gaps, or what ``PairTraining`` refuses.

    Source: arXiv:2311.12908 and its published trainer. deviates: bfloat16 without a gradient scaler in place of
        float16; for the warm-up's first step see ``WarmupConstant``.
    """

    def __init__(
        self,
        policy: str | PipelinePolicy | nn.Module,
        loss: PairLoss = PairLoss(),  # noqa: B008 (frozen)
        error: ErrorOf = "own",
        times: PairTimes = PairTimes(),  # noqa: B008 (frozen)
        lora: LoRASettings | None = None,
        drop_rate: float = 0.2,
        posterior: Literal["sample", "mode"] = "sample",
        cache: CacheSettings | None = None,
        samples: SampleSettings = SampleSettings(),  # noqa: B008 (frozen)
        optimizer: AdamW | Adafactor = _ADAMW,
        warmup: WarmupConstant = WarmupConstant(),  # noqa: B008 (frozen)
        displacement: Displacement = Displacement(),  # noqa: B008 (frozen)
        activation_checkpointing: bool = False,
        init_adapter: str | None = None,
        seed: int = 0,
    ) -> None:
        if loss.needs_gap and type(self) is DiffusionDPO:
            raise ValueError(f"the loss {loss.mode} needs the gap of every pair: use ArenaPO")
        super().__init__(
            policy, loss, error, times, lora, drop_rate, posterior, cache, samples, optimizer, warmup, displacement,
            activation_checkpointing, init_adapter, seed,
        )  # fmt: skip

    # ------------------------------------------------------------------ training

    def training_step(self, batch: ReadyPairs, batch_idx: int) -> Tensor:
        """Noise both pictures alike, predict, compare with the reference, push the winner's error below the loser's.

        Args:
            batch: pairs with their columns.
            batch_idx: not used: every draw is keyed by the pairs.

        Returns:
            The loss.

        Source: arXiv:2311.12908 algorithm of its published trainer; arXiv:2605.06070 for the gap.
        """
        noisy = self.noised(batch)
        v = self.policy.velocity(noisy.x_t, noisy.t, noisy.text)
        errors = self.errors(v, noisy, batch)
        losses = self.losses(errors, batch)
        self.remember(pair_rows(losses, errors, dpo_logits(errors, self.loss.beta), batch.gap))
        return (batch.weight * losses).mean()

    @torch.no_grad()
    def noised(self, batch: ReadyPairs) -> NoisyPairs:
        """Both pictures of every pair at one time, with one noise and one prompt.

        Args:
            batch: pairs with their columns.

        Returns:
            2 B rows.
        """
        x_0 = torch.cat(self.clean(batch).float().unbind(1))
        index = batch.winner.index
        t = self.times.draw(self.seed, batch.draw, index, self.training_times)
        eps = normal(self.seed, "pair noise", batch.draw, index, tuple(x_0.shape[1:]))
        t, eps = torch.cat([t, t]), torch.cat([eps, eps])
        text = twice(self.policy.encode_prompts(batch.winner.caption))
        return NoisyPairs(paths.noised(x_0, eps, t), paths.velocity(x_0, eps), t, text)

    def clean(self, batch: ReadyPairs) -> Tensor:
        """Clean latents of both pictures, from the cache or the auto-encoder.

        Args:
            batch: pairs with their columns.

        Returns:
            (B, 2, ...).
        """
        if batch.clean is not None:
            return batch.clean
        images = [pictures_of(part) for part in (batch.winner, batch.loser)]
        sample = getattr(self.policy, "sample_latents", None)
        if sample is None or self.posterior == "mode":
            parts = [self.policy.images_to_latents(part) for part in images]
        else:
            # Two numbers for a pair, so that its pictures have draws of their own. Latents that are kept have one draw
            # for all passes: errors are kept beside them, and must be theirs whichever pass came first.
            index, draw = 2 * batch.winner.index, 0 if self.keeps_latents else batch.draw
            parts = [sample(part, index + side, draw) for side, part in enumerate(images)]
        latents = torch.stack(parts, 1)
        if self.cache is not None and self.trainer.training:
            self.cache.write_latents(batch.winner.index, latents)
        return latents

    def errors(self, v: Tensor, noisy: NoisyPairs, batch: ReadyPairs) -> PairErrors:
        """Errors of the trained network and of the reference.

        Args:
            v: velocity of the trained network, (2 B, ...), computed before the reference's: with autocast, weights that
                were rounded without gradients would be used again.
            noisy: what it saw.
            batch: pairs with their columns.

        Returns:
            Errors of B pairs, float32.
        """
        weight = error_weight(noisy.t, self.kind).float()
        ours = (weight * mean_square_error(v, noisy.velocity)).view(2, -1)
        known = None if batch.reference is None or self.loss.needs_distance else batch.reference.T
        if self.device_mesh is not None and self.cache is not None and not every_rank(known is not None, v.device):
            known = None  # a rank that asks a sharded reference waits for all others
        distance = None
        if known is None and self.reference is not None:
            with torch.no_grad(), self.reference.model() as model:
                theirs = model.velocity(noisy.x_t, noisy.t, noisy.text)
            known = (weight * mean_square_error(theirs, noisy.velocity)).view(2, -1)
            distance = (weight * mean_square_error(v, theirs)).view(2, -1)[0] if self.loss.needs_distance else None
            if self.cache is not None and self.trainer.training:
                self.cache.write_errors(batch.winner.index, batch.draw, known.T)
        known = torch.full_like(ours, torch.nan) if known is None else known
        found = PairErrors(ours[0], ours[1], known[0], known[1], distance)
        if self.at_start and self.trainer.training:
            self.at_start = False
            # Computed here, both see the same numbers in the same batch, also where autocast rounds them.
            require_start(found, dpo_logits(found, self.loss.beta), _EXACT if batch.reference is None else _ROUGH)
        return found

    def losses(self, errors: PairErrors, batch: ReadyPairs) -> Tensor:
        """Losses of the pairs.

        Args:
            errors: theirs.
            batch: pairs with their columns.

        Returns:
            (B,).
        """
        baseline = None
        if self.loss.mode == "kto":
            paid = torch.cat(implicit_rewards(errors, self.loss.beta)).mean().detach()
            baseline = mean_over_ranks(paid).clamp(min=0)
        return pair_losses(errors, self.loss, batch.gap, batch.delta, batch.scale, baseline)

    # ------------------------------------------------------------------ validation

    def validation_step(self, batch: ReadyPairs, batch_idx: int) -> None:
        """The same numbers on other pairs, at the same times and noise in every validation.

        Args:
            batch: pairs with their columns.
            batch_idx: not used.
        """
        noisy = self.noised(batch)
        errors = self.errors(self.policy.velocity(noisy.x_t, noisy.t, noisy.text), noisy, batch)
        rows = pair_rows(self.losses(errors, batch), errors, dpo_logits(errors, self.loss.beta), batch.gap)
        self.judge(rows, batch.winner.valid)


class ArenaPO(DiffusionDPO):
    """Diffusion-DPO that knows how much better the preferred picture is: a gap per pair, from an arena of the models.

    L = mean -log sigmoid(z - gamma g),  g = E[D | D > 0], D ~ N(mu_w - mu_l, s^2)

    Args:
        policy: name of shipped weights, a folder, a pipeline of diffusers, or a text-to-image model.
        loss: what is learned from a pair; how the gap enters it is a choice, see ``PairLoss``.
        gaps: where gaps come from: ``FittedGaps``, ``TableGaps``; None = batches hold them in the unit of the loss, as
            ``data.gaps`` joins them.
        error: in which numbers errors are counted. Epsilon networks are wrapped as velocities here, and their own error
            is (1 - t)^2 times the velocity's.
        times: at which times.
        lora: shape of the trained adapter; None = the whole network is trained, and a copy of it kept.
        drop_rate: share of the prompts that are replaced by the empty one.
        posterior: ``sample`` = latents are drawn anew in every pass where the auto-encoder has a posterior.
        cache: of the reference's errors; None = they are computed in every step.
        samples: how pictures are made, for the sample grid and by ``predict``.
        optimizer: of what is trained.
        warmup: of its learning rate.
        displacement: when both pictures of the pairs have become unlikely.
        activation_checkpointing: compute the inside of the network's blocks again in the backward pass.
        init_adapter: folder of an adapter to start from, which then is the reference too.
        seed: of the adapter and of every keyed draw.

    Raises:
        ValueError: what ``PairTraining`` refuses.

    Source: arXiv:2605.06070. Its text beyond the abstract could not be read: what is a choice is said at each.
    """

    def __init__(
        self,
        policy: str | PipelinePolicy | nn.Module,
        loss: PairLoss = PairLoss("margin"),  # noqa: B008 (frozen)
        gaps: PairGapSource | None = None,
        error: ErrorOf = "own",
        times: PairTimes = PairTimes(),  # noqa: B008 (frozen)
        lora: LoRASettings | None = None,
        drop_rate: float = 0.2,
        posterior: Literal["sample", "mode"] = "sample",
        cache: CacheSettings | None = None,
        samples: SampleSettings = SampleSettings(),  # noqa: B008 (frozen)
        optimizer: AdamW | Adafactor = _ADAMW,
        warmup: WarmupConstant = WarmupConstant(),  # noqa: B008 (frozen)
        displacement: Displacement = Displacement(),  # noqa: B008 (frozen)
        activation_checkpointing: bool = False,
        init_adapter: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            policy, loss, error, times, lora, drop_rate, posterior, cache, samples, optimizer, warmup, displacement,
            activation_checkpointing, init_adapter, seed,
        )  # fmt: skip
        self.gap_source = gaps

    def on_fit_start(self) -> None:
        """Make the gaps ready for the training pairs."""
        super().on_fit_start()
        self._open_gaps()

    def on_validation_start(self) -> None:
        """Make the gaps ready where a validation comes without training."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._open_gaps()

    def _open_gaps(self) -> None:
        if self.gap_source is not None:
            self.gap_source.open(getattr(self.trainer, "datamodule", None))

    def gaps(self, batch: PreferenceBatch, training: bool) -> PairGaps:
        """Gaps of a batch in the unit of the loss.

        Args:
            batch: pairs, on the CPU.
            training: whether they are training pairs.

        Returns:
            Gaps; NaN = not known, which is refused in training where the loss needs them.
        """
        return super().gaps(batch, training) if self.gap_source is None else self.gap_source(batch, training)
