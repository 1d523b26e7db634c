"""What all DataModules share: the order, the loader, the position, the bounds on bad samples.

A DataModule says what its samples are (``_source``), what is made of them (``_recipe``) and which shapes they share;
everything else is here. The classes are dataclasses so that a subclass adds arguments to those it inherits, and all of
them stay visible on the command line.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

import numpy as np
import torch

from lightning_gen.data.arguments import DataArguments
from lightning_gen.data.buckets import AspectBuckets
from lightning_gen.data.dataset import Pools, Recipe, SampleDataset
from lightning_gen.data.finding import find_manifest, missing_data
from lightning_gen.data.joining import join_manifests, weighted
from lightning_gen.data.layout import Layout, MixedSet
from lightning_gen.data.loader import BatchFactory, EvaluationLoader, PadTo, PlanLoader, StartMethod
from lightning_gen.data.manifest import Manifest, verify_shards
from lightning_gen.data.order import Indices
from lightning_gen.data.plan import EvaluationPlan, Planner
from lightning_gen.data.quarantine import DataError, Quarantine, ShardError, read_quarantine
from lightning_gen.data.remote.cache import ShardCache
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import ShardSource, Source
from lightning_gen.data.stream_loader import StreamFactory, StreamSource
from lightning_gen.data.streaming import StreamShards
from lightning_gen.data.trainer_link import TrainerLink, quarantine_lists, rank_and_world
from lightning_gen.training.curriculum import BudgetStage
from lightning_gen.training.needs import DataNeeds

__all__ = ["Opened", "PlannedDataModule", "Split"]

Split = Literal["train", "val", "predict"]


@dataclass(frozen=True, eq=False)
class Opened:
    """A data set that is ready to be read.

    Attributes:
        source: its samples.
        counts: samples of every shard.
        fingerprint: hash of its content, kept in checkpoints.
        sets: the sets of a mixture, empty = one set.
    """

    source: Source[Any]
    counts: Sequence[int]
    fingerprint: str
    sets: Sequence[MixedSet] = ()


class _Workers(TypedDict):
    num_workers: int
    timeout: float
    start_method: StartMethod | None
    pin_memory: bool
    prefetch_factor: int


@dataclass(eq=False, repr=False)
class PlannedDataModule(DataArguments, abc.ABC):
    """Samples of tar shards, in an order that any restart, world size or worker count keeps.

    One epoch of the trainer is one plan (data/plan.py). Needs ``Trainer(reload_dataloaders_every_n_epochs=1)`` and,
    with several processes, ``use_distributed_sampler=False``; the command line sets both. The arguments are those of
    :class:`~lightning_gen.data.arguments.DataArguments`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._opened: dict[str, Opened] = {}
        self._factories: dict[tuple[str, int, int], BatchFactory | StreamFactory] = {}
        self._link = TrainerLink()
        self._counted = dict.fromkeys(("bad", "retried", "bytes", "wait_seconds"), 0.0)

    @property
    @abc.abstractmethod
    def curriculum(self) -> Sequence[BudgetStage]:
        """Token budget (pixels, where pictures share a shape) and global batch of every stage of training."""

    @property
    def buckets(self) -> AspectBuckets | None:
        """Shapes that training pictures are brought to, None = every picture keeps its own."""
        return None

    @abc.abstractmethod
    def _source(self, shards: IndexedShards) -> Source[Any]:
        """What the shards hold."""

    @abc.abstractmethod
    def _recipe(self, split: Split) -> Recipe[Any, Any, Any]:
        """What is made of a sample."""

    @abc.abstractmethod
    def _evaluation(self, total: int, world: int) -> EvaluationPlan:
        """How an evaluation is cut into batches."""

    def _left_out(self, source: Source[Any], split: Split) -> Indices:
        """Samples of a split that are not wanted, by global index."""
        del source, split
        return np.empty(0, np.int64)

    def _open(self, split: Split) -> Opened:
        """Find the shards of a split."""
        if split == "train" and self.access == "stream":
            return self._open_stream()
        sets = weighted(getattr(self, split))
        manifest = join_manifests([self._find(part.shards) for part in sets], [part.name for part in sets])
        sizes = [sum(shard.set == part.name for shard in manifest.shards) for part in sets]
        mixed = [MixedSet(n, part.weight) for n, part in zip(sizes, sets, strict=True)] if len(sets) > 1 else ()
        source = self._source(IndexedShards(manifest, timeout=self.read_timeout, cache=self._cache))
        return Opened(source, [shard.num_samples for shard in manifest.shards], manifest.fingerprint, mixed)

    def _find(self, where: str, progress: bool = False) -> Manifest:
        return find_manifest(where, self.index_folder, progress, options=self.remote, cache=self._cache)

    @functools.cached_property
    def _cache(self) -> ShardCache | None:
        return ShardCache(self.cache_folder, self.cache_bytes, self.remote) if self.cache_folder is not None else None

    def _open_stream(self) -> Opened:
        """Streamed training shards, of which nothing is known but how many samples they hold."""
        chooses = type(self)._left_out is not PlannedDataModule._left_out
        planned = {
            "a list of sets": not isinstance(self.train, str),
            "exclude": self.exclude is not None,
            "bucket_step": self.buckets is not None and len(self.buckets.shapes) > 1,
            "min_size or ladder": any(stage.min_size or stage.ladder for stage in self.curriculum),
            f"{type(self).__name__}, which chooses samples": chooses,
        }
        if bad := [name for name, asked in planned.items() if asked]:
            raise ValueError(
                f"data.access: stream reads samples as they come, nothing can be planned for {', '.join(bad)}: index "
                "the shards (lightning data index) and use access: indexed"
            )
        shards = StreamShards.find(cast(str, self.train), shuffle_buffer=self.stream_buffer, options=self.remote)
        return Opened(StreamSource(shards), [len(shards)], shards.fingerprint)

    @property
    def _padding(self) -> PadTo:
        return "budget"

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> DataNeeds:
        """What the data will ask of the machine, for the preflight; nothing is opened but the manifests.

        Args:
            init_args: the constructor's arguments as they stand in the configuration.

        Returns:
            Tokens and images of the largest micro-batch, and what is missing on the disk.
        """
        stages = cls._planned_stages(init_args)
        largest = max(stages, key=lambda stage: stage.tokens * stage.global_batch_size)
        places: list[tuple[str, str | None]] = [(name, init_args.get(name)) for name in ("val", "predict")]
        train = init_args.get("train")
        places += [("train", train)] if isinstance(train, str) else [("train", s.shards) for s in weighted(train)]
        streamed = init_args.get("access") == "stream"
        missing = [line for name, where in places for line in cls._missing(name, where, streamed and name == "train")]
        return DataNeeds(largest.tokens * largest.global_batch_size, largest.global_batch_size, tuple(missing))

    @classmethod
    def _missing(cls, name: str, where: str | None, streamed: bool) -> list[str]:
        """What one place lacks, one sentence each."""
        return missing_data(name, where, streamed=streamed)

    @classmethod
    @abc.abstractmethod
    def _planned_stages(cls, init_args: Mapping[str, Any]) -> Sequence[BudgetStage]:
        """The curriculum as it follows from arguments that were not checked yet."""

    def prepare_data(self) -> None:
        """Index foreign tars and, if asked for, verify hashes: once per node.

        Raises:
            ShardError: shards are missing, damaged or differ from the manifest.
        """
        for where in self._places():
            manifest = self._find(where, progress=True)
            if self.verify == "sha256":
                problems = verify_shards(manifest, hashes=True, options=self.remote)
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
            if getattr(self, name) is not None:
                self._set(name)

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers.

        Args:
            stage: not used.
        """
        del stage
        self._counted = self.counters()
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
        return Planner(
            self._layout,
            self._set("train").fingerprint,
            self.curriculum,
            accumulate=accumulate,
            canonical_streams=self.canonical_streams,
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
        source = self._set(split).source
        wanted = np.setdiff1d(np.arange(len(source), dtype=np.int64), self._left_out(source, split))
        plan = dataclasses.replace(self._evaluation(len(wanted), world), samples=wanted)
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
        """What this rank's training loader has met, so far or in the run that has ended.

        Returns:
            ``retried``, ``bytes`` and ``wait_seconds`` of this rank, and ``bad``: the distinct bad samples of all ranks
            that share a run folder (without a trainer, of this one), those listed there by an earlier run included.
        """
        factory = next((one for (split, _, _), one in self._factories.items() if split == "train"), None)
        if factory is None:
            return dict(self._counted)
        totals = factory.counters
        return {
            "bad": float(factory.quarantine.bad),
            "retried": float(totals.retried),
            "bytes": float(totals.bytes_read),
            "wait_seconds": totals.wait_seconds,
        }

    def _places(self) -> list[str]:
        train = [part.shards for part in weighted(self.train)] if self.access == "indexed" else []
        return [*train, *(where for where in (self.val, self.predict) if where is not None)]

    def _set(self, split: Split) -> Opened:
        if split not in self._opened:
            if getattr(self, split) is None:
                raise DataError(f"data.{split} is not set: name the data to use")
            self._opened[split] = self._open(split)
        return self._opened[split]

    @functools.cached_property
    def _layout(self) -> Layout:
        return self._make_layout()

    def _make_layout(self) -> Layout:
        """The ingredients of the order of training."""
        opened = self._set("train")
        source = opened.source
        return Layout(
            opened.counts,
            self.seed,
            self.block_shards,
            self.passes,
            np.union1d(self._quarantined(source), self._left_out(source, "train")),
            opened.sets,
            self.buckets,
            sizes=lambda: source.sizes(np.arange(len(source), dtype=np.int64)),
        )

    def _quarantined(self, source: Source[Any]) -> Indices:
        if self.exclude is None:
            return np.empty(0, np.int64)
        wanted = read_quarantine(self.exclude)
        damaged = {shard for shard, key in wanted if not key}
        names = (source.name(index) for index in range(len(source)))
        found = [index for index, name in enumerate(names) if name in wanted or name[0] in damaged]
        return np.asarray(found, np.int64)

    def _pools(self) -> Pools | None:
        allowed = self._layout.allowed(max((stage.min_size or 0 for stage in self.curriculum), default=0))
        group = self._layout.groups()
        return None if group is None and allowed.all() else Pools(group, allowed)

    def _factory(self, split: Split, rank: int, world: int) -> BatchFactory | StreamFactory:
        if (split, rank, world) not in self._factories:
            self._factories[split, rank, world] = self._make_factory(split, rank, world)
        return self._factories[split, rank, world]

    def _make_factory(self, split: Split, rank: int, world: int) -> BatchFactory | StreamFactory:
        source, recipe = self._set(split).source, self._recipe(split)
        bounds = (self.max_bad_fraction, self.max_bad_per_shard)
        path, others = quarantine_lists(self.trainer, split)
        quarantine = Quarantine(len(source), *bounds, path, others)
        workers = _Workers(
            num_workers=self.num_workers,
            timeout=self.worker_timeout,
            start_method=self.start_method,
            pin_memory=self.pin_memory if self.pin_memory is not None else torch.cuda.is_available(),
            prefetch_factor=self.prefetch_factor,
        )
        if isinstance(source, StreamSource):
            fields = cast("ShardSource[Any]", self._source(cast("IndexedShards", source.shards)))
            return StreamFactory(fields, recipe, self.seed, rank, world, quarantine, **workers)
        pools = self._pools() if split == "train" else None
        dataset = SampleDataset(source, recipe, self.seed, pools=pools)
        return BatchFactory(dataset, rank, world, quarantine, pad_to=self._padding, **workers)
