"""DataModules over tar shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from lightning_gen.data.dataset import ImageDataset, ShardSource
from lightning_gen.data.decode import MAX_PIXELS, Decoder
from lightning_gen.data.finding import find_manifest, missing_data
from lightning_gen.data.loader import BatchFactory, Counters, EvaluationLoader, PadTo, PlanLoader, StartMethod
from lightning_gen.data.manifest import Manifest, verify_shards
from lightning_gen.data.plan import EvaluationPlan, Planner
from lightning_gen.data.quarantine import DataError, Quarantine, ShardError, read_quarantine
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.trainer_link import TrainerLink, rank_and_world
from lightning_gen.data.transforms import Augmentation, BudgetRule
from lightning_gen.training.curriculum import BudgetStage, check_stages
from lightning_gen.training.needs import DataNeeds

__all__ = ["ShardDataModule"]


class ShardDataModule(pl.LightningDataModule):
    """Pictures of tar shards at native resolution, in an order that any restart, world size or worker count keeps.

    One epoch of the trainer is one plan (data/plan.py). Needs ``Trainer(reload_dataloaders_every_n_epochs=1)`` and,
    with several processes, ``use_distributed_sampler=False``; the command line sets both.

    Args:
        train: training shards: a folder with manifest.json, a manifest, a timm folder (``FOLDER#SPLIT``), a pattern
            ``name-{0000..0003}.tar|N``, a tar. None = no training.
        val: validation shards, likewise.
        predict: shards to predict on, likewise; default those of ``val``.
        patch_size: patch edge p in pixels.
        stages: the token-budget curriculum; or give ``tokens`` and ``global_batch_size`` for a single stage.
        tokens: token budget of one image, when there is one stage.
        global_batch_size: images per micro-batch over all ranks, when there is one stage.
        budget_rule: ``isotropic`` (bisection, never over budget) or ``vitok_release`` (for parity).
        pad_to: ``budget`` = every row has the stage's tokens; ``longest`` = those of the global batch's longest image.
        seed: decides the order and the augmentation; not the number of ranks or workers.
        crop_probability: chance of a random resized crop, in [0, 1].
        crop_scale: smallest and largest share of a picture's area that a crop keeps.
        crop_ratio: smallest and largest width / height of a crop.
        flip_probability: chance of a mirror image, in [0, 1].
        val_tokens: token budget in validation; default the largest of the stages.
        val_batch_size: images per validation batch over all ranks; default the first stage's tokens.
        passes: passes over the data in one plan; raise it for tiny data sets.
        block_shards: shards whose samples are mixed with each other.
        canonical_streams: parallel streams the order is made of; default gcd(64, global batch).
        num_classes: labels must be there and lie in [0, num_classes); None = ``default_classes``, where None means that
            labels are optional (-1 = none).
        num_workers: decoding processes per rank; 0 = in the training process.
        start_method: how they are started; None = torch's default.
        prefetch_factor: batches that every worker prepares ahead.
        pin_memory: page-locked batches; None = where there is a GPU.
        decoder: ``auto`` = simplejpeg if installed, else PIL (same pixels); ``pil``; ``simplejpeg``.
        max_pixels: larger pictures are bad samples.
        max_bad_fraction: fraction of bad samples at which training stops, in [0, 1].
        max_bad_per_shard: bad samples in one shard at which training stops.
        exclude: a quarantine.jsonl of an earlier run; its samples are left out.
        verify: what is compared with the manifest before use: ``size`` of each tar when it is opened, or its ``sha256``
            before training begins.
        index_folder: where indices of foreign tars are kept; default beside them.
        read_timeout: seconds one read may take.
        worker_timeout: seconds to wait for a batch.

    Source: arXiv:2605.05331, training preprocessing.
    """

    default_classes: int | None = None

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        predict: str | None = None,
        patch_size: int = 16,
        stages: list[BudgetStage] | None = None,
        tokens: int | None = None,
        global_batch_size: int | None = None,
        budget_rule: BudgetRule = "isotropic",
        pad_to: PadTo = "budget",
        seed: int = 0,
        crop_probability: float = 0.25,
        crop_scale: tuple[float, float] = (0.8, 1.0),
        crop_ratio: tuple[float, float] = (0.75, 4 / 3),
        flip_probability: float = 0.5,
        val_tokens: int | None = None,
        val_batch_size: int | None = None,
        passes: int = 1,
        block_shards: int = 16,
        canonical_streams: int | None = None,
        num_classes: int | None = None,
        num_workers: int = 0,
        start_method: StartMethod | None = None,
        prefetch_factor: int = 2,
        pin_memory: bool | None = None,
        decoder: Decoder = "auto",
        max_pixels: int = MAX_PIXELS,
        max_bad_fraction: float = 1e-3,
        max_bad_per_shard: int = 16,
        exclude: str | None = None,
        verify: Literal["size", "sha256"] = "size",
        index_folder: str | None = None,
        read_timeout: float = 120.0,
        worker_timeout: float = 600.0,
    ) -> None:
        super().__init__()
        self.train, self.val, self.predict = train, val, predict
        self.patch_size, self.budget_rule, self.pad_to, self.seed = patch_size, budget_rule, pad_to, seed
        self.stages = _stages(stages, tokens, global_batch_size)
        self.augmentation = Augmentation(crop_probability, flip_probability, crop_scale, crop_ratio)
        self.val_tokens = val_tokens or max(stage.tokens for stage in self.stages)
        self.val_batch_size = val_batch_size
        self.passes, self.block_shards, self.canonical_streams = passes, block_shards, canonical_streams
        self.num_classes = self.default_classes if num_classes is None else num_classes
        self.num_workers, self.start_method = num_workers, start_method
        self.prefetch_factor, self.pin_memory = prefetch_factor, pin_memory
        self.decoder, self.max_pixels = decoder, max_pixels
        self.max_bad_fraction, self.max_bad_per_shard, self.exclude = max_bad_fraction, max_bad_per_shard, exclude
        self.verify, self.index_folder = verify, index_folder
        self.read_timeout, self.worker_timeout = read_timeout, worker_timeout
        self._manifests: dict[str, Manifest] = {}
        self._factories: dict[tuple[str, int, int], BatchFactory] = {}
        self._link = TrainerLink()

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> DataNeeds:
        """What the data will ask of the machine, for the preflight; nothing is opened but the manifests.

        Args:
            init_args: the constructor's arguments as they stand in the configuration.

        Returns:
            Tokens and images of the largest micro-batch, and what is missing on the disk.
        """
        stages = [
            stage if isinstance(stage, BudgetStage) else BudgetStage(**dict(stage))
            for stage in init_args.get("stages") or ()
        ]
        if not stages:
            stages = [BudgetStage(int(init_args.get("tokens") or 0), int(init_args.get("global_batch_size") or 0))]
        largest = max(stages, key=lambda stage: stage.tokens * stage.global_batch_size)
        missing = [line for name in ("train", "val", "predict") for line in missing_data(name, init_args.get(name))]
        return DataNeeds(largest.tokens * largest.global_batch_size, largest.global_batch_size, tuple(missing))

    def prepare_data(self) -> None:
        """Index foreign tars and, if asked for, verify hashes: once per node.

        Raises:
            ShardError: shards are missing, damaged or differ from the manifest.
        """
        for where in (self.train, self.val, self.predict):
            if where is None:
                continue
            manifest = find_manifest(where, self.index_folder, progress=True)
            if self.verify == "sha256":
                problems = verify_shards(manifest, hashes=True)
                if problems:
                    raise ShardError("; ".join(problems[:8]) + ". Fetch them again")

    def setup(self, stage: str | None = None) -> None:
        """Read the manifests.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; the manifests are read for all of them.
        """
        if stage == "fit" and self.trainer is not None and self.trainer.global_step == 0 == self.trainer.current_epoch:
            self._link = TrainerLink()
        for name in ("train", "val", "predict"):
            where = getattr(self, name)
            if where is not None and name not in self._manifests:
                self._manifests[name] = find_manifest(where, self.index_folder)

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers.

        Args:
            stage: not used.
        """
        del stage
        for factory in self._factories.values():
            factory.close()
        self._factories.clear()

    def planner(self, accumulate: int = 1) -> Planner:
        """What decides the order of training.

        Args:
            accumulate: micro-batches per optimiser step.

        Returns:
            The planner of the configured curriculum.
        """
        manifest = self._manifest("train")
        return Planner(
            [shard.num_samples for shard in manifest.shards],
            manifest.fingerprint,
            self.seed,
            self.stages,
            accumulate=accumulate,
            block_shards=self.block_shards,
            canonical_streams=self.canonical_streams,
            passes=self.passes,
            excluded=sorted(self._excluded()),
        )

    def train_loader(self, plan: int = 0, rank: int = 0, world: int = 1, accumulate: int = 1) -> PlanLoader:
        """Training batches without a trainer.

        Args:
            plan: its number.
            rank: this rank.
            world: number of ranks.
            accumulate: micro-batches per optimiser step.

        Returns:
            The loader of that plan.
        """
        return PlanLoader(self.planner(accumulate).plan(plan), self._factory("train", rank, world))

    def evaluation_loader(
        self, split: Literal["val", "predict"] = "val", rank: int = 0, world: int = 1
    ) -> EvaluationLoader:
        """Evaluation batches without a trainer; every sample is valid once over all ranks.

        Args:
            split: which shards.
            rank: this rank.
            world: number of ranks.

        Returns:
            The loader.
        """
        split = "val" if split == "predict" and self.predict is None else split
        size = self.val_batch_size
        if size is None:
            size = max(1, self.stages[0].tokens * self.stages[0].global_batch_size // self.val_tokens)
            size = max(world, size - size % world)
        plan = EvaluationPlan(self._manifest(split).total, size, self.val_tokens)
        return EvaluationLoader(plan, self._factory(split, rank, world))

    def train_dataloader(self) -> PlanLoader:
        """The plan of the trainer's current epoch, from where the checkpoint left it.

        Returns:
            The loader.

        Raises:
            ValueError: the trainer is configured in a way that would break the plan.
            DataError: the checkpoint's position does not belong to this data or curriculum.
        """
        rank, world = rank_and_world(self.trainer)
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        return self._link.loader(self.trainer, self.planner(accumulate), self._factory("train", rank, world))

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """Validation batches.

        Returns:
            The loader, or an empty list where there is no validation data.
        """
        return self.evaluation_loader("val", *rank_and_world(self.trainer)) if self.val is not None else []

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        """The validation batches.

        Returns:
            The same as :meth:`val_dataloader`.
        """
        return self.val_dataloader()

    def predict_dataloader(self) -> EvaluationLoader:
        """Batches to predict on: those of ``predict``, else of ``val``.

        Returns:
            The loader.
        """
        return self.evaluation_loader("predict", *rank_and_world(self.trainer))

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data, once more beside the loader's own.

        Returns:
            Plain numbers and strings.
        """
        return self._link.state_dict(self.trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the position for the next training loader.

        Args:
            state_dict: from the checkpoint.
        """
        self._link.load_state_dict(state_dict)

    def counters(self) -> dict[str, float]:
        """What this rank's training loader has met so far.

        Returns:
            ``bad``, ``retried``, ``bytes`` and ``wait_seconds``.
        """
        totals, bad = Counters(), 0
        for (split, _, _), factory in self._factories.items():
            if split == "train":
                totals, bad = factory.counters, factory.quarantine.bad
        return {
            "bad": float(bad),
            "retried": float(totals.retried),
            "bytes": float(totals.bytes_read),
            "wait_seconds": totals.wait_seconds,
        }

    def _manifest(self, split: str) -> Manifest:
        if split not in self._manifests:
            if getattr(self, split) is None:
                raise DataError(f"data.{split} is not set: name the shards to use")
            self.setup()
        return self._manifests[split]

    def _excluded(self) -> frozenset[int]:
        if self.exclude is None:
            return frozenset()
        shards = IndexedShards(self._manifest("train"))
        wanted, found, first = read_quarantine(self.exclude), set[int](), 0
        for number, shard in enumerate(shards.manifest.shards):
            keys = {key for name, key in wanted if name == shard.name}
            if keys:
                table = shards.index(number)
                found |= {first + row for row in range(len(table)) if "" in keys or table.key(row) in keys}
            first += shard.num_samples
        return frozenset(found)

    def _factory(self, split: str, rank: int, world: int) -> BatchFactory:
        if (split, rank, world) not in self._factories:
            pin = self.pin_memory if self.pin_memory is not None else torch.cuda.is_available()
            dataset = self._dataset(split)
            self._factories[split, rank, world] = BatchFactory(
                dataset,
                rank,
                world,
                Quarantine(len(dataset), self.max_bad_fraction, self.max_bad_per_shard, self._list(split, rank)),
                pad_to=self.pad_to,
                num_workers=self.num_workers,
                timeout=self.worker_timeout,
                start_method=self.start_method,
                pin_memory=pin,
                prefetch_factor=self.prefetch_factor,
            )
        return self._factories[split, rank, world]

    def _dataset(self, split: str) -> ImageDataset:
        shards = IndexedShards(self._manifest(split), timeout=self.read_timeout)
        training = split == "train"
        return ImageDataset(
            ShardSource(shards, self.num_classes),
            self.patch_size,
            self.seed,
            augmentation=self.augmentation if training else None,
            rule=self.budget_rule,
            decoder=self.decoder,
            max_pixels=self.max_pixels,
            excluded=self._excluded() if training else frozenset(),
        )

    def _list(self, split: str, rank: int) -> Path | None:
        if self.trainer is None:
            return None
        middle = ("" if split == "train" else f".{split}") + (f".rank{rank}" if rank else "")
        return Path(self.trainer.default_root_dir) / f"quarantine{middle}.jsonl"


def _stages(
    stages: Sequence[BudgetStage] | None, tokens: int | None, global_batch_size: int | None
) -> tuple[BudgetStage, ...]:
    if stages is not None:
        if tokens is not None or global_batch_size is not None:
            raise ValueError("give either stages, or tokens and global_batch_size, not both")
        # A list written as plain mappings in Python is welcome too.
        return check_stages([s if isinstance(s, BudgetStage) else BudgetStage(**dict(s)) for s in stages])
    if tokens is None or global_batch_size is None:
        raise ValueError("give stages: [{tokens, global_batch_size, until_step}], or tokens and global_batch_size")
    return check_stages([BudgetStage(tokens, global_batch_size)])
