"""Columns over all samples of a data set, read from the JSON beside the pictures: for choosing samples before training.

A plan is made before anything is read, so what decides whether a sample is used (a tie, a task, a confidence) must be
known beforehand. One pass over the small JSON members gathers it; pictures are not touched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lightning_gen.data.quarantine import DataError
from lightning_gen.data.shards import IndexedShards

__all__ = ["read_columns"]


def read_columns(shards: IndexedShards, names: Sequence[str]) -> dict[str, list[Any]]:
    """Some keys of every sample's JSON.

    Args:
        shards: the samples.
        names: the keys.

    Returns:
        For every key one value per sample; None where the sample, its JSON or the key is missing. Damage is reported
        when the sample itself is asked for, not here.
    """
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for index in range(len(shards)):
        record = _record(shards, index)
        for name, column in columns.items():
            column.append(record.get(name))
    return columns


def _record(shards: IndexedShards, index: int) -> dict[str, Any]:
    try:
        record = json.loads(shards.field(index, "json") or b"{}")
    except (DataError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
