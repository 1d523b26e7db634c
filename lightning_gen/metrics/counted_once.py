"""Metrics over samples that have a name: what two ranks or a padded batch show twice counts once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["CountedOnce"]

_log = logging.getLogger(__name__)


class CountedOnce(Metric):
    """Base of metrics that keep one row per (prompt, sample) and read their values from the rows.

    A distributed sampler repeats samples to give every rank the same number. Sums per rank cannot take such a repeat
    out again, so the rows themselves are gathered; there are some thousand of them, of a few numbers each. A value is
    computed from the rows sorted by key, so it depends neither on the world size nor on the order of the batches.
    """

    columns: tuple[str, ...]
    """Names of the values of a row, behind the two numbers of its key; known before ``__init__`` of this class."""

    full_state_update: bool | None = False
    is_differentiable: bool | None = False
    higher_is_better: bool | None = True

    rows: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")
        self._open_table()

    def count(self, prompts: Sequence[int] | Tensor, samples: Sequence[int] | Tensor, values: Tensor) -> None:
        """Keep rows.

        Args:
            prompts: B numbers of prompts.
            samples: B numbers of the sample of its prompt.
            values: (B, number of columns).

        Raises:
            ValueError: the numbers of prompts, samples and values differ.
        """
        if not len(prompts) == len(samples) == len(values):
            raise ValueError(f"{len(prompts)} prompt ids, {len(samples)} sample ids and {len(values)} results")
        if len(values) == 0:
            return
        like = self._no_rows()
        keys = torch.stack([torch.as_tensor(ids).to(like) for ids in (prompts, samples)], 1)
        more = torch.cat([keys, values.detach().to(like).reshape(len(keys), len(self.columns))], 1)
        self.rows = [*self.rows, more] if isinstance(self.rows, list) else torch.cat([self.rows, more])

    def table(self) -> Tensor:
        """One row per sample, sorted by prompt and sample; of repeated rows the first.

        Returns:
            float64, (number of samples, 2 + number of columns).
        """
        rows = self._all_rows()
        if len(rows) == 0:
            return rows
        keys, group = torch.unique(rows[:, :2], dim=0, return_inverse=True)
        position = torch.arange(len(rows), device=rows.device)
        first = torch.full((len(keys),), len(rows), device=rows.device).scatter_reduce(0, group, position, "amin")
        table = rows[first]
        # NaN is a value too: a repeated one agrees with itself.
        differing = int((~torch.isclose(table[group], rows, equal_nan=True)).any(1).sum())
        if differing:
            _log.warning(
                "%s: %d repeated samples have another result than at first; the first counts. Do two different images "
                "share a prompt id and a sample id?",
                type(self).__name__,
                differing,
            )
        return table

    @contextlib.contextmanager
    def on_all_ranks(self) -> Iterator[None]:
        """Within this context the rows are those of all ranks; every rank must enter it."""
        inside = self._is_synced
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync and not inside, should_unsync=not inside
        ):
            yield

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._open_table()

    @property
    def num_samples(self) -> int:
        """Samples counted, each once: on this rank, or on all ranks inside ``on_all_ranks``."""
        return len(self.table())

    @property
    def num_repeats(self) -> int:
        """Rows that were dropped because their sample had been counted."""
        return len(self._all_rows()) - len(self.table())

    def _all_rows(self) -> Tensor:
        # One tensor while it is gathered, a list of pieces otherwise.
        return self.rows if isinstance(self.rows, Tensor) else torch.cat(self.rows)

    def _open_table(self) -> None:
        # An empty piece of the right shape and type: a rank without rows must gather the same kind of tensor as others.
        self.rows = [self._no_rows()]

    def _no_rows(self) -> Tensor:
        return torch.empty((0, 2 + len(self.columns)), dtype=torch.float64, device=self.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # Keys and values move to another device, but are not rounded to another precision.
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), exclude_state)
