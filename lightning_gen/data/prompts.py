"""Prompts to generate images for: text files, JSON lines, or shards; in training every prompt comes k times."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lightning_gen.data.batches import PromptBatch
from lightning_gen.data.dataset import Draws, Place, Request
from lightning_gen.data.layout import Layout
from lightning_gen.data.plan import EvaluationPlan
from lightning_gen.data.planned import Opened, PlannedDataModule, Split
from lightning_gen.data.quarantine import DataError, SampleError
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import ShardSource, Source, json_record
from lightning_gen.training.curriculum import BudgetStage

__all__ = ["PromptDataModule", "PromptFields", "PromptFile", "PromptRecipe", "StoredPrompt"]

_log = logging.getLogger(__name__)


class StoredPrompt(NamedTuple):
    """A prompt as it is stored.

    Attributes:
        prompt: the text.
        metadata: what stands beside it, as JSON text.
    """

    prompt: str
    metadata: str = "{}"


class PromptFile:
    """The prompts of a file: one per line in ``.txt``, objects with the key ``prompt`` in ``.jsonl``.

    Empty lines are skipped, and a warning says so.

    Args:
        path: the file, UTF-8.

    Raises:
        DataError: no such file, a line that is no JSON object, a record without a prompt, or no prompt at all.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        try:
            content = self.path.read_bytes()
            # Not splitlines: it also cuts at characters that may stand inside a prompt.
            lines = content.decode("utf-8-sig").removesuffix("\n").split("\n")
        except OSError as error:
            raise DataError(f"the prompts {path} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"the prompts {path} are not UTF-8: {error}") from None
        self.fingerprint = hashlib.sha256(content).hexdigest()
        full = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        if not full:
            raise DataError(f"{path} holds no prompt")
        if len(full) < len(lines):
            _log.warning("%s: %d empty lines are skipped", path, len(lines) - len(full))
        self.numbers = [number for number, _ in full]
        self.prompts = [self._prompt(number, line) for number, line in full]

    def _prompt(self, number: int, line: str) -> StoredPrompt:
        if self.path.suffix != ".jsonl":
            return StoredPrompt(line)
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{self.path} line {number} is not JSON ({error})") from None
        prompt = record.get("prompt") if isinstance(record, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            found = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise DataError(f'{self.path} line {number} needs a text under "prompt", found: {found}')
        return StoredPrompt(prompt, json.dumps(record, sort_keys=True))

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def read(self, index: int) -> StoredPrompt:
        """A prompt.

        Args:
            index: its number.

        Returns:
            The prompt with its metadata.
        """
        return self.prompts[index]

    def name(self, index: int) -> tuple[str, str]:
        """File and line.

        Args:
            index: number of the prompt.

        Returns:
            Both.
        """
        return self.path.name, f"line {self.numbers[index]}"

    def damage(self, index: int) -> int:
        """A line never takes others with it.

        Args:
            index: number of the prompt.

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


@dataclasses.dataclass(frozen=True)
class PromptFields:
    """The fields ``txt`` and ``json`` of a prompt in a shard."""

    def __call__(self, fields: Mapping[str, bytes]) -> StoredPrompt:
        """Read the fields.

        Args:
            fields: name -> bytes.

        Returns:
            The prompt with its metadata.

        Raises:
            SampleError: there is no text, neither in ``txt`` nor as ``prompt`` or ``caption`` in ``json``.
        """
        record = json_record(fields)
        text = fields["txt"].decode("utf-8", "replace") if "txt" in fields else None
        prompt = text or record.get("prompt") or record.get("caption")
        if not isinstance(prompt, str) or not prompt.strip():
            raise SampleError(f"the sample has no prompt (txt, or prompt in json), only {', '.join(sorted(fields))}")
        return StoredPrompt(prompt.strip(), json.dumps(record, sort_keys=True))


@dataclasses.dataclass(frozen=True)
class PromptRecipe:
    """Rows of prompts with their groups.

    Attributes:
        repeats: k, how often every prompt comes.
        training: as for pictures.
    """

    repeats: int
    training: bool

    def draws(self, seed: int, epoch: int, index: Sequence[int]) -> Draws | None:
        """Nothing is random here.

        Args:
            seed: not used.
            epoch: not used.
            index: not used.
        """
        del seed, epoch, index
        return None

    def example(self, stored: StoredPrompt, place: Place) -> tuple[StoredPrompt, Place]:
        """Keep the prompt with its place.

        Args:
            stored: the prompt.
            place: where it stands.

        Returns:
            Both.
        """
        return stored, place

    def collate(self, examples: Sequence[tuple[StoredPrompt, Place]], request: Request) -> PromptBatch:
        """Make a batch.

        Args:
            examples: of one rank.
            request: one of the batch's.

        Returns:
            The batch.
        """
        slots = torch.tensor([place.request.slot for _, place in examples], dtype=torch.int64)
        return PromptBatch(
            prompt=tuple(stored.prompt for stored, _ in examples),
            metadata=tuple(stored.metadata for stored, _ in examples),
            index=torch.tensor([place.index for _, place in examples], dtype=torch.int64),
            group=slots // self.repeats,
            member=slots % self.repeats,
            valid=torch.tensor([place.valid for _, place in examples], dtype=torch.bool),
            epoch=request.epoch,
        )

    def planned_tokens(self, sizes: npt.NDArray[np.int64], draws: Draws | None, tokens: int) -> None:
        """Not a matter here.

        Args:
            sizes: not used.
            draws: not used.
            tokens: not used.
        """
        del sizes, draws, tokens


@dataclass(eq=False, repr=False, kw_only=True)
class PromptDataModule(PlannedDataModule):
    """Prompts, each k times in a global batch, the rows shuffled over the ranks.

    ``train``, ``val`` and ``predict`` name a ``.txt`` or ``.jsonl`` file, or shards. Every prompt is used once per pass
    (Flow-GRPO's own sampler draws the prompts of every batch anew).

    Args:
        global_batch_size: rows per micro-batch over all ranks, a multiple of ``repeats``.
        repeats: k, rows with the same prompt: the size of a group.

    Source: arXiv:2505.05470, DistributedKRepeatSampler of the official code; deviates: whole passes.
    """

    global_batch_size: int
    repeats: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats < 1 or self.global_batch_size % self.repeats:
            raise ValueError(
                f"data.global_batch_size={self.global_batch_size} rows are not a whole number of groups of "
                f"data.repeats={self.repeats}"
            )

    @property
    def curriculum(self) -> tuple[BudgetStage, ...]:
        """A single stage; a prompt counts as one token."""
        return (BudgetStage(1, self.global_batch_size),)

    def stored(self, split: Split) -> Iterator[StoredPrompt]:
        """All prompts of a split as they are stored.

        Args:
            split: which.

        Yields:
            Prompts in their order. None where the split is not set, or is streamed, so that they are not known before
            they come.
        """
        if getattr(self, split) is not None and not (split == "train" and self.access == "stream"):
            opened = self._set(split)
            for index in range(sum(opened.counts)):
                yield opened.source.read(index)

    @classmethod
    def _planned_stages(cls, init_args: Mapping[str, Any]) -> Sequence[BudgetStage]:
        return (BudgetStage(1, int(init_args.get("global_batch_size") or 0)),)

    def _source(self, shards: IndexedShards) -> Source[Any]:
        return ShardSource(shards, PromptFields())

    def _recipe(self, split: Split) -> PromptRecipe:
        return PromptRecipe(self.repeats if split == "train" else 1, split == "train")

    def _evaluation(self, total: int, world: int) -> EvaluationPlan:
        size = self.val_batch_size or max(world, self.global_batch_size - self.global_batch_size % world)
        return EvaluationPlan(total, size, 1)

    def _open(self, split: Split) -> Opened:
        where = getattr(self, split)
        if isinstance(where, str) and _is_file(where):
            file = PromptFile(where)
            return Opened(file, [len(file)], file.fingerprint)
        return super()._open(split)

    @classmethod
    def _missing(cls, name: str, where: str | None, streamed: bool) -> list[str]:
        if where is None or not _is_file(where):
            return super()._missing(name, where, streamed)
        return [] if Path(where).is_file() else [f"data.{name}: there is no file {where}"]

    def _make_layout(self) -> Layout:
        return dataclasses.replace(super()._make_layout(), repeats=self.repeats)

    def _places(self) -> list[str]:
        return [where for where in super()._places() if not _is_file(where)]


def _is_file(where: str) -> bool:
    return where.endswith((".txt", ".jsonl"))
