"""Preference pairs of the embedded world without end: by painters of known strength, with noisy labels."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_gen.data.batches import Example, PreferenceBatch
from lightning_gen.data.buckets import AspectBuckets
from lightning_gen.data.dataset import Draws, Place, Request
from lightning_gen.data.joining import WeightedShards
from lightning_gen.data.order import Indices
from lightning_gen.data.plan import EvaluationPlan
from lightning_gen.data.planned import Opened, Split
from lightning_gen.data.preferences import PairExample, StoredPair, collate_pairs
from lightning_gen.data.quarantine import DataError
from lightning_gen.data.sources import Source
from lightning_gen.data.synth.preference import STRENGTHS
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.degraded import Comparison, Degraded, draw_comparison
from lightning_gen.shapes.drawn import DrawnDataModule
from lightning_gen.shapes.mixture import TAG_SHARES
from lightning_gen.shapes.module import SceneSource
from lightning_gen.training.curriculum import BudgetStage

__all__ = ["ComparisonSource", "Judging", "PairRecipe", "ShapesPreferenceDataModule", "StoredComparison"]

_PART = 1 << 14
_DEFAULT_SIZE, _DEFAULT_BATCH = 32, 32


class StoredComparison(NamedTuple):
    """A comparison, and the generator that goes on to paint its pictures.

    Attributes:
        comparison: who paints what, and whose picture is preferred.
        generator: in the state in which it drew the comparison.
    """

    comparison: Comparison
    generator: np.random.Generator


@dataclasses.dataclass(frozen=True)
class Judging:
    """Who paints, and how the pictures are compared.

    Attributes:
        names: of the painters.
        strengths: theirs.
        noise: how often the weaker wins, 0 = never.
        ties: share of pairs without a winner.
        same_model: share of pairs by one painter.
    """

    names: tuple[str, ...]
    strengths: tuple[float, ...]
    noise: float
    ties: float
    same_model: float

    @property
    def by_name(self) -> dict[str, float]:
        """Painter -> strength."""
        return dict(zip(self.names, self.strengths, strict=True))


class ComparisonSource:
    """Comparisons by number; number n is a pure function of (seed, split, n).

    Args:
        scenes: draws the requests.
        judging: who paints, and how is compared.
    """

    def __init__(self, scenes: SceneSource, judging: Judging) -> None:
        self.scenes, self.judging = scenes, judging

    def __len__(self) -> int:
        """Number of comparisons."""
        return len(self.scenes)

    @property
    def fingerprint(self) -> str:
        """sha256 of what decides which comparison has which number."""
        key = ["shapes pairs", 1, self.scenes.fingerprint, dataclasses.asdict(self.judging)]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def read(self, index: int) -> StoredComparison:
        """Draw a comparison; nothing is painted.

        Args:
            index: its number.

        Returns:
            The comparison.
        """
        how, (request, generator) = self.judging, self.scenes.read(index)
        drawn = draw_comparison(generator, how.noise, how.ties, how.by_name, how.same_model, request)
        return StoredComparison(drawn, generator)

    def name(self, index: int) -> tuple[str, str]:
        """Split and number.

        Args:
            index: number of the comparison.

        Returns:
            Both.
        """
        return self.scenes.name(index)

    def damage(self, index: int) -> int:
        """Nothing can be damaged.

        Args:
            index: not used.

        Returns:
            1.
        """
        del index
        return 1

    def sizes(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Heights and widths.

        Args:
            indices: numbers of comparisons.

        Returns:
            int64, (n, 2).
        """
        return self.scenes.sizes(indices)


@dataclasses.dataclass(frozen=True)
class PairRecipe:
    """Paints both pictures of a comparison, the preferred one first.

    Attributes:
        training: whether pairs are trained on.
        strengths: of the painters, by name.
    """

    training: bool
    strengths: Mapping[str, float]

    def draws(self, seed: int, epoch: int, index: Sequence[int]) -> Draws | None:
        """Pictures have generators of their own.

        Args:
            seed: not used.
            epoch: not used.
            index: not used.
        """
        del seed, epoch, index
        return None

    def example(self, stored: StoredComparison, place: Place) -> PairExample:
        """Paint.

        Args:
            stored: the comparison.
            place: where it stands.

        Returns:
            The pair.
        """
        assert place.request.shape is not None, "the plan of this module names a shape for every step"
        size, (request, models, label) = place.request.shape, stored.comparison
        first, second = (Degraded(self.strengths[one], size).picture(request, stored.generator) for one in models)
        pictures, names = (first, second), models
        if label < 0.5:
            pictures, names = (second, first), (models[1], models[0])
        caption = request.prompt()
        kept = StoredPair(b"", b"", caption, 0.5 if label == 0.5 else 1.0, math.nan, 1.0, names)
        winner, loser = (_example(picture, place, caption) for picture in pictures)
        return PairExample(winner, loser, kept)

    def collate(self, examples: Sequence[PairExample], request: Request) -> PreferenceBatch:
        """Stack the pairs.

        Args:
            examples: of one rank's batch.
            request: one of the batch's.

        Returns:
            The batch.
        """
        return collate_pairs(examples, request.epoch)

    def planned_tokens(self, sizes: npt.NDArray[np.int64], draws: Draws | None, tokens: int) -> None:
        """Not a matter here: the plan says the shape.

        Args:
            sizes: not used.
            draws: not used.
            tokens: not used.
        """
        del sizes, draws, tokens


@dataclass(eq=False, repr=False)
class ShapesPreferenceDataModule(DrawnDataModule):
    """Pairs of pictures of one prompt by painters of known strength, drawn as they are needed, the preferred one first.

    ``train`` and ``val`` name a mixture, ``even`` or ``skewed``. Pair n of a split is a pure function of
    (seed, split, n); the labels are noisy: P(0 beats 1) = sigmoid((s_0 - s_1) / noise). Ties are left out. Gaps are
    NaN: an arena is fitted to :meth:`comparisons`.

    Args:
        train: mixture of the training prompts.
        val: mixture of the validation prompts.
        global_batch_size: pairs per micro-batch over all ranks.
        size: edge of the pictures in pixels.
        samples: training pairs; every pass shows each of them once.
        val_samples: validation pairs.
        tags: tasks that come, by their shares in the mixture; None = all but words, which the base has hardly learned.
        strengths: of the painters, called ``painter0``, ``painter1``, ...; None = the four of ``data synth``.
        spread: factor of all strengths: how far the painters are apart.
        noise: of the labels; 0 = the stronger painter always wins.
        ties: share of pairs without a winner, in [0, 1); they are drawn and left out.
        same_model: share of pairs by one painter, in [0, 1].
        benchmark_prompts: whether pairs for the prompts of ``shapes.benchmark`` come, a fifth of what is drawn; without
            them, what was learned can be measured there. They are among the :meth:`comparisons` all the same.

    Raises:
        ValueError: a size below 32 pixels, an unknown tag, fewer than two painters, or a number outside its range.
    """

    train: str | list[WeightedShards] | None = "even"
    val: str | None = "even"
    _: KW_ONLY
    global_batch_size: int = _DEFAULT_BATCH
    size: int = _DEFAULT_SIZE
    samples: int = 1 << 16
    val_samples: int = 256
    tags: list[str] | None = None
    strengths: list[float] | None = None
    spread: float = 1.0
    noise: float = 1.0
    ties: float = 0.0
    same_model: float = 0.0
    benchmark_prompts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        amounts = self.samples, self.val_samples, self.global_batch_size
        self._require_world(self.size, [self.size], amounts, self.tags)
        if not 0 <= self.ties < 1 or not 0 <= self.same_model <= 1 or self.noise < 0:
            raise ValueError(
                "data.ties lies in [0, 1), data.same_model in [0, 1], data.noise is not negative, got "
                f"{self.ties}, {self.same_model} and {self.noise}"
            )
        if self.strengths is not None and len(self.strengths) < 2:
            raise ValueError(f"data.strengths: comparing takes two painters, got {self.strengths}")

    @property
    def painters(self) -> dict[str, float]:
        """Painter -> true strength."""
        given = STRENGTHS
        if self.strengths is not None:
            given = {f"painter{number}": strength for number, strength in enumerate(self.strengths)}
        return {name: self.spread * strength for name, strength in given.items()}

    def comparisons(self, split: Split = "train") -> list[Comparison]:
        """Every comparison of a split by number, ties included, without painting: what an arena is fitted to.

        Args:
            split: ``train`` or ``val``.

        Returns:
            Comparisons.
        """
        source = self._set(split).source
        return [source.read(index).comparison for index in range(len(source))]

    @property
    def curriculum(self) -> tuple[BudgetStage, ...]:
        """A single stage; its budget is counted in pixels."""
        return (BudgetStage(self.size**2, self.global_batch_size),)

    @property
    def buckets(self) -> AspectBuckets:
        """One square."""
        return AspectBuckets(self.size, None, 1.0)

    @classmethod
    def _planned_stages(cls, init_args: Mapping[str, Any]) -> Sequence[BudgetStage]:
        size = int(init_args.get("size") or _DEFAULT_SIZE)
        return (BudgetStage(size**2, int(init_args.get("global_batch_size") or _DEFAULT_BATCH)),)

    def _open(self, split: Split) -> Opened:
        where = getattr(self, split)
        if problems := self._missing(split, where, False):
            raise DataError(problems[0])
        total = self.samples if split == "train" else self.val_samples
        tags = tuple(self.tags or (tag for tag in TAG_SHARES if tag != "word"))
        scenes = SceneSource(self.seed, f"pairs {split}", total, where == "skewed", tags, [(self.size, self.size)])
        painters = self.painters
        judging = Judging(tuple(painters), tuple(painters.values()), self.noise, self.ties, self.same_model)
        source = ComparisonSource(scenes, judging)
        counts = [_PART] * (total // _PART) + [total % _PART] * (total % _PART > 0)
        return Opened(source, counts, source.fingerprint)

    def _left_out(self, source: Source[Any], split: Split) -> Indices:
        del split
        taken = frozenset() if self.benchmark_prompts else {one.prompt() for one in benchmark_requests()}
        drawn = (source.read(index).comparison for index in range(len(source)))
        out = [number for number, one in enumerate(drawn) if one.label == 0.5 or one.request.prompt() in taken]
        return np.array(out, np.int64)

    def _recipe(self, split: Split) -> PairRecipe:
        return PairRecipe(split == "train", self.painters)

    def _evaluation(self, total: int, world: int) -> EvaluationPlan:
        size = self.val_batch_size or max(world, self.global_batch_size - self.global_batch_size % world)
        return EvaluationPlan(total, size, self.size**2, (self.size, self.size))


def _example(picture: Tensor, place: Place, caption: str) -> Example:
    size = (int(picture.shape[1]), int(picture.shape[2]))
    return Example(picture.permute(1, 2, 0), -1, place.index, place.valid, size, place.key, caption)
