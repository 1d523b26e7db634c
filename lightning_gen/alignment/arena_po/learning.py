"""What training on pairs needs, however it learns: a model with a reference, a cache, and what is known about a pair.

A room's ``training_step`` puts these together. Shape letters: B pairs.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_gen.alignment.arena_po.cache import CacheSettings, PairCache
from lightning_gen.alignment.arena_po.diagnostics import Displacement, pair_diagnostics
from lightning_gen.alignment.arena_po.objectives import PairLoss
from lightning_gen.alignment.arena_po.pairs import PairGaps, ReadyPairs, pictures_of, require_gaps
from lightning_gen.alignment.arena_po.reference import (
    REFERENCE,
    AdapterReference,
    CopiedReference,
    Reference,
    coder_digest,
    starting_point,
)
from lightning_gen.alignment.arena_po.settings import Adafactor, PairTimes, SampleSettings, WarmupConstant
from lightning_gen.alignment.policies import PipelinePolicy, open_policy, policy_needs, prepare_policy, save_adapter
from lightning_gen.alignment.rollout import initial_noise, policy_velocity
from lightning_gen.backbones.lora import AdapterBank, LoRASettings
from lightning_gen.backbones.lora_files import read_adapter
from lightning_gen.backbones.pipelines.family import Predicted
from lightning_gen.data.batches import PreferenceBatch, PromptBatch
from lightning_gen.flow.guidance import Guidance
from lightning_gen.flow.solvers import SOLVERS
from lightning_gen.generators.writing import Generated, GeneratedWriter
from lightning_gen.interfaces import Pictures, TextToImage
from lightning_gen.nn.ranks import every_rank, gather_over_ranks
from lightning_gen.training.initialisation import plain_name
from lightning_gen.training.needs import ModelNeeds
from lightning_gen.training.optim import AdamW
from lightning_gen.training.randomness import uniform

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["ErrorOf", "PairTraining"]

_DEFAULT: Final = "default"
_DISPLACED: Final = "displaced_steps"
_START: Final = "starting_point"

ErrorOf = Literal["own", "velocity", "epsilon", "v_prediction", "clean"]
"""In which numbers errors are counted; ``own`` = those that the network predicts."""


class PairTraining(pl.LightningModule):
    """Ground of Diffusion-DPO and its kin.

    Args:
        policy: name of shipped weights, a folder, a pipeline of diffusers, or a text-to-image model.
        loss: what is learned from a pair.
        error: in which numbers errors are counted.
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
        ValueError: a loss that cannot be cached, a share outside [0, 1], or ``init_adapter`` without ``lora``.
    """

    def __init__(
        self,
        policy: str | PipelinePolicy | nn.Module,
        loss: PairLoss,
        error: ErrorOf,
        times: PairTimes,
        lora: LoRASettings | None,
        drop_rate: float,
        posterior: Literal["sample", "mode"],
        cache: CacheSettings | None,
        samples: SampleSettings,
        optimizer: AdamW | Adafactor,
        warmup: WarmupConstant,
        displacement: Displacement,
        activation_checkpointing: bool,
        init_adapter: str | None,
        seed: int,
    ) -> None:
        super().__init__()
        if not 0 <= drop_rate <= 1:
            raise ValueError(f"model.drop_rate lies in [0, 1], got {drop_rate}")
        if init_adapter is not None and lora is None:
            raise ValueError("model.init_adapter is an adapter to go on with: give model.lora its shape")
        if loss.needs_distance and cache is not None:
            raise ValueError(
                f"the loss {loss.mode} needs what the reference predicts, not only its error: leave out model.cache"
            )
        self.strict_loading = False  # only what is trained is in a checkpoint; on_load_checkpoint looks at its names
        # Weights are read by configure_model, so that a configuration can be built and checked where there are none.
        self._source, self._init_adapter, self._lora = [policy], init_adapter, lora
        self.policy: TextToImage
        self.training_times: Tensor
        self.bank: AdapterBank | None = None
        self.reference: Reference | None = None
        self.cache: PairCache | None = None
        self.loss, self.error, self.times, self.drop_rate = loss, error, times, drop_rate
        self.posterior, self._caching, self.samples = posterior, cache, samples
        self.optimizer, self.warmup, self.displacement = optimizer, warmup, displacement
        self.activation_checkpointing, self.seed = activation_checkpointing, seed
        self.at_start = False
        """Whether the next training step is the first one, before which both networks are the same."""
        self._rows: list[Tensor] = []
        self._judged: list[Tensor] = []
        self._displaced = 0

    # ------------------------------------------------------------------ building

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """What a run with these arguments needs; nothing is built.

        Args:
            init_args: constructor arguments, as parsed from a config.

        Returns:
            Parameters that are trained and that only run forward; without an adapter the network counts as trained, and
            as its own frozen copy.
        """
        lora = init_args.get("lora")
        return policy_needs(init_args.get("policy"), lora, whole=lora is None)

    @property
    def configured(self) -> bool:
        """Whether the policy has been loaded."""
        return hasattr(self, "policy")

    def configure_model(self) -> None:
        """Load the policy, keep its reference, and shard it; does nothing the second time."""
        if self.configured:
            return
        policy = open_policy(self._source[0])
        self._start = starting_point(policy.network)
        if self._lora is None:
            policy.network.requires_grad_(True)
            # The encoder of prompts is frozen in post-training, also where it lives inside the network.
            for name, part in policy.network.named_modules():
                if name.rpartition(".")[2] == "text_encoder":
                    part.requires_grad_(False)
        else:
            self.bank = self._adapters(policy.network, self._lora)
            if self._init_adapter is not None:
                self._start = starting_point(policy.network)
        if self.loss.needs_reference:
            self.reference = CopiedReference(policy) if self.bank is None else AdapterReference(policy, self.bank)
        self._source.clear()
        prepare_policy(policy, self.device_mesh, self.seed, self.activation_checkpointing)
        if isinstance(self.reference, CopiedReference):
            prepare_policy(self.reference.policy, self.device_mesh, self.seed)
        self.policy = policy
        self.training_times = _training_times(policy)

    def _adapters(self, network: nn.Module, lora: LoRASettings) -> AdapterBank:
        begun = self._init_adapter is not None
        bank = AdapterBank(network, lora, (_DEFAULT, REFERENCE) if begun else (_DEFAULT,), _DEFAULT, self.seed)
        if self._init_adapter is not None:
            weights = read_adapter(self._init_adapter)
            for name in bank.names:
                bank.load(name, weights, self._init_adapter)
        return bank

    def on_fit_start(self) -> None:
        """Open the cache; where it knows everything, a copied reference is kept for validation alone.

        Raises:
            ValueError: weights that are trained are in half precision, or the cache is of another run.
        """
        self._require_precision()
        if getattr(self.policy, "is_distilled", False):
            warnings.warn(
                "the policy is distilled to few steps: train it at the times that it was distilled for (times.steps), "
                "or start from the model that it was distilled from",
                stacklevel=2,
            )
        if self._caching is None:
            return
        self.cache = self._opened(self._caching)
        # Of validation pairs the cache knows nothing.
        data = getattr(self.trainer, "datamodule", None)
        asked = self.trainer.enable_validation and getattr(data, "val", True) is not None
        if isinstance(self.reference, CopiedReference) and every_rank(self.cache.complete, self.device) and not asked:
            self.reference = None

    def _require_precision(self) -> None:
        """Refuse to train numbers of 8 or 11 bits, in which most updates of such a learning rate are lost."""
        trained = [parameter for parameter in self.policy.network.parameters() if parameter.requires_grad]
        half = [parameter.dtype for parameter in trained if parameter.dtype in (torch.bfloat16, torch.float16)]
        if half:
            raise ValueError(
                f"{len(half)} of {len(trained)} trained tensors are {str(half[0]).removeprefix('torch.')}, in which "
                "most updates are rounded to nothing: set model.policy.dtype to float32 (and trainer.precision to "
                "bf16-mixed, not bf16-true), or train an adapter (model.lora)"
            )

    def on_train_start(self) -> None:
        """A resumed run has left its start; only now it is known how far it is."""
        self.at_start = self.trainer.global_step == 0 and self.loss.needs_reference

    def _opened(self, settings: CacheSettings) -> PairCache:
        data: Any = getattr(self.trainer, "datamodule", None)
        random = [name for name in ("flip_probability", "random_crop") if getattr(data, name, False)]
        if random:
            raise ValueError(
                f"model.cache keeps errors of pictures that are the same in every pass, but data.{random[0]} is "
                f"{getattr(data, random[0])}: set {' and '.join(f'data.{name}' for name in random)} to 0 or false"
            )
        planner = data.planner()
        key = {
            "data": planner.fingerprint,
            "model": self._start,
            "seed": self.seed,
            "error": self.kind,
            "times": repr(self.times),
            "drop_rate": self.drop_rate,
            "posterior": self.posterior,
            "shape": list(self.policy.latent_shape),
            "resolution": getattr(data, "resolution", None),
            "precision": str(self.trainer.precision),
            "text": repr(getattr(self.policy, "lengths", None)),
            "autoencoder": coder_digest(self.policy),
        }
        create = self.trainer.is_global_zero
        layout, shape = planner.layout, self.policy.latent_shape
        total, left_out = sum(layout.counts), layout.excluded
        made = PairCache(settings, total, shape, key, left_out) if create else None
        self.trainer.strategy.barrier()
        return made or PairCache(settings, total, shape, key, left_out, create=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser on what is trained, with a warm-up and then a constant learning rate."""
        trained = [parameter for parameter in self.policy.network.parameters() if parameter.requires_grad]
        optimizer = self.optimizer.build_groups([{"params": trained, "weight_decay": self.optimizer.weight_decay}])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.warmup.build(optimizer), "interval": "step"}}

    @property
    def keeps_latents(self) -> bool:
        """Whether clean latents are kept on disk, so that a pair has one draw of them for all passes."""
        return self._caching is not None and self._caching.latents

    @property
    def kind(self) -> Predicted:
        """In which numbers errors are counted."""
        if self.error != "own":
            return self.error
        own: Predicted = getattr(self.policy, "prediction", "velocity")
        return own

    # ------------------------------------------------------------------ what is known before the network sees a pair

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look up on the host what belongs to a batch, see :meth:`ready`.

        Args:
            batch: pairs.
            dataloader_idx: not used.

        Returns:
            The batch with its columns.
        """
        del dataloader_idx
        return self.ready(batch, self.trainer.training) if isinstance(batch, PreferenceBatch) else batch

    def ready(self, batch: PreferenceBatch, training: bool) -> ReadyPairs:
        """A batch with gaps in the unit of the loss, dropped prompts, and what the cache knows.

        Args:
            batch: pairs, on the CPU.
            training: False = prompts stay and nothing is cached.

        Returns:
            The batch with its columns.

        Raises:
            ValueError: ties; in training, pairs without a gap where the loss needs it.
        """
        if ties := int((batch.preference == 0.5).sum()):
            raise ValueError(
                f"{ties} of {len(batch)} pairs of a batch are ties, in which neither picture is preferred: set "
                "data.ties to drop"
            )
        gaps = self.gaps(batch, training)
        if not training:
            return ReadyPairs.of(batch, gaps, 0)
        if self.loss.needs_gap:
            require_gaps(gaps, self.loss, batch.models)
        index, epoch = batch.winner.index, batch.winner.epoch
        draw = epoch if self.cache is None else self.cache.number(epoch)
        gone = (uniform(self.seed, "pair drop", draw, index, ()) < self.drop_rate).tolist()
        captions = tuple("" if one else text for text, one in zip(batch.winner.caption, gone, strict=True))
        batch = dataclasses.replace(batch, winner=dataclasses.replace(batch.winner, caption=captions))
        if self.cache is None:
            return ReadyPairs.of(batch, gaps, draw)
        return ReadyPairs.of(batch, gaps, draw, self.cache.errors(index, draw), self.cache.latents(index))

    def gaps(self, batch: PreferenceBatch, training: bool) -> PairGaps:
        """Gaps of a batch in the unit of the loss; here they are only logged.

        Args:
            batch: pairs, on the CPU.
            training: not used.

        Returns:
            The batch's own gaps.
        """
        del training
        return PairGaps.unknown(len(batch))._replace(gap=batch.gap)

    # ------------------------------------------------------------------ what is logged

    def remember(self, rows: Tensor) -> None:
        """Keep numbers of a micro-batch until the optimiser's step.

        Args:
            rows: of ``diagnostics.pair_rows``.
        """
        self._rows.append(rows)

    def judge(self, rows: Tensor, valid: Tensor) -> None:
        """Keep numbers of a validation batch until the end of the set.

        Args:
            rows: of ``diagnostics.pair_rows``.
            valid: bool, (B,), False = only fills the batch.
        """
        self._judged.append(torch.cat([rows, valid[:, None].to(rows)], 1))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log the numbers of all pairs of the step, over micro-batches and ranks."""
        del optimizer
        rows = gather_over_ranks(torch.cat(self._rows))[0]
        self._rows.clear()
        found = pair_diagnostics(rows, self.loss)
        self._displaced = self.displacement.seen(found, self._displaced)
        found["displaced_steps"] = torch.tensor(float(self._displaced))
        for name, value in found.items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "implicit_accuracy"), batch_size=len(rows))

    def on_validation_epoch_end(self) -> None:
        """Numbers of the whole set."""
        if self._judged:
            rows = gather_over_ranks(torch.cat(self._judged))[0]
            found = pair_diagnostics(rows[rows[:, -1] > 0, :-1], self.loss)
            self.log_dict({f"val/{name}": value for name, value in found.items()}, rank_zero_only=False)
        self._judged.clear()

    # ------------------------------------------------------------------ pictures

    @torch.no_grad()
    def make(self, prompts: Sequence[str], index: Tensor | None = None, how: SampleSettings | None = None) -> Tensor:
        """Make a picture for every prompt.

        Args:
            prompts: B texts.
            index: int64, (B,), numbers of the pictures, which decide their noise; None = 0, 1, ...
            how: None = the module's.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        how = how or self.samples
        index = torch.arange(len(prompts)) if index is None else index
        text, nothing = self.policy.encode_prompts(prompts), self.policy.encode_prompts([""] * len(prompts))
        field = policy_velocity(self.policy, text, nothing, Guidance(how.guidance))
        noise = initial_noise(self.policy.latent_shape, self.seed, 0, index.to(self.device))
        state = self.policy.from_noise(noise, how.steps)
        latents = SOLVERS[how.solver](field, state, self.policy.times(how.steps))
        return self.policy.latents_to_images(latents).clamp(-1, 1)

    def pictures(self, batch: PreferenceBatch) -> list[Pictures]:
        """Preferred pictures above those that the model makes for their prompts, for the sample grid.

        Args:
            batch: pairs.

        Returns:
            Two rows.
        """
        made = self.make(batch.winner.caption, batch.winner.index)
        return [Pictures("preferred", list(pictures_of(batch.winner))), Pictures("generated", list(made))]

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> Generated:
        """Make a picture for every prompt; ``GeneratedWriter`` puts them on disk.

        With a checkpoint they are those of the trained network, without one those of the reference. The noise of a
        prompt belongs to its number, so that both begin alike.

        Args:
            batch: prompts.
            batch_idx: not used.

        Returns:
            One picture per prompt.

        Raises:
            ValueError: pairs in place of prompts.
        """
        if not isinstance(batch, PromptBatch):
            raise ValueError(
                "pictures are made for prompts: --data PromptDataModule --data.predict prompts.jsonl, or a .txt with a "
                "prompt per line"
            )
        made = self.make(batch.prompt, batch.index)
        return Generated(batch.prompt, batch.metadata, batch.index.tolist(), batch.valid, made, 1)

    def configure_callbacks(self) -> list[pl.Callback]:
        """``predict`` writes what it makes."""
        return [GeneratedWriter()]

    # ------------------------------------------------------------------ weights

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, where that began, and for how many steps both pictures were unlikely."""
        checkpoint[_START], checkpoint[_DISPLACED] = self._start, self._displaced
        kept, trained = checkpoint["state_dict"], self._trained()
        checkpoint["state_dict"] = {name: value for name, value in kept.items() if plain_name(name) in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another shape, and a reference that is not the one of the run, before anything is copied.

        Args:
            checkpoint: what is about to be loaded.

        Raises:
            ValueError: its weights are others, or began elsewhere and training or validation is to go on.
        """
        self.configure_model()
        self._displaced = int(checkpoint.get(_DISPLACED, 0))
        own = self._trained()
        given = {plain_name(name): value.shape for name, value in checkpoint["state_dict"].items()}
        if own != given:
            wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
            raise ValueError(
                f"the checkpoint's weights are not those of this run ({len(wrong)} tensors differ, first {wrong[0]}): "
                "set model.policy and model.lora as they were"
            )
        begun, verb = checkpoint.get(_START, self._start), self._trainer and self._trainer.state.fn
        if begun != self._start and verb in (TrainerFn.FITTING, TrainerFn.VALIDATING):
            raise ValueError(
                f"the run of the checkpoint began from other weights ({begun}) than this one ({self._start}), which "
                "would be its reference now: set model.policy, with its dtype, and model.init_adapter as they were"
            )

    def _trained(self) -> dict[str, torch.Size]:
        return {plain_name(name): value.shape for name, value in self.named_parameters() if value.requires_grad}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what was trained: the adapter for peft and for this package, or the network.

        Args:
            folder: made if it does not exist.
        """
        if self.bank is not None:
            save_adapter(self.policy, self.bank.weights(_DEFAULT), folder)
            return
        owner: Any = self.policy if hasattr(self.policy, "save_pretrained") else self.policy.network
        owner.save_pretrained(str(folder))


def _training_times(policy: TextToImage) -> Tensor:
    """House times that the model was trained at; 1000 even ones where it does not say."""
    found: Tensor | None = getattr(policy, "training_times", None)
    return torch.arange(1, 1001) / 1000 if found is None else found
