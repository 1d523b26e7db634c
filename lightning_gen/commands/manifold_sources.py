"""What `lightning evaluate manifold` reads: tokenizers by name, labelled pictures, pictures with segment maps."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .evaluate_options import built, is_class_path

if TYPE_CHECKING:
    from lightning_gen.data.batches import ImageBatch
    from lightning_gen.metrics.segmented_pictures import SegmentedPictures

__all__ = [
    "LabelledPictures",
    "TokenizerSource",
    "generation_scores",
    "named_places",
    "open_labelled",
    "open_segmented",
    "tokenizer_sources",
]


class TokenizerSource(NamedTuple):
    """Where a tokenizer is.

    Attributes:
        kind: name of its class.
        weights: folder, hub id or published name.
        statistics: its latents.json; None = latents are measured as they come.
    """

    kind: str
    weights: str
    statistics: str | None

    def described(self) -> dict[str, str | None]:
        """What a report says about it.

        Returns:
            Class, weights and statistics, and for a folder the sha256 of its ``model.safetensors``.
        """
        from lightning_gen.metrics.protocol import file_sha256

        file = Path(self.weights).expanduser() / "model.safetensors"
        return {**self._asdict(), "sha256": file_sha256(file) if file.is_file() else None}

    def load(self) -> Any:
        """Load the tokenizer.

        Returns:
            A torch module with ``encode`` and ``decode``, in eval mode, on the CPU.

        Raises:
            ValueError: no such class, or one without these methods.
        """
        from torch import nn

        from lightning_gen.training.classes import class_named

        found = class_named(self.kind, "--tokenizers")
        if not all(hasattr(found, method) for method in ("from_pretrained", "encode", "decode")):
            raise ValueError(
                f"--tokenizers {self.kind} is no class with from_pretrained(source), encode(images) and decode(latents)"
            )
        tokenizer = found.from_pretrained(self.weights)
        if not isinstance(tokenizer, nn.Module):
            raise ValueError(f"--tokenizers {self.kind}: from_pretrained gives no torch module")
        return tokenizer.requires_grad_(False).eval()


def named_places(given: Sequence[str], option: str) -> dict[str, str]:
    """Read NAME=PLACE.

    Args:
        given: what was typed.
        option: for messages.

    Returns:
        Name -> place.

    Raises:
        ValueError: no such form, or a name twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not (name and equals and place):
            raise ValueError(f"{option} {text!r}: write NAME=PLACE")
        if name in found:
            raise ValueError(f"{option}: {name!r} is named twice")
        found[name] = place
    return found


def tokenizer_sources(given: Sequence[str], statistics: Sequence[str]) -> dict[str, TokenizerSource]:
    """Read --tokenizers and --statistics.

    Args:
        given: NAME=CLASS:WEIGHTS each.
        statistics: NAME=latents.json each, of tokenizers that are given.

    Returns:
        Name -> where it is.

    Raises:
        ValueError: another form, a name twice, or statistics of a name that is not there.
    """
    records = named_places(statistics, "--statistics")
    found: dict[str, TokenizerSource] = {}
    for name, place in named_places(given, "--tokenizers").items():
        kind, colon, weights = place.partition(":")
        if not (kind and colon and weights):
            raise ValueError(f"--tokenizers {name}={place}: write NAME=CLASS:WEIGHTS, e.g. sd=DiffusersVAE:weights/vae")
        found[name] = TokenizerSource(kind, weights, records.pop(name, None))
    if records:
        raise ValueError(f"--statistics names {', '.join(records)}, which --tokenizers does not")
    return found


class LabelledPictures:
    """Pictures with classes, cut to squares, each once.

    Args:
        where: folder whose first folders are classes; or shards, as in ``train:`` of a DataModule.
        resolution: edge of the square in pixels.
        count: the first so many; None = all.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there are fewer pictures.
    """

    def __init__(self, where: str, resolution: int, count: int | None = None) -> None:
        from lightning_gen.data.dataset import SampleDataset
        from lightning_gen.data.finding import find_manifest
        from lightning_gen.data.image_folder import LabelledFolder
        from lightning_gen.data.pixels import Framing, PixelRecipe
        from lightning_gen.data.shards import IndexedShards
        from lightning_gen.data.sources import PictureFields, ShardSource, Source, Stored

        path = Path(where)
        source: Source[Stored]
        if path.is_dir() and not _holds_shards(path):
            folder = LabelledFolder(where)
            source, self.fingerprint = folder, folder.fingerprint
        else:
            if not path.exists() and not any(mark in where for mark in "{#|:"):
                raise FileNotFoundError(f"there is no file or folder {where}, which --data names")
            manifest = find_manifest(where, progress=True)
            source = ShardSource(IndexedShards(manifest), PictureFields(None))
            self.fingerprint = manifest.fingerprint
        if count is not None and count > len(source):
            raise ValueError(f"{where} has {len(source):,} pictures, --count asks for {count:,}")
        self.count, self.where, self.resolution = count or len(source), where, resolution
        self._dataset = SampleDataset(source, PixelRecipe(Framing(), training=False), 0)

    def batches(self, size: int, num_workers: int) -> Iterator[ImageBatch]:
        """All pictures, in order.

        Args:
            size: pictures per batch.
            num_workers: processes that decode.

        Yields:
            Batches; what is not ``valid`` stands in the place of a picture that cannot be used.

        Raises:
            DataError: too many pictures cannot be used.
        """
        from lightning_gen.data.latents.reading import PictureSize, ShardBatches
        from lightning_gen.data.loader import BatchFactory
        from lightning_gen.data.quarantine import Quarantine

        plan = ShardBatches([self.count], [0], size, PictureSize(resolution=self.resolution))
        factory = BatchFactory(
            self._dataset, 0, 1, Quarantine(len(self._dataset)), pad_to="rank", num_workers=num_workers
        )
        with contextlib.closing(factory):
            yield from factory.batches(plan, 0, self.where)


def open_labelled(where: str | None, resolution: int, count: int | None) -> LabelledPictures | None:
    """Open --data.

    Args:
        where: what was typed; None = nothing.
        resolution: edge of the square.
        count: the first so many.

    Returns:
        The pictures, or None.
    """
    return None if where is None else LabelledPictures(where, resolution, count)


def _holds_shards(folder: Path) -> bool:
    return any(folder.glob("*.tar")) or any((folder / name).is_file() for name in ("manifest.json", "_info.json"))


def open_segmented(given: Sequence[str] | None) -> SegmentedPictures | None:
    """Open --segments.

    Args:
        given: a panoptic JSON and the folder of its pictures; shards with ``seg.png``; or a class and its source.

    Returns:
        The pictures, or None where nothing was given.

    Raises:
        ValueError: another number of words than the kind takes.
        FileNotFoundError: annotations, maps or pictures are missing.
    """
    if not given:
        return None
    from lightning_gen.metrics.segmented_pictures import ADE20KShards, CocoPanoptic

    first, *rest = given
    if len(rest) > 1:
        raise ValueError(f"--segments takes at most two words, got {' '.join(given)}")
    if is_class_path(first):
        made: SegmentedPictures = built(first, "--segments", rest[0] if rest else None)
        if not (hasattr(made, "read") and hasattr(made, "__len__")):
            raise ValueError(f"--segments {first}: such a class has __len__() and read(index, size)")
        return made
    if first.endswith(".json"):
        if not rest:
            raise ValueError(f"--segments {first}: name the folder of its pictures too: --segments {first} val2017/")
        return CocoPanoptic(first, rest[0])
    if rest:
        raise ValueError(f"--segments {first}: shards take no second word, got {rest[0]}")
    if not Path(first).exists() and "{" not in first:
        raise FileNotFoundError(
            f"there are no segment maps at {first}: give COCO's panoptic_val2017.json and the folder of its pictures, "
            "or shards of pictures with seg.png"
        )
    return ADE20KShards(first)


def generation_scores(path: str) -> dict[str, float]:
    """Read --against.

    Args:
        path: JSON, name of a variant -> gFID.

    Returns:
        The same.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such object.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no file {path}, which --against names")
    try:
        content: Any = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    plain = isinstance(content, Mapping) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        for value in content.values()
    )
    if not plain or not content:
        raise ValueError(f'{path} must hold one object, name of a variant -> gFID, e.g. {{"plain": 7.2, "kl": 5.1}}')
    return {str(name): float(value) for name, value in content.items()}
