"""Scenes without end as training data: drawn when they are asked for, no file is read."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lightning_gen.data.batches import Example, ImageBatch, stack_images
from lightning_gen.data.buckets import AspectBuckets
from lightning_gen.data.dataset import Draws, Place, Request
from lightning_gen.data.joining import WeightedShards
from lightning_gen.data.plan import EvaluationPlan
from lightning_gen.data.planned import Opened, Split
from lightning_gen.data.quarantine import DataError
from lightning_gen.shapes import grammar
from lightning_gen.shapes.drawn import DrawnDataModule
from lightning_gen.shapes.layout import draw_scene
from lightning_gen.shapes.mixture import TAG_SHARES, draw_request, draw_tag
from lightning_gen.shapes.render import compress, noisy, render_pixels
from lightning_gen.shapes.scene import Scene
from lightning_gen.shapes.vocabulary import COLORS, KINDS
from lightning_gen.training.curriculum import BudgetStage
from lightning_gen.training.randomness import numpy_generator

__all__ = ["SceneRecipe", "SceneSource", "ShapesDataModule", "StoredRequest"]

_PART: Final = 1 << 14
_DEFAULT_SIZE: Final = 32


class StoredRequest(NamedTuple):
    """A request, and the generator that goes on to draw its scene.

    Attributes:
        request: what the picture shows.
        generator: in the state in which it drew the request.
    """

    request: grammar.Request
    generator: np.random.Generator


class SceneSource:
    """Requests by number; number n is a pure function of (seed, split, n).

    Args:
        seed: decides all of them.
        split: name of the split; other splits hold other scenes.
        total: how many there are.
        skewed: whether rare pairs are rare.
        tags: tasks that come.
        shapes: heights and widths; number n has shape n modulo their number.
    """

    def __init__(
        self, seed: int, split: str, total: int, skewed: bool, tags: tuple[str, ...], shapes: Sequence[tuple[int, int]]
    ) -> None:
        self.seed, self.split, self.total, self.skewed, self.tags = seed, split, total, skewed, tags
        self._shapes = np.array(shapes, np.int64)

    def __len__(self) -> int:
        """Number of requests."""
        return self.total

    @property
    def fingerprint(self) -> str:
        """sha256 of what decides which request has which number."""
        key = [self.seed, self.split, self.total, self.skewed, self.tags, self._shapes.tolist()]
        return hashlib.sha256(json.dumps(["shapes", 1, *key]).encode()).hexdigest()

    def read(self, index: int) -> StoredRequest:
        """Draw a request.

        Args:
            index: its number.

        Returns:
            The request.
        """
        generator = numpy_generator(self.seed, f"shapes {self.split}", index)
        return StoredRequest(draw_request(generator, self.skewed, draw_tag(generator, self.tags)), generator)

    def name(self, index: int) -> tuple[str, str]:
        """Split and number.

        Args:
            index: number of the request.

        Returns:
            Both.
        """
        return self.split, f"{index:09d}"

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
            indices: numbers of requests.

        Returns:
            int64, (n, 2).
        """
        sizes: npt.NDArray[np.int64] = self._shapes[indices % len(self._shapes)]
        return sizes


@dataclasses.dataclass(frozen=True)
class SceneRecipe:
    """Draws scenes and paints them.

    Attributes:
        seed: the run's seed, for the noise.
        training: noise and JPEG are added; False = clean pictures.
        skewed: whether rare colours are rare where a request leaves them open.
        pairs: labels are pairs of colour and kind; False = kinds.
        noise: standard deviation in levels of 0..255.
        noise_probability: how often there is noise.
        jpeg_quality: 1 to 95.
        jpeg_probability: how often a picture goes through JPEG, after the noise.
    """

    seed: int
    training: bool
    skewed: bool
    pairs: bool = False
    noise: float = 4.0
    noise_probability: float = 0.0
    jpeg_quality: int = 90
    jpeg_probability: float = 0.0

    def draws(self, seed: int, epoch: int, index: Sequence[int]) -> Draws | None:
        """Scenes and noise have generators of their own.

        Args:
            seed: not used.
            epoch: not used.
            index: not used.
        """
        del seed, epoch, index
        return None

    def example(self, stored: StoredRequest, place: Place) -> Example:
        """Draw the scene of a request and paint it.

        Args:
            stored: the request.
            place: where it stands; noise differs from pass to pass.

        Returns:
            The example; its label is -1 for a word.
        """
        assert place.request.shape is not None, "the plan of this module names a shape for every step"
        height, width = place.request.shape
        scene = draw_scene(stored.request, stored.generator, self.skewed, width / height)
        pixels = torch.from_numpy(render_pixels(scene, (height, width)))
        if self.training and max(self.noise_probability, self.jpeg_probability) > 0:
            pixels = self._spoiled(pixels, place)
        caption = stored.request.prompt()
        return Example(pixels, self.label(scene), place.index, place.valid, (height, width), place.key, caption)

    def label(self, scene: Scene) -> int:
        """The class of a scene.

        Args:
            scene: any.

        Returns:
            Number of the kind of its first object in 0..7; with ``pairs`` 8 times that of its colour more, 0..79; -1
            for a word.
        """
        if not scene.objects:
            return -1
        first = scene.objects[0]
        color = list(COLORS).index(first.color) if self.pairs else 0
        return color * len(KINDS) + KINDS.index(first.kind)

    def _spoiled(self, pixels: torch.Tensor, place: Place) -> torch.Tensor:
        generator = numpy_generator(self.seed, "shapes noise", place.request.epoch, place.index)
        grain, block = generator.random(2).tolist()
        picture = pixels.permute(2, 0, 1)
        if grain < self.noise_probability:
            picture = noisy(picture, generator, self.noise)
        if block < self.jpeg_probability:
            picture = compress(picture, self.jpeg_quality)
        return picture.permute(1, 2, 0).contiguous()

    def collate(self, examples: Sequence[Example], request: Request) -> ImageBatch:
        """Stack the pictures.

        Args:
            examples: of one rank's batch.
            request: one of the batch's.

        Returns:
            The batch.
        """
        return stack_images(examples, request.epoch)

    def planned_tokens(self, sizes: npt.NDArray[np.int64], draws: Draws | None, tokens: int) -> None:
        """Not a matter here: the plan says the shape.

        Args:
            sizes: not used.
            draws: not used.
            tokens: not used.
        """
        del sizes, draws, tokens


@dataclasses.dataclass(frozen=True)
class _Shapes(AspectBuckets):
    """The shapes that were asked for, from tall to wide."""

    given: tuple[tuple[int, int], ...] = ()

    @functools.cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple(sorted(self.given, key=lambda shape: (-shape[0] / shape[1], shape)))

    def assign(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        # A pass may hold millions: one shape at a time, so that no table of all against all is made.
        number = np.zeros(len(sizes), np.int64)
        for place, shape in enumerate(self.shapes):
            number[(sizes == shape).all(1)] = place
        return number


@dataclass(eq=False, repr=False)
class ShapesDataModule(DrawnDataModule):
    """Pictures of the embedded world with captions and classes, drawn as they are needed.

    ``train``, ``val`` and ``predict`` name a mixture: ``skewed`` or ``even``. Sample n of a split is a pure function of
    (seed, split, n), so the order, resume and ranks are those of the other DataModules, and a pass may hold millions.
    Arguments about files mean nothing here. Validation pictures are clean and have the first size.

    Args:
        train: mixture of the training pictures.
        val: mixture of the validation pictures.
        global_batch_size: samples per micro-batch over all ranks.
        size: edge of square pictures in pixels, or a list of (height, width); each batch has one of them, and all are
            equally frequent.
        samples: training scenes; every pass shows each of them once.
        val_samples: validation scenes.
        tags: tasks that come, by their shares in the mixture; None = all.
        labels: ``kind`` = 0..7, ``pair`` = colour and kind, 0..79; of the first object, -1 for words.
        noise: strength of the noise, standard deviation in levels of 0..255.
        noise_probability: share of noisy training pictures, in [0, 1].
        jpeg_quality: 1 to 95.
        jpeg_probability: share of training pictures that went through JPEG, in [0, 1].

    Raises:
        ValueError: a size below 32 pixels, an unknown tag, or a number outside its range.
    """

    train: str | list[WeightedShards] | None = "skewed"
    val: str | None = "skewed"
    _: KW_ONLY
    global_batch_size: int = 64
    size: int | list[tuple[int, int]] = _DEFAULT_SIZE
    samples: int = 1 << 20
    val_samples: int = 512
    tags: list[str] | None = None
    labels: Literal["kind", "pair"] = "kind"
    noise: float = 4.0
    noise_probability: float = 0.0
    jpeg_quality: int = 90
    jpeg_probability: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shapes = _shapes_of(self.size)
        amounts = self.samples, self.val_samples, self.global_batch_size
        self._require_world(self.size, list(itertools.chain(*self._shapes)), amounts, self.tags)
        if self.labels not in ("kind", "pair"):
            raise ValueError(f"data.labels is 'kind' or 'pair', got {self.labels!r}")
        for name in ("noise_probability", "jpeg_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name} lies in [0, 1], got {getattr(self, name)}")
        if self.noise < 0 or not 1 <= self.jpeg_quality <= 95:
            raise ValueError(
                f"data.noise is not negative and data.jpeg_quality lies in 1..95, got {self.noise} and "
                f"{self.jpeg_quality}"
            )

    @property
    def curriculum(self) -> tuple[BudgetStage, ...]:
        """A single stage; its budget is counted in pixels."""
        return (BudgetStage(_most_pixels(self._shapes), self.global_batch_size),)

    @property
    def buckets(self) -> AspectBuckets:
        """Shapes of the training batches."""
        edges = list(itertools.chain(*self._shapes))
        ratio = max(max(shape) / min(shape) for shape in self._shapes)
        return _Shapes(max(edges), min(edges), ratio, tuple(dict.fromkeys(self._shapes)))

    @classmethod
    def _planned_stages(cls, init_args: Mapping[str, Any]) -> Sequence[BudgetStage]:
        shapes = _shapes_of(init_args.get("size") or _DEFAULT_SIZE)
        return (BudgetStage(_most_pixels(shapes), int(init_args.get("global_batch_size") or 64)),)

    def _open(self, split: Split) -> Opened:
        if problems := self._missing(split, getattr(self, split), False):
            raise DataError(problems[0])
        total = self.samples if split == "train" else self.val_samples
        tags = tuple(self.tags or TAG_SHARES)
        source = SceneSource(self.seed, split, total, getattr(self, split) == "skewed", tags, self._shapes)
        counts = [_PART] * (total // _PART) + [total % _PART] * (total % _PART > 0)
        return Opened(source, counts, source.fingerprint)

    def _recipe(self, split: Split) -> SceneRecipe:
        spoiling = self.noise, self.noise_probability, self.jpeg_quality, self.jpeg_probability
        skewed = getattr(self, split) == "skewed"
        return SceneRecipe(self.seed, split == "train", skewed, self.labels == "pair", *spoiling)

    def _evaluation(self, total: int, world: int) -> EvaluationPlan:
        size = self.val_batch_size or max(world, self.global_batch_size - self.global_batch_size % world)
        return EvaluationPlan(total, size, _most_pixels(self._shapes), self._shapes[0])


def _shapes_of(size: int | Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    if isinstance(size, int):
        return ((size, size),)
    return tuple((int(height), int(width)) for height, width in size)


def _most_pixels(shapes: Sequence[tuple[int, int]]) -> int:
    return max(height * width for height, width in shapes)
