"""What a data set holds, counted from its indices and its JSON members; no pixel is decoded."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gen.data.index import picture_fields
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.shards import IndexedShards

from .overlap import caption_of
from .walking import visit_samples

__all__ = ["PairStatistics", "Statistics", "gather_statistics"]


@dataclasses.dataclass
class PairStatistics:
    """Preference pairs.

    Attributes:
        labels: label_0 -> pairs.
        meetings: (model of picture 0, model of picture 1) -> pairs and the sum of their label_0.
    """

    labels: Counter[float] = dataclasses.field(default_factory=Counter)
    meetings: dict[tuple[str, str], tuple[int, float]] = dataclasses.field(default_factory=dict)

    def models(self, most: int | None = None) -> list[str]:
        """Names of the models.

        Args:
            most: only that many, those with the most pairs.

        Returns:
            Names, best average result first.
        """
        games, points = Counter[str](), defaultdict[str, float](float)
        for (first, second), (pairs, sum_of_labels) in self.meetings.items():
            games[first] += pairs
            games[second] += pairs
            points[first] += sum_of_labels
            points[second] += pairs - sum_of_labels
        busiest = [name for name, _ in games.most_common(most)]
        return sorted(busiest, key=lambda name: (-points[name] / games[name], name))

    def wins(self, models: list[str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Who beats whom.

        Args:
            models: names, M of them.

        Returns:
            (M, M) share of the pairs in which the row's model won against the column's, a tie as half, NaN where they
            never met; and (M, M) number of pairs.
        """
        place = {name: number for number, name in enumerate(models)}
        points, games = np.zeros((len(models),) * 2), np.zeros((len(models),) * 2, np.int64)
        for (first, second), (pairs, sum_of_labels) in self.meetings.items():
            if first in place and second in place:
                row, column = place[first], place[second]
                points[row, column] += sum_of_labels
                points[column, row] += pairs - sum_of_labels
                games[row, column] += pairs
                games[column, row] += pairs
        with np.errstate(invalid="ignore"):
            return np.where(games > 0, points / np.maximum(games, 1), np.nan), games


@dataclasses.dataclass
class Statistics:
    """Counts of a data set.

    Attributes:
        manifest: the data set.
        fields: field -> samples that have it.
        field_bytes: field -> bytes in all of them.
        sizes: stem of the picture field -> int64 (n, 2), height and width of every picture whose size is known.
        unknown_sizes: pictures whose header could not be read.
        classes: class -> samples.
        tasks: edit task -> samples.
        caption_lengths: characters of every caption, instruction or prompt.
        pairs: preference pairs; None = there are none.
        unreadable: samples whose JSON could not be read.
        damaged: one sentence per shard that could not be read to its end: which, and why.
    """

    manifest: Manifest
    fields: Counter[str] = dataclasses.field(default_factory=Counter)
    field_bytes: Counter[str] = dataclasses.field(default_factory=Counter)
    sizes: dict[str, npt.NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    unknown_sizes: int = 0
    classes: Counter[int] = dataclasses.field(default_factory=Counter)
    tasks: Counter[str] = dataclasses.field(default_factory=Counter)
    caption_lengths: list[int] = dataclasses.field(default_factory=list)
    pairs: PairStatistics | None = None
    unreadable: int = 0
    damaged: list[str] = dataclasses.field(default_factory=list)

    @property
    def class_entropy(self) -> float:
        """H = - sum_c q_c log q_c in nats, q_c = share of class c; log(number of classes) for equal shares."""
        total = sum(self.classes.values())
        return sum(n / total * math.log(total / n) for n in self.classes.values())

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values.

        Returns:
            The content of ``stats.json``.
        """
        out: dict[str, Any] = {
            "name": self.manifest.name,
            "source": self.manifest.source,
            "samples": self.manifest.total,
            "shards": len(self.manifest.shards),
            "bytes": sum(shard.bytes for shard in self.manifest.shards),
            "fields": {
                name: {"samples": n, "bytes": self.field_bytes[name]} for name, n in sorted(self.fields.items())
            },
            "sizes": {stem or "picture": _spread(sizes) for stem, sizes in self.sizes.items()},
            "unknown_sizes": self.unknown_sizes,
            "unreadable": self.unreadable,
            "damaged": self.damaged,
        }
        if self.classes:
            out["classes"] = {str(label): n for label, n in sorted(self.classes.items())}
            out["class_entropy"] = self.class_entropy
        if self.tasks:
            out["tasks"] = dict(sorted(self.tasks.items()))
        if self.caption_lengths:
            out["caption_characters"] = _quantiles(np.array(self.caption_lengths))
        if self.pairs is not None:
            models = self.pairs.models()
            rates, games = self.pairs.wins(models)
            out["labels"] = {f"{label:g}": n for label, n in sorted(self.pairs.labels.items())}
            out["models"] = models
            out["win_rate"] = [[None if math.isnan(rate) else rate for rate in row] for row in rates.tolist()]
            out["pairs"] = games.tolist()
        return out


def gather_statistics(
    manifest: Manifest, watch: Callable[[str, int, int], None] = lambda what, done, total: None
) -> Statistics:
    """Count.

    Args:
        manifest: the data set, on this machine.
        watch: gets the progress.

    Returns:
        The counts.

    Raises:
        ShardError: the shards are remote.
    """
    found = Statistics(manifest)
    sizes: dict[str, list[npt.NDArray[np.int64]]] = {}
    found.damaged = visit_samples(
        manifest,
        lambda reader, number: _count_index(found, reader, number, sizes),
        lambda reader, index: _count_record(found, reader, index),
        watch,
    )
    found.sizes = {stem: np.concatenate(arrays) for stem, arrays in sorted(sizes.items())}
    return found


def _count_index(
    found: Statistics, reader: IndexedShards, number: int, sizes: dict[str, list[npt.NDArray[np.int64]]]
) -> None:
    table = reader.index(number)
    there = table.sizes >= 0
    for column, field in enumerate(table.fields):
        found.fields[field] += int(there[:, column].sum())
        found.field_bytes[field] += int(table.sizes[there[:, column], column].sum())
    for field in picture_fields(table.fields):
        column = table.fields.index(field)
        shapes = np.stack([table.heights[:, column], table.widths[:, column]], 1).astype(np.int64)[there[:, column]]
        known = (shapes > 0).all(1)
        found.unknown_sizes += int((~known).sum())
        sizes.setdefault(field.rpartition(".")[0], []).append(shapes[known])


def _count_record(found: Statistics, reader: IndexedShards, index: int) -> None:
    try:
        record: dict[str, Any] = dict(json.loads(reader.field(index, "json") or b"{}"))
        label = record["label"] if "label" in record else reader.field(index, "cls")
        if label is not None:
            found.classes[int(label)] += 1
        if "label_0" in record:
            found.pairs = found.pairs or PairStatistics()
            _count_pair(found.pairs, record)
    except (ValueError, TypeError):
        found.unreadable += 1
        return
    caption = caption_of(record)
    if caption is not None:
        found.caption_lengths.append(len(caption))
    if record.get("task"):
        found.tasks[str(record["task"])] += 1


def _count_pair(pairs: PairStatistics, record: dict[str, Any]) -> None:
    label = float(record["label_0"])
    pairs.labels[label] += 1
    models = (record.get("model_0"), record.get("model_1"))
    if isinstance(models[0], str) and isinstance(models[1], str):
        met, points = pairs.meetings.get((models[0], models[1]), (0, 0.0))
        pairs.meetings[models[0], models[1]] = (met + 1, points + label)


def _spread(sizes: npt.NDArray[np.int64]) -> dict[str, Any]:
    if len(sizes) == 0:
        return {"pictures": 0}
    return {
        "pictures": len(sizes),
        "height": _quantiles(sizes[:, 0]),
        "width": _quantiles(sizes[:, 1]),
        "short_side": _quantiles(sizes.min(1)),
        "width_by_height": _quantiles(sizes[:, 1] / sizes[:, 0]),
    }


def _quantiles(values: npt.NDArray[Any]) -> dict[str, float]:
    names = ("least", "5 %", "median", "95 %", "most")
    found = np.quantile(values, (0, 0.05, 0.5, 0.95, 1)).tolist()
    return {**dict(zip(names, found, strict=True)), "mean": float(values.mean())}
