"""Prompts of the embedded world without end, for post-training: with their requests as metadata, no file is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lightning_gen.data.joining import WeightedShards
from lightning_gen.data.planned import Opened, Split
from lightning_gen.data.prompts import PromptDataModule, StoredPrompt
from lightning_gen.data.quarantine import DataError
from lightning_gen.shapes.benchmark import benchmark_requests
from lightning_gen.shapes.drawn import MIXTURES
from lightning_gen.shapes.grammar import Request
from lightning_gen.shapes.mixture import TAG_SHARES
from lightning_gen.shapes.module import SceneSource

__all__ = ["BENCHMARK", "ShapesPromptDataModule", "ShapesPromptSource"]

BENCHMARK: Final = "benchmark"
"""Name of the 553 prompts on which generators are measured."""


class ShapesPromptSource:
    """Prompts by number, those of scenes or those of the benchmark.

    Args:
        scenes: draws requests; None = the benchmark.
        every: of the benchmark, every so many.
    """

    def __init__(self, scenes: SceneSource | None, every: int = 1) -> None:
        self.scenes, self.chosen = scenes, benchmark_requests()[::every]
        self.every = every

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.chosen) if self.scenes is None else len(self.scenes)

    @property
    def fingerprint(self) -> str:
        """Of what decides which prompt has which number."""
        return f"{BENCHMARK}-{self.every}" if self.scenes is None else self.scenes.fingerprint

    def read(self, index: int) -> StoredPrompt:
        """A prompt.

        Args:
            index: its number.

        Returns:
            The prompt; its metadata are GenEval's record of it.
        """
        request: Request = self.chosen[index] if self.scenes is None else self.scenes.read(index).request
        return StoredPrompt(request.prompt(), json.dumps(request.metadata(), sort_keys=True))

    def name(self, index: int) -> tuple[str, str]:
        """Set and number.

        Args:
            index: number of the prompt.

        Returns:
            Both.
        """
        return (BENCHMARK, f"{index:09d}") if self.scenes is None else self.scenes.name(index)

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
        """Prompts have no size.

        Args:
            indices: numbers of prompts.

        Returns:
            Zeros, (n, 2).
        """
        return np.zeros((len(indices), 2), np.int64)


@dataclass(eq=False, repr=False)
class ShapesPromptDataModule(PromptDataModule):
    """Prompts of the embedded world's grammar, each k times in a global batch.

    ``train``, ``val`` and ``predict`` name a mixture, ``even`` or ``skewed``, or ``benchmark``: the 553 prompts on
    which generators are measured. Training on those would make the score worthless and is refused.

    Args:
        train: mixture of the training prompts.
        val: of validation.
        global_batch_size: rows per outer step over all ranks, a multiple of ``repeats``.
        repeats: k, the size of a group.
        samples: prompts of a pass of a mixture.
        val_every: of the benchmark, every so many.
        tags: tasks that come in a mixture; None = all but words, which the base has hardly learned.

    Raises:
        ValueError: an unknown tag, or a number below 1.
    """

    train: str | list[WeightedShards] | None = "even"
    val: str | None = BENCHMARK
    _: KW_ONLY
    global_batch_size: int = 192
    repeats: int = 24
    samples: int = 1 << 16
    val_every: int = 4
    tags: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.samples, self.val_every) < 1:
            raise ValueError("data.samples and data.val_every must be at least 1")
        if unknown := set(self.tags or ()) - set(TAG_SHARES):
            raise ValueError(f"data.tags: {', '.join(sorted(unknown))} unknown, choose of {', '.join(TAG_SHARES)}")

    @classmethod
    def _missing(cls, name: str, where: Any, streamed: bool) -> list[str]:
        del streamed
        if where is None or where in MIXTURES or (where == BENCHMARK and name != "train"):
            return []
        if where == BENCHMARK:
            return [f"data.train: the prompts of the benchmark are for measuring, choose {' or '.join(MIXTURES)}"]
        return [f"data.{name}: there are no prompts {where!r}, choose {', '.join((*MIXTURES, BENCHMARK))}"]

    def _open(self, split: Split) -> Opened:
        where = getattr(self, split)
        if problems := self._missing(split, where, False):
            raise DataError(problems[0])
        scenes = None
        if where != BENCHMARK:
            tags = tuple(self.tags or (tag for tag in TAG_SHARES if tag != "word"))
            scenes = SceneSource(self.seed, f"prompts {split}", self.samples, where == "skewed", tags, [(1, 1)])
        source = ShapesPromptSource(scenes, self.val_every)
        return Opened(source, [len(source)], source.fingerprint)

    def _places(self) -> list[str]:
        return []

    @classmethod
    def _planned_stages(cls, init_args: Mapping[str, Any]) -> Any:
        return super()._planned_stages({**init_args, "global_batch_size": init_args.get("global_batch_size") or 192})
