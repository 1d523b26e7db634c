"""What a data set must have before anything is decoded from it."""

from __future__ import annotations

from typing import Any

from lightning_gen.data.quarantine import DataError
from lightning_gen.data.sources import PictureFields, ShardSource, Source

__all__ = ["require_labels"]


def require_labels(source: Source[Any], split: str, samples: int = 8) -> None:
    """Refuse shards without labels at once, instead of finding every sample bad by itself.

    Args:
        source: a data set; other things than shards are not judged.
        split: the argument that names it, for the message.
        samples: how many of the first samples to look at; one label among them is enough.

    Raises:
        DataError: none of them has a label; says which class takes pictures without.
    """
    if not isinstance(source, ShardSource):
        return
    plain = ShardSource(source.shards, PictureFields())
    looked = range(min(samples, len(plain)))
    for index in looked:
        try:
            if plain.read(index).label != -1:
                return
        except DataError:
            return  # A bad sample says nothing about the others, and is counted when it is asked for.
    shard, key = plain.name(0)
    raise DataError(
        f"data.{split}: the shards have no labels: none of the first {len(looked)} samples (key {key} of {shard}, ...) "
        "has cls, cls.txt or label in json. Use ShardDataModule, which takes pictures without labels, or pack them "
        "again with classes"
    )
