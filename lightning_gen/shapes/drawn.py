"""What DataModules of the embedded world share: their samples are drawn, so there are no shards and no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lightning_gen.data.planned import PlannedDataModule
from lightning_gen.data.shards import IndexedShards
from lightning_gen.data.sources import Source
from lightning_gen.shapes.mixture import TAG_SHARES
from lightning_gen.shapes.render import SMALLEST

__all__ = ["MIXTURES", "DrawnDataModule"]

MIXTURES: Final = ("skewed", "even")
"""How often pairs of colour and kind come: the rare ones rarely, or all alike."""


class DrawnDataModule(PlannedDataModule):
    """A planned DataModule whose splits name mixtures, ``even`` or ``skewed``, in place of shards."""

    def _require_world(
        self, size: Any, edges: Sequence[int], counts: Sequence[int], tags: Sequence[str] | None
    ) -> None:
        """Refuse pictures, amounts and tasks that the world has not."""
        if min(edges, default=0) < SMALLEST:
            raise ValueError(f"data.size: sides are at least {SMALLEST} pixels, got {size}")
        if min(counts) < 1:
            raise ValueError("data.samples, data.val_samples and data.global_batch_size must be at least 1")
        if unknown := set(tags or ()) - set(TAG_SHARES):
            raise ValueError(f"data.tags: {', '.join(sorted(unknown))} unknown, choose of {', '.join(TAG_SHARES)}")

    @classmethod
    def _missing(cls, name: str, where: Any, streamed: bool) -> list[str]:
        del streamed
        if where is None or where in MIXTURES:
            return []
        return [f"data.{name}: the embedded world has no mixture {where!r}, choose {' or '.join(MIXTURES)}"]

    def _source(self, shards: IndexedShards) -> Source[Any]:
        raise TypeError(f"{type(self).__name__} draws its samples and reads no shards")

    def _places(self) -> list[str]:
        return []
