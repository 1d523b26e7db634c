"""Several data sets read as one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gen.data.manifest import Manifest
from lightning_gen.data.remote.urls import is_remote

__all__ = ["WeightedShards", "join_manifests", "weighted"]


@dataclasses.dataclass(frozen=True)
class WeightedShards:
    """One data set of a mixture.

    Attributes:
        shards: where it is: whatever may stand behind ``train`` alone.
        weight: its share of the training samples, relative to the other weights, > 0.
        name: what it is called in messages and in quarantine.jsonl; default its place in the list.
    """

    shards: str
    weight: float = 1.0
    name: str = ""


def weighted(train: str | Iterable[WeightedShards | Mapping[str, Any]] | None) -> list[WeightedShards]:
    """What a user wrote behind ``train`` as a list of sets.

    Args:
        train: a place, or several with weights (also as plain mappings), or None.

    Returns:
        The sets; those of a mixture have names.

    Raises:
        ValueError: a weight that is not positive, a name that is used twice or holds more than letters and digits.
    """
    if train is None or isinstance(train, str):
        return [] if train is None else [WeightedShards(train)]
    sets = [part if isinstance(part, WeightedShards) else WeightedShards(**dict(part)) for part in train]
    if not sets:
        raise ValueError("data.train is an empty list: name at least one set of shards")
    if len(sets) == 1:
        return [dataclasses.replace(sets[0], name="")]
    named = [dataclasses.replace(part, name=part.name or f"set{number}") for number, part in enumerate(sets)]
    names = [part.name for part in named]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names):
        raise ValueError(f"the sets of data.train need different names of letters, digits, _ and -, got {names}")
    if bad := [f"{part.name}: {part.weight}" for part in named if not 0 < part.weight < float("inf")]:
        raise ValueError(f"the weights of data.train must be positive, got {', '.join(bad)}")
    return named


def join_manifests(manifests: Sequence[Manifest], names: Sequence[str]) -> Manifest:
    """Lay data sets end to end.

    Args:
        manifests: at least one.
        names: of the sets.

    Returns:
        The manifest itself if there is one; else one with the shards of all, in order, marked with their sets.
    """
    if len(manifests) == 1:
        return manifests[0]
    shards = []
    for manifest, name in zip(manifests, names, strict=True):
        for number, shard in enumerate(manifest.shards):
            tar, *others = [_absolute(place) for place in manifest.tar_locations(number)]
            idx = _absolute(manifest.idx_location(number))
            shards.append(dataclasses.replace(shard, url=tar, idx=idx, alternates=tuple(others), set=name))
    # The shards stand by themselves: nothing is relative to the folder of one of the sets.
    return Manifest("+".join(names), manifests[0].folder, tuple(shards), manifests[0].schema, "a mixture")


def _absolute(location: str) -> str:
    return location if is_remote(location) else str(Path(location).absolute())
