"""What is done of a cache of latents, kept so that an interrupted call can go on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning_gen.data.convert.gather import is_whole
from lightning_gen.data.convert.journal import Journal
from lightning_gen.data.index import replace_file
from lightning_gen.data.latents.fields import MIRRORED, PLAIN
from lightning_gen.data.latents.record import RECORD, LatentRecord
from lightning_gen.data.latents.statistics import ChannelMoments
from lightning_gen.data.manifest import Manifest, Shard
from lightning_gen.data.writing import describe_fields

__all__ = ["LEFT_OUT", "FinishedShard", "LatentJournal"]

LEFT_OUT = "quarantine.jsonl"
"""List of the pictures that could not be used, beside the manifest; empty where all could."""

_SCHEMA = {
    PLAIN: "latent: tokens row by row, each with its channels",
    MIRRORED: "latent of the mirror image",
    "json": "rows, cols, height, width, original_size, crop_top_left",
}


@dataclasses.dataclass(frozen=True)
class FinishedShard:
    """A shard of latents that is on the disk.

    Attributes:
        shard: its line of the manifest, None = no picture of it could be used.
        moments: of the numbers in it.
    """

    shard: Shard | None
    moments: ChannelMoments


class LatentJournal(Journal):
    """The working folder of a cache; beside the shards it keeps their statistics.

    The arguments are those of :class:`~lightning_gen.data.convert.journal.Journal`.
    """

    reports: ClassVar[tuple[str, ...]] = (LEFT_OUT, RECORD, "_info.json")

    def tar(self, number: int) -> Path:
        """Where a shard is written.

        Args:
            number: of the shard.

        Returns:
            A path in the working folder.
        """
        return self.work / f"{self.name}-{number:06d}.tar"

    def finished(self, number: int) -> FinishedShard | None:
        """Look for a shard.

        Args:
            number: of the shard.

        Returns:
            The shard, None = it was not finished, or its tar is gone.
        """
        path = self.tar(number).with_suffix(".json")
        if not path.is_file():
            return None
        data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        line = data["shard"]
        shard = None if line is None else Shard(**{**line, "alternates": tuple(line["alternates"])})
        if shard is not None and not is_whole(self.work, shard):
            return None
        return FinishedShard(shard, ChannelMoments.from_json(data["moments"]))

    def finish_shard(self, number: int, done: FinishedShard) -> None:
        """Write down that a shard is on the disk.

        Args:
            number: of the shard.
            done: what it holds.
        """
        shard = None if done.shard is None else dataclasses.asdict(done.shard)
        data = {"shard": shard, "moments": done.moments.to_json()}
        replace_file(self.tar(number).with_suffix(".json"), json.dumps(data, sort_keys=True).encode())

    def remove_halves(self) -> None:
        """Throw away shards that a killed process was writing."""
        for path in self.work.glob(".*.tmp"):
            path.unlink()

    def make_complete(self, source: Manifest, fields: Iterable[str], record: LatentRecord) -> None:
        """Write manifest and latents.json, now that all shards are there.

        Args:
            source: the pictures.
            fields: names of the fields that samples have.
            record: what was known before the first picture.

        Raises:
            DataError: not a single picture could be used.
        """
        done = [one for one in map(self.finished, range(len(source.shards))) if one is not None]
        lines = tuple(one.shard for one in done if one.shard is not None)
        samples = sum(shard.num_samples for shard in lines)
        self.require_samples(samples, f"none of {source.total} pictures could be used")
        moments = ChannelMoments.total(one.moments for one in done)
        whole = dataclasses.replace(
            record,
            samples=samples,
            left_out=source.total - samples,
            num_tokens=moments.count,
            mean=tuple(moments.mean.tolist()),
            std=tuple(moments.std.tolist()),
        )
        (self.work / LEFT_OUT).touch()
        whole.write(self.work)
        known = describe_fields(fields)
        schema = {field: _SCHEMA.get(field, meaning) for field, meaning in known.items()}
        what = f"latents of {source.name} by {record.autoencoder}"
        Manifest(self.name, self.out, lines, schema, what).write(self.work / "manifest.json")
