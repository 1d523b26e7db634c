"""What online training by rewards needs, however it learns: a policy with adapters, scores, advantages, updates.

A room's ``training_step`` puts these together; one step samples, scores, computes advantages and makes all inner
updates, so that a checkpoint never holds half of one.

Shape letters: B rows of this rank, N rows of all ranks.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_gen.alignment.policies import (
    PipelinePolicy,
    encode_run,
    open_policy,
    policy_needs,
    prepare_policy,
    save_adapter,
    warn_of_double_guidance,
)
from lightning_gen.alignment.rollout import Rollout, initial_noise, micro_batches, policy_velocity, row_keys
from lightning_gen.alignment.settings import Evaluation, Updates
from lightning_gen.alignment.shares import RunningMeans, Share, share_of
from lightning_gen.backbones.lora import AdapterBank, LoRASettings
from lightning_gen.data.batches import PromptBatch
from lightning_gen.data.prompts import PromptDataModule
from lightning_gen.data.transforms import signed_to_unit
from lightning_gen.flow.guidance import Guidance
from lightning_gen.flow.solvers import SOLVERS, Velocity
from lightning_gen.interfaces import Conditioning, Pictures, TextToImage
from lightning_gen.nn.ranks import gather_over_ranks, mean_over_ranks
from lightning_gen.rewards.advantages import AdvantageSettings, epoch_advantages, training_mask
from lightning_gen.rewards.applicability import read_metadata
from lightning_gen.rewards.rewards import RewardScores, RewardSuite
from lightning_gen.training.needs import ModelNeeds, add_needs
from lightning_gen.training.optim import AdamW

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["DEFAULT", "Evaluation", "OnlineTraining", "Share", "Updates"]

DEFAULT = "default"
"""Name of the adapter that is trained."""

_SHAPES = "adapters"
"""Key of a checkpoint under which the shapes of its adapters stand."""

_LEAST_CONTRAST = 1e-3
"""Below the rounding of pictures to 8 bits, which is no roughness."""

_OPTIMIZER = AdamW(3e-4, betas=(0.9, 0.999), weight_decay=1e-4)


class OnlineTraining(pl.LightningModule):
    """Ground of the rooms that train a text-to-image model by rewards on its own pictures.

    The base stays frozen; adapters are trained, saved and exported. ``trainer.max_steps`` counts optimiser steps.
    Pictures of a row depend on (seed, pass, prompt, member) alone.

    Args:
        policy: name of shipped weights, a folder, a pipeline of diffusers, or a text-to-image model.
        rewards: what is paid for.
        adapters: names of the adapters, the trained one first.
        lora: their shape.
        advantages: how rewards become advantages.
        updates: how a rollout is learned from.
        evaluation: how pictures are made in validation.
        optimizer: of the adapter.
        init_adapter: folder of an adapter to start from; None = the base.
        seed: of adapters and of every keyed draw.
    """

    def __init__(
        self,
        policy: str | PipelinePolicy | nn.Module,
        rewards: RewardSuite,
        adapters: Sequence[str],
        lora: LoRASettings,
        advantages: AdvantageSettings,
        updates: Updates,
        evaluation: Evaluation,
        optimizer: AdamW = _OPTIMIZER,
        init_adapter: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # only adapters are in a checkpoint; on_load_checkpoint looks at their names
        # Weights are read by configure_model, so that a configuration can be built and checked where there are none.
        self._source, self._init_adapter = [policy], init_adapter
        self._encode_first = isinstance(policy, PipelinePolicy) and policy.encode_first
        self._adapters, self._lora = tuple(adapters), lora
        self.policy: TextToImage
        self.bank: AdapterBank
        self.rewards, self.advantage_settings, self.updates = rewards, advantages, updates
        self.evaluation, self.optimizer, self.seed = evaluation, optimizer, seed
        self.clock: Callable[[], float] = time.perf_counter  # seconds, see timed
        self._scored: dict[str, list[Tensor]] = {}
        self._watched = RunningMeans()
        self._seconds: dict[str, float] = {}

    # ------------------------------------------------------------------ building

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """What a run with these arguments needs; nothing is built.

        Args:
            init_args: constructor arguments, as parsed from a config.

        Returns:
            Parameters of the adapter, of the policy and of what pays it, and whether their weights are here.
        """
        rewards = init_args.get("rewards")
        paid = RewardSuite.needs(rewards.get("init_args") or {}) if isinstance(rewards, Mapping) else ModelNeeds(0)
        return add_needs([policy_needs(init_args.get("policy"), init_args.get("lora")), paid])

    def configure_model(self) -> None:
        """Load the policy, put the adapters into it, and shard it; does nothing the second time."""
        if hasattr(self, "bank"):
            return
        policy = open_policy(self._source[0])
        self.bank = AdapterBank(policy.network, self._lora, self._adapters, self._adapters[0], self.seed)
        self.policy = policy
        if self._init_adapter is not None:
            self.load_adapter(self._init_adapter)
        self._source.clear()
        prepare_policy(policy, self.device_mesh, self.seed, self.updates.activation_checkpointing)

    def setup(self, stage: str) -> None:
        """Refuse what cannot work, and have the rewards read their weights.

        Args:
            stage: of the Trainer.

        Raises:
            ValueError: groups of one, or a rollout that cannot be shared out evenly.
            RewardError: a reward cannot be made ready, or is not for one of the prompts.
        """
        data = getattr(self.trainer, "datamodule", None)
        repeats, rows = getattr(data, "repeats", None), getattr(data, "global_batch_size", None)
        if stage == "fit" and repeats is not None and repeats < 2:
            raise ValueError(
                f"data.repeats is {repeats}: a picture is judged against others of its prompt, so every prompt must "
                "come at least twice (paper: 24); a group of one learns from noise alone"
            )
        if stage == "fit" and rows is not None:
            _require_shares(rows, self.updates.per_rollout)  # now: not after a rollout and its scores
        if stage == "fit" and isinstance(data, PromptDataModule):
            every = [*data.stored("train"), *data.stored("val")]  # now: not after the first of them were sampled
            self.rewards.require_applicable(
                [one.prompt for one in every], read_metadata([one.metadata for one in every])
            )
        self.rewards.load()  # now: the first rollout may take minutes

    def on_fit_start(self) -> None:
        """Encode all prompts, where the policy is to do so first, and warn of what is known to fail."""
        if self._encode_first:
            encode_run(self.policy, getattr(self.trainer, "datamodule", None), self.trainer)
        for scale in {self.evaluation.guidance, self.rollout_guidance} - {1.0}:
            warn_of_double_guidance(self.policy, scale)
        if getattr(self.policy, "is_distilled", False):
            warnings.warn(
                "the policy is distilled to few steps: losses of flow matching are known to blur such models; start "
                "from the model that it was distilled from",
                stacklevel=2,
            )

    def configure_optimizers(self) -> Optimizer:
        """AdamW on the trained adapter."""
        group = {"params": self.bank.parameters(self.bank.trainable), "weight_decay": self.optimizer.weight_decay}
        return self.optimizer.build_groups([group])

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """Gradients are averaged once per update by :meth:`update`, not in every backward pass.

        Said before every step, because Lightning switches averaging on again after each.

        Args:
            batch: not used.
            batch_idx: not used.
        """
        wrapped: Any = self.trainer.strategy.model
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.require_backward_grad_sync = False

    # ------------------------------------------------------------------ sampling and scoring

    rollout_guidance: float = 1.0
    """Scale of classifier-free guidance in rollouts."""

    @abstractmethod
    def sample(self, batch: PromptBatch) -> Rollout:
        """Make pictures to learn from.

        Args:
            batch: prompts in groups.

        Returns:
            The record.
        """

    def sample_and_score(self, batch: PromptBatch) -> tuple[Rollout, RewardScores]:
        """Make pictures to learn from and have them scored; servers score some while the next are being made.

        Args:
            batch: prompts in groups.

        Returns:
            The record with what the rewards gave, and the scores.

        Raises:
            RewardError: a reward that fails, or is not for one of the prompts.
        """
        self.encode_ahead(batch.prompt)
        rollouts, pending = [], []
        try:
            for rows in micro_batches(len(batch), self.updates.micro_batch_size):
                with self.timed("sampling"):
                    made = self.sample(batch.rows(rows))
                with self.timed("scoring"):
                    pending.append(self.rewards.submit(made.images, made.prompts, made.metadata))
                rollouts.append(made)
        except BaseException:
            self.rewards.give_up()
            raise
        with self.timed("scoring"):
            scores = self.rewards.results(pending)
        return Rollout.joined(rollouts).rewarded(scores.raw), scores

    def encode_ahead(self, prompts: Sequence[str]) -> None:
        """Where encoded prompts are kept on disk, encode all now: encoders that wait elsewhere come only once.

        Args:
            prompts: of a rollout.
        """
        if getattr(self.policy, "cache", None) is not None:
            cast(Any, self.policy).cache_prompts(prompts)

    def explore(self, batch: PromptBatch) -> Rollout:
        """Make pictures as they are made to learn from, by the adapter that is on.

        Args:
            batch: prompts.

        Returns:
            The record.
        """
        return self.sample(batch)

    def field(self, prompts: Sequence[str], guidance: float) -> Velocity:
        """The policy with prompts as a velocity field, by the adapter that is on.

        Args:
            prompts: of one micro-batch.
            guidance: scale; the guided velocity is the policy.

        Returns:
            v(x, t).
        """
        with torch.no_grad():
            text: Conditioning = self.policy.encode_prompts(prompts)
            nothing = text if guidance == 1.0 else self.policy.encode_prompts([""] * len(prompts))
        return policy_velocity(self.policy, text, nothing, Guidance(guidance))

    def record(self, batch: PromptBatch, latents: Tensor, times: Tensor, **rest: Any) -> Rollout:
        """A rollout of a batch.

        Args:
            batch: the prompts.
            latents: that were made, (B, ...).
            times: the grid.
            rest: further fields of the record.

        Returns:
            The record, with pictures and without rewards.
        """
        parts = micro_batches(len(latents), self.updates.micro_batch_size)
        with torch.no_grad():
            images = torch.cat([self.policy.latents_to_images(latents[part]).clamp(-1, 1) for part in parts])
        fields = {"trajectory": None, "steps": ()} | rest
        return Rollout(
            latents=latents, times=times, images=signed_to_unit(images), prompts=batch.prompt,
            metadata=tuple(read_metadata(batch.metadata)), keys=row_keys(batch), group=batch.group, valid=batch.valid,
            **fields,
        )  # fmt: skip

    @torch.no_grad()
    def make(self, batch: PromptBatch, evaluation: Evaluation | None = None) -> Rollout:
        """Make pictures as in validation.

        Args:
            batch: prompts.
            evaluation: None = the module's.

        Returns:
            The record.
        """
        self.encode_ahead(batch.prompt)
        how = evaluation or self.evaluation
        times, keys = self.policy.times(how.steps), row_keys(batch)
        parts = []
        for part in micro_batches(len(batch), self.updates.micro_batch_size):
            noise = initial_noise(self.policy.latent_shape, self.seed, 0, keys[part])
            state = self.policy.from_noise(noise, how.steps)
            parts.append(SOLVERS[how.solver](self.field(batch.prompt[part], how.guidance), state, times))
        return self.record(batch, torch.cat(parts), times)

    def score(self, rollout: Rollout) -> RewardScores:
        """Rewards of this rank's pictures.

        Args:
            rollout: pictures.

        Returns:
            Scores of B rows.
        """
        return self.rewards(rollout.images, rollout.prompts, rollout.metadata)

    def advantages(self, scores: RewardScores, rollout: Rollout) -> Tensor:
        """What this rank's pictures are worth, against all pictures of all ranks; logs what was paid.

        Args:
            scores: of this rank.
            rollout: their pictures.

        Returns:
            (B,).
        """
        everyone = {name: gather_over_ranks(raw)[0] for name, raw in scores.raw.items()}
        group, first = gather_over_ranks(rollout.group)
        paid = self.rewards.combine_scores(everyone)
        self.log_all({f"rewards/{name}": value for name, value in paid.means().items()}, len(rollout))
        settings, suite = self.advantage_settings, self.rewards
        found = epoch_advantages(paid.normalised, suite.weights, group, settings, suite.combine).total
        watched = {"worthless": (found == 0).float().mean(), "reward_std": _spread(paid.total)}
        for name, of_pictures in (("contrast", _contrast), ("roughness", _roughness)):
            watched[name] = gather_over_ranks(of_pictures(rollout.images))[0].mean()
        self.log_all({f"train/{name}": value for name, value in watched.items()}, len(rollout))
        return found[first : first + len(rollout)]

    def log_all(self, values: Mapping[str, Tensor], count: int) -> None:
        """Log numbers that are the same on every rank; NaN is left out.

        Args:
            values: name -> scalar.
            count: rows.
        """
        known = {name: value.detach().float() for name, value in values.items() if not bool(value.isnan())}
        self.log_dict(known, batch_size=count)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add up, for ``seconds/<phase>``, how long a part of the step takes on this rank, the device's work included.

        Args:
            phase: its name.

        Yields:
            Nothing.
        """
        start = self.clock()
        yield
        if self.device.type != "cpu":
            torch.accelerator.synchronize()  # otherwise the next part would be charged with what is still under way
        self._seconds[phase] = self._seconds.get(phase, 0.0) + self.clock() - start

    # ------------------------------------------------------------------ learning

    def updates_of(self, advantages: Tensor, rollout: Rollout) -> Iterator[Share]:
        """Rows of every optimiser step, by their place in the global batch: world size does not change them.

        Args:
            advantages: of this rank, (B,).
            rollout: their pictures.

        Yields:
            This rank's part of each step, as many rows on every rank; none where nothing is worth anything.

        Raises:
            ValueError: rows that cannot be shared out evenly.
        """
        count = self.updates.per_rollout
        everyone, first = gather_over_ranks(advantages)
        _require_shares(len(everyone), count)
        kept = torch.arange(len(everyone), device=everyone.device)
        if self.updates.skip_worthless:
            keys, step = gather_over_ranks(rollout.keys)[0], self.trainer.global_step
            kept = kept[training_mask(everyone, count, seed=self.seed, epoch=step, index=keys)]
        for update in range(count):
            yield share_of(kept[update::count], first, len(advantages), len(everyone))

    def watch(self, name: str, values: Tensor, weights: Tensor) -> None:
        """Remember numbers of a micro-batch for the log of this step.

        Args:
            name: of the number.
            values: of the rows, (rows,).
            weights: of the rows, see ``Share``.
        """
        self._watched.add(name, values, weights)

    def log_watched(self, count: int) -> None:
        """Log the means of what was watched in this step, over all ranks, and its seconds.

        Args:
            count: rows of this rank.
        """
        for name, mean in self._watched.take().items():
            self.log(name, mean, prog_bar=name == "train/loss", batch_size=count)
        self.log_dict({f"seconds/{phase}": taken for phase, taken in self._seconds.items()}, batch_size=1)
        self._seconds.clear()

    def update(self) -> None:
        """One optimiser step on what has been accumulated, averaged over the ranks.

        Where nothing was worth anything the gradient is 0, and the step one of momentum.
        """
        optimizer: Any = self.optimizers()
        parameters = self.bank.parameters(self.bank.trainable)
        if all(parameter.grad is None for parameter in parameters):
            # The scaler of float16 refuses a step for which nothing was scaled.
            self.manual_backward(torch.stack([0.0 * parameter.sum() for parameter in parameters]).sum())
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = mean_over_ranks(parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
        # Here and not in the hook below: at the first step of a pass Lightning forgets what one hook has logged when it
        # comes back to it after another.
        self.log("train/gradient_norm", self._norm, batch_size=1)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, here because with float16 it has just been divided by the scale of the loss.

        Args:
            optimizer: not used.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.bank.parameters(self.bank.trainable), self.updates.clip).detach()
        self._norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).float()

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Score pictures of the validation prompts.

        ``val/reward_gap`` is how much less the first of them are paid when the rollout's sampler makes them.

        Args:
            batch: prompts.
            batch_idx: number of the batch, for the gap.
        """
        scores = self.score(self.make(batch))
        found = {**scores.raw, "total": scores.total}
        if batch_idx < self.evaluation.gap_batches:
            found["rollout_total"] = self.score(self.explore(batch)).total
            found["reward_gap"] = scores.total - found["rollout_total"]
        for name, values in found.items():
            self._scored.setdefault(name, []).append(values[batch.valid])

    def on_validation_epoch_end(self) -> None:
        """Means over the whole set."""
        for name, parts in sorted(self._scored.items()):
            mine = torch.cat(parts)
            counted = mine[~mine.isnan()].double()
            sums = torch.stack([counted.sum(), counted.new_tensor(float(len(counted)))])
            total, count = gather_over_ranks(sums[None])[0].sum(0)
            if count > 0:
                self.log(f"val/{name}", (total / count).float(), prog_bar=name == "total", rank_zero_only=False)
        self._scored.clear()

    @torch.no_grad()
    def pictures(self, batch: PromptBatch) -> list[Pictures]:
        """Pictures of validation prompts with what they were paid, for the sample grid.

        Args:
            batch: prompts.

        Returns:
            One row.
        """
        rollout = self.make(batch)
        scores = self.score(rollout)
        notes = [
            "\n".join(f"{name} {float(raw[row]):.2f}" for name, raw in scores.raw.items() if not bool(raw[row].isnan()))
            for row in range(len(rollout))
        ]
        return [Pictures("generated", [2 * image - 1 for image in rollout.images], notes)]

    # ------------------------------------------------------------------ weights

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapters, and their shapes; the base is where it came from.

        Args:
            checkpoint: what is about to be written.
        """
        kept = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in kept.items() if _is_adapter(name)}
        checkpoint[_SHAPES] = self._adapter_shapes()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse adapters of another shape before anything is copied.

        Args:
            checkpoint: what is about to be loaded.

        Raises:
            ValueError: its adapters are others.
        """
        self.configure_model()
        own = self._adapter_shapes()
        # A sharded strategy has taken the tensors out, and read those that fit.
        given = checkpoint[_SHAPES] if _SHAPES in checkpoint else _shapes(checkpoint["state_dict"])
        if own != given:
            wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
            raise ValueError(
                f"the checkpoint's adapters are not those of this run ({len(wrong)} tensors differ, first {wrong[0]}): "
                "set model.lora as it was"
            )

    def load_adapter(self, folder: str | Path) -> None:
        """Start every adapter from weights on disk.

        Args:
            folder: that :meth:`save_pretrained`, peft or diffusers wrote.
        """
        from lightning_gen.backbones.lora_files import read_adapter

        weights = read_adapter(folder)
        for name in self.bank.names:
            self.bank.load(name, weights, str(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the trained adapter, for peft and this package, and for diffusers where it adapts a pipeline.

        Args:
            folder: made if it does not exist.
        """
        weights = self.bank.weights(self.bank.trainable)  # on every rank: shards are gathered
        rank_zero_only(save_adapter)(self.policy, weights, folder)

    def _adapter_shapes(self) -> dict[str, list[int]]:
        return _shapes({name: value for name, value in self.state_dict().items() if _is_adapter(name)})


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in tensors.items()}


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _require_shares(rows: int, updates: int) -> None:
    if rows % updates:
        raise ValueError(
            f"{rows} rows cannot be shared out over {updates} updates: change data.global_batch_size or "
            "updates.per_rollout"
        )


def _contrast(images: Tensor) -> Tensor:
    return images.flatten(1).std(1)


def _roughness(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours over the contrast, (B,); 2 / sqrt(pi) for white Gaussian noise."""
    steps = [images.diff(dim=axis).abs().flatten(1) for axis in (-2, -1)]
    return torch.cat(steps, 1).mean(1) / _contrast(images).clamp(min=_LEAST_CONTRAST)


def _spread(values: Tensor) -> Tensor:
    known = values[~values.isnan()]
    return known.std(correction=0) if len(known) else values.new_tensor(float("nan"))
