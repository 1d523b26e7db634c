"""Pictures of tar shards at native resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_gen.data.loader import PadTo
from lightning_gen.data.native import NativeRecipe
from lightning_gen.data.plan import EvaluationPlan
from lightning_gen.data.planned import PlannedDataModule, Split
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import PictureFields, ShardSource, Stored
from lightning_gen.data.transforms import Augmentation, BudgetRule
from lightning_gen.training.curriculum import BudgetStage, check_stages

__all__ = ["ShardDataModule"]


@dataclass(eq=False, repr=False, kw_only=True)
class ShardDataModule(PlannedDataModule):
    """Pictures of tar shards at native resolution inside a token budget.

    Args:
        patch_size: patch edge p in pixels.
        stages: the token-budget curriculum; or give ``tokens`` and ``global_batch_size`` for a single stage.
        tokens: token budget of one image, when there is one stage.
        global_batch_size: images per micro-batch over all ranks, when there is one stage.
        budget_rule: ``isotropic`` (bisection, never over budget) or ``vitok_release`` (for parity).
        pad_to: ``budget`` = every row has the step's tokens; ``longest`` = those of the global batch's longest image.
        crop_probability: chance of a random resized crop, in [0, 1].
        crop_scale: smallest and largest share of a picture's area that a crop keeps.
        crop_ratio: smallest and largest width / height of a crop.
        flip_probability: chance of a mirror image, in [0, 1].
        val_tokens: token budget in validation; default the largest of the stages. ``val_batch_size`` is by default the
            first stage's tokens divided by this.
        num_classes: labels must be there and lie in [0, num_classes); None = ``default_classes``, where None means that
            labels are optional (-1 = none).

    Source: arXiv:2605.05331, training preprocessing.
    """

    default_classes: ClassVar[int | None] = None

    patch_size: int = 16
    stages: list[BudgetStage] | None = None
    tokens: int | None = None
    global_batch_size: int | None = None
    budget_rule: BudgetRule = "isotropic"
    pad_to: PadTo = "budget"
    crop_probability: float = 0.25
    crop_scale: tuple[float, float] = (0.8, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip_probability: float = 0.5
    val_tokens: int | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size < 1:
            raise ValueError(f"data.patch_size must be at least 1 pixel, got {self.patch_size}")
        if self.val_tokens is not None and self.val_tokens < 1:
            raise ValueError(f"data.val_tokens must be at least 1, got {self.val_tokens}")
        self._curriculum = _stages(self.stages, self.tokens, self.global_batch_size)
        self._augmentation = Augmentation(
            self.crop_probability, self.flip_probability, self.crop_scale, self.crop_ratio
        )
        if self.num_classes is None:
            self.num_classes = self.default_classes

    @property
    def curriculum(self) -> tuple[BudgetStage, ...]:
        """The checked stages."""
        return self._curriculum

    @classmethod
    def _planned_stages(cls, init_args: Mapping[str, Any]) -> Sequence[BudgetStage]:
        stages = [
            stage if isinstance(stage, BudgetStage) else BudgetStage(**dict(stage))
            for stage in init_args.get("stages") or ()
        ]
        single = BudgetStage(int(init_args.get("tokens") or 0), int(init_args.get("global_batch_size") or 0))
        return stages or [single]

    def _source(self, shards: IndexedShards) -> ShardSource[Stored]:
        return ShardSource(shards, PictureFields(self.num_classes))

    def _recipe(self, split: Split) -> NativeRecipe:
        augmentation = self._augmentation if split == "train" else None
        return NativeRecipe(
            self.patch_size,
            augmentation,
            self.budget_rule,
            self.decoder,
            self.max_pixels,
            self.resampler,
            dct_scaling=split == "train" and self.dct_scaling,
        )

    def _evaluation(self, total: int, world: int) -> EvaluationPlan:
        first, tokens = self.curriculum[0], self.val_tokens or max(stage.tokens for stage in self.curriculum)
        size = self.val_batch_size
        if size is None:
            size = max(1, first.tokens * first.global_batch_size // tokens)
            size = max(world, size - size % world)
        return EvaluationPlan(total, size, tokens)

    @property
    def _padding(self) -> PadTo:
        return self.pad_to


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
